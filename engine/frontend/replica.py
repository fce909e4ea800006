"""One of the engines behind `AsyncEngine`, through all of its lives: what is in flight there goes on in the next one.

Owns the supervisor, which requests are suspected of ending engines, the choices that were sent there and its numbers.
Choices that another replica may have when the engine ends are offered to `on_end`. What becomes of their tokens is the
business of the `RequestTracker`.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.errors import OrcinusError
from orcinus.engine.frontend.live_request import LiveChoice
from orcinus.engine.frontend.prefix_index import PrefixIndex
from orcinus.engine.frontend.request_tracker import RequestTracker
from orcinus.engine.messages import (
    AbortRequests,
    EngineInfo,
    SlotReport,
    StepOutputs,
    StepStarted,
    StepStats,
    WatchSlots,
)
from orcinus.engine.supervision.supervisor import EngineEnd, Supervisor
from orcinus.engine.supervision.suspects import SuspectTracker
from orcinus.engine.supervision.transport import ProcessTransport, Transport

ReplicaState = Literal["loading", "ready", "restarting", "dead"]

_STABLE_S = 60.0  # an engine that had nothing to do for so long was of use


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Says what an engine is told, and how it is reached: each of its lives has a transport of its own."""

    config: EngineConfig
    transport_factory: Callable[[], Transport] = ProcessTransport


