"""What the sampler knows of one request: its parameters, its seed, and the state that grows with its tokens.

Plain host data. It knows nothing of logits, of batches and of how the grammar behind `matcher` is compiled.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from orcinus.engine.grammar.masks import Matcher, has_token
from orcinus.engine.sampling.draw import draw_parameters
from orcinus.engine.sampling_params import SamplingParams


@dataclass(slots=True)
class SamplingRow:
    """One request's row. State that follows its tokens is kept only if the request asks for it.

    With a `slot` of a `TokenHistory` its penalties are counted there, and of its tokens the last one may be known only
    there. Otherwise `counts` are kept here, and all tokens are known.
    """

    sampling: SamplingParams
    seed: int
    num_prompt_tokens: int
    counts: "PenaltyCounts | None" = None
    bad_words: "BadWords | None" = None
    allowed: NDArray[np.int32] | None = None  # packed, as the mask of `matcher`
    matcher: Matcher | None = None
    slot: int | None = None
    # What a step asks of every row, computed once.
    is_random: bool = field(init=False)
    draw_parameters: tuple[float, float, float, float] = field(init=False)  # temperature, min_p, top_p, top_k
    min_position: int = field(init=False)  # before it no token may end the request

    def __post_init__(self) -> None:
        sampling = self.sampling
        self.is_random = not (sampling.is_greedy or sampling.top_k == 1)
        self.draw_parameters = draw_parameters(sampling)
        self.min_position = self.num_prompt_tokens + sampling.min_tokens

    @property
    def is_argmax_only(self) -> bool:
        """Whether the likeliest token is all that it asks for."""
        return not self.is_random and self.sampling.logprobs is None

    @property
    def is_processed(self) -> bool:
        """Whether a processor other than that of `min_tokens` changes its logits, or what is drawn from them."""
        if self.matcher is not None and (self.matcher.mask is not None or self.matcher.may_replace):
            return True
        has_state = self.sampling.has_penalties or self.bad_words is not None
        return has_state or self.allowed is not None or bool(self.sampling.logit_bias)

    @property
    def reads_history(self) -> bool:
        """Whether what it does to its logits may take tokens that only the device knows."""
        return self.slot is not None and (self.sampling.has_penalties or self.bad_words is not None)

    @property
    def keeps_tokens(self) -> bool:
        """Whether `add` is to be told its tokens."""
        return self.counts is not None or self.bad_words is not None or self.matcher is not None

    @property
    def takes_forced(self) -> bool:
        """Whether tokens that its grammar leaves no choice of may be taken without being sampled.

        Not if something of theirs is asked for, if anything besides the grammar may rule them out, or if the device
        counts the tokens that it samples.
        """
        is_asked = self.sampling.logprobs is not None or (self.slot is not None and self.sampling.has_penalties)
        follows = self.matcher is not None and self.sampling.grammar is not None
        return follows and self.bad_words is None and self.allowed is None and not is_asked

    def add_forced(self) -> list[int]:
        """Count the tokens that the matcher has taken in without their being sampled; returns them."""
        assert self.matcher is not None
        forced = [*self.matcher.forced]
        if self.counts is not None:
            for token_id in forced:
                self.counts.add(token_id)
        return forced

    def add(self, token_id: int) -> None:
        """Take in the token that was chosen."""
        if self.counts is not None:
            self.counts.add(token_id)
        if self.bad_words is not None:
            self.bad_words.add(token_id)
        if self.matcher is not None:
            self.matcher.accept(token_id)

    @property
    def is_finished(self) -> bool:
        """Whether no token can follow."""
        return self.matcher is not None and self.matcher.is_finished

    @property
    def is_steered(self) -> bool:
        """Whether a token was taken that had not been drawn."""
        return self.matcher is not None and self.matcher.is_steered

    def mask(self) -> NDArray[np.int32] | None:
        """Return a bit for each token that may come next, or None if every token may."""
        own = None if self.matcher is None else self.matcher.mask
        if own is None or self.allowed is None:
            return self.allowed if own is None else own
        return self.allowed & own

    def ends(self, eos_token_ids: Sequence[int]) -> list[int]:
        """Return the tokens that would end the request, of which the model's own are given."""
        own = [] if self.sampling.ignore_eos else [*eos_token_ids, *self.sampling.more_eos_token_ids]
        return [*self.sampling.stop_token_ids, *own]

    def impossible(self, position: int) -> list[tuple[int, int]]:
        """Return (-1, token) for each that would complete a bad word, as the token at this position.

        If the one before is not known here, (that one, token) says what depends on it.
        """
        if self.bad_words is None:
            return []
        num_unknown = 0 if self.slot is None else position - self.num_prompt_tokens - self.bad_words.num_tokens
        if num_unknown == 0:
            return [(-1, token_id) for token_id in self.bad_words.last_tokens()]
        assert num_unknown == 1, "at most one step is under way"
        return self.bad_words.last_tokens_after_any()

    def rules_out(self, token_id: int) -> bool:
        """Return whether a mask or a bad word forbids a token of the vocabulary now."""
        if (mask := self.mask()) is not None and not has_token(mask, token_id):
            return True
        return self.bad_words is not None and token_id in self.bad_words.last_tokens()


