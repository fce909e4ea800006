"""Reads a GGUF file's settings and tensors without its vocabulary, which gguf makes millions of small arrays of.

A vocabulary of 150,000 tokens takes gguf 4 s, and transformers has a file read once for the configuration and once for
the tokenizer's class. Neither needs what long arrays hold. The tokenizer itself is read in another way: from what the
file states alone, which takes neither gguf nor torch.
"""

import mmap
import struct
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LONGEST_ARRAY = 1024  # of those that are read; such as a number for each layer
_STRING, _ARRAY = 8, 9  # of GGUFValueType
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_VERSIONS = (2, 3)
_length_at = struct.Struct("<Q").unpack_from


def read_metadata(file: Path, kept: Container[str] = ()) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what a file states, and the names of its tensors, as transformers' `read_gguf_metadata` does.

    Of an array of strings only the length, unless its name is among those that are `kept`. Raises `ValueError`.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        if memory[:4] != b"GGUF":
            raise ValueError(f"{file} is not a GGUF file: it begins with {memory[:4]!r}")
        header = _Header(memory)
        (version,) = header.numbers("I")
        if version not in _VERSIONS:
            raise ValueError(f"{file} is of version {version} of GGUF, and versions {_VERSIONS} can be read")
        num_tensors, num_stated = header.numbers("QQ")
        stated = {}
        for _ in range(num_stated):
            name = header.string()
            stated[name] = header.value(*header.numbers("I"), is_kept=name in kept)
        return stated, tuple(header.tensor_name() for _ in range(num_tensors))


class _Header:
    """The beginning of a file, which is read from one end to the other."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._at = 4

    def numbers(self, kinds: str) -> tuple[Any, ...]:
        numbers = struct.unpack_from(f"<{kinds}", self._memory, self._at)
        self._at += struct.calcsize(f"<{kinds}")
        return numbers

    def string(self) -> str:
        return self._strings(1)[0]

    def value(self, kind: int, *, is_kept: bool) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.numbers(_format_of(kind))[0]
        of, count = self.numbers("IQ")
        if of != _STRING:
            return list(self.numbers(f"{count}{_format_of(of)}"))
        if is_kept:
            return self._strings(count)
        self._at += _size_of_strings(self._memory, self._at, count)
        return count

    def tensor_name(self) -> str:
        name = self.string()
        self.numbers(f"{self.numbers('I')[0]}QIQ")  # its shape, its type, and where it lies
        return name

    def _strings(self, count: int) -> list[str]:
        memory, at, strings = self._memory, self._at, []
        for _ in range(count):
            end = at + 8 + _length_at(memory, at)[0]
            strings.append(memory[at + 8 : end].decode())
            at = end
        self._at = at
        return strings


def _format_of(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"the file states a value of type {kind}, which GGUF has not or not in arrays")
    return _NUMBERS[kind]


def _size_of_strings(memory: Any, first: int, count: int) -> int:
    """Return the bytes of strings that begin there."""
    at = first
    for _ in range(count):
        at += 8 + _length_at(memory, at)[0]
    return at - first


def read_gguf(file: Path) -> Any:
    """Return gguf's reader of a file: its fields, long arrays of which are empty, and its tensors, mapped."""
    return _lean_reader()(file)


@contextmanager
def vocabularies_left_out() -> Iterator[None]:
    """Have transformers read GGUF files so, until the context ends."""
    import gguf

    usual = gguf.GGUFReader
    setattr(gguf, "GGUFReader", _lean_reader())  # noqa: B010
    try:
        yield
    finally:
        setattr(gguf, "GGUFReader", usual)  # noqa: B010


def _lean_reader() -> Any:
    from gguf import GGUFReader, GGUFValueType

    class LeanReader(GGUFReader):
        """Passes over long arrays. What it overrides is gguf's own, so that a release without it reads everything."""

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            size = None if int(raw_type) != _ARRAY else self._size_of_long_array(orig_offs)
            return super()._get_field_parts(orig_offs, raw_type) if size is None else (size, [], [], [])

        def _size_of_long_array(self, offset: int) -> int | None:
            kind, count = int(self._get(offset, "<u4")[0]), int(self._get(offset + 4, "<u8")[0])
            if count <= _LONGEST_ARRAY or self.byte_order != "I":  # that of this machine
                return None
            scalar = self.gguf_scalar_to_np.get(GGUFValueType(kind))
            if scalar is not None:
                return 12 + count * scalar().nbytes
            memory: Any = self.data
            return 12 + _size_of_strings(memoryview(memory), offset + 12, count) if kind == _STRING else None

    return LeanReader
