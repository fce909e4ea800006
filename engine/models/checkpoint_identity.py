"""What tells one checkpoint from another without reading it: its files' names, sizes and times, and samples of them."""

import hashlib
from pathlib import Path

from orcinus.engine.models.checkpoint import checkpoint_files
from orcinus.engine.platform.model_source import ModelSource

_SAMPLE_BYTES = 4096
_SAMPLES = 64  # of each file


def checkpoint_identity(source: ModelSource) -> str | None:
    """Return a hash of a checkpoint of safetensors files; None for others.

    Files are told apart by name, size, time of change, their first pages, which name all tensors, and pages at equal
    distances.
    """
    files = [] if source.gguf_file else checkpoint_files(source)
    if not files:
        return None
    digest = hashlib.sha256((files[0].parent / "config.json").read_bytes())
    for file in files:
        _add(digest, file)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", file: Path) -> None:
    with file.open("rb") as opened:
        size = file.stat().st_size
        digest.update(repr((file.name, size, file.stat().st_mtime_ns)).encode())
        header = min(int.from_bytes(opened.read(8), "little"), 2**26)
        digest.update(opened.read(header))
        for i in range(_SAMPLES):
            opened.seek(8 + header + (size - 8 - header) * i // _SAMPLES)
            digest.update(opened.read(_SAMPLE_BYTES))
