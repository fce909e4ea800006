"""Which tokens a checkpoint itself says to be the labels of a reranker, in sentence-transformers' form.

https://sbert.net/docs/package_reference/cross_encoder/modules.html (LogitScore). Knows nothing of prompts.
"""

import json
import logging
from pathlib import Path
from typing import Any

from orcinus.config.text_files import read_text
from orcinus.engine.platform.model_source import model_file

logger = logging.getLogger(__name__)

# Where sentence-transformers writes which tokens' logits are a score.
LABELS_FILE = "1_LogitScore/config.json"


def declared_labels(model: str, vocab_size: int) -> list[int]:
    """Return the token of relevance and, if there is one, that of irrelevance; none where the model says nothing.

    Raises `ModelLoadError`.
    """
    path = model_file(model, LABELS_FILE)
    return [] if path is None else _read_labels(path, vocab_size)


def _read_labels(path: Path, vocab_size: int) -> list[int]:
    """Return the tokens that a file names; none where it cannot be read."""
    try:
        config: dict[str, Any] = json.loads(read_text(path))
        given = [config["true_token_id"], config.get("false_token_id")]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        given = []
    labels = [token_id for token_id in given if token_id is not None]
    if given[:1] == labels[:1] != [] and all(type(each) is int and 0 <= each < vocab_size for each in labels):
        return labels
    logger.warning("%s names no tokens of this model: its labels are not used", path)
    return []
