"""Files of tensors that can be made again: written once, mapped afterwards, thrown away when they are too many.

A file is in the format of safetensors, with its header padded so that data begins at a page. It appears all at once or
not at all, and is passed over if it is not whole, of another description or changed. Knows nothing of models.
"""

import errno
import fcntl
import json
import logging
import mmap
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MOST_FILES = 4
_SUFFIX, PARTIAL = ".safetensors", ".partial"
_CHUNK = 4 * 2**20  # bytes that a checksum is of
_SPARE_BYTES = 2**30  # that a disk is left with
_IN_MEMORY = ("tmpfs", "ramfs")
_DTYPES = {"U8": torch.uint8, "F32": torch.float32, "I32": torch.int32}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class CachedTensors:
    """Holds the tensors of a file, mapped: pages that nobody writes to are shared with who else has them."""

    tensors: dict[str, Tensor]
    description: Any


class TensorCache:
    """Keeps files by keys in a directory, which is made when the first one is written; `MOST_FILES` at most."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, key: str) -> CachedTensors | None:
        """Return what is kept under a key, or None. What is there but cannot be used is told in the log."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                found = _mapped(file.fileno(), key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("packed weights that were kept are not used: %s: %s", path, error)
            return None
        with suppress(OSError):  # of a directory that is only to be read
            os.utime(path)  # the files that were used last are kept
        return found

    def write(self, key: str, tensors: Mapping[str, Tensor], description: Any) -> bool:
        """Keep tensors under a key. Returns False, having said why, where that cannot be."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_in_memory(self._directory):
                logger.info("packed weights are not kept in %s, which lies in memory", self._directory)
                return False
            self._drop_oldest()
            free = shutil.disk_usage(self._directory).free
            if free < size + _SPARE_BYTES:
                logger.warning(
                    "packed weights are not kept in %s: they have %d MiB, of %d that are free",
                    self._directory,
                    size >> 20,
                    free >> 20,
                )
                return False
            return self._write(key, tensors, description)
        except OSError as error:
            logger.warning("packed weights are not kept in %s: %s", self._directory, error)
            return False

    def _write(self, key: str, tensors: Mapping[str, Tensor], description: Any) -> bool:
        path = self._path(key)
        partial = path.with_suffix(PARTIAL)
        with _locked(partial) as file:
            if file is None:  # another process is writing the same
                return False
            try:
                os.ftruncate(file, 0)
                _write_all(file, _header(key, tensors, description))
                for tensor in tensors.values():
                    _write_all(file, tensor.flatten().view(torch.uint8).numpy().data)
                os.fsync(file)
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        _sync_directory(self._directory)
        logger.info("packed weights are kept for the next start: %s", path)
        return True

    def _drop_oldest(self) -> None:
        """Remove what was not used for longest, so that there is room for one more, and what nobody goes on writing."""
        files = sorted(self._directory.glob(f"*{_SUFFIX}"), key=lambda file: file.stat().st_mtime_ns)
        for file in files[: max(0, len(files) - MOST_FILES + 1)]:
            file.unlink(missing_ok=True)
        for partial in self._directory.glob(f"*{PARTIAL}"):
            with _locked(partial) as held:
                if held is not None:
                    partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}{_SUFFIX}"


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Hold a file that is being written, open for writing; None if another process holds it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_same = path.stat().st_ino == os.fstat(file).st_ino  # or it has become what it was to become
        except (BlockingIOError, FileNotFoundError):
            is_same = False
        yield file if is_same else None
    finally:
        os.close(file)


def _write_all(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view.nbytes:
        written = os.write(file, view[: 64 * 2**20])
        if written == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view = view[written:]


def _is_in_memory(directory: Path) -> bool:
    """Return whether what a directory holds takes memory instead of a disk."""
    device = directory.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    kinds = {mount.partition(" - ")[2].split()[0] for mount in mounts if mount.split()[2] == number}
    return not kinds.isdisjoint(_IN_MEMORY)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _header(key: str, tensors: Mapping[str, Tensor], description: Any) -> bytes:
    entries: dict[str, Any] = {}
    first = 0
    for name, tensor in tensors.items():
        assert tensor.is_contiguous()
        assert tensor.nbytes % 64 == 0
        end = first + tensor.nbytes
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [first, end]}
        first = end
    sums = {name: _checksums(tensor) for name, tensor in tensors.items()}
    told = json.dumps({"key": key, "description": description, "sums": sums, "entries": entries}, sort_keys=True)
    metadata = {"told": told, "crc32": str(zlib.crc32(told.encode()))}
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    padded = -(-(8 + len(text)) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
    return (padded - 8).to_bytes(8, "little") + text.ljust(padded - 8)


def _mapped(file: int, key: str) -> CachedTensors:
    """Return the tensors of a file. Raises `OSError`, and `ValueError` if it is not what was written."""
    pages = mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
    if hasattr(pages, "madvise"):
        pages.madvise(mmap.MADV_WILLNEED)
    length = int.from_bytes(pages[:8], "little")
    if not 0 < length <= len(pages) - 8:
        raise ValueError("it has no header")
    try:
        metadata = json.loads(pages[8 : 8 + length])["__metadata__"]
        told = json.loads(metadata["told"])
        is_whole = int(metadata["crc32"]) == zlib.crc32(metadata["told"].encode())
    except (KeyError, TypeError) as error:
        raise ValueError("its header is damaged") from error
    if not is_whole or told["key"] != key:
        raise ValueError("its header is damaged")
    entries = told["entries"]
    if 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0) != len(pages):
        raise ValueError("it is not as long as it should be")
    tensors: dict[str, Tensor] = {}
    for name, entry in entries.items():
        first, end = entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        data = torch.frombuffer(pages, dtype=torch.uint8, count=end - first, offset=8 + length + first)
        if _checksums(data) != told["sums"][name]:
            raise ValueError(f"{name} has changed since it was written")
        tensors[name] = data.view(dtype).view(entry["shape"])
    return CachedTensors(tensors, told["description"])


def _checksums(tensor: Tensor) -> list[int]:
    """Return a sum of each chunk's words: as fast as memory, and other for any single word that changes."""
    words = tensor.flatten().view(torch.uint8).view(torch.int64)
    return [int(chunk.sum()) for chunk in torch.split(words, _CHUNK // 8)]
