"""Request bodies as JSON objects: strict, bounded in depth, and every way to get it wrong is a 400.

Depth and numbers of parts are checked on the raw bytes, before anything is built from them. `msgspec` refuses NaN,
Infinity, numbers out of range, lone surrogates and bytes that are not UTF-8. Names that occur twice are refused where
the parameters are, at the top: which of the two was meant cannot be known.

Long bodies are worked on in a thread, and in steps: a regular expression lets no other thread run until it is done.
"""

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.frontend.turns import FairSemaphore, FairThreads, current_client

MAX_DEPTH = 64
_BOM = b"\xef\xbb\xbf"  # some clients begin UTF-8 with it
MAX_PARTS = 200_000  # strings, lists and objects
MAX_ENTRIES = 1_200_000  # of all lists and objects together: most of them numbers, which are cheap
OFF_LOOP_BYTES = 64 * 1024  # from here on, parsing takes long enough to be felt by other requests

_STEP_BYTES = 64 * 1024
_IN_TURN_BYTES = 2 * 1024  # from here on, many bodies at once are felt
_INSIDE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)  # possessive, so that no input makes it backtrack
_STRING = re.compile(rb'"%b"' % _INSIDE.pattern, re.DOTALL)
_WHOLE = re.compile(rb'(?:[^"]++|%b)*+' % _STRING.pattern, re.DOTALL)  # up to a string that does not end in this step
_TAIL_BYTES = 16
_HALF_PAIR = re.compile(
    rb"""(?<!\\)(?:\\\\)*\\u[dD][89abAB][0-9a-fA-F]{2}(?:[^\\]|\\[^u]|\\u(?![dD][c-fC-F]).)""", re.DOTALL
)
_NO_MARKS = bytes(set(range(256)) - set(b"[{]}:"))
_OPENING, _CLOSING = frozenset(b"[{"), frozenset(b"]}")


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Return the object that the body holds, after a byte order mark or none. Raises `InvalidRequestError`."""
    body = body.removeprefix(_BOM)
    num_names = _scan(body)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InvalidRequestError(f"the body is not valid JSON: {_reason(error, body)}") from None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"the body must be a JSON object, got {_json_type(value)}")
    if len(value) != num_names:
        raise InvalidRequestError("the body has a parameter more than once")
    return value


def _reason(error: Exception, body: bytes) -> str:
    """Return what is wrong. `msgspec` has other words for half a surrogate pair, above all near the end of the body."""
    told = str(error)
    if "surrogate" not in told and not ("truncated" in told and _HALF_PAIR.search(body, len(body) - _TAIL_BYTES)):
        return told
    place = told[told.find("(byte") - 1 :] if "(byte" in told else ""
    return f"a string has half a surrogate pair: \\ud800 to \\udbff needs one of \\udc00 to \\udfff after it{place}"


class JsonReader:
    """Parses bodies, long ones off the event loop. Clients take turns.

    On the loop, others have their turn after each body and what is made of it at once: of many that come together,
    none makes the rest of the loop wait for all.
    """

    def __init__(self) -> None:
        self._threads = FairThreads(1, "json")  # one alone: each more is one more that the event loop waits for
        self._turns = FairSemaphore(1)

    async def parse_object(self, body: bytes) -> dict[str, Any]:
        """Call `parse_json_object`."""
        if len(body) >= OFF_LOOP_BYTES:
            return await self._threads.run(partial(parse_json_object, body))
        if len(body) < _IN_TURN_BYTES:
            return parse_json_object(body)
        async with self._turns.turn(current_client()):
            await asyncio.sleep(0)
            return parse_json_object(body)


@dataclass(slots=True)
class _Count:
    """Counts what is in a body: brackets that are open, names of the outermost object, parts, and entries of lists."""

    depth: int = 0
    num_names: int = 0
    num_marks: int = 0
    num_entries: int = 0

    def add(self, outside: bytes, num_strings: int) -> None:
        """Count some of the body without its strings. A colon outside of strings follows a name."""
        marks = outside.translate(None, _NO_MARKS)
        for mark in marks:
            if mark in _OPENING:
                self.depth += 1
                if self.depth > MAX_DEPTH:
                    raise InvalidRequestError(f"the body nests deeper than {MAX_DEPTH} levels")
            elif mark in _CLOSING:
                self.depth -= 1
            elif self.depth == 1:
                self.num_names += 1
        self.num_marks += num_strings + len(marks) - marks.count(b":")
        self.num_entries += outside.count(b",")
        if self.num_marks > 2 * MAX_PARTS:  # a bracket comes twice, a name with its value
            raise InvalidRequestError(f"the body has more than {MAX_PARTS} strings, lists and objects")
        if self.num_entries > MAX_ENTRIES:
            raise InvalidRequestError(f"the lists and objects of the body have more than {MAX_ENTRIES} entries")


def _scan(body: bytes) -> int:
    """Return how many names the outermost object has. Raises where it nests too deep or has too much in it."""
    count, start = _Count(), 0
    while start < len(body):
        match = _WHOLE.match(body, start, start + _STEP_BYTES)
        assert match is not None
        if match.end() > start:
            count.add(*_STRING.subn(b"", match[0]))
            start = match.end()
        else:
            count.add(b"", 1)
            start = _end_of_string(body, start + 1) + 1
    return count.num_names


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
