"""What the `model` setting names: a local directory, a GGUF file, or a repository on the Hugging Face hub.

Knows nothing of torch or transformers, so that the text side, which reads only the tokenizer, shares it.
"""

from dataclasses import dataclass
from pathlib import Path

from orcinus.engine.errors import ModelLoadError

_GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Names what transformers takes: a directory or hub id, and the GGUF file in it, if any."""

    path_or_id: str
    gguf_file: str | None
    is_local: bool

    @property
    def directory(self) -> Path | None:
        return Path(self.path_or_id) if self.is_local else None


def model_source(model: str) -> ModelSource:
    """Return what `model` names. Raises `ModelLoadError` if it is plainly a path and nothing is there."""
    path = Path(model).expanduser()
    if path.suffix.lower() == _GGUF_SUFFIX:
        return _gguf_source(model, path)
    if model and path.is_dir():
        return ModelSource(str(path), None, is_local=True)
    if model and path.exists():
        raise ModelLoadError(f"{model} is neither a model directory nor a {_GGUF_SUFFIX} file")
    if _looks_like_a_path(model):
        raise ModelLoadError(f"there is no model at {model}: no such directory")
    return ModelSource(model, None, is_local=False)


def gguf_path(source: ModelSource) -> Path:
    """Return where the file is: on the hub's, transformers has fetched it to read the configuration."""
    assert source.gguf_file is not None
    if source.directory is not None:
        return source.directory / source.gguf_file
    from transformers.utils.hub import cached_file

    return Path(str(cached_file(source.path_or_id, source.gguf_file)))


def model_file(model: str, name: str) -> Path | None:
    """Return where a file beside a model's weights is, from the hub if need be; None without it.

    Raises `ModelLoadError`.
    """
    source = model_source(model)
    if source.directory is not None:
        path = source.directory / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(source.path_or_id, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise ModelLoadError(f"cannot ask the hub for {model}'s {name}: {error}") from error
    return None if found is None else Path(found)


def _gguf_source(model: str, path: Path) -> ModelSource:
    """Return the source of a GGUF file: one on this machine, or `owner/name/file.gguf` on the hub."""
    if path.is_file():
        return ModelSource(str(path.parent), path.name, is_local=True)
    if _looks_like_a_path(str(path.parent)) or len(path.parts) != 3:
        raise ModelLoadError(f"there is no GGUF file at {model}")
    return ModelSource(path.parent.as_posix(), path.name, is_local=False)


def _looks_like_a_path(model: str) -> bool:
    """Return whether `model` is no hub id: those are `name` or `owner/name`, without a leading dot, tilde or slash."""
    return model.startswith((".", "~", "/")) or model.count("/") > 1 or "\\" in model or not model
