"""A request in flight: its unfinished choices, and the outputs that its reader has yet to see. One event loop.

Owns what a choice needs to go on in another engine. Knows nothing of admission, or of what else is in flight.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from orcinus.engine.errors import OrcinusError
from orcinus.engine.frontend.choice_clock import ChoiceClock
from orcinus.engine.frontend.output_buffer import OutputBuffer
from orcinus.engine.frontend.output_processor import OutputProcessor
from orcinus.engine.messages import AddRequest
from orcinus.engine.outputs import GenerationRequest, Outcome, RequestOutput, RequestTiming, RequestUsage

if TYPE_CHECKING:
    from orcinus.engine.frontend.replica import EngineReplica


class LiveRequest:
    """A request's unfinished choices. `put` outputs and `close` it; `next_output` reads them."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.request_id = request.request_id
        self.choices: dict[str, LiveChoice] = {}
        self.timer: asyncio.TimerHandle | None = None
        self._num_prompt = self._num_cached = self._num_output = 0
        self._is_failed = False
        self._pending: dict[int, deque[OutputBuffer]] = {}
        self._is_closed = False
        self._error: OrcinusError | None = None
        self._news = asyncio.Event()

    def count(self, choice: "LiveChoice", outcome: Outcome) -> None:
        """Add up what a choice of it has used that has ended."""
        self._num_prompt += choice.num_prompt_tokens
        self._num_cached += choice.num_cached_tokens
        self._num_output += choice.processor.num_output_tokens
        self._is_failed = self._is_failed or outcome in ("error", "timeout")

    def usage(self) -> RequestUsage:
        """Return what its choices have used that have ended."""
        return RequestUsage(
            client=self.request.client,
            adapter=self.request.adapter,
            num_prompt_tokens=self._num_prompt,
            num_cached_tokens=self._num_cached,
            num_output_tokens=self._num_output,
            is_failed=self._is_failed,
        )

    def put(self, output: RequestOutput) -> None:
        """Hand an output to the reader. What it has not read of the same choice becomes one with it, up to a bound."""
        buffers = self._pending.get(output.index)
        if buffers is None:
            self._pending[output.index] = deque([OutputBuffer(output)])
        elif buffers[-1].is_full:
            buffers.append(OutputBuffer(output))
        else:
            buffers[-1].add(output)
        self._news.set()

    def close(self, error: OrcinusError | None = None) -> None:
        """End the stream, with `error` where it is given, after what is pending."""
        if self.timer is not None:
            self.timer.cancel()
        self._is_closed = True
        self._error = error
        self._news.set()

    def discard_pending(self) -> None:
        self._pending.clear()

    async def next_output(self) -> RequestOutput:
        """Return the next output. Raises `StopAsyncIteration` at the end, or the error that it was closed with."""
        while not self._pending and not self._is_closed:
            self._news.clear()
            await self._news.wait()
        if self._pending:
            index, buffers = next(iter(self._pending.items()))
            output = buffers.popleft().merged()
            if not buffers:
                del self._pending[index]
            return output
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration


class LiveChoice:
    """One sequence at the replica that was chosen for it, and at another one if that one's engine ends before."""

    __slots__ = (
        "added",
        "asked_at",
        "clock",
        "engine_id",
        "first_token_time",
        "is_unproven",
        "last_token_time",
        "live",
        "num_cached_tokens",
        "num_prompt_tokens",
        "processor",
        "queue_time_s",
        "replica",
        "was_submitted",
    )

    def __init__(
        self,
        added: AddRequest,
        live: LiveRequest,
        replica: "EngineReplica",
        processor: OutputProcessor,
        num_prompt_tokens: int,
        *,
        asked_at: float | None = None,
        clock: ChoiceClock | None = None,
    ) -> None:
        """Take a choice whose client has waited since `asked_at`, or since now where nobody knows.

        `clock` keeps its times, where somebody asks for them.
        """
        self.added = added
        self.asked_at = added.arrival_time if asked_at is None else asked_at
        self.engine_id = added.request_id
        self.live = live
        self.replica = replica
        self.processor = processor
        self.num_cached_tokens = 0
        self.num_prompt_tokens = num_prompt_tokens  # as usage counts them
        self.was_submitted = False
        self.is_unproven = True  # the engine that has it now has brought nothing of it
        self.queue_time_s = 0.0
        self.first_token_time: float | None = None
        self.last_token_time: float | None = None
        self.clock = clock

    @property
    def arrival_time(self) -> float:
        return self.added.arrival_time

    def submission(self) -> AddRequest:
        """Return what an engine is given to begin with it, or to go on after the tokens that others brought."""
        self.is_unproven = True
        if not self.was_submitted:
            self.was_submitted = True
            return self.added
        self.processor.resume()
        return msgspec.structs.replace(
            self.added, output_token_ids=self.processor.token_ids, is_steered=self.processor.is_steered
        )

    def timing(self, now: float, num_preemptions: int) -> RequestTiming:
        """Return where the time went, if its last delta came `now`. Without tokens all but queueing is prefill."""
        first = now if self.first_token_time is None else self.first_token_time
        return RequestTiming(
            queue_time_s=self.queue_time_s,
            prefill_time_s=first - self.arrival_time - self.queue_time_s,
            decode_time_s=now - first,
            num_preemptions=num_preemptions,
        )
