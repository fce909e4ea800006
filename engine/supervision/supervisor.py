"""One engine after the other behind one face: starts the first, watches it, and replaces what has ended or is stuck.

Every engine after the first is made to have the sizes of the first. Knows nothing of requests: what was in flight is a
matter of its user, who is told when an engine is up and when it is gone.
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
from orcinus.engine.supervision.liveness import TICK_S, Backoff, SupervisionLimits, Vigil
from orcinus.engine.supervision.transport import Transport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineEnd:
    """How an engine ended. `was_killed`: from outside, as far as one can tell."""

    reason: str
    was_killed: bool = False


class EngineUser(Protocol):
    """Who works with the engine that is up. Called on the event loop."""

    async def engine_up(self, info: EngineInfo) -> None:
        """It is loaded, and has been given nothing yet. May raise `ModelLoadError`, which ends everything."""

    def engine_said(self, message: StepOutputs | StepStarted) -> None: ...

    def engine_gone(self, end: EngineEnd) -> bool:
        """Nothing more comes of it. Returns whether it has been of use."""


class Supervisor:
    """`start`, then `run`, which reads and restarts until `aclose`. What is sent while no engine is up is lost."""

    def __init__(
        self,
        config: EngineConfig,
        user: EngineUser,
        transport_factory: Callable[[], Transport],
        limits: SupervisionLimits,
    ) -> None:
        self._config = config
        self._user = user
        self._make_transport = transport_factory
        self._limits = limits
        self._transport = transport_factory()
        self._backoff = Backoff(limits.max_restarts)
        self._info: EngineInfo | None = None  # of the first engine
        self._closing = asyncio.Event()

    def start(self) -> None:
        """Spawn the first engine. Needs no event loop."""
        self._transport.start(self._config)

    def send(self, messages: list[ToEngine]) -> None:
        self._transport.send(messages)

    async def run(self) -> None:
        """Until `aclose`. Raises `ModelLoadError` or `EngineUnavailableError` when there will be no engine any more."""
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
        """Read what an engine says until it is gone; returns how it ended."""
        vigil = Vigil(self._limits, is_first=self._info is None)
        watching = asyncio.create_task(_watch(transport, vigil), name="engine watch")
        try:
            while True:
                message = await transport.receive()
                vigil.hear(message)
                await self._on_message(message, vigil)
        except EngineUnavailableError as error:
            if vigil.complaint is not None:
                return EngineEnd(vigil.complaint, vigil.is_silent)
            return EngineEnd(str(error), isinstance(error, EngineKilledError))
        finally:
            watching.cancel()

    async def _on_message(self, message: FromEngine, vigil: Vigil) -> None:
        match message:
            case StepOutputs() | StepStarted():
                self._user.engine_said(message)
            case Alive():
                return
            case EngineInfo():
                self._check(message)
                await self._user.engine_up(message)
                vigil.loaded()
            case EngineFailed():
                if message.during_start and self._info is None:
                    raise ModelLoadError(message.message)
                raise EngineUnavailableError(message.message)

    def _check(self, info: EngineInfo) -> None:
        """Remember the first engine. Raises `ModelLoadError` for another that could not go on where that one was."""
        if self._info is None:
            self._info = info
            self._config = _with_sizes_of(info, self._config)
            return
        if differences := _differences(self._info, info):
            raise ModelLoadError(f"the engine that was restarted is not like the one before: {differences}")

    # --- the next one ---------------------------------------------------------------------------------------

    async def _replace(self, end: EngineEnd) -> EngineEnd | None:
        """Start the next engine, or return why it cannot be started.

        One that never was up is not replaced: it will not be different the next time.
        """
        if self._info is None:
            raise EngineUnavailableError(end.reason)
        was_useful = self._user.engine_gone(end)
        delay_s = self._backoff.next_delay_s(was_useful=was_useful)
        if delay_s is None:
            raise EngineUnavailableError(self._last_words(end.reason))
        pause = f" in {delay_s:g} s" if delay_s else ""
        logger.error("the engine is gone, %s; another one starts%s", end.reason, pause)
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

    def _last_words(self, reason: str) -> str:
        if self._limits.max_restarts == 0:
            return reason
        return (
            f"the engine ended {self._backoff.num_in_vain} times in a row without a token"
            f" (max_engine_restarts is {self._limits.max_restarts}); the last time: {reason}"
        )


async def _watch(transport: Transport, vigil: Vigil) -> None:
    """End the engine when there is reason to: `receive` then tells of its end."""
    while vigil.complaint is None:
        await asyncio.sleep(TICK_S)
        vigil.tick()
    transport.kill()


def _with_sizes_of(info: EngineInfo, config: EngineConfig) -> EngineConfig:
    """What depends on the memory that is free at the moment must not change under the requests in flight."""
    return replace(
        config,
        max_model_len=info.max_model_len,
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        kv_cache_memory=info.kv_cache_bytes,
        block_size=info.block_size,
    )


def _differences(first: EngineInfo, later: EngineInfo) -> str:
    """Everything counts but how long it took to load."""
    later = msgspec.structs.replace(later, load_time_s=first.load_time_s)
    pairs = [(name, getattr(first, name), getattr(later, name)) for name in EngineInfo.__struct_fields__]
    return ", ".join(f"{name} is {new!r} instead of {old!r}" for name, old, new in pairs if old != new)
