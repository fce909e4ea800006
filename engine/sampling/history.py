"""What the device keeps of the tokens of running requests: the next one can be chosen before the host knows the last.

Used where steps run ahead: the last token, and what penalties count. A step adds its own tokens as it is launched.
Knows nothing of penalties' arithmetic, of logits and of which request has which slot.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.platform.device_copy import to_device
from orcinus.engine.sampling_params import SamplingParams

# In `seen`, beside the number of times that the output has a token: the prompt has it.
PROMPT_FLAG = 1 << 30


class TokenHistory:
    """One slot for each running request; a request that is new to its slot begins with `begin`. Used by one thread."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.last_tokens = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._num_slots = num_slots
        self._vocab_size = vocab_size
        self._seen: Tensor | None = None

    @property
    def seen(self) -> Tensor:
        """Return counts and flags (num_slots, vocab_size); made when a request first has penalties."""
        if self._seen is None:
            shape = self._num_slots, self._vocab_size
            self._seen = torch.zeros(shape, dtype=torch.int32, device=self.last_tokens.device)
        return self._seen

    @property
    def is_counting(self) -> bool:
        """Whether any request has had penalties."""
        return self._seen is not None

    def begin(self, slot: int, sampling: SamplingParams, token_ids: Sequence[int], num_prompt_tokens: int) -> None:
        """Let a slot count for a request with penalties that has these tokens: its prompt, and output if it goes on.

        Steps that were launched for the slot's last request come before, as the device does things in order.
        """
        counts = np.zeros(self._vocab_size, dtype=np.int32)
        ids = np.array(token_ids, dtype=np.int64)
        is_token = (ids >= 0) & (ids < self._vocab_size)
        output = ids[num_prompt_tokens:][is_token[num_prompt_tokens:]]
        np.add.at(counts, output, 1)
        if sampling.repetition_penalty != 1:
            counts[ids[:num_prompt_tokens][is_token[:num_prompt_tokens]]] |= PROMPT_FLAG
        self.seen[slot].copy_(to_device([counts], self.last_tokens.device)[0])

    def add(self, slots: NDArray[np.int64], tokens: Tensor, is_counted: NDArray[np.bool_]) -> None:
        """Take in the tokens (num_rows,) that a step has just chosen for these slots, and count some of them.

        A slot that counts is named once. A token that means nothing, since its row failed, is added to no harm: its
        request ends.
        """
        (index,) = to_device([slots], tokens.device)
        self.last_tokens[index] = tokens
        if not is_counted.any():
            return
        if not is_counted.all():
            (kept,) = to_device([np.flatnonzero(is_counted)], tokens.device)
            index, tokens = index[kept], tokens[kept]
        ones = torch.ones(len(index), dtype=torch.int32, device=tokens.device)
        self.seen.index_put_((index, tokens), ones, accumulate=True)
