"""The plain data that crosses a boundary inside the engine. No behaviour but packing, no tensors, no torch.

Two boundaries meet here and share nothing else:

* server process <-> engine process: `ToEngine` and `FromEngine`, sent as msgpack;
* scheduler <-> executor: `StepPlan` one way, `StepResult` the other.

Times are seconds of `time.monotonic()`, which on one machine is the same clock in every process.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal

import msgspec

from orcinus.config.engine_config import BatchingStrategy, Speculation
from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import Pooling, SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]
Fault = Literal["request", "memory", "engine"]
"""What a failed step may be blamed on: one of its requests, want of memory, or an executor that cannot go on."""
HeadUse = Literal["rests", "caches", "guesses"]
"""What a model's head for multi-token prediction does in a step, if there is one: "caches" runs its layer alone."""
DraftBasis = Literal["long match", "short match", "substitution", "realignment", "head"]
"""Why drafts are proposed: a text's last tokens stood before, many or few of them; it differs from what it was like in
its last tokens, or in some before these; or a head for multi-token prediction guesses so."""
AdmissionLimit = Literal["slots", "blocks", "tokens", "objective", "other"]
"""What a sequence waits for: a slot, KV blocks, tokens of a step, the latency objective, or anything else."""

_ENTRIES_IN_PART = 32


# The error of a request whose own parameters rule every token out: the client's fault, and not the engine's.
NOTHING_LEFT = "every token is ruled out by the request's own parameters"


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of all messages: immutable, and small on the wire."""


# --- server process -> engine process -------------------------------------------------------------------


class AddRequest(Message, frozen=True, tag="add"):
    """One sequence to generate. `sampling.n` is 1 and `sampling.seed` is set by the time it is sent.

    `output_token_ids` holds what an earlier engine already generated: the request resumes after them. `is_steered`
    tells that one of them was not the one that was drawn (`StepResult.steered`). Clients share the engine fairly:
    `client` is an opaque name. `adapter` is one of `EngineInfo.adapters`, or None for the model alone.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    arrival_time: float
    priority: int = 0
    cache_salt: str | None = None
    output_token_ids: list[int] = []
    is_steered: bool = False
    client: str = ""
    adapter: str | None = None

    @property
    def scope(self) -> tuple[str | None, str | None]:
        """Return what two requests must have in common, beside tokens, to share computed blocks."""
        return self.cache_salt, self.adapter


class AbortRequests(Message, frozen=True, tag="abort"):
    """Forget these requests; nothing more is reported of them. Unknown ids are fine."""

    request_ids: list[str]


class WatchSlots(Message, frozen=True, tag="watch"):
    """Begin to report what is in the slots, or stop: somebody watches now, or nobody does any more."""

    is_on: bool


ToEngine = AddRequest | AbortRequests | WatchSlots


# --- engine process -> server process -------------------------------------------------------------------


class CacheGroup(Message, frozen=True):
    """Layers whose keys and values are kept alike: blocks of one pool, and one block table for each request.

    All groups have blocks of the same number of tokens. The first group of a list keeps everything, and has no layers
    where every layer has a window. `window` is how many keys a query sees, itself included; None is all before it.
    """

    num_blocks: int
    num_layers: int
    window: int | None = None


class EngineInfo(Message, frozen=True, tag="ready"):
    """Tells what the engine resolved at start-up; its first message.

    Without `cache_groups` there is one that keeps everything, of `num_kv_blocks`.
    """

    model: str
    architecture: str
    num_parameters: int
    weight_bytes: int
    dtype: str
    device: str
    device_name: str
    attention_backend: str
    vocab_size: int
    eos_token_ids: list[int]
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_kv_blocks: int
    block_size: int
    kv_cache_bytes: int  # of blocks and of the states of slots; on a CPU of snapshots, too
    enable_prefix_caching: bool
    batching: BatchingStrategy
    load_time_s: float
    sampling_defaults: dict[str, int | float] = {}  # of the model's generation_config.json, by parameter
    pooling: Pooling = "mean"
    hidden_size: int = 0  # numbers in an embedding
    quantization: str | None = None  # of weights, at load
    packed_types: dict[str, int] = {}  # bytes of weights in the blocks of their file, by the type of these
    is_deterministic: bool = False
    cache_groups: list[CacheGroup] = []
    adapters: list[str] = []  # that requests may name
    lacks_kernels: bool = False  # a CPU computes without native code, which it should not
    text_half_of: str | None = None  # the multimodal architecture whose language model this is
    has_head: bool = True  # without a language-model head it embeds, and writes nothing
    state_bytes: int = 0  # of the states beside keys and values that a sequence has; 0: the model keeps none
    warms_grammars: bool = False  # what the first grammar needs is loaded before it comes
    label_token_ids: list[int] = []  # by which the checkpoint says that a text is relevant: a yes, and maybe a no
    speculation: Speculation = "off"  # where drafts come from, and whether they are weighed
    has_mtp_head: bool = False  # the checkpoint's head for multi-token prediction, which proposes drafts
    kv_cache_dtype: str = ""  # what keys and values are stored in; empty: as `dtype`
    num_state_snapshots: int = 0  # copies of states that prefixes are reused with; 0: none are, where there are states

    def check_generates(self) -> None:
        """Raise `InvalidRequestError` where the model can only embed."""
        if not self.has_head:
            raise InvalidRequestError(
                f"this model cannot write text or score it: its checkpoint ({self.architecture}) has no language-model"
                " head; it makes embeddings alone (/v1/embeddings)",
                "model",
            )


