"""What a caller of the engine asks for and gets back: requests of one or more prompts, and text.

This is the vocabulary of the text side. The core underneath (`engine.messages`) knows one sequence at a time and only
tokens.
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from orcinus.engine.messages import FinishReason, PackedLogprobs, TokenLogprobs
from orcinus.engine.sampling_params import SamplingParams

Outcome = Literal["stop", "length", "abort", "timeout", "error"]
"""What became of a choice that was admitted."""


class ChoiceTimes(msgspec.Struct, kw_only=True):
    """Tells when what became of one choice, in seconds of `time.monotonic()`, as the engine reported it.

    None where it has not come to that. `arrived_at` is its admission. In `pauses` it had no slot, each from a
    preemption to its next step; `restarts` go from the end of an engine to the choice's first step in the next one.
    `ended_at` is when its last tokens were known, or when it was given up.
    """

    index: int
    arrived_at: float
    first_scheduled_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    pauses: list[tuple[float, float]] = []
    restarts: list[tuple[float, float]] = []
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    outcome: Outcome | None = None


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts (as token ids) that share their parameters: `len(prompts) * sampling.n` choices in all.

    The choice of prompt p and sample s has index `p * n + s`. The whole is admitted or refused as one.
    `timeout_s` counts from `asked_at` (of the monotonic clock; None: from admission) and covers queueing. `client` is
    an opaque name for whoever asks: each has limits of its own, and a fair share of the engine. `adapter` is one of
    `EngineInfo.adapters`, or None for the model alone. `on_choice_end` is called on the event loop with the times of
    each choice, however it ends; it must not raise. Without it nobody keeps them.
    """

    request_id: str
    prompts: list[list[int]]
    sampling: SamplingParams
    priority: int = 0
    cache_salt: str | None = None
    timeout_s: float | None = None
    asked_at: float | None = None
    client: str = ""
    adapter: str | None = None
    on_choice_end: Callable[[ChoiceTimes], None] | None = None

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.sampling.n


class RequestUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tells what a request has used that has ended: each prompt counted once, and all that was generated for it."""

    client: str
    adapter: str | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    is_failed: bool  # by an error or its deadline, for one of its choices or all


class RequestTiming(msgspec.Struct, frozen=True, kw_only=True):
    """The time that one choice took: queueing until its first step, prefill from there to its first token."""

    queue_time_s: float
    prefill_time_s: float
    decode_time_s: float
    num_preemptions: int


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True):
    """Holds what is new of one choice since the last output: text in whole code points, and its tokens.

    `index` is that of the choice in its request, `prompt_index` that of its prompt among all that were given with it.
    `text` may be empty while `token_ids` is not (part of a code point, or a possible stop string held back).
    `stop_reason` is the stop string or stop token id that ended it. `num_cached_tokens`, `queue_time_s` and
    `prompt_logprobs` come with the first output of a choice; `num_draft_tokens` were tried so far, of which
    `num_accepted_drafts` became its tokens; `timing` and `embedding` (a vector, or the logits of the
    labels that were asked for) with its last.
    """

    index: int
    prompt_index: int = 0
    text: str = ""
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: PackedLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int | None = None
    queue_time_s: float | None = None
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_drafts: int = 0
    error: str | None = None
    timing: RequestTiming | None = None
    embedding: bytes | None = None
