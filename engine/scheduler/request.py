"""One sequence on its way through the engine core: its tokens, how many of them are computed, its block hashes.

Pure state, owned by the scheduler. Knows nothing of blocks' ids, tensors or text.
"""

import hashlib
from array import array
from typing import Any

from orcinus.engine.messages import AddRequest, pack_logprobs
from orcinus.engine.sampling_params import SamplingParams


class Request:
    """A sequence with tokens known (`token_ids`) and tokens computed (`num_computed_tokens`).

    Each step lets computed catch up with known. A prompt's chunk, a prefix-cache hit, a decode step with or without
    drafts and the recomputation after a preemption are the same case. Tokens count as computed from when their step is
    planned on, and the `num_in_flight` tokens that planned steps sample count as tokens although it is not known yet
    which they are; nor, with drafts, how many: what was not to be is taken back with the result.
    """

    __slots__ = (
        "_block_hashes",
        "adapter",
        "arrival",
        "arrival_time",
        "cache_salt",
        "client",
        "draft_token_ids",
        "first_scheduled_time",
        "followed_places",
        "has_reported",
        "is_known",
        "is_running",
        "is_steered",
        "last_scheduled_step",
        "looks_back",
        "num_accepted_drafts",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_draft_tokens",
        "num_in_flight",
        "num_preemptions",
        "num_prefill_tokens",
        "num_prompt_tokens",
        "order",
        "pauses",
        "prepared",
        "priority",
        "prompt_logprobs",
        "queued_since",
        "request_id",
        "sampling",
        "token_ids",
        "wants_tokens",
    )

    def __init__(self, added: AddRequest, sequence_number: int, prepared: Any = None) -> None:
        self.request_id: str = added.request_id
        self.sampling: SamplingParams = added.sampling
        self.prepared: Any = prepared  # by the executor, whenever it meets the request
        self.wants_tokens: bool = added.sampling.max_tokens != 0
        self.followed_places: range = added.sampling.followed_places
        self.looks_back: bool = added.sampling.looks_back
        self.arrival_time: float = added.arrival_time
        self.priority: int = added.priority
        self.cache_salt: str | None = added.cache_salt
        self.adapter: str | None = added.adapter
        self.client: str = added.client
        self.token_ids: list[int] = added.prompt_token_ids + added.output_token_ids
        self.num_prompt_tokens: int = len(added.prompt_token_ids)
        self.arrival = (added.arrival_time, sequence_number)
        self.order = (added.priority, self.arrival)  # among the requests of one client
        self.is_running: bool = False  # it has a slot
        self.queued_since: float = added.arrival_time
        self.first_scheduled_time: float | None = None
        self.last_scheduled_step: int = -1
        self.num_prefill_tokens: int = len(self.token_ids)  # computed before it decodes: the prompt, or all it had
        self.num_computed_tokens: int = 0
        self.num_in_flight: int = 0
        self.draft_token_ids: list[int] = []  # to be tried next, after the tokens known
        self.num_draft_tokens: int = 0  # that were tried
        self.num_accepted_drafts: int = 0
        self.num_cached_tokens: int | None = None
        self.num_preemptions: int = 0
        self.pauses: list[tuple[float, float]] = []  # from preemptions to slots again, not reported yet
        self.is_known: bool = False  # to the executor
        self.has_reported: bool = False
        self.is_steered: bool = added.is_steered  # to its grammar's end, because its tokens run out
        self.prompt_logprobs: list[bytes] | None = (  # parts of `PackedLogprobs`
            None if added.sampling.prompt_logprobs is None or added.output_token_ids else pack_logprobs([None])
        )
        self._block_hashes: list[bytes] = []

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def follows_tokens(self) -> bool:
        """Whether its next token cannot be chosen before the host knows all before it."""
        return self.num_output_tokens in self.followed_places

    @property
    def num_tokens_to_compute(self) -> int:
        return self.num_tokens - self.num_computed_tokens

    @property
    def had_slot(self) -> bool:
        """Whether it waits for a slot again: it was preempted, or an engine that ended had brought tokens of it."""
        return self.num_preemptions > 0 or self.num_output_tokens > 0

    @property
    def is_decoding(self) -> bool:
        """Whether all that it had when it got its slot is computed, or being computed."""
        return self.num_computed_tokens >= self.num_prefill_tokens

    @property
    def may_reuse_prefix(self) -> bool:
        """Log-probabilities of the prompt, and their mean, need the hidden states of every prompt token."""
        return self.sampling.prompt_logprobs is None and self.sampling.pooling != "mean"

    def block_hashes(self, block_size: int, num_blocks: int) -> list[bytes]:
        """Return the hashes of the first `num_blocks` blocks, each of all tokens up to its end, salt and adapter."""
        assert num_blocks * block_size <= len(self.token_ids), "a block of tokens that are not known"
        hashes = self._block_hashes
        for index in range(len(hashes), num_blocks):
            parent = hashes[-1] if hashes else _root_hash(self.cache_salt, self.adapter)
            hashes.append(_hash_block(parent, self.token_ids[index * block_size : (index + 1) * block_size]))
        return hashes[:num_blocks]

    @property
    def known_hashes(self) -> list[bytes]:
        """The hashes that `block_hashes` has made so far: a list that only grows, of which nothing changes."""
        return self._block_hashes

    def forget_computed(self, now: float) -> None:
        """Go back to the queue after a preemption: the tokens stay, what was computed of them does not."""
        self.queued_since = now
        self.num_prefill_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_in_flight = 0
        self.draft_token_ids = []
        self.num_preemptions += 1
        self.is_known = False
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = pack_logprobs([None])


def _root_hash(cache_salt: str | None, adapter: str | None) -> bytes:
    """Differs where salt or adapter do: what one adapter computed of a prefix is not what another one would."""
    return hashlib.sha256(repr((cache_salt, adapter)).encode()).digest()


def _hash_block(parent: bytes, token_ids: list[int]) -> bytes:
    """SHA-256, because a collision would hand one request another's context."""
    return hashlib.sha256(parent + array("I", token_ids).tobytes()).digest()
