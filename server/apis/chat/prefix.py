"""`prefix` of a message, by which clients of DeepSeek and Mistral say that the model goes on with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.errors import shown


def without_prefix(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """Return the messages without `prefix`, and whether the last one is to be continued.

    Raises `InvalidRequestError` where another message is said to be, or one that is not the assistant's.
    """
    for index, message in enumerate(messages):
        is_last = index == len(messages) - 1
        _check_prefix(message, f"messages[{index}]", may_be=is_last and message.get("role") == "assistant")
    kept = [{name: value for name, value in message.items() if name != "prefix"} for message in messages]
    return kept, bool(messages) and messages[-1].get("prefix") is True


def _check_prefix(message: Mapping[str, Any], where: str, *, may_be: bool) -> None:
    prefix = message.get("prefix")
    if prefix is not None and not isinstance(prefix, bool):
        raise InvalidRequestError(f"{where}.prefix must be a boolean, got {shown(prefix)}", f"{where}.prefix")
    if prefix and not may_be:
        raise InvalidRequestError(
            f"{where}.prefix: only the last message is continued, and only the assistant's", f"{where}.prefix"
        )
