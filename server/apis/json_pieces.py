"""JSON of any size, written as it comes, kept as bytes, and given out in pieces of bounded size.

An answer is a document of ordinary values, in which `JsonText`, `JsonList` and `LazyList` stand for what may be long.
`pieces_of` writes it, and `Pacer` lets the event loop go round in between, so that no answer holds it up, however long.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import msgspec

BLOCK_BYTES = 32 * 1024  # sent at once, and kept at once
STEP_BYTES = 8 * 1024  # as what a step of work counts that has nothing to send yet
TURN_BYTES = 64 * 1024  # written or sent in one turn of the event loop: less than a millisecond's work

_MARK = secrets.token_hex(16)  # stands for a long value in a document; no text of a client or a model can hold it
_ENCODED_MARK = msgspec.json.encode(_MARK)


class LongValue(Protocol):
    """A value of a document that is written piece by piece."""

    def pieces(self) -> Iterator[bytes]: ...


class _WrittenValue:
    """JSON between an opening and a closing byte, kept in blocks."""

    __slots__ = ("_blocks", "_last")
    opening: bytes
    closing: bytes

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._last = bytearray()

    def __bool__(self) -> bool:
        return bool(self._last or self._blocks)

    def pieces(self) -> Iterator[bytes]:
        yield self.opening
        yield from self._blocks
        yield bytes(self._last) + self.closing

    def _append(self, written: bytes) -> None:
        self._last += written
        if len(self._last) >= BLOCK_BYTES:
            self._blocks.append(bytes(self._last))
            self._last.clear()


class JsonText(_WrittenValue):
    """A string that grows at its end. `beginning` is `written_text`, which many may share."""

    __slots__ = ("_beginning",)
    opening = closing = b'"'

    def __init__(self, beginning: bytes = b"") -> None:
        super().__init__()
        self._beginning = beginning

    def __bool__(self) -> bool:
        return bool(self._beginning) or super().__bool__()

    def add(self, text: str) -> None:
        if text:
            self._append(written_text(text))

    def pieces(self) -> Iterator[bytes]:
        opening, *rest = super().pieces()
        yield opening + self._beginning
        yield from rest


class JsonList(_WrittenValue):
    """An array that grows at its end."""

    __slots__ = ()
    opening, closing = b"[", b"]"

    def add(self, written: bytes) -> None:
        """Append values that are written already, with commas between them; empty: none."""
        if written:
            self._append(b",%b" % written if self else written)

    def extend(self, values: list[Any]) -> None:
        """Write values and append them: so few that it takes no time."""
        self.add(msgspec.json.encode(values)[1:-1])


class JsonValue:
    """A value that is written already, which many may share."""

    __slots__ = ("_written",)

    def __init__(self, written: bytes) -> None:
        self._written = written

    def pieces(self) -> Iterator[bytes]:
        yield self._written


class LazyList:
    """An array that is written when it is its turn. `write` gives it in parts, each as `JsonList.add` takes it."""

    __slots__ = ("_write",)

    def __init__(self, write: Callable[[], Iterable[bytes]]) -> None:
        self._write = write

    def pieces(self) -> Iterator[bytes]:
        before = b"["
        for part in self._write():
            yield before + part
            before = b","
        yield b"]" if before == b"," else b"[]"


class Pacer:
    """Lets the event loop go round whenever `TURN_BYTES` have been handled."""

    __slots__ = ("_num_bytes",)

    def __init__(self) -> None:
        self._num_bytes = 0

    async def spend(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes >= TURN_BYTES:
            self._num_bytes = 0
            await asyncio.sleep(0)


def written_text(text: str) -> bytes:
    """Return a text as it stands in a JSON string, without the quotes."""
    return msgspec.json.encode(text)[1:-1]


def pieces_of(document: Any) -> Iterator[bytes]:
    """Return a document as JSON. All of it is written at once but the long values, each when it is its turn."""
    long_values: list[LongValue] = []

    def note(value: LongValue) -> str:
        if not hasattr(value, "pieces"):
            raise TypeError(f"a {type(value).__name__} cannot be written as JSON")
        long_values.append(value)
        return _MARK

    first, *others = msgspec.json.encode(document, enc_hook=note).split(_ENCODED_MARK)
    yield first
    for value, following in zip(long_values, others, strict=True):
        yield from value.pieces()
        yield following


def blocks_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join pieces to blocks of about `BLOCK_BYTES`, of which the last may be shorter, and cut those that are longer."""
    block = bytearray()
    for piece in pieces:
        block += piece
        if len(block) < BLOCK_BYTES:
            continue
        if len(block) < 2 * BLOCK_BYTES:
            yield bytes(block)
        else:
            yield from _cut(bytes(block))
        block.clear()
    if block:
        yield bytes(block)


def _cut(block: bytes) -> Iterator[bytes]:
    return (block[start : start + BLOCK_BYTES] for start in range(0, len(block), BLOCK_BYTES))


async def write_blocks(document: Any, pacer: Pacer | None = None) -> list[bytes]:
    """Return a document as JSON in blocks, letting the event loop go round while it is written."""
    pacer = pacer or Pacer()
    blocks = []
    for block in blocks_of(pieces_of(document)):
        blocks.append(block)
        await pacer.spend(len(block))
    return blocks
