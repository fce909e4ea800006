"""The logits of a few tokens: of their rows of the head alone, and in float32 whatever the model is computed in.

A head in bfloat16 rounds logits to eighths, so that many texts would get the same score. Everything between the head
and the logits (scaling, soft-capping) stays the model class's own. Knows nothing of requests.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from orcinus.engine.models.language_model import LanguageModel

_TOLERANCE = 0.05  # of the largest logit: rounding to bfloat16 or 8 bits is less


class LabelLogits:
    """Computes logits of chosen tokens. Used as the model is, under `torch.inference_mode`.

    All logits are computed where the head has no rows to be read (of other packings and quantizations, with adapters),
    or where its class does with the logits what needs all of them.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._has_rows: bool | None = None  # not tried yet

    def __call__(self, hidden: Tensor, token_ids: Sequence[int]) -> Tensor:
        """Return (num_rows, num_labels), float32, of (num_rows, hidden_size) in the model's dtype."""
        ids = torch.tensor(token_ids, device=hidden.device)
        if self._has_rows is None:
            self._has_rows = self._try_rows(hidden[:1])
        return self._of_rows(hidden, ids) if self._has_rows else self._model.logits(hidden)[:, ids].float()

    def _of_rows(self, hidden: Tensor, ids: Tensor) -> Tensor:
        with _only_rows(self._model.causal_lm.get_output_embeddings(), ids):
            return self._model.logits(hidden).float()

    def _try_rows(self, like: Tensor) -> bool:
        """Return whether rows of the head alone give what the whole model does. `like` is hidden states.

        It is tried with numbers that are always the same, so that no request decides it.
        """
        head = self._model.causal_lm.get_output_embeddings()
        if (type(head) is not nn.Linear and not hasattr(head, "weight_rows")) or "forward" in vars(head):
            return False
        probe = torch.linspace(-1, 1, like.shape[1], device=like.device).to(like.dtype).unsqueeze(0)
        [whole] = self._model.logits(probe).float()
        ids = torch.stack([whole.argmax(), whole.argmin(), torch.zeros_like(whole.argmax())])
        try:
            rows = self._of_rows(probe, ids)
        except (IndexError, RuntimeError):  # the class wants all logits
            return False
        return rows.shape == (1, len(ids)) and bool(
            ((rows[0] - whole[ids]).abs() <= _TOLERANCE * (1 + whole.abs().max())).all()
        )


@contextmanager
def _only_rows(head: Any, ids: Tensor) -> Iterator[None]:
    """Let the head give only these rows of its logits. Each number is summed by itself, however many there are."""
    rows: Tensor = head.weight[ids] if type(head) is nn.Linear else head.weight_rows(ids)
    weight = rows.double()
    bias = None if head.bias is None else head.bias[ids].double()

    def forward(hidden: Tensor) -> Tensor:
        logits = (hidden.double().unsqueeze(-2) * weight).sum(-1)
        return (logits if bias is None else logits + bias).float()

    head.forward = forward  # nn.Module calls whatever `forward` the instance has
    try:
        yield
    finally:
        del head.forward