class TokenLogprobs(Message, frozen=True):
    """The chosen token's log-probability and the most likely ones, before temperature and penalties.

    `top` holds `(token_id, logprob)`, best first, as many as asked for; the chosen token may be among them.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []


class PackedLogprobs(Message, frozen=True, eq=False):
    """The entries of a prompt's tokens, as bytes that are read a part at a time; made by `pack_logprobs`.

    A prompt may have millions of numbers. They cost next to nothing until somebody goes through them, or compares or
    indexes them as the list that they are.
    """

    parts: list[bytes] = []

    def __iter__(self) -> Iterator[TokenLogprobs | None]:
        return chain.from_iterable(map(_read_entries, self.parts))

    def __len__(self) -> int:
        return sum(map(len, map(_read_entries, self.parts)))

    def __getitem__(self, position: Any) -> Any:
        return [*self][position]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (PackedLogprobs, list)) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]


_read_entries = msgspec.msgpack.Decoder(list[TokenLogprobs | None]).decode
_read_present_entries = msgspec.msgpack.Decoder(list[TokenLogprobs]).decode


def pack_logprobs(entries: Sequence[TokenLogprobs | None]) -> list[bytes]:
    """Return `parts` of `PackedLogprobs`: each holds so few entries that they are read in no time."""
    starts = range(0, len(entries), _ENTRIES_IN_PART)
    return [msgspec.msgpack.encode(entries[start : start + _ENTRIES_IN_PART]) for start in starts]


def unpack_logprobs(parts: Sequence[bytes]) -> list[TokenLogprobs]:
    """Return the entries of generated tokens that were packed, none of which is None."""
    return [*chain.from_iterable(map(_read_present_entries, parts))]


class RequestDelta(Message, frozen=True):
    """Tells what one step brought one request. `finish_reason` is None until the last delta.

    `logprobs` matches `token_ids`. `prompt_logprobs` comes once, with the first delta, one entry per prompt
    token, None for the first. `num_cached_tokens`, `queue_time_s` come with the first delta.
    `stop_reason` is the stop token id that ended it, None for end-of-sequence (and for a grammar's end).
    `embedding` is float32, in the machine's byte order; it comes once, with the last delta. It has the vector, or the
    logits of `sampling.label_token_ids`.
    `ends_in_text` tells that a request which stopped did so after its last token, which is text, and not by it.
    `is_steered` tells that a token so far is not the one that was drawn (`StepResult.steered`).
    `num_draft_tokens` counts the drafts tried so far, `num_accepted_drafts` those of them that became its tokens.
    `pauses` are the times since the delta before in which it had no slot, each from a preemption to its next step.
    """

    request_id: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: PackedLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    num_cached_tokens: int | None = None
    queue_time_s: float | None = None
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_drafts: int = 0
    error: str | None = None
    embedding: bytes | None = None
    ends_in_text: bool = False
    is_steered: bool = False
    pauses: list[tuple[float, float]] = []


class StepStats(msgspec.Struct, omit_defaults=True):
    """One step in numbers, and the state after it. Not frozen: it is filled in while the step is planned and run.

    The counts are of this step alone: prompt tokens (recomputed ones among them) and tokens of decoding requests that
    were computed, tokens that requests got, preemptions, slots filled, tokens looked up and found in the prefix cache.
    `blocked_by` has what those wait for who got nothing of this step. Slot-seconds, energy and what became of snapshots
    of states are of all the time since the message before. The gauges are of the moment.
    """

    step_time_s: float = 0.0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_sampled_tokens: int = 0
    num_forced_tokens: int = 0  # of these, those that came without a sample
    tried_drafts: list[int] = []  # by their position behind a request's last token, 0 the first
    accepted_drafts: list[int] = []  # of these, those that became tokens of a request
    num_preemptions: int = 0
    num_slots_refilled: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    blocked_by: list[AdmissionLimit] = []
    slot_s: float = 0.0  # seconds that slots were held, of all slots together
    slot_capacity_s: float = 0.0  # and that there were slots to hold
    gpu_energy_j: float | None = None  # None where the device does not say
    num_snapshot_loads: int = 0
    num_snapshot_saves: int = 0
    num_snapshot_evictions: int = 0
    # Gauges.
    num_running: int = 0
    num_waiting: int = 0
    num_slots: int = 0
    num_running_tokens: int = 0  # prompts and output of those that run
    num_kv_blocks: int = 0
    num_kv_blocks_used: int = 0
    num_snapshots: int = 0
    num_snapshots_used: int = 0
    device_utilization: float | None = None  # 0 to 1; sampled about once a second
    device_memory_used_bytes: int | None = None
    device_memory_total_bytes: int | None = None

    @property
    def num_draft_tokens(self) -> int:
        """Return how many drafts were tried."""
        return sum(self.tried_drafts)

    @property
    def num_accepted_drafts(self) -> int:
        """Return how many drafts became tokens."""
        return sum(self.accepted_drafts)

    def count_drafts(self, num_tried: int, num_accepted: int) -> None:
        """Count the drafts of a request, of which the first ones were accepted."""
        missing = num_tried - len(self.tried_drafts)
        if missing > 0:
            self.tried_drafts += [0] * missing
            self.accepted_drafts += [0] * missing
        for position in range(num_tried):
            self.tried_drafts[position] += 1
            self.accepted_drafts[position] += position < num_accepted


class SlotMove(Message, frozen=True, array_like=True):
    """Tells what happened in a slot at `at_s`: a request got it, brought its first token there, or left it.

    `request_id` and `num_prefill_tokens`, which have to be computed before it decodes (its prompt, and after a
    preemption all that it had), are of a request that came.
    """

    slot: int
    at_s: float
    kind: Literal["came", "decodes", "left"]
    request_id: str = ""
    num_prefill_tokens: int = 0


class SlotReport(Message, frozen=True, array_like=True):
    """Tells what happens in the slots, while somebody watches: `moves` since the last report, in order.

    Where it `is_whole`, what was told before is void, and `moves` are of those who have slots now. The columns are by
    slot, 0 where one is free: tokens computed or being computed, and KV blocks in the request's table (of a block that
    several share, each has one).
    """

    moves: list[SlotMove] = []
    is_whole: bool = False
    num_computed_tokens: list[int] = []
    num_blocks: list[int] = []


class StepOutputs(Message, frozen=True, tag="step"):
    """All that one step brought, one message a step. With no deltas it is a heartbeat.

    `slots` is there while somebody watches, a few times a second. `ended_at` is when the step's tokens were known.
    """

    deltas: list[RequestDelta]
    stats: StepStats
    slots: SlotReport | None = None
    ended_at: float = 0.0


class StepStarted(Message, frozen=True, tag="started"):
    """These requests are in the next step for the first time: should the engine end now, they may be why."""

    request_ids: list[str]


class Alive(Message, frozen=True, tag="alive"):
    """Once a second, whatever the engine is doing. `stalled_s`: since when its loop has not come round.

    While the model loads there is no loop, and nothing stalls.
    """

    stalled_s: float = 0.0


class EngineFailed(Message, frozen=True, tag="failed"):
    """The last message of an engine that cannot go on. `message` is fit for a user's eyes."""

    message: str
    during_start: bool = False


