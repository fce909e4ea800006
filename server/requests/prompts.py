"""From what a client sends as prompt or messages to token ids.

Checks the shape of both; what the tokenizer and the chat template make of them is the engine's business, and what
fits the model is checked at admission.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.context import ServingEngine, ServingTokenizer
from orcinus.server.errors import shown
from orcinus.server.json_values import without_nulls
from orcinus.server.requests.billing_line import without_billing_lines
from orcinus.server.requests.message_parts import with_text_parts
from orcinus.server.requests.schemas import MAX_PROMPTS, ROLES

# What the server sets for the template itself, and what Python would take for an argument of its own.
_RESERVED_VARIABLES = frozenset(
    {
        "self",
        "messages",
        "add_special_tokens",
        "tools",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
    }
)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the engine takes it. `text` is None if it came as token ids, or was cut."""

    token_ids: list[int]
    text: str | None = None

    def read_text(self, tokenizer: ServingTokenizer) -> str:
        """Return the prompt as text, decoded if need be."""
        return tokenizer.decode(self.token_ids) if self.text is None else self.text

    def keep_last(self, num_tokens: int | None) -> "EncodedPrompt":
        if num_tokens is None or len(self.token_ids) <= num_tokens:
            return self
        return EncodedPrompt(self.token_ids[len(self.token_ids) - num_tokens :])


async def encode_prompts(
    engine: ServingEngine,
    prompt: Any,
    *,
    add_special_tokens: bool,
    num_kept: int | None,
    max_tokens: int | None,
    field: str = "prompt",
    limit: int = MAX_PROMPTS,
) -> list[EncodedPrompt]:
    """Tokenize what `field` holds: a string, strings, token ids, or lists of them; keep the last `num_kept` of each.

    Raises `InvalidRequestError`, and `ContextLengthError` at the first that does not fit with `max_tokens`.
    """
    prompts = []
    for part in _split_prompts(prompt, field, limit):
        encoded = (await _encode_part(engine, part, add_special_tokens)).keep_last(num_kept)
        engine.check_context(len(encoded.token_ids), max_tokens)
        prompts.append(encoded)
    return prompts


async def _encode_part(engine: ServingEngine, part: Any, add_special_tokens: bool) -> EncodedPrompt:
    if not isinstance(part, str):
        return EncodedPrompt(part)
    await asyncio.sleep(0)  # each may be short and all of them long
    return EncodedPrompt(await engine.encode(part, add_special_tokens=add_special_tokens), part)


async def encode_chat(
    engine: ServingEngine,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool | None,
    continue_final_message: bool,
    add_special_tokens: bool,
    variables: dict[str, Any],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> EncodedPrompt:
    """Return the prompt that the chat template makes of the messages. Raises `InvalidRequestError`."""
    _check_variables(variables)
    prepared = without_billing_lines([_check_message(message, i) for i, message in enumerate(messages)])
    if add_generation_prompt is None:
        add_generation_prompt = not continue_final_message
    return EncodedPrompt(
        await engine.render_and_encode(
            prepared,
            add_special_tokens=add_special_tokens,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            **variables,
        )
    )


def _split_prompts(prompt: Any, field: str, limit: int) -> list[Any]:
    """Return a list of strings and of lists of integers."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise _wrong_prompt(prompt, field)
    if _are_ids(prompt):
        return [prompt]
    if len(prompt) > limit:
        raise InvalidRequestError(f"{field} takes at most {limit} entries, got {len(prompt)}", field)
    if not all(isinstance(part, str) or (isinstance(part, list) and _are_ids(part)) for part in prompt):
        raise _wrong_prompt(prompt, field)
    return prompt


def _are_ids(values: list[Any]) -> bool:
    return all(type(value) is int for value in values)  # a bool is no token id


def _wrong_prompt(prompt: Any, field: str) -> InvalidRequestError:
    got = "an empty list" if prompt == [] else shown(prompt)
    return InvalidRequestError(
        f"{field} must be a string, a list of strings, a list of token ids or a list of those, got {got}", field
    )


def _check_variables(variables: dict[str, Any]) -> None:
    if reserved := sorted(_RESERVED_VARIABLES & variables.keys()):
        raise InvalidRequestError(f"chat_template_kwargs must not set {', '.join(reserved)}", "chat_template_kwargs")


def _check_message(message: dict[str, Any], index: int) -> dict[str, Any]:
    """Return the message, checked, less its nulls; a developer's message is what system messages are called now."""
    where = f"messages[{index}]"
    message = without_nulls(message)
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequestError(f"{where}.role must be one of {', '.join(ROLES)}, got {shown(role)}", f"{where}.role")
    if "content" not in message and role in ("tool", "function"):
        message["content"] = ""  # of a tool that had nothing to say
    if "content" not in message and role != "assistant":
        raise InvalidRequestError(f"{where}.content is required for role {role}", f"{where}.content")
    message = with_text_parts(message, where)
    _check_tool_calls(message.get("tool_calls", []), f"{where}.tool_calls")
    return {**message, "role": "system"} if role == "developer" else message


def _check_tool_calls(calls: Any, where: str) -> None:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InvalidRequestError(f"{where} must be a list of objects", where)
    for i, call in enumerate(calls):
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequestError(f"{where}[{i}].function must be an object with a name", f"{where}[{i}].function")
        if not isinstance(function.get("arguments"), (str, dict)):
            param = f"{where}[{i}].function.arguments"
            raise InvalidRequestError(f"{param} must be the arguments as JSON text", param)
