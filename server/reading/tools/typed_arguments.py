"""Arguments as JSON, of which strings are cast to what the tool's schema asks for while they are written.

A model that writes `{"days": "3"}` for an integer means 3. Only the values of the arguments themselves are looked at;
one whose schema is that of a string, or says nothing, is handed on as it comes.
"""

import json
import re
from collections.abc import Callable, Collection
from typing import Any

from orcinus.server.reading.incoming_text import IncomingText, Reading
from orcinus.server.reading.tools.json_values import Give, mended_object, read_brackets, read_string

Cast = Callable[[str, Any], Any]  # of an argument's name and its value

_SCALAR = re.compile(r"[^\s,}\]]+")


def read_typed_arguments(text: IncomingText, give: Give, cast: Cast, casts: Collection[str]) -> Reading[None]:
    """Give away an object, with the strings and lists among the arguments in `casts` cast. The rest is unchanged."""
    yield from _copy_space(text, give)
    if (yield from text.peek()) == "{":
        give(text.take())
        while (yield from _read_member(text, give, cast, casts)):
            pass
    yield from text.read_rest(give)


def as_json(value: Any) -> str:
    """Return a value as JSON that can be written as UTF-8. What JSON has no numbers for becomes null."""
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        written = (mended_object(json.dumps({"": value})) or '{"": null}')[5:-1]
    try:
        written.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which was escaped
        return json.dumps(value)
    return written


def _read_member(text: IncomingText, give: Give, cast: Cast, casts: Collection[str]) -> Reading[bool]:
    """Read a name, its value and the comma after it. Returns whether another member follows."""
    yield from _copy_space(text, give)
    if (yield from text.peek()) != '"':
        return False
    parts: list[str] = []
    yield from read_string(text, parts.append)
    give("".join(parts))
    yield from _copy_space(text, give)
    if (yield from text.peek()) != ":":
        return False
    give(text.take())
    yield from _copy_space(text, give)
    name = _loaded("".join(parts))
    if name in casts:
        yield from _read_cast_value(text, give, lambda value: cast(name, value))
    else:
        yield from _read_value(text, give)
    yield from _copy_space(text, give)
    if (yield from text.peek()) != ",":
        return False
    give(text.take())
    return True


def _read_cast_value(text: IncomingText, give: Give, cast: Callable[[Any], Any]) -> Reading[None]:
    parts: list[str] = []
    yield from _read_value(text, parts.append)
    written = "".join(parts)
    value = _loaded(written) if written[:1] in ('"', "[") else None
    after = cast(value) if isinstance(value, str | list) else value
    if text.is_cut and not (yield from text.peek()):
        return
    give(written if after == value else as_json(after))


def _read_value(text: IncomingText, give: Give) -> Reading[None]:
    char = yield from text.peek()
    if char == '"':
        yield from read_string(text, give)
    elif char in ("{", "["):
        yield from read_brackets(text, give)
    else:
        give((yield from text.take_all(_SCALAR)))


def _copy_space(text: IncomingText, give: Give) -> Reading[None]:
    if space := (yield from text.take_space()):
        give(space)


def _loaded(written: str) -> Any:
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return None
