"""How a prompt becomes one vector: the pooling that its model was made for, and the pooling of hidden states.

Knows nothing of steps, chunks' origins and requests: what it is given, in order, is one prompt.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize, pad

from orcinus.config.text_files import read_text
from orcinus.engine.platform.model_source import model_file
from orcinus.engine.sampling_params import Pooling

logger = logging.getLogger(__name__)

# Where sentence-transformers writes how a model's hidden states are pooled.
POOLING_FILE = "1_Pooling/config.json"
_DEFAULT: Pooling = "mean"
# As newer versions name the mode, and as older ones switch it on.
_MODES: dict[str, Pooling] = {"mean": "mean", "lasttoken": "last"}
_SWITCHES: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
_BLOCK = 64  # tokens that are added up at a time


def resolve_pooling(setting: Literal["auto", "mean", "last"], model: str) -> Pooling:
    """Return what `auto` means for this model: what its author says, else the mean. Raises `ModelLoadError`."""
    if setting != "auto":
        return setting
    path = model_file(model, POOLING_FILE)
    if path is None:
        return _DEFAULT
    pooling = _read_pooling(path)
    if pooling is None:
        logger.warning("%s asks for no pooling that is served here (mean, last): embeddings use the mean", path)
    return pooling or _DEFAULT


def _read_pooling(path: Path) -> Pooling | None:
    """Return the pooling of a file; None where it is another one, several at once, or not to be read."""
    try:
        config: dict[str, Any] = json.loads(read_text(path))
        if "pooling_mode" in config:
            return _MODES.get(str(config["pooling_mode"]))
        modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return _SWITCHES.get(modes[0]) if len(modes) == 1 else None


class PooledPrompt:
    """Pools the hidden states of one prompt, chunk by chunk, into a vector of float32, whose length means nothing.

    A sum has the same bits however the prompt was cut: tokens are added up in blocks that are counted from its start,
    each in one order, and those that fill no block yet are kept.
    """

    __slots__ = ("_last", "_pooling", "_rest", "_sum")

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._last: Tensor | None = None
        self._sum: Tensor | None = None  # of whole blocks
        self._rest: Tensor | None = None  # fewer tokens than a block has

    def add(self, hidden: Tensor) -> None:
        """Take in the next tokens' (num_tokens, hidden_size)."""
        if self._pooling == "last":
            self._last = hidden[-1].float()
            return
        rest = hidden[:0] if self._rest is None else self._rest
        rows = torch.cat([rest.float(), hidden.float()])
        num_whole = len(rows) // _BLOCK * _BLOCK
        for first in range(0, num_whole, _BLOCK):
            self._sum = self._plus(rows[first : first + _BLOCK])
        self._rest = rows[num_whole:].clone()

    def vector(self) -> Tensor:
        """Return the vector (hidden_size,) of all tokens so far."""
        if self._pooling == "last":
            assert self._last is not None
            return self._last
        assert self._rest is not None
        return self._plus(pad(self._rest, (0, 0, 0, _BLOCK - len(self._rest))))

    def _plus(self, block: Tensor) -> Tensor:
        """Add a block's sum, made in one order on any threads. What is made of length 1 needs no division."""
        while len(block) > 1:
            half = len(block) // 2
            block = block[:half] + block[half:]
        return block[0] if self._sum is None else self._sum + block[0]


def unit_vectors(vectors: Sequence[Tensor]) -> NDArray[np.float32]:
    """Return (num_vectors, hidden_size) on the CPU, each made of length 1, whatever the others are."""
    if not vectors:
        return np.empty((0, 0), dtype=np.float32)
    rows: NDArray[np.float32] = torch.stack([normalize(vector, dim=0) for vector in vectors]).cpu().numpy()
    return rows