class PenaltyCounts:
    """The tokens that a request's penalties look at, each once, and how often the output has them.

    They are a few hundred, where a vocabulary has a hundred thousand.
    """

    __slots__ = ("_counts", "_indices", "_token_ids")

    def __init__(self, prompt_token_ids: Iterable[int], output_token_ids: Iterable[int]) -> None:
        self._indices: dict[int, int] = {token_id: i for i, token_id in enumerate(dict.fromkeys(prompt_token_ids))}
        self._token_ids = np.array([*self._indices, 0], dtype=np.int64)  # with room to grow
        self._counts = np.zeros(len(self._token_ids), dtype=np.float32)
        for token_id in output_token_ids:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """Count a token of the output."""
        index = self._indices.setdefault(token_id, len(self._indices))
        if index == len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.zeros_like(self._token_ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._token_ids[index] = token_id
        self._counts[index] += 1

    @property
    def token_ids(self) -> NDArray[np.int64]:
        return self._token_ids[: len(self._indices)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """Return how often the output has each of `token_ids`; 0 for a token that only the prompt has."""
        return self._counts[: len(self._indices)]


class BadWords:
    """Token sequences that must not come up, and the end of the output that they may continue."""

    def __init__(self, words: Sequence[tuple[int, ...]], output_token_ids: Sequence[int]) -> None:
        self._words = words
        self._recent = deque(output_token_ids, maxlen=max(map(len, words)))
        self.num_tokens = len(output_token_ids)

    def add(self, token_id: int) -> None:
        self._recent.append(token_id)
        self.num_tokens += 1

    def last_tokens(self) -> list[int]:
        """Return the tokens that would complete a word now."""
        recent = tuple(self._recent)
        return [word[-1] for word in self._words if len(word) == 1 or recent[1 - len(word) :] == word[:-1]]

    def last_tokens_after_any(self) -> list[tuple[int, int]]:
        """Return (next token, the one after it that would complete a word then); -1 for whichever is next."""
        recent = tuple(self._recent)
        singles = [(-1, word[0]) for word in self._words if len(word) == 1]
        longer = [word for word in self._words if len(word) > 1]
        return singles + [
            (word[-2], word[-1]) for word in longer if len(word) == 2 or recent[2 - len(word) :] == word[:-2]
        ]


def penalty_counts(sampling: SamplingParams, token_ids: Sequence[int], num_prompt_tokens: int) -> PenaltyCounts | None:
    """Return the counts of a request, or None if it has no penalties.

    It may have generated tokens already: when it is resumed, and after a preemption. Only the repetition penalty looks
    at the prompt.
    """
    if not sampling.has_penalties:
        return None
    prompt = token_ids[:num_prompt_tokens] if sampling.repetition_penalty != 1 else []
    return PenaltyCounts(prompt, token_ids[num_prompt_tokens:])
