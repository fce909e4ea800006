"""A head for multi-token prediction: one more decoder layer, which guesses the token after the next one.

As DeepSeek-V3 has it (https://arxiv.org/abs/2412.19437, section 2.2), GLM-4.5, Qwen3-Next and Qwen3.5: of the model's
last hidden state at a position, behind its last norm, and of the embedding of the token that follows, a linear layer
makes the input of the decoder layer, and the model's own head makes logits of what comes out. Embedding, head and
rotary positions are the model's own. Knows nothing of checkpoints, caches and requests.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class MtpHeadError(Exception):
    """Says why weights make no head of a model's; the message completes "because ..."."""


def check_shape(name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    """Raise `MtpHeadError` over a weight that does not fit."""
    if tuple(shape) != tuple(expected):
        raise MtpHeadError(
            f"{name} has the shape {tuple(shape)} and not {tuple(expected)}, as in the model's own layers"
        )


class MtpHead(nn.Module):
    """Computes hidden states, of which the model's own head makes logits of the tokens after the next ones.

    Used inside a `step_context`, at the positions that the model has just computed: its layer attends as the model's
    do, and its keys and values lie in the same blocks.
    """

    def __init__(self, layer: nn.Module, norm_class: Any, rotary: nn.Module, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.enorm = norm_class(hidden_size, eps=eps)
        self.hnorm = norm_class(hidden_size, eps=eps)
        self.eh_proj = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.layer = layer
        self.norm = norm_class(hidden_size, eps=eps)
        self._rotary = (rotary,)  # the model's, and not a part of this module

    def forward(self, embedded: Tensor, hidden: Tensor, positions: Tensor) -> Tensor:
        """Return (num_tokens, hidden_size), normed.

        Of embeddings of the tokens that follow, the model's hidden states, (num_tokens, hidden_size) each, and the
        positions (num_tokens,) of these.
        """
        mixed = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1)).unsqueeze(0)
        position_ids = positions.unsqueeze(0)
        out: Tensor = self.layer(
            mixed,
            attention_mask=None,
            position_ids=position_ids,
            position_embeddings=self._rotary[0](mixed, position_ids),
            use_cache=False,
        )
        normed: Tensor = self.norm(out[0])
        return normed
