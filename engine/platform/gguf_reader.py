"""Reads a GGUF file's settings and tensors without its vocabulary, which gguf makes millions of small arrays of.

A vocabulary of 150,000 tokens takes gguf 4 s, and transformers has a file read once for the configuration and once for
the tokenizer's class. Neither needs what long arrays hold. The tokenizer itself is read in another way.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LONGEST_ARRAY = 1024  # of those that are read; such as a number for each layer
_STRING, _ARRAY = 8, 9  # of GGUFValueType


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
            return self._size_of_strings(offset + 12, count) + 12 if kind == _STRING else None

        def _size_of_strings(self, first: int, count: int) -> int:
            memory: Any = self.data
            offset = first
            for _ in range(count):
                offset += 8 + struct.unpack_from("<Q", memory, offset)[0]
            return offset - first

    return LeanReader
