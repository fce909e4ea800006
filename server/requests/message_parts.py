"""The content of a chat's message as texts alone, by one name; an assistant's thoughts go where its reasoning is."""

from collections.abc import Mapping
from typing import Any

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.errors import shown
from orcinus.server.json_values import read_string
from orcinus.server.requests.left_out import leave_out

_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "reasoning")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def with_text_parts(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the message with a text or parts of text as content. Raises `InvalidRequestError` for other parts.

    Thoughts among an assistant's parts become its `reasoning_content`, unless the message has them there as well.
    """
    content, inside = message.get("content", ""), f"{where}.content"
    if isinstance(content, str):
        return dict(message)
    if not isinstance(content, list):
        raise InvalidRequestError(f"{inside} must be a string or a list of parts, got {shown(content)}", inside)
    thoughts: list[str] = []
    texts: list[dict[str, str]] = []
    for index, part in enumerate(content):
        place, kind = f"{inside}[{index}]", part.get("type") if isinstance(part, dict) else None
        if message.get("role") == "assistant" and kind in _THOUGHTS:
            thoughts.append(_read_thought(part, kind, place))
        elif message.get("role") == "assistant" and kind == "redacted_thinking":
            leave_out(f"{place}={kind}")
        else:
            texts.append(_read_part(part, kind, place))
    changed = {**message, "content": texts}
    if content and not texts:
        del changed["content"]
    if thoughts and not any(name in message for name in _REASONING_KEYS):
        changed["reasoning_content"] = "\n".join(thoughts)
    return changed


def _read_part(part: Any, kind: Any, where: str) -> dict[str, str]:
    if kind not in (*_TEXTS, "refusal"):
        raise InvalidRequestError(f"{where}: this model takes text only, got a part of type {shown(kind)}", where)
    if kind == "refusal":
        return {"type": "refusal", "refusal": read_string(part, "refusal", where)}
    return {"type": "text", "text": read_string(part, "text", where)}


def _read_thought(part: Mapping[str, Any], kind: str, where: str) -> str:
    """Return a thought: a text by the name of its kind or by `text`, or, as Mistral has it, parts of text."""
    name = kind if part.get(kind) is not None else "text"
    value = part.get(name)
    if not isinstance(value, list):
        return read_string(part, name, where)
    return "".join(
        _read_part(text, text.get("type") if isinstance(text, dict) else None, f"{where}.{name}[{index}]").get(
            "text", ""
        )
        for index, text in enumerate(value)
    )
