"""Whose trace a request belongs to, by its headers: W3C's Trace Context (https://www.w3.org/TR/trace-context/)."""

import re

from starlette.types import Scope

TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"

# A later version may have more behind a fourth hyphen; version ff and identifiers of zeros are none.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_VERSION_0_LENGTH = 55


def trace_id_of(scope: Scope) -> str | None:
    """Return the trace that a request says it belongs to, if it says so once and validly."""
    values = header_values(scope, TRACEPARENT)
    if len(values) != 1:
        return None
    match = _TRACEPARENT.fullmatch(values[0])
    if match is None or (values[0].startswith(b"00") and len(values[0]) != _VERSION_0_LENGTH):
        return None
    return match[1].decode()


def carrier_of(scope: Scope) -> dict[str, str]:
    """Return the headers of the trace as one mapping; nothing where there are two parents, which then are none."""
    if trace_id_of(scope) is None:
        return {}
    states = b",".join(header_values(scope, TRACESTATE)).decode("latin-1")
    parent = header_values(scope, TRACEPARENT)[0].decode("latin-1")
    return {"traceparent": parent, "tracestate": states} if states else {"traceparent": parent}


def header_values(scope: Scope, wanted: bytes) -> list[bytes]:
    """Return all values of a header, without the spaces around them."""
    return [value.strip(b" \t") for name, value in scope["headers"] if name == wanted]
