"""The line of accounting that Claude Code puts before its instructions, and that is no instruction.

It has another value in every conversation, and of some versions in every request, and stands before all that requests
have in common. Proxies hand it on in whatever API they speak, so that it is looked for in every chat.
"""

import re
from collections.abc import Sequence
from typing import Any

from orcinus.server.requests.left_out import leave_out

_NAME = "x-anthropic-billing-header"
_PAIR = r"[ \t]*[\w-]+=[^;\s]*"
_LINE = re.compile(rf"{_NAME}:{_PAIR}(?:;{_PAIR})*;?[ \t]*\r?(?:\n|\Z)")
_INSTRUCTING = ("system", "developer")


def without_billing_lines(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages of a chat without the lines that system messages begin with. Texts that mention it stay.

    A message that was nothing else is left out, unless it is the only one.
    """
    kept = [_without_line(message) for message in messages]
    if all(before is after for before, after in zip(messages, kept, strict=True)):
        return kept
    leave_out(_NAME)
    changed = [after for before, after in zip(messages, kept, strict=True) if before is after or after["content"]]
    return changed or kept


def _without_line(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message itself where it has no such line."""
    if message.get("role") not in _INSTRUCTING:
        return message
    content = message.get("content")
    if isinstance(content, str):
        match = _LINE.match(content)
        return message if match is None else {**message, "content": content[match.end() :]}
    match = _LINE.match(content[0].get("text", "")) if content else None
    if content is None or match is None:
        return message
    rest = content[0]["text"][match.end() :]
    return {**message, "content": [*([{**content[0], "text": rest}] if rest else []), *content[1:]]}