FromEngine = EngineInfo | StepOutputs | StepStarted | Alive | EngineFailed


# --- scheduler -> executor -> scheduler -----------------------------------------------------------------


class NewRequest(Message, frozen=True):
    """A request that the executor has not seen, or has forgotten since it was preempted.

    `token_ids` is the prompt and whatever was generated before; the first `num_prompt_tokens` are the prompt.
    `prepared` is what the executor's own `prepare` made for the request: opaque to all others, and never sent anywhere.
    """

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    prepared: Any = None
    adapter: str | None = None
    cache_salt: str | None = None


class ScheduledRequest(Message, frozen=True):
    """One request's share of a step: `num_tokens` tokens from position `num_computed_tokens` on.

    `new_block_ids` has for each cache group what is appended to the request's block table before the step, or is empty
    where nothing is. Position p lives in block `block_table[p // block_size]`; what lies behind a group's window is not
    read, and its blocks may be another request's by now.

    A token is sampled after each of the last `num_samples` tokens: 0 where the chunk does not reach the end of the
    tokens known so far, or the request wants none, else 1, and one more for each draft.

    `draft_token_ids` are the last of these tokens: guesses of what follows the last known one. Each position is sampled
    as if it were alone, by a random number that is a function of (seed, position) and of nothing else. So the text of a
    request is the same, token for token, with and without drafts, however good they are: as with all that shares a
    step, up to the model's rounding, and to the last bit in deterministic mode.

    Of a model with states beside keys and values, a request's own is what it was after its last chunk; it begins anew
    at position 0. Unless all drafts of that chunk were accepted, it is the one in front of them, and those that were
    are computed again, as known tokens. `load_state` is the snapshot that takes its place before this chunk is
    computed, and `save_state` the one that it is copied to after that, the drafts left out; -1 is none. Loads and saves
    happen in the order of the plans, and in a plan all loads before all saves.
    """

    request_id: str
    num_computed_tokens: int
    num_tokens: int
    new_block_ids: list[list[int]] = []
    num_samples: int = 1
    draft_token_ids: tuple[int, ...] = ()
    load_state: int = -1
    save_state: int = -1

    @property
    def end(self) -> int:
        """The position after its last token of this step, drafts included."""
        return self.num_computed_tokens + self.num_tokens

    @property
    def known_end(self) -> int:
        """The position after its last token of this step that is no draft."""
        return self.end - len(self.draft_token_ids)


