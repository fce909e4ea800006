"""The messages of a chat as one template reads them: where transformers' own form would not do, in another.

Knows what a `TemplateTraits` says of the template, and nothing of how it is rendered.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.text.json_object import JsonObject
from orcinus.engine.text.template_traits import TemplateTraits

Message = Mapping[str, Any]

_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_INSTRUCTING = ("system", "developer")
_JUDGED = ("query", "document")  # in a reranker's template
_SHORT_ID = re.compile("[A-Za-z0-9]{9}")


def prepare_messages(messages: Sequence[Message], traits: TemplateTraits) -> list[dict[str, Any]]:
    """Return the messages as the template reads them. Raises `InvalidRequestError` for parts that are no text.

    A pair to be judged is no chat, and stays as it is.
    """
    if any(message.get("role") in _JUDGED for message in messages):
        return [dict(message) for message in messages]
    prepared = _gather_instructions([_without_surprises(message) for message in messages], traits)
    prepared = _with_readable_ids(_in_turns(prepared, traits), traits)
    return [_with_content(message, traits) for message in prepared]


def _without_surprises(message: Message) -> dict[str, Any]:
    """Return a message as transformers gives it: no nulls, reasoning under its common names; arguments are objects."""
    prepared = {key: value for key, value in message.items() if value is not None}
    reasoning = next((prepared[key] for key in _REASONING_KEYS if key in prepared), None)
    if reasoning is not None:
        prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
    if isinstance(content := prepared.get("content"), list):
        prepared["content"] = [_text_part(part) for part in content]
    if isinstance(calls := prepared.get("tool_calls"), list):
        prepared["tool_calls"] = [_with_object_arguments(call) for call in calls]
        if not calls:
            del prepared["tool_calls"]
    return prepared


def _text_part(part: Any) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type")
    text = part.get("refusal" if kind == "refusal" else "text")
    if kind not in ("text", "refusal") or not isinstance(text, str):
        raise InvalidRequestError(f"content parts must be of type text, got {kind}", "messages")
    return {"type": "text", "text": text}


def _with_object_arguments(call: Any) -> Any:
    """Return a call whose arguments are an object that is written as the client wrote it."""
    function = call.get("function")
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    return {**call, "function": {**function, "arguments": _read_arguments(function["arguments"])}}


def _read_arguments(arguments: Any) -> Any:
    """Return arguments as an object; what is no object of JSON stays as it is."""
    if isinstance(arguments, dict):
        return JsonObject(arguments)
    if not isinstance(arguments, str):
        return arguments
    text = arguments if arguments.strip() else "{}"
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return arguments
    return JsonObject(values, text) if isinstance(values, dict) else arguments


def _gather_instructions(messages: list[dict[str, Any]], traits: TemplateTraits) -> list[dict[str, Any]]:
    """Give system messages the places that the template takes.

    Those of the opening, before the assistant speaks, are one leading message where it takes no others. A later one
    keeps its place, as a part of what the user says where it has to: before it nothing may change that is cached.
    """
    start = next((index for index, message in enumerate(messages) if message.get("role") == "assistant"), len(messages))
    opening = _gather_opening(messages[:start], traits)
    return opening + [_as_reminder(message, traits) for message in messages[start:]]


def _as_reminder(message: dict[str, Any], traits: TemplateTraits) -> dict[str, Any]:
    """Return a system message between the turns as a user's, between the tags that coding agents use for it."""
    if message.get("role") not in _INSTRUCTING or not _shows_instructions(traits) or traits.takes_later_system_message:
        return message
    text = _as_text(message.get("content", "")).strip("\n")
    return {"role": "user", "content": f"<system-reminder>\n{text}\n</system-reminder>"}


def _shows_instructions(traits: TemplateTraits) -> bool:
    return traits.reads_text("system") or traits.reads_parts("system")


