"""A model's chat template: messages in, prompt text out, rendered in a sandbox and within limits.

Gives templates what transformers gives them, so that a model's own template renders here as it does there
(https://huggingface.co/docs/transformers/chat_templating). Knows nothing of token ids.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.text.bounded_template import bounded_template, unbounded_template
from orcinus.engine.text.template_process import Job, render_in_child
from orcinus.engine.text.template_sandbox import RenderLimitError, UnboundedCostError, allowance, has_time_limit

Message = Mapping[str, Any]

RESERVED_NAMES = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
# Private-use characters, which no message has by accident. The space shows whether the template trims the content.
_CONTINUE_MARK = "\ue000continue here\ue001 "
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled template. `special_tokens` are its variables `bos_token`, `eos_token`, and so on.

    Raises `jinja2.TemplateSyntaxError` if the source is no template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        self.source = source
        self._template = self._compile(source)
        self._special_tokens = dict(special_tokens)

    def _compile(self, source: str) -> Template:
        return bounded_template(source)

    def render(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Return the prompt for `messages`. `variables` reach the template, but cannot replace what is set here.

        With `continue_final_message` the prompt ends inside the last message, for the model to go on with it.
        Raises `InvalidRequestError` with the template's own words if it refuses the messages, and `RenderLimitError` if
        it takes too long over them or makes too much of them. If it may do either, it is rendered in a process of its
        own, unless within `engine.text.template_sandbox.time_limit`, which leaves no time for that.
        """
        options = {
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            **variables,
        }
        try:
            return self._render_messages(messages, **options)
        except UnboundedCostError:
            if has_time_limit():
                raise
        return self._render_in_child(messages, options)

    def _render_in_child(self, messages: Sequence[Message], options: dict[str, Any]) -> str:
        return render_in_child(Job(self.source, self._special_tokens, [*messages], options))

    def _render_messages(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        **variables: Any,
    ) -> str:
        self._check_variables(variables)
        _check_messages(messages, add_generation_prompt, continue_final_message)
        prepared = [_prepare(message) for message in messages]
        if not self._reads_parts:
            prepared = [_flatten_content(message) for message in prepared]
        if continue_final_message:
            _mark_final_message(prepared)
        text = self._render(
            {
                "documents": None,
                **variables,
                "messages": prepared,
                "tools": tools,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _cut_at_mark(text) if continue_final_message else text

    def _check_variables(self, variables: Mapping[str, Any]) -> None:
        given = RESERVED_NAMES | self._special_tokens.keys() | self._template.globals.keys()
        reserved = sorted(given & variables.keys())
        if reserved:
            raise InvalidRequestError(
                f"chat_template_kwargs must not set {', '.join(reserved)}", "chat_template_kwargs"
            )

    def _render(self, variables: Mapping[str, Any]) -> str:
        """Run the template and turn its exceptions into ours: a program of strangers may raise anything."""
        try:
            with allowance():
                return self._template.render({**self._special_tokens, **variables})
        except RenderLimitError:
            raise
        except TemplateError as error:
            raise InvalidRequestError(f"the chat template refused the messages: {error.message}", "messages") from error
        except MemoryError as error:
            raise RenderLimitError("the chat template takes too much memory on these messages", "messages") from error
        except Exception as error:
            raise InvalidRequestError(
                f"the chat template failed on the messages: {type(error).__name__}: {error}", "messages"
            ) from error

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template understands content given as a list of parts, found out by trying."""
        probe = [{"role": "user", "content": [{"type": "text", "text": "\ue000"}]}]
        try:
            text = self._render({"messages": probe, "tools": None, "add_generation_prompt": False})
        except RenderLimitError:
            raise  # another try may have more time
        except InvalidRequestError:
            return False
        return "\ue000" in text and "'text'" not in text and '"text"' not in text


class _UnboundedTemplate(ChatTemplate):
    """A template that is bounded by nothing but the process that it is in."""

    def _compile(self, source: str) -> Template:
        return unbounded_template(source)


def render_unbounded(job: Job) -> str:
    """Render without bounds; to be called in a process of its own. Raises what `ChatTemplate.render` raises."""
    return _UnboundedTemplate(job.source, job.special_tokens).render(job.messages, **job.options)


def _check_messages(messages: Sequence[Message], add_generation_prompt: bool, continue_final_message: bool) -> None:
    if not messages:
        raise InvalidRequestError("messages must have at least one message, got none", "messages")
    if not continue_final_message:
        return
    if add_generation_prompt:
        raise InvalidRequestError(
            "continue_final_message continues the last message and add_generation_prompt begins a new one: "
            "only one of them can be true",
            "continue_final_message",
        )
    if messages[-1].get("content") is None:
        raise InvalidRequestError("continue_final_message needs a last message with content", "continue_final_message")


def _prepare(message: Message) -> dict[str, Any]:
    """Return a message as templates expect it: no nulls, reasoning under its common names, arguments as objects."""
    prepared = {key: value for key, value in message.items() if value is not None}
    reasoning = next((prepared[key] for key in _REASONING_KEYS if key in prepared), None)
    if reasoning is not None:
        prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
    if isinstance(content := prepared.get("content"), list):
        prepared["content"] = [_text_part(part) for part in content]
    if isinstance(calls := prepared.get("tool_calls"), list):
        prepared["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
    return prepared


def _text_part(part: Any) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type")
    text = part.get("refusal" if kind == "refusal" else "text")
    if kind not in ("text", "refusal") or not isinstance(text, str):
        raise InvalidRequestError(f"content parts must be of type text, got {kind}", "messages")
    return {"type": "text", "text": text}


def _with_parsed_arguments(call: Any) -> Any:
    """Return a call whose arguments are an object: OpenAI sends JSON text, but templates write the JSON themselves."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _flatten_content(message: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(content := message.get("content"), list):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}


def _mark_final_message(messages: list[dict[str, Any]]) -> None:
    """Mark where the last content ends: templates add closing tokens after it, and may strip it."""
    final = messages[-1]
    if isinstance(final["content"], str):
        final["content"] += _CONTINUE_MARK
    elif final["content"]:
        final["content"][-1]["text"] += _CONTINUE_MARK


def _cut_at_mark(text: str) -> str:
    before, mark, after = text.rpartition(_CONTINUE_MARK.rstrip())
    if not mark:
        raise InvalidRequestError(
            "continue_final_message: the chat template leaves out or changes the last message", "continue_final_message"
        )
    return before if after.startswith(" ") else before.rstrip()
