"""Sampling rows as the model runner makes them, and a grammar that is a list of tokens."""

from typing import Any

import torch

from orcinus.engine.grammar.masks import pack_tokens
from orcinus.engine.sampling.row import BadWords, SamplingRow, penalty_counts
from orcinus.engine.sampling.sampler import Sampler
from orcinus.engine.sampling_params import SamplingParams

EOS = 1


def row(prompt: list[int] | None = None, output: list[int] | None = None, **params: Any) -> SamplingRow:
    sampling = SamplingParams(**{"max_tokens": 100, "seed": 0, **params})
    prompt, output = prompt or [0], output or []
    made = SamplingRow(sampling, sampling.seed or 0, len(prompt))
    made.counts = penalty_counts(sampling, prompt + output, len(prompt))
    if sampling.bad_words_token_ids:
        made.bad_words = BadWords(sampling.bad_words_token_ids, output)
    if sampling.allowed_token_ids:
        made.allowed = pack_tokens(sampling.allowed_token_ids, 8)
    return made


class FakeMatcher:
    """A grammar that allows `token_ids` (None: all), is finished after one of them, and replaces whatever is drawn."""

    def __init__(self, token_ids: list[int] | None, vocab_size: int = 8, replacement: int | None = None) -> None:
        self.mask = None if token_ids is None else pack_tokens(token_ids, vocab_size)
        self.error: str | None = None
        self.is_finished = False
        self.is_steered = False
        self.may_replace = True
        self.overrules = False
        self.forced: list[int] = []
        self._replacement = replacement

    def fill_mask(self) -> None:
        raise AssertionError("masks are filled before sampling")

    def replacement_for(self, token_id: int) -> int:
        return token_id if self._replacement is None else self._replacement

    def accept(self, token_id: int) -> None:
        self.is_finished = True

    def take_forced(self) -> None:
        raise AssertionError("sampling forces nothing")

    def fail(self, reason: str) -> None:
        self.error = reason


def masked(token_ids: list[int], **params: Any) -> SamplingRow:
    made = row(**params)
    made.matcher = FakeMatcher(token_ids)
    return made


def sample(logits: list[float], made: SamplingRow, position: int = 1) -> int:
    return Sampler([EOS]).sample(torch.tensor([logits]), [made], [position]).token_ids[0]