def _gather_opening(messages: list[dict[str, Any]], traits: TemplateTraits) -> list[dict[str, Any]]:
    """Make one leading system message of several, or of later ones, where the template takes no others."""
    places = [index for index, message in enumerate(messages) if message.get("role") in _INSTRUCTING]
    num_leading = next((n for n, index in enumerate(places) if n != index), len(places))
    takes_row = num_leading <= 1 or traits.takes_system_messages_in_a_row
    takes_later = num_leading == len(places) or traits.takes_later_system_message
    if (takes_row and takes_later) or not _shows_instructions(traits):
        return messages
    text = "\n\n".join(_as_text(messages[index].get("content", "")) for index in places)
    others = [message for message in messages if message.get("role") not in _INSTRUCTING]
    return [{"role": "system", "content": text}, *others]


def _in_turns(messages: list[dict[str, Any]], traits: TemplateTraits) -> list[dict[str, Any]]:
    """Join messages that follow one another where the template wants turns. The user's joins the result of a tool."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if turns and _belong_together(turns[-1], message, traits):
            turns[-1] = _joined(turns[-1], message)
        else:
            turns.append(message)
    return turns


def _belong_together(earlier: dict[str, Any], later: dict[str, Any], traits: TemplateTraits) -> bool:
    """Return whether the template refuses the second message after the first, and takes both as one."""
    match earlier.get("role"), later.get("role"):
        case "user", "user":
            return not traits.takes_turns_in_a_row("user")
        case "assistant", "assistant":
            has_calls = "tool_calls" in earlier or "tool_calls" in later
            return not has_calls and not traits.takes_turns_in_a_row("assistant")
        case "tool", "user":
            return not traits.takes_user_after_tool
    return False


def _joined(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Return one message of both texts, with a blank line between them: the earlier one, in all else."""
    texts = {}
    for name in ("content", *_REASONING_KEYS):
        if given := [_as_text(message[name]) for message in (earlier, later) if name in message]:
            texts[name] = "\n\n".join(filter(None, given))
    return {**earlier, **texts}


def _with_readable_ids(messages: list[dict[str, Any]], traits: TemplateTraits) -> list[dict[str, Any]]:
    """Give calls and their results ids of nine letters and digits where the template takes no others."""
    calls = [call for message in messages for call in _calls_of(message)]
    ids = [*(call.get("id") for call in calls), *(message.get("tool_call_id") for message in messages)]
    if all(_short_id(given) == given for given in ids) or traits.takes_any_call_id:
        return messages
    return [_with_short_ids(message) for message in messages]


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    changed = dict(message)
    if "tool_call_id" in message:
        changed["tool_call_id"] = _short_id(message["tool_call_id"])
    if calls := _calls_of(message):
        changed["tool_calls"] = [{**call, "id": _short_id(call["id"])} if "id" in call else call for call in calls]
    return changed


def _calls_of(message: Message) -> list[Any]:
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list) else []


def _short_id(given: Any) -> Any:
    """Return the id itself where it is short, and else one that is the same for the same id."""
    if not isinstance(given, str) or _SHORT_ID.fullmatch(given):
        return given
    return hashlib.sha256(given.encode(errors="surrogatepass")).hexdigest()[:9]


def _with_content(message: dict[str, Any], traits: TemplateTraits) -> dict[str, Any]:
    """Give the message its content in a form that the template reads."""
    role, content = str(message.get("role")), message.get("content")
    has_calls = "tool_calls" in message
    if content is None or (content == "" and has_calls and traits.absent_content == "null"):
        return _without_content(message, traits, has_calls=has_calls)
    if isinstance(content, list):
        return message if traits.reads_parts(role) else {**message, "content": _as_text(content)}
    if isinstance(content, str) and not traits.reads_text(role) and traits.reads_parts(role):
        return {**message, "content": [{"type": "text", "text": content}]}
    return message


def _without_content(message: dict[str, Any], traits: TemplateTraits, *, has_calls: bool) -> dict[str, Any]:
    if message.get("role") != "assistant" or traits.absent_content == "left out":
        return message
    return {**message, "content": None if has_calls and traits.absent_content == "null" else ""}


def _as_text(content: Any) -> str:
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else str(content)
