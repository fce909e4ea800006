"""A model's chat template: messages in, prompt text out, rendered in a sandbox and within limits.

Gives templates what transformers gives them, so that a model's own template renders here as it does there
(https://huggingface.co/docs/transformers/chat_templating). Knows nothing of token ids.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.text.bounded_template import bounded_template, unbounded_template
from orcinus.engine.text.conversation import Message, prepare_messages
from orcinus.engine.text.template_process import Job, render_in_child
from orcinus.engine.text.template_sandbox import RenderLimitError, UnboundedCostError, allowance, has_time_limit
from orcinus.engine.text.template_traits import TemplateTraits

RESERVED_NAMES = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
# Private-use characters, which no message has by accident. The space shows whether the template trims the content.
_CONTINUE_MARK = "\ue000continue here\ue001 "


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

    @property
    def reads_pairs(self) -> bool:
        """Whether it is a reranker's, which reads a query and a document in messages of these roles."""
        try:
            return self._traits.reads_pairs
        except RenderLimitError:  # nothing of a reranker's
            return False

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
        if tools:
            self._check_tools()
        prepared = prepare_messages(messages, self._traits)
        if continue_final_message:
            _mark_final_message(prepared, messages[-1])
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

    def _check_tools(self) -> None:
        if not self._traits.shows_tools:
            raise InvalidRequestError(
                "the chat template does not show the model any tools: start the server with one that does "
                "(--chat-template)",
                "tools",
            )

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
    def _traits(self) -> TemplateTraits:
        return TemplateTraits(self._render_trial)

    def _render_trial(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        return self._render({"documents": None, "messages": messages, "tools": tools, "add_generation_prompt": False})


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


def _mark_final_message(messages: list[dict[str, Any]], given: Message) -> None:
    """Mark where the content of the last message `given` ends: closing tokens come after it, and it may be stripped."""
    final = messages[-1]
    if final.get("role") != given.get("role"):
        place = "after a tool's result" if given.get("role") == "user" else "only at the beginning"
        takes = "takes no user message" if given.get("role") == "user" else f"takes a {given.get('role')} message"
        raise InvalidRequestError(
            f"continue_final_message: the chat template {takes} {place}", "continue_final_message"
        )
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
