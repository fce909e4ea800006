"""Request bodies as JSON objects: strict, bounded in depth, and every way to get it wrong is a 400.

Depth and number of parts are checked on the raw bytes, before anything is built from them. `msgspec` refuses NaN,
Infinity, numbers out of range, lone surrogates and bytes that are not UTF-8. Names that occur twice are refused where
the parameters are, at the top: which of the two was meant cannot be known.
"""

import asyncio
import re
from typing import Any

import msgspec

from engine.errors import InvalidRequestError

MAX_DEPTH = 64
MAX_PARTS = 200_000  # strings, lists and objects; numbers are cheap
OFF_LOOP_BYTES = 64 * 1024  # from here on, parsing takes long enough to be felt by other requests

# A string with the colon that makes it a name, or a bracket. Possessive, so that no input makes it backtrack.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+(\s*+:)?+|[\[\]{}]', re.DOTALL)
_OPENING = (b"{", b"[")


def parse_json_object(body: bytes) -> dict[str, Any]:
    """The object that the body holds. Raises `InvalidRequestError`."""
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


async def parse_json_object_async(body: bytes) -> dict[str, Any]:
    """`parse_json_object`, off the event loop when the body is long."""
    if len(body) < OFF_LOOP_BYTES:
        return parse_json_object(body)
    return await asyncio.to_thread(parse_json_object, body)


def _scan(body: bytes) -> int:
    """How many names the outermost object has. Raises where it nests too deep or has too many parts."""
    depth = num_names = 0
    for num_parts, match in enumerate(_TOKEN.finditer(body)):
        if num_parts >= 2 * MAX_PARTS:  # a bracket comes twice, a name with its value
            raise InvalidRequestError(f"the body has more than {MAX_PARTS} strings, lists and objects")
        token = match[0]
        if token in _OPENING:
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidRequestError(f"the body nests deeper than {MAX_DEPTH} levels")
        elif match[1] is not None:
            num_names += depth == 1
        elif token[0] != ord('"'):
            depth -= 1
    return num_names


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
