"""Who watches, and what they are told: `Watch.open` a `Watcher`, whose `event` says what has happened since its last.

The engines report what is in their slots while there is a watcher, and not otherwise; all else is read, when an event
is made, from what the metrics count in any case. Knows nothing of how events are sent.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.exceptions import HTTPException

from orcinus.config.api_keys import key_name
from orcinus.config.version import VERSION
from orcinus.engine.errors import EngineUnavailableError
from orcinus.engine.messages import SlotReport, StepStats
from orcinus.server.context import ServingContext
from orcinus.server.metrics import Metrics
from orcinus.server.watching.board import MAX_SLOTS, ClientNames, ClientOf, Move, SlotBoard, Stay
from orcinus.server.watching.totals import Totals

Shown = tuple[Move, Move | None]
"""With which moves a request came to a slot and began to decode there."""

MAX_WATCHERS = 16
MAX_MOVES = 64  # in an event
MAX_CLIENTS = 16  # in an event
MAX_STEPS = 128  # in an event


class Watch:
    """Knows the watchers, `MAX_WATCHERS` at most, and what they all see."""

    def __init__(self, context: ServingContext, metrics: Metrics) -> None:
        self.context = context
        self.metrics = metrics
        self.names = ClientNames(key_name)
        self.board = SlotBoard(self.names)
        self.num_steps = 0
        self.step_times: deque[tuple[float, int, int]] = deque(maxlen=MAX_STEPS)
        self._watchers: set[Watcher] = set()

    @contextmanager
    def open(self) -> Iterator["Watcher"]:
        """Watch in the block. Raises an `HTTPException` (429) where there are too many watchers."""
        if len(self._watchers) >= MAX_WATCHERS:
            message = f"at most {MAX_WATCHERS} may watch at once, and {len(self._watchers)} do"
            raise HTTPException(429, message, {"retry-after": "10"})
        if not self._watchers:
            self._begin()
        watcher = Watcher(self)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)
            if not self._watchers:
                self._end()

    @property
    def status(self) -> str:
        state = self.context.engine.state
        return "draining" if self.context.intake.is_closed and state != "dead" else state

    def server(self) -> dict[str, Any]:
        """Return what is served, as far as that is known yet."""
        told = {"version": VERSION, "model": self.context.model_name}
        try:
            info = self.context.engine.info
        except EngineUnavailableError:
            return told
        stats = self.metrics.stats
        num_slots = stats.num_slots or info.max_num_seqs
        return {
            **told,
            "device": info.device_name,
            "batching": info.batching,
            "num_slots": num_slots,
            "num_shown_slots": min(num_slots, MAX_SLOTS),
            "num_blocks": stats.num_kv_blocks or info.num_kv_blocks,
            "block_size": info.block_size,
            "max_model_len": info.max_model_len,
        }

    def by_key(self) -> list[tuple[int | None, int]]:
        """Return what each client has in flight, the largest first."""
        largest = self.context.engine.clients().most_common(MAX_CLIENTS)
        return [(self.names.number(client), number) for client, number in largest]

    def _num_slots_per_engine(self) -> int:
        """Return how many slots each engine has; 0 where none could be loaded, of which the end may be told."""
        try:
            return self.context.engine.info.max_num_seqs
        except EngineUnavailableError:
            return 0

    def _begin(self) -> None:
        self.board = SlotBoard(self.names)
        self.step_times.clear()
        self.metrics.step_listener = self._on_step
        self.context.engine.watch_slots(self._on_slots)

    def _end(self) -> None:
        self.metrics.step_listener = None
        self.context.engine.watch_slots(None)

    def _on_step(self, stats: StepStats) -> None:
        self.num_steps += 1
        self.step_times.append((round(stats.step_time_s * 1000, 2), stats.num_decode_tokens, stats.num_prefill_tokens))

    def _on_slots(self, engine: int, report: SlotReport, client_of: ClientOf) -> None:
        num_slots = self._num_slots_per_engine()
        self.board.apply(engine, range(engine * num_slots, (engine + 1) * num_slots), report, client_of)
        for watcher in self._watchers:
            watcher.news.set()


class Watcher:
    """One who watches. `news` is set where there is more to tell."""

    def __init__(self, watch: Watch) -> None:
        self.news = asyncio.Event()
        self._watch = watch
        self._board = watch.board
        self._num_moves = 0  # of the board's, those that were told
        self._shown: dict[int, Shown] = {}  # by slot, as the moves told so far have it
        self._is_behind = True  # moves were left out, and are made up for
        self._next_slot = 0  # from which on that goes on
        self._num_steps = watch.num_steps  # those that were told
        self._totals = Totals.of(watch.metrics)
        self._last_s = time.monotonic()
        self._server: dict[str, Any] | None = None
        self._names: list[str] | None = None

    def event(self) -> dict[str, Any]:
        """Return the next event, whose fields are `EVENT_FIELDS`."""
        self.news.clear()
        watch, now = self._watch, time.monotonic()
        stats, by_key = watch.metrics.stats, watch.by_key()
        event = {
            "at_s": round(now, 3),
            "interval_s": round(now - self._last_s, 3),
            "status": watch.status,
            **self._changed(),
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "blocks_used": stats.num_kv_blocks_used,
            **self._counts(),
            "step_times": self._step_times(),
            "moves": [_told(move) for move in self._moves()],
            "computed": self._board.computed,
            "held": self._board.blocks,
            "by_key": by_key,
        }
        self._last_s = now
        return event

    def _changed(self) -> dict[str, Any]:
        """Return what is told at first, and again where it has changed."""
        changed: dict[str, Any] = {}
        if (server := self._watch.server()) != self._server:
            changed["server"] = self._server = server
        if (names := self._watch.names.names) != self._names:
            changed["keys"] = self._names = names
        return changed

    def _counts(self) -> dict[str, Any]:
        before, self._totals = self._totals, Totals.of(self._watch.metrics)
        return self._totals.since(before)

    def _step_times(self) -> list[tuple[float, int, int]]:
        """Return the steps since the last event, the last ones where there were too many."""
        num_new = min(self._watch.num_steps - self._num_steps, len(self._watch.step_times))
        self._num_steps = self._watch.num_steps
        return list(self._watch.step_times)[len(self._watch.step_times) - num_new :]

    def _moves(self) -> list[Move]:
        """Return what happened since the last event or, where that was too much, what is not yet as it was told."""
        board = self._board
        moves = None if self._is_behind else board.moves_since(self._num_moves)
        self._num_moves = board.num_moves
        if moves is None or len(moves) > MAX_MOVES:
            slots = [*range(self._next_slot, MAX_SLOTS), *range(self._next_slot)]
            moves = [move for slot in slots for move in self._corrections(slot, board.stays[slot])]
            self._is_behind = len(moves) > MAX_MOVES
            self._next_slot = moves[MAX_MOVES].slot if self._is_behind else 0
            moves = moves[:MAX_MOVES]
        for move in moves:
            self._note(move)
        return moves

    def _note(self, move: Move) -> None:
        """Note what was told of a slot."""
        match move.kind:
            case "came":
                self._shown[move.slot] = (move, None)
            case "decodes" if move.slot in self._shown:
                self._shown[move.slot] = (self._shown[move.slot][0], move)
            case "left":
                self._shown.pop(move.slot, None)

    def _corrections(self, slot: int, stay: Stay | None) -> Iterator[Move]:
        """Give the moves that make what was told of a slot true."""
        came, decodes = self._shown.get(slot, (None, None))
        if stay is None:
            if came is not None:
                yield Move(slot, time.monotonic(), "left")
            return
        if came is not stay.came:
            yield stay.came
            decodes = None
        if stay.decodes is not None and stay.decodes is not decodes:
            yield stay.decodes


def _told(move: Move) -> list[Any]:
    """Return a move as events have it."""
    at_s = round(move.at_s, 3)
    if move.kind == "came":
        return [move.slot, move.kind, at_s, move.id, move.key, move.num_prefill_tokens]
    return [move.slot, move.kind, at_s]
