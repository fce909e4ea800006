"""What tells one checkpoint from another without reading it: its files' names, sizes and times, and samples of them."""

import hashlib
from pathlib import Path

from orcinus.engine.models.checkpoint import checkpoint_files
from orcinus.engine.platform.model_source import ModelSource, gguf_path

_SAMPLE_BYTES = 4096
_SAMPLES = 64  # of each file
_GGUF_BYTES = 2**20  # of a file whose header has no stated length


def checkpoint_identity(source: ModelSource) -> str | None:
    """Return a hash of a checkpoint of safetensors files or of a GGUF file; None for others.

    Files are told apart by name, size, time of change, their first bytes, which name all tensors, and pages at equal
    distances.
    """
    if source.gguf_file:
        digest = hashlib.sha256()
        _add(digest, gguf_path(source), _GGUF_BYTES)
        return digest.hexdigest()
    files = checkpoint_files(source)
    if not files:
        return None
    digest = hashlib.sha256((files[0].parent / "config.json").read_bytes())
    for file in files:
        with file.open("rb") as opened:
            header_bytes = min(int.from_bytes(opened.read(8), "little"), 2**26)
        _add(digest, file, 8 + header_bytes)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", file: Path, first_bytes: int) -> None:
    with file.open("rb") as opened:
        size = file.stat().st_size
        digest.update(repr((file.name, size, file.stat().st_mtime_ns)).encode())
        digest.update(opened.read(first_bytes))
        for i in range(_SAMPLES):
            opened.seek(first_bytes + max(0, size - first_bytes) * i // _SAMPLES)
            digest.update(opened.read(_SAMPLE_BYTES))
