"""Starts an engine, watches it, and replaces it by another one when it has ended or is stuck.

Every engine after the first is made to have the sizes of the first. Requests are unknown here: what was in flight is
a matter of the supervisor's user, who is told when an engine is up and when it has ended.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.errors import EngineKilledError, EngineUnavailableError, ModelLoadError
from orcinus.engine.messages import Alive, EngineFailed, EngineInfo, FromEngine, StepOutputs, StepStarted, ToEngine
from orcinus.engine.supervision.liveness import TICK_S, Backoff, LivenessMonitor
from orcinus.engine.supervision.transport import Transport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineEnd:
    """Tells how an engine ended. `was_killed`: from outside, as far as one can tell."""

    reason: str
    was_killed: bool = False


class EngineUser(Protocol):
    """Works with the engine that is up. Called on the event loop."""

    async def on_engine_up(self, info: EngineInfo) -> None:
        """Begin to use an engine that is loaded. May raise `ModelLoadError`, which ends everything."""

    def on_message(self, message: StepOutputs | StepStarted) -> None: ...

    def on_engine_end(self, end: EngineEnd) -> bool:
        """Return whether the engine, from which nothing more comes, has been of use."""

    def on_restart(self) -> None:
        """Note that the engine that has ended is to be replaced by another one."""


class Supervisor:
    """`start` it, then `run` reads and restarts until `aclose`. What is sent while no engine is up is lost."""

    def __init__(
        self,
        config: EngineConfig,
        user: EngineUser,
        transport_factory: Callable[[], Transport],
        *,
        step_timeout_s: float,
        max_restarts: int,
    ) -> None:
        """`step_timeout_s` and `max_restarts` are as `LivenessMonitor` and `Backoff` take them."""
        self._config = config
        self._user = user
        self._make_transport = transport_factory
        self._step_timeout_s = step_timeout_s
        self._max_restarts = max_restarts
        self._transport = transport_factory()
        self._backoff = Backoff(max_restarts)
        self._info: EngineInfo | None = None  # of the first engine
        self._closing = asyncio.Event()

    def start(self, sizes: EngineInfo | None = None) -> None:
        """Spawn the first engine, with the `sizes` of another one where they are given. Needs no event loop."""
        if sizes is not None:
            self._config = _with_sizes_of(sizes, self._config)
        self._transport.start(self._config)

    def send(self, messages: list[ToEngine]) -> None:
        self._transport.send(messages)

    async def run(self) -> None:
        """Serve until `aclose`.

        Raises `ModelLoadError` or `EngineUnavailableError` where there will be no engine any more.
        """
        while not self._closing.is_set():
            end: EngineEnd | None = await self._follow(self._transport)
            while end is not None and not self._closing.is_set():
                end = await self._replace(end)

    async def aclose(self) -> None:
        """End the engine, and start no other. Idempotent."""
        self._closing.set()
        await self._transport.aclose()

    # --- one engine -----------------------------------------------------------------------------------------

    async def _follow(self, transport: Transport) -> EngineEnd:
        """Read the messages of one engine until its end, and return how it ended."""
        monitor = LivenessMonitor(self._step_timeout_s, is_first=self._info is None)
        watching = asyncio.create_task(_watch(transport, monitor), name="engine watch")
        try:
            while True:
                message = await transport.receive()
                monitor.on_message(message)
                await self._on_message(message, monitor)
        except EngineUnavailableError as error:
            if monitor.failure is not None:
                return EngineEnd(monitor.failure, monitor.is_silent)
            return EngineEnd(str(error), isinstance(error, EngineKilledError))
        finally:
            watching.cancel()

    async def _on_message(self, message: FromEngine, monitor: LivenessMonitor) -> None:
        match message:
            case StepOutputs() | StepStarted():
                self._user.on_message(message)
            case Alive():
                return
            case EngineInfo():
                self._check(message)
                await self._user.on_engine_up(message)
                monitor.on_loaded()
            case EngineFailed():
                if message.during_start and self._info is None:
                    raise ModelLoadError(message.message)
                raise EngineUnavailableError(message.message)

    def _check(self, info: EngineInfo) -> None:
        """Remember the first engine, and raise `ModelLoadError` for one that could not go on where that one was."""
        if self._info is None:
            self._info = info
            self._config = _with_sizes_of(info, self._config)
            return
        if differences := _differences(self._info, info):
            raise ModelLoadError(f"the engine that was restarted is not like the one before: {differences}")

    # --- the next one ---------------------------------------------------------------------------------------

    async def _replace(self, end: EngineEnd) -> EngineEnd | None:
        """Start the next engine, or return why it cannot be started.

        Raises `EngineUnavailableError` where no engine was ever up, because the next one would be no different, and
        where too many have ended without use.
        """
        if self._info is None:
            raise EngineUnavailableError(end.reason)
        was_useful = self._user.on_engine_end(end)
        delay_s = self._backoff.next_delay_s(was_useful=was_useful)
        if delay_s is None:
            raise EngineUnavailableError(self._final_reason(end.reason))
        self._user.on_restart()
        pause = f" in {delay_s:g} s" if delay_s else ""
        logger.error("%s is gone, %s; another one starts%s", _name_of(self._config), end.reason, pause)
        await self._transport.aclose()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), delay_s)
        return None if self._closing.is_set() else self._start_next()

    def _start_next(self) -> EngineEnd | None:
        self._transport = self._make_transport()
        try:
            self._transport.start(self._config)
        except OSError as error:  # no memory, or no descriptor, just now
            return EngineEnd(f"the engine process cannot be started: {error.strerror}")
        return None

    def _final_reason(self, reason: str) -> str:
        if self._max_restarts == 0:
            return reason
        return (
            f"the engine ended {self._backoff.num_useless} times in a row without a token"
            f" (max_engine_restarts is {self._max_restarts}); the last time: {reason}"
        )


async def _watch(transport: Transport, monitor: LivenessMonitor) -> None:
    """Kill the engine when there is reason to: `receive` then tells of its end."""
    while monitor.failure is None:
        await asyncio.sleep(TICK_S)
        monitor.tick()
    transport.kill()


def _name_of(config: EngineConfig) -> str:
    return "the engine" if config.share is None else f"engine {config.share.index}"


def _with_sizes_of(info: EngineInfo, config: EngineConfig) -> EngineConfig:
    """Return `config` with the sizes that follow from free memory fixed: requests in flight were admitted by them."""
    return replace(
        config,
        max_model_len=info.max_model_len,
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        kv_cache_memory=info.kv_cache_bytes,
        state_cache_memory=info.num_state_snapshots * info.state_bytes,
        block_size=info.block_size,
    )


def _differences(first: EngineInfo, later: EngineInfo) -> str:
    """Return in words how two engines differ in anything but how long they took to load."""
    later = msgspec.structs.replace(later, load_time_s=first.load_time_s)
    pairs = [(name, getattr(first, name), getattr(later, name)) for name in EngineInfo.__struct_fields__]
    return ", ".join(f"{name} is {new!r} instead of {old!r}" for name, old, new in pairs if old != new)
