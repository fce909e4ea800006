"""The reader's side of a request in flight: what `AsyncEngine.submit` returns."""

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Self

from orcinus.engine.frontend.live_request import LiveRequest
from orcinus.engine.outputs import RequestOutput


class RequestStream:
    """The outputs of one request as they come, in no order between choices; ends when all choices have.

    A reader who comes late finds what it missed merged into one output per choice. `__anext__` may be cancelled and
    called again without loss. Use it in `async with`: leaving aborts what is unfinished. So does dropping it.
    """

    def __init__(self, live: LiveRequest, abort: Callable[[], None], num_prompt_tokens: list[int]) -> None:
        self._live = live
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self.num_prompt_tokens = num_prompt_tokens

    def abort(self) -> None:
        """Stop generating: the engine is told at once, and the stream ends. Idempotent."""
        self._abort()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestOutput:
        """Return the next output.

        Raises `RequestTimeoutError`, `RequestFailedError` or `EngineUnavailableError` after what came before it.
        """
        return await self._live.next_output()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._abort()

    def __del__(self) -> None:
        """Have the loop abort it: the collector may run in any thread, and in the middle of anything on the loop."""
        if self._live.choices:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing is in flight any more
                self._loop.call_soon_threadsafe(self._abort)
