"""What is in the slots of all engines now, and what has happened there lately, put together of their reports.

Request ids are cut to their ends, and clients are numbered: nothing here can be used to ask for anything. Knows
nothing of who watches.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from orcinus.engine.messages import SlotMove, SlotReport

MAX_SLOTS = 256  # that are shown, of all engines together
MAX_NAMES = 64  # of clients; all later ones share the last
SHOWN_ID_CHARS = 6

ClientOf = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Move:
    """Tells what happened in a slot at `at_s`. The rest is of a request that came; `ClientNames` has its `key`."""

    slot: int
    at_s: float
    kind: Literal["came", "decodes", "left"]
    id: str = ""
    key: int | None = None
    num_prefill_tokens: int = 0


@dataclass(slots=True)
class Stay:
    """A request in a slot: the move with which it came and, once it decodes, that one."""

    came: Move
    decodes: Move | None = None


class ClientNames:
    """Numbers clients in the order in which they are seen, and names those by it whose keys have no name: "key 1", …

    What such a client is called inside is made of its key, and is not shown. "" is everybody where there are no keys.
    """

    def __init__(self, key_name: Callable[[str], str | None]) -> None:
        self._key_name = key_name
        self._numbers: dict[str, int] = {}

    def number(self, client: str | None) -> int | None:
        """Return the index of a client's name; None where it has none, or is not known."""
        if not client:
            return None
        if client not in self._numbers and len(self._numbers) < MAX_NAMES:
            self._numbers[client] = len(self._numbers)
        return self._numbers.get(client, MAX_NAMES)

    @property
    def names(self) -> list[str]:
        """The names by index; the last one is for all clients beyond the bound, once there are so many."""
        names = [self._key_name(client) or f"key {number + 1}" for client, number in self._numbers.items()]
        return [*names, "other keys"] if len(names) == MAX_NAMES else names


class SlotBoard:
    """`apply` reports. Moves are numbered: `moves_since` gives those that a reader has not seen, if they are kept."""

    def __init__(self, names: ClientNames) -> None:
        self.num_moves = 0
        self._names = names
        self._moves: deque[Move] = deque(maxlen=MAX_SLOTS)
        self._stays: list[Stay | None] = [None] * MAX_SLOTS
        self._computed = [0] * MAX_SLOTS
        self._blocks = [0] * MAX_SLOTS
        self._known_engines: set[int] = set()  # which have told all that is in their slots

    def apply(self, engine: int, slots: range, report: SlotReport, client_of: ClientOf) -> None:
        """Take in what an engine reports of its slots, which are `slots` of the board."""
        slots = slots[: max(0, MAX_SLOTS - slots.start)]
        if report.is_whole:
            self._known_engines.add(engine)
            self._clear(slots, report)
        if engine not in self._known_engines:
            return
        for move in report.moves:
            if move.slot < len(slots):
                self._move(self._of(move, slots, client_of))
        for index, slot in enumerate(slots):
            self._computed[slot] = _at(report.num_computed_tokens, index)
            self._blocks[slot] = _at(report.num_blocks, index)

    @property
    def stays(self) -> list[Stay | None]:
        """The requests in slots, by slot."""
        return self._stays

    @property
    def computed(self) -> list[int]:
        """Tokens computed, by slot, as far as the last one that is taken."""
        return self._computed[: self._num_taken()]

    @property
    def blocks(self) -> list[int]:
        """KV blocks held, by slot, as far as the last one that is taken."""
        return self._blocks[: self._num_taken()]

    def moves_since(self, number: int) -> list[Move] | None:
        """Return the moves after the first `number`, or None where some of them are not kept any more."""
        missing = self.num_moves - number
        if missing > len(self._moves):
            return None
        return list(self._moves)[len(self._moves) - missing :]

    def _clear(self, slots: range, report: SlotReport) -> None:
        """End the stays of an engine, but not of those that it still has."""
        kept = {(move.slot, move.at_s) for move in report.moves if move.kind == "came"}
        for index, slot in enumerate(slots):
            stay = self._stays[slot]
            if stay is not None and (index, stay.came.at_s) not in kept:
                self._move(Move(slot, time.monotonic(), "left"))

    def _of(self, move: SlotMove, slots: range, client_of: ClientOf) -> Move:
        slot = slots[move.slot]
        if move.kind != "came":
            return Move(slot, move.at_s, move.kind)
        key = self._names.number(client_of(move.request_id))
        return Move(slot, move.at_s, "came", _shown_id(move.request_id), key, move.num_prefill_tokens)

    def _move(self, move: Move) -> None:
        """Note a move, unless it is told again."""
        stay = self._stays[move.slot]
        match move.kind:
            case "came":
                if stay is not None and (stay.came.id, stay.came.at_s) == (move.id, move.at_s):
                    return
                self._stays[move.slot] = Stay(move)
            case "decodes":
                if stay is None or stay.decodes is not None:
                    return
                stay.decodes = move
            case "left":
                self._stays[move.slot] = None
        self._moves.append(move)
        self.num_moves += 1

    def _num_taken(self) -> int:
        return next((slot + 1 for slot in reversed(range(MAX_SLOTS)) if self._stays[slot] is not None), 0)


def _at(column: list[int], index: int) -> int:
    return column[index] if index < len(column) else 0


def _shown_id(request_id: str) -> str:
    """Return the end of an answer's id, without the number that the engine puts behind it."""
    return request_id.rpartition(".")[0][-SHOWN_ID_CHARS:]