class StepPlan(Message, frozen=True):
    """Says what runs in one step, in batch order, under the token budget.

    `released` are requests (finished, aborted, preempted) whose state the executor drops before anything else;
    a preempted one comes back as a `NewRequest`. The executor appends the samples that stand to its own copy, and
    proposes drafts only if it `wants_drafts`; what a `head` guesses is among these.
    """

    scheduled: list[ScheduledRequest]
    new_requests: list[NewRequest] = []
    released: list[str] = []
    wants_drafts: bool = True
    head: HeadUse = "guesses"

    @property
    def num_tokens(self) -> int:
        return sum(s.num_tokens for s in self.scheduled)


class Proposal(Message, frozen=True):
    """Tokens that may follow those of a request, to be tried as drafts, and what makes them likely."""

    token_ids: list[int]
    basis: DraftBasis


class StepResult(Message, frozen=True):
    """Tells what the executor made of a plan.

    `sampled_token_ids` has 1 to `num_samples` tokens for each request that sampled: sample i stands if every draft
    before it is what was sampled in its place. Behind the sample of a request that tried no drafts there may be any
    number of tokens that nobody sampled, because its grammar left no choice: they are what would have been sampled, and
    are known but not computed. It has none for a request whose drafts made the model's output useless
    for that step; it is then planned again. `logprobs` matches `sampled_token_ids`. `drafts` are what the executor
    proposes to try next, after the tokens sampled now.

    `prompt_logprobs` holds the entries that this chunk adds: for the chunk at positions [a, b) of the prompt,
    those of prompt tokens a+1 .. b (of b itself only if it is still a prompt token). `errors` names requests
    whose own row failed (non-finite logits); they have no sampled tokens. `finished` are requests whose grammar
    nothing can follow after the tokens sampled now. `steered` are those of which a token, this or an earlier one, is
    not the one that was drawn, because the grammar could not have come to its end within `max_tokens` after that.
    `embeddings` has those (vectors, or logits of labels) whose prompt is complete with this chunk.
    """

    sampled_token_ids: dict[str, list[int]]
    logprobs: dict[str, list[TokenLogprobs]] = {}
    prompt_logprobs: dict[str, list[TokenLogprobs]] = {}
    errors: dict[str, str] = {}
    finished: list[str] = []
    steered: list[str] = []
    embeddings: dict[str, bytes] = {}
    drafts: dict[str, Proposal] = {}
