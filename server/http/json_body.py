"""Request bodies as JSON objects: strict, bounded in depth, and every way to get it wrong is a 400.

Depth and numbers of parts are checked on the raw bytes, before anything is built from them. `msgspec` refuses NaN,
Infinity, numbers out of range, lone surrogates and bytes that are not UTF-8. Names that occur twice are refused where
the parameters are, at the top: which of the two was meant cannot be known.

Long bodies are worked on in a thread, and in steps: a regular expression lets no other thread run until it is done.
"""

import re
from functools import partial
from typing import Any

import msgspec

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.frontend.turns import FairThreads

MAX_DEPTH = 64
MAX_PARTS = 200_000  # strings, lists and objects
MAX_ENTRIES = 1_200_000  # of all lists and objects together: most of them numbers, which are cheap
OFF_LOOP_BYTES = 64 * 1024  # from here on, parsing takes long enough to be felt by other requests

_STEP_BYTES = 64 * 1024
_MARK = re.compile(rb'["\[\]{}]')
_INSIDE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)  # possessive, so that no input makes it backtrack
_COLON = re.compile(rb"\s*+:")
_QUOTE = ord('"')
_OPENING = frozenset(b"[{")


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Return the object that the body holds. Raises `InvalidRequestError`."""
    num_names = _scan(body)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"the body must be a JSON object, got {_json_type(value)}")
    if len(value) != num_names:
        raise InvalidRequestError("the body has a parameter more than once")
    return value


class JsonReader:
    """Parses bodies, long ones off the event loop. Clients take turns there."""

    def __init__(self) -> None:
        self._threads = FairThreads(1, "json")  # one alone: each more is one more that the event loop waits for

    async def parse_object(self, body: bytes) -> dict[str, Any]:
        """Call `parse_json_object`."""
        if len(body) < OFF_LOOP_BYTES:
            return parse_json_object(body)
        return await self._threads.run(partial(parse_json_object, body))


def _scan(body: bytes) -> int:
    """Return how many names the outermost object has. Raises where it nests too deep or has too much in it."""
    depth = num_names = num_marks = num_entries = end = 0
    while (start := _next_mark(body, end)) < len(body):
        num_entries += body.count(b",", end, start)
        num_marks += 1
        end = start + 1
        if body[start] in _OPENING:
            depth += 1
        elif body[start] != _QUOTE:
            depth -= 1
        else:
            end = _end_of_string(body, end) + 1
            num_names += depth == 1 and _COLON.match(body, end) is not None
        _check_bounds(depth, num_marks, num_entries)
    _check_bounds(depth, num_marks, num_entries + body.count(b",", end))
    return num_names


def _check_bounds(depth: int, num_marks: int, num_entries: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidRequestError(f"the body nests deeper than {MAX_DEPTH} levels")
    if num_marks > 2 * MAX_PARTS:  # a bracket comes twice, a name with its value
        raise InvalidRequestError(f"the body has more than {MAX_PARTS} strings, lists and objects")
    if num_entries > MAX_ENTRIES:
        raise InvalidRequestError(f"the lists and objects of the body have more than {MAX_ENTRIES} entries")


def _next_mark(body: bytes, start: int) -> int:
    """Return where the next quote or bracket is, or the end."""
    while start < len(body):
        if (match := _MARK.search(body, start, start + _STEP_BYTES)) is not None:
            return match.start()
        start += _STEP_BYTES
    return len(body)


def _end_of_string(body: bytes, start: int) -> int:
    """Return where the closing quote is, or the end. A step that ends within an escape leaves it to the next."""
    while True:
        match = _INSIDE.match(body, start, start + _STEP_BYTES)
        assert match is not None
        if match.end() < start + _STEP_BYTES - 1:
            return match.end()
        start = match.end()


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