class EngineReplica:
    """`start` it, keep `run` as a task, `submit` choices while it is up or restarting; `aclose` it at the end.

    `on_up` is awaited before the first engine is used, and may raise `ModelLoadError`. `on_stats` is called when
    `stats` or `state` has changed; each step is in `stats` for one call. `on_slots` is called, while slots are watched,
    with what is in them, and `on_end` when an engine has ended: it may `hand_over` the `free_choices`. With
    `keeps_prefixes` it knows what its engine has probably cached. An `EngineUser`.
    """

    def __init__(
        self,
        spec: EngineSpec,
        requests: RequestTracker,
        *,
        step_timeout_s: float,
        max_restarts: int,
        keeps_prefixes: bool,
        on_up: Callable[[EngineInfo], Awaitable[None]],
        on_stats: Callable[["EngineReplica"], None],
        on_slots: Callable[["EngineReplica", SlotReport], None],
        on_end: Callable[["EngineReplica"], None],
    ) -> None:
        self.config = spec.config
        self.state: ReplicaState = "loading"
        self.info: EngineInfo | None = None  # of the first engine; its successors are like it
        self.stats = StepStats()
        self.prefixes = PrefixIndex(1, 0)  # nothing until an engine is up
        self._keeps_prefixes = keeps_prefixes
        self._on_end = on_end
        self._requests = requests
        self._on_up = on_up
        self._on_stats = on_stats
        self._on_slots = on_slots
        self._is_watched = False
        self._supervisor = Supervisor(
            spec.config, self, spec.transport_factory, step_timeout_s=step_timeout_s, max_restarts=max_restarts
        )
        self._suspects = SuspectTracker()
        self._choices: dict[str, LiveChoice] = {}
        self._aborts: list[str] = []  # collected, and sent as one
        self._up_since: float | None = None
        self._was_useful = False  # the engine that runs now has brought something

    # --- life -----------------------------------------------------------------------------------------------

    def start(self, sizes: EngineInfo | None = None) -> None:
        """Spawn the first engine, with the `sizes` of another one where they are given. Needs no event loop."""
        self._supervisor.start(sizes)

    async def run(self) -> None:
        """Serve until `aclose`.

        Raises `ModelLoadError` or `EngineUnavailableError` where there will be no engine any more.
        """
        await self._supervisor.run()

    async def aclose(self) -> None:
        """End the engine. Idempotent."""
        await self._supervisor.aclose()

    def fail(self, error: OrcinusError) -> None:
        """Fail what is in flight: no more tokens will come. Idempotent."""
        if self.state != "dead":
            self.state = "dead"
            self._requests.fail([*self._choices.values()], error)
            self.stats = StepStats()
            self._on_stats(self)

    # --- slots ----------------------------------------------------------------------------------------------

    def watch_slots(self, *, is_on: bool) -> None:
        """Have the engine, and each that comes after it, report what is in its slots, or stop that."""
        self._is_watched = is_on
        if self.state == "ready":
            self._supervisor.send([WatchSlots(is_on=is_on)])

    def client_of(self, engine_id: str) -> str | None:
        """Return whose a choice is; None if it is not in flight here."""
        choice = self._choices.get(engine_id)
        return None if choice is None else choice.live.request.client

    def clients(self) -> Counter[str]:
        """Return how many choices each client has in flight."""
        return Counter(choice.live.request.client for choice in self._choices.values())

    def forget_slots(self) -> None:
        """Tell who watches that the slots are empty, as there is no engine."""
        if self._is_watched:
            self._on_slots(self, SlotReport(is_whole=True))

    # --- numbers --------------------------------------------------------------------------------------------

    @property
    def num_in_flight(self) -> int:
        return len(self._choices)

    @property
    def num_running(self) -> int:
        """Choices in slots, as of the last step."""
        return min(self.stats.num_running, len(self._choices))

    @property
    def num_slots(self) -> int:
        """Slots of the engine; 0 until the first one is loaded."""
        if self.info is None:
            return 0
        return self.stats.num_slots or self.info.max_num_seqs

    # --- choices --------------------------------------------------------------------------------------------

    def submit(self, choices: Iterable[LiveChoice]) -> None:
        """Take choices up, and give them to the engine at once, or as soon as there is one."""
        for choice in choices:
            self._choices[choice.engine_id] = choice
            self._suspects.add(choice.engine_id)
        self._note_waiting()
        self.flush()

    def remove(self, choice: LiveChoice) -> None:
        """Let a choice go that has ended, as its engine knows or has no need to know."""
        if self._keeps_prefixes and self.state == "ready":  # what was generated is cached, too
            self.prefixes.add([*choice.added.prompt_token_ids, *choice.processor.token_ids], choice.added.scope)
        del self._choices[choice.engine_id]
        self._suspects.remove(choice.engine_id)
        self._note_waiting()

    def abort(self, choice: LiveChoice) -> None:
        """Let a choice go that its engine would go on with. It is told at the next `flush`."""
        self._aborts.append(choice.engine_id)
        self.remove(choice)

    def free_choices(self) -> list[LiveChoice]:
        """Return the choices that may go on elsewhere while there is no engine, in the order in which they came."""
        return [self._choices[engine_id] for engine_id in self._suspects.free()]

    def hand_over(self, choice: LiveChoice, other: "EngineReplica") -> None:
        """Have another replica go on with a choice, which its engine is given at the next `flush`."""
        other._choices[choice.engine_id] = self._choices.pop(choice.engine_id)
        self._suspects.hand_over(choice.engine_id, other._suspects)
        choice.replica = other
        self._note_waiting()

    def flush(self) -> None:
        """Send aborts, and the choices that the engine may have now."""
        if self._aborts:
            self._supervisor.send([AbortRequests(request_ids=self._aborts)])
            self._aborts = []
        if self.state == "ready" and self._suspects.has_pending:
            self._send_due()

    def _send_due(self) -> None:
        due = [self._choices[engine_id] for engine_id in self._suspects.take_due()]
        if not due:
            return
        if num_resumed := sum(choice.was_submitted for choice in due):
            self._requests.on_resumed(num_resumed)
        self._supervisor.send([choice.submission() for choice in due])

    # --- what the supervisor reports ------------------------------------------------------------------------

    async def on_engine_up(self, info: EngineInfo) -> None:
        if self.info is None:
            await self._on_up(info)
            self.info = info
            self.stats = StepStats(
                num_slots=info.max_num_seqs, num_kv_blocks=info.num_kv_blocks, num_snapshots=info.num_state_snapshots
            )
            if self._keeps_prefixes and info.enable_prefix_caching:
                self.prefixes = PrefixIndex(info.block_size, info.num_kv_blocks)
        if self.state != "dead":
            self.state = "ready"
        if self._is_watched:
            self._supervisor.send([WatchSlots(is_on=True)])
        self._up_since = time.monotonic()
        self.flush()
        self._on_stats(self)

    def on_message(self, message: StepOutputs | StepStarted) -> None:
        if isinstance(message, StepOutputs):
            self._on_step(message)
        else:
            self._suspects.on_started(message.request_ids)
            self._requests.on_started(message.request_ids)

    def on_engine_end(self, end: EngineEnd) -> bool:
        """Keep the choices in flight for the next engine, but for those whose fault it may be twice."""
        was_useful = self._was_useful or self._was_idle_for_long()
        self.state, self._up_since, self._was_useful = "restarting", None, False
        for choice in self._choices.values():
            if choice.clock is not None and choice.was_submitted:
                choice.clock.on_engine_end()
        self._requests.on_engine_end([*self._choices])
        found = self._suspects.on_engine_end(was_killed=end.was_killed)
        for engine_id in found.culprits:
            self._requests.quarantine(self._choices[engine_id], end.reason)
        self.prefixes.clear()
        self._on_end(self)
        self._note_waiting()
        self.forget_slots()
        return was_useful or bool(found.culprits) or found.has_new_suspects

    def on_restart(self) -> None:
        self._requests.on_restart()

    def _on_step(self, outputs: StepOutputs) -> None:
        now = time.monotonic()
        if outputs.slots is not None and self._is_watched:  # before those who ended with this step are forgotten
            self._on_slots(self, outputs.slots)
        self.stats = outputs.stats
        for delta in outputs.deltas:
            choice = self._choices.get(delta.request_id)
            if choice is None:  # aborted ones may still have been in this step
                continue
            if choice.is_unproven:
                choice.is_unproven = False
                self._was_useful = True
                self._suspects.on_progress(choice.engine_id)
            self._requests.on_delta(choice, delta, now, outputs.ended_at or now)
        self.flush()
        self._on_stats(self)

    def _note_waiting(self) -> None:
        """Count all choices as waiting while there is no engine to count them."""
        if self.state == "restarting":
            slots, blocks = self.stats.num_slots, self.stats.num_kv_blocks
            self.stats = StepStats(num_slots=slots, num_kv_blocks=blocks, num_waiting=len(self._choices))
            self._on_stats(self)

    def _was_idle_for_long(self) -> bool:
        return self._up_since is not None and not self._choices and time.monotonic() > self._up_since + _STABLE_S
