"""Whether a tokenizer that was made of `tokenizer.model` alone encodes as SentencePiece does. It mends nothing."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

_SAMPLE = "hello world"
_SAID_ELSEWHERE = ("tokenizer.json", "tokenizer_config.json")


def check_sentencepiece(directory: Path, encode: Callable[[str], Sequence[int]]) -> None:
    """Warn where the file says one thing and transformers does another, as its earlier releases do (before 5.24)."""
    file = directory / "tokenizer.model"
    if not file.is_file() or any((directory / name).is_file() for name in _SAID_ELSEWHERE):
        return
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError):
        return  # tokens of another library, which transformers has read
    expected = processor.encode(_SAMPLE)
    if list(encode(_SAMPLE)) != list(expected):
        logger.warning(
            "this release of transformers reads %s otherwise than SentencePiece does, so answers may be worse than the"
            " model's: a newer release reads it right, and so does a tokenizer_config.json with its tokenizer_class",
            file,
        )
