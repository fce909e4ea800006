"""What requests ask of their prompts themselves: log-probabilities of the prompt's tokens, embeddings, and the logits
of labels.

Made of the hidden states of a step, chunk by chunk. Knows nothing of sampling, plans and blocks.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.messages import StepResult, TokenLogprobs
from orcinus.engine.models.label_logits import LabelLogits
from orcinus.engine.models.language_model import LanguageModel
from orcinus.engine.platform.device_copy import to_device
from orcinus.engine.runner.pooling import unit_vectors
from orcinus.engine.runner.request_rows import RequestRows
from orcinus.engine.runner.step_batch import Chunk, StepBatch
from orcinus.engine.sampling.logprobs import token_logprobs

# Rows of logits computed at a time: of 152,000 tokens 50 MB by torch, in all dtypes together, and 10 MB by the kernel.
_LOGPROB_ROWS = 32
_LOGITS_NOT_FINITE = "the model's logits are not finite"
_EMBEDDING_NOT_FINITE = "the model's embedding is not finite"


class PromptOutputs:
    """Used by one thread, under `torch.inference_mode`. `rows` has the tokens, and is told who is broken."""

    def __init__(self, model: LanguageModel, rows: RequestRows, device: torch.device) -> None:
        self._model = model
        self._rows = rows
        self._device = device
        self._label_logits = LabelLogits(model)

    def of(self, batch: StepBatch, hidden: Tensor) -> StepResult:
        """Return the prompt log-probabilities, embeddings and label logits of a step, and the errors of what broke.

        `hidden` (num_tokens, hidden_size) are the step's hidden states.
        """
        result = StepResult(sampled_token_ids={}, prompt_logprobs={}, errors={}, embeddings={})
        for i, request in enumerate(batch.requests):
            if request.row.sampling.prompt_logprobs is not None:
                self._add_logprobs(batch.chunk(i), hidden, result)
        complete = self._complete_prompts(batch, hidden)
        self._add_embeddings([prompt for prompt in complete if not _labels(prompt[0])], result)
        labelled = [prompt for prompt in complete if _labels(prompt[0])]
        for labels in dict.fromkeys(_labels(chunk) for chunk, _ in labelled):
            self._add_label_logits([prompt for prompt in labelled if _labels(prompt[0]) == labels], hidden, result)
        return result

    def _add_logprobs(self, chunk: Chunk, hidden: Tensor, result: StepResult) -> None:
        """Add the log-probabilities of a chunk, if it has any: -inf is a legal one, NaN is an error."""
        row = chunk.request.row
        if chunk.first >= row.num_prompt_tokens - 1:
            return
        entries = self._logprobs(chunk, row.sampling.prompt_logprobs or 0, hidden)
        if not any(math.isnan(entry.logprob) for entry in entries):
            result.prompt_logprobs[chunk.request_id] = entries
            return
        self._rows.is_broken[chunk.request.index] = True
        result.errors[chunk.request_id] = _LOGITS_NOT_FINITE

    def _logprobs(self, chunk: Chunk, num_top: int, hidden: Tensor) -> list[TokenLogprobs]:
        """Return what each position of the chunk tells of the prompt token after it; the prompt's last tells none."""
        last = min(chunk.end, chunk.request.row.num_prompt_tokens - 1)
        entries: list[TokenLogprobs] = []
        for first in range(chunk.first, last, _LOGPROB_ROWS):
            end = min(first + _LOGPROB_ROWS, last)
            rows = hidden[chunk.offset + first - chunk.first : chunk.offset + end - chunk.first]
            following = self._rows.tokens(chunk.request.index, np.arange(first + 1, end + 1))
            (tokens,) = to_device([following], self._device)
            entries += token_logprobs(self._model.logits(rows), tokens, [num_top] * (end - first))()
        return entries

    def _complete_prompts(self, batch: StepBatch, hidden: Tensor) -> list[tuple[Chunk, Tensor]]:
        """Take in the chunks of prompts to be pooled; returns those that are complete, with their vectors."""
        complete = []
        for i, request in enumerate(batch.requests):
            if request.pooled is None:
                continue
            chunk = batch.chunk(i)
            request.pooled.add(hidden[chunk.offset : chunk.offset + chunk.num_tokens])
            if chunk.end == self._rows.num_tokens[request.index]:
                complete.append((chunk, request.pooled.vector()))
        return complete

    def _add_embeddings(self, complete: list[tuple[Chunk, Tensor]], result: StepResult) -> None:
        for (chunk, _), vector in zip(complete, unit_vectors([vector for _, vector in complete]), strict=True):
            self._add(chunk, vector, _EMBEDDING_NOT_FINITE, result)

    def _add_label_logits(self, complete: list[tuple[Chunk, Tensor]], hidden: Tensor, result: StepResult) -> None:
        """Add the logits of prompts that ask for the same labels, of which each vector is its last hidden state."""
        labels = _labels(complete[0][0])
        for start in range(0, len(complete), _LOGPROB_ROWS):
            part = complete[start : start + _LOGPROB_ROWS]
            last = torch.stack([vector for _, vector in part]).to(hidden.dtype)
            for (chunk, _), logits in zip(part, self._label_logits(last, labels).cpu().numpy(), strict=True):
                self._add(chunk, logits, _LOGITS_NOT_FINITE, result)

    def _add(self, chunk: Chunk, numbers: NDArray[np.float32], problem: str, result: StepResult) -> None:
        """Add what a prompt came to, or the error of one that broke."""
        if np.isfinite(numbers).all():
            result.embeddings[chunk.request_id] = numbers.tobytes()
        else:
            self._rows.is_broken[chunk.request.index] = True
            result.errors[chunk.request_id] = problem


def _labels(chunk: Chunk) -> tuple[int, ...]:
    return chunk.request.row.sampling.label_token_ids
