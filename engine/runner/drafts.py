"""Drafts: tokens tried before they are sampled, so that one step can bring a request several.

Speculative decoding (Leviathan et al., https://arxiv.org/abs/2211.17192), exact to the token: each position is sampled
as if it were alone, by a random number that belongs to (seed, position), and a draft is accepted if it is what was
sampled in its place. So drafts decide how many tokens a step brings, and not which (`ScheduledRequest`). Knows nothing
of the model, of devices and of where drafts come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orcinus.engine.messages import NewRequest, Proposal, ScheduledRequest, TokenLogprobs
from orcinus.engine.sampling.sampler import SampledRows


class Drafter(Protocol):
    """Guesses which tokens follow others. Used by one thread."""

    def begin(self, new: NewRequest) -> None:
        """Get to know a request that may try drafts, and its text so far."""

    def take_in(self, grown: Mapping[str, Sequence[int]]) -> None:
        """Append to texts what came next, by request, since they were asked for last."""

    def propose(self, request_ids: Sequence[str]) -> dict[str, Proposal]:
        """Return the tokens that may follow the texts of these requests: as many as it likes, of some or of none.

        The scheduler decides how many are tried, and in which steps it asks.
        """

    def release(self, request_id: str) -> None:
        """Forget a request that ended, or that is to be computed anew; it may not be known."""


@dataclass(frozen=True, slots=True)
class SamplePositions:
    """Says where a step samples: `num_samples` positions of each request, the last ones, in the order of the batch.

    Sample j belongs to request `requests[j]`, `behind[j]` positions before the end of the request's tokens of the step.
    """

    starts: NDArray[np.int64]  # (num_requests + 1,), the samples of request i are starts[i] .. starts[i + 1]
    requests: NDArray[np.int64]  # (num_samples,)
    behind: NDArray[np.int64]  # (num_samples,)


def sample_positions(num_samples: Sequence[int]) -> SamplePositions:
    """Lay out so many samples of each request."""
    counts = np.array(num_samples, dtype=np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), counts.cumsum()])
    requests = np.repeat(np.arange(len(counts)), counts)
    return SamplePositions(starts, requests, starts[1:][requests] - 1 - np.arange(len(requests)))


@dataclass(frozen=True, slots=True)
class AcceptedTokens:
    """Tells what a step with drafts brought its requests, one entry for each.

    `first` are the samples after the last known tokens, which say whether a request failed. `is_spoiled` tells that
    this one is not finite, which may be the fault of the drafts behind it: attention reads them with a weight of 0.
    `broken_from` is the first sample not accepted, if any from there on is not finite: nor may be what is cached.
    """

    token_ids: list[list[int]]
    logprobs: list[list[TokenLogprobs | None]]
    first: SampledRows
    is_spoiled: list[bool]
    broken_from: list[int | None]


def accept(scheduled: Sequence[ScheduledRequest], positions: SamplePositions, sampled: SampledRows) -> AcceptedTokens:
    """Hold the samples of a step against the drafts of its requests."""
    starts: list[int] = positions.starts.tolist()
    accepted = AcceptedTokens([], [], _firsts(sampled, starts[:-1]), [], [])
    for item, start, end in zip(scheduled, starts, starts[1:], strict=False):
        is_finite = sampled.is_finite[start:end]
        is_token = [finite and choice for finite, choice in zip(is_finite, sampled.has_choice[start:end], strict=True)]
        token_ids = sampled.token_ids[start:end]
        count = num_accepted(item.draft_token_ids, token_ids, is_token)
        accepted.token_ids.append(token_ids[:count])
        accepted.logprobs.append(sampled.logprobs[start : start + count])
        accepted.is_spoiled.append(bool(item.draft_token_ids) and not is_finite[0])
        accepted.broken_from.append(None if not item.draft_token_ids or all(is_finite[count:]) else count)
    return accepted


def num_accepted(draft_token_ids: Sequence[int], sampled: Sequence[int], is_token: Sequence[bool]) -> int:
    """Return how many of a request's samples are its next tokens.

    Sample i takes the drafts before it for granted: it stands if they are what was sampled in their place. Where a
    position gave no token, none is accepted from there on: the next step finds that out again, without drafts.
    """
    for i, draft in enumerate(draft_token_ids):
        if not is_token[i]:
            return i
        if sampled[i] != draft:
            return i + 1
    return len(draft_token_ids) + is_token[-1]


def _firsts(sampled: SampledRows, at: Sequence[int]) -> SampledRows:
    return SampledRows(
        token_ids=[sampled.token_ids[i] for i in at],
        is_finite=[sampled.is_finite[i] for i in at],
        has_choice=[sampled.has_choice[i] for i in at],
    )
