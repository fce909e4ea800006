"""A request in flight, as its reader sees it: a stream of outputs, and behind it what the reader has yet to see.

`AsyncEngine` puts outputs in and closes it; whoever submitted the request iterates it. One event loop. Knows nothing
of admission, of the engine's messages, or of who else is in flight.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from orcinus.engine.errors import OrcinusError
from orcinus.engine.frontend.output_processor import OutputProcessor, merge_output
from orcinus.engine.messages import AddRequest
from orcinus.engine.outputs import RequestOutput, RequestTiming


class RequestStream:
    """The outputs of one request as they come, in no order between choices; ends when all choices have.

    A reader who comes late finds what it missed merged into one output per choice. `__anext__` may be cancelled and
    called again without loss. Use it in `async with`: leaving aborts what is unfinished. So does dropping it.
    """

    def __init__(self, live: "LiveRequest", abort: Callable[[], None], num_prompt_tokens: list[int]) -> None:
        self._live = live
        self._abort = abort
        self.num_prompt_tokens = num_prompt_tokens

    def abort(self) -> None:
        """Stop generating: the engine is told at once, and the stream ends. Idempotent."""
        self._abort()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestOutput:
        """Raises `RequestTimeoutError`, `RequestFailedError` or `EngineUnavailableError` after what came before it."""
        return await self._live.next_output()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._abort()

    def __del__(self) -> None:
        self._abort()


class LiveRequest:
    """A request in flight: its unfinished choices, and what its reader has yet to see."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.choices: dict[str, Choice] = {}
        self.timer: asyncio.TimerHandle | None = None
        self._pending: dict[int, RequestOutput] = {}
        self._is_closed = False
        self._error: OrcinusError | None = None
        self._news = asyncio.Event()

    def put(self, output: RequestOutput) -> None:
        earlier = self._pending.get(output.index)
        if earlier is None:
            self._pending[output.index] = output
        else:
            merge_output(earlier, output)
        self._news.set()

    def close(self, error: OrcinusError | None = None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self._is_closed = True
        self._error = error
        self._news.set()

    def discard_pending(self) -> None:
        self._pending.clear()

    async def next_output(self) -> RequestOutput:
        while not self._pending and not self._is_closed:
            self._news.clear()
            await self._news.wait()
        if self._pending:
            return self._pending.pop(next(iter(self._pending)))
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration


class Choice:
    """One sequence in the engine, and in the next one if that ends before the sequence does."""

    __slots__ = (
        "added",
        "arrival_time",
        "engine_id",
        "first_token_time",
        "is_unproven",
        "last_token_time",
        "live",
        "num_prompt_tokens",
        "processor",
        "queue_time_s",
        "was_submitted",
    )

    def __init__(
        self, added: AddRequest, live: LiveRequest, processor: OutputProcessor, num_prompt_tokens: int
    ) -> None:
        self.added = added
        self.engine_id = added.request_id
        self.live = live
        self.processor = processor
        self.num_prompt_tokens = num_prompt_tokens
        self.arrival_time = added.arrival_time
        self.was_submitted = False
        self.is_unproven = True  # the engine that has it now has brought nothing of it
        self.queue_time_s = 0.0
        self.first_token_time: float | None = None
        self.last_token_time: float | None = None

    def submission(self) -> AddRequest:
        """What an engine is given to begin with it, or to go on after the tokens that others brought."""
        self.is_unproven = True
        if not self.was_submitted:
            self.was_submitted = True
            return self.added
        self.processor.resume()
        return msgspec.structs.replace(
            self.added, output_token_ids=self.processor.token_ids, is_steered=self.processor.is_steered
        )

    def timing(self, now: float, num_preemptions: int) -> RequestTiming:
        """Of a choice whose last delta came `now`. Without tokens all that was not queueing is prefill."""
        first = now if self.first_token_time is None else self.first_token_time
        return RequestTiming(
            queue_time_s=self.queue_time_s,
            prefill_time_s=first - self.arrival_time - self.queue_time_s,
            decode_time_s=now - first,
            num_preemptions=num_preemptions,
        )
