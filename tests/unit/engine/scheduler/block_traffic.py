"""Requests that come, compute and go as in an engine, over caches that tell what was written where.

What a token stores is a hash of all tokens up to it, in each group in a slot of its own. Each token looks at all that
it sees, through tables made of nothing but the ids that `advance` gave: a block that is shared wrongly, missing, or
handed to somebody else too early shows at once.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from orcinus.engine.messages import CacheGroup
from orcinus.engine.scheduler.block_manager import CachedPrefix


class Blocks(Protocol):
    """`BlockManager`, or it beside a reference."""

    def find_prefix(self, block_hashes: Sequence[bytes]) -> CachedPrefix: ...
    def allocate(self, request_id: str, num_tokens: int, prefix: CachedPrefix) -> list[int] | None: ...
    def extend_prefix(self, request_id: str, block_hashes: Sequence[bytes], start: int) -> int: ...
    def advance(self, request_id: str, end: int) -> list[list[int]]: ...
    def register(self, request_id: str, index: int, block_hash: bytes) -> None: ...
    def release_behind(self, request_id: str, num_tokens: int) -> None: ...
    def free(self, request_id: str) -> None: ...
    def check_integrity(self) -> None: ...


@dataclass
class Stream:
    """A request: its prompt and all that it is going to generate."""

    name: str
    token_ids: list[int]
    num_prompt_tokens: int
    num_known: int = 0  # tokens known
    num_booked: int = 0
    num_planned: int = 0
    tables: list[list[int]] = field(default_factory=list)  # the executor's, by group

    @cached_property
    def chain(self) -> list[int]:
        """Return what each token stores."""
        stored = [0]
        for token_id in self.token_ids:
            stored.append(hash((stored[-1], token_id)))
        return stored[1:]


@dataclass
class Share:
    """Says what a step computes of a stream: tokens up to `end`, of which those from `kept` on will be rejected.

    It is void if it comes after tokens that will be.
    """

    stream: Stream
    first: int
    end: int
    kept: int
    is_void: bool


@dataclass(frozen=True)
class Load:
    max_num_seqs: int
    max_tokens: int  # a step
    num_steps_in_flight: int = 1
    max_drafts: int = 0
    longest: int = 96
    block_size: int = 4
    is_caching: bool = True


class Traffic:
    def __init__(self, blocks: Blocks, groups: Sequence[CacheGroup], load: Load, rng: random.Random) -> None:
        self.blocks = blocks
        self.load = load
        self.windows = [group.window for group in groups]
        self.num_hits = self.num_extended = self.num_preempted = self.num_finished = self.num_rejected = 0
        self._rng = rng
        self._shared = [[rng.randrange(9) for _ in range(load.longest)] for _ in range(2)]
        self._contents: list[dict[int, int]] = [{} for _ in groups]
        self._running: list[Stream] = []
        self._waiting: deque[Stream] = deque()
        self._in_flight: deque[list[Share]] = deque()
        self._num_added = 0

    def act(self) -> None:
        """Do one thing: add, abort, plan a step or take in the oldest one."""
        action = self._rng.random()
        if action < 0.1 and len(self._waiting) < 4:
            self._add()
        elif action < 0.12 and self._running:
            self._leave(self._rng.choice(self._running))
        elif len(self._in_flight) < self.load.num_steps_in_flight and action < 0.6:
            self._plan()
        elif self._in_flight:
            self._book(self._in_flight.popleft())
        self.blocks.check_integrity()

    def _add(self) -> None:
        length = self._rng.randrange(2, self.load.longest)
        shared = self._rng.choice(self._shared)[: self._rng.choice([0, length // 2, length - 1])]
        token_ids = shared + [self._rng.randrange(9) for _ in range(length - len(shared))]
        num_prompt_tokens = self._rng.randrange(1, length)
        self._waiting.append(Stream(f"s{self._num_added}", token_ids, num_prompt_tokens, num_prompt_tokens))
        self._num_added += 1

    def _hashes(self, stream: Stream, num_blocks: int) -> list[bytes]:
        chain, block_size = stream.chain, self.load.block_size
        return [str(chain[(i + 1) * block_size - 1]).encode() for i in range(num_blocks)]

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.load.max_num_seqs:
            stream = self._waiting[0]
            prefix = self.blocks.find_prefix(self._reusable(stream))
            if self.blocks.allocate(stream.name, stream.num_known, prefix) is None:
                return
            self.num_hits += len(prefix)
            stream.num_booked = stream.num_planned = len(prefix) * self.load.block_size
            stream.tables = [[] for _ in self.windows]
            self._running.append(self._waiting.popleft())

    def _reusable(self, stream: Stream) -> list[bytes]:
        return self._hashes(stream, (stream.num_known - 1) // self.load.block_size) if self.load.is_caching else []

    def _extend_prefix(self, stream: Stream) -> None:
        """Look for what others have computed since this one got its blocks."""
        start = stream.num_planned // self.load.block_size
        num_found = self.blocks.extend_prefix(stream.name, self._reusable(stream), start)
        stream.num_booked = stream.num_planned = (start + num_found) * self.load.block_size
        self.num_extended += num_found

    def _leave(self, stream: Stream) -> None:
        self.blocks.free(stream.name)
        self._running.remove(stream)

    def _preempt(self, stream: Stream) -> None:
        self._leave(stream)
        self._waiting.appendleft(stream)
        self.num_preempted += 1

    def _plan(self) -> None:
        """Compute something of some of the running; others stay as they are, in the middle of a prompt or not."""
        self._admit()
        budget, step = self.load.max_tokens, []
        chosen = self._rng.sample(self._running, self._rng.randint(0, len(self._running)))
        for stream in chosen:
            if stream in self._running and budget > 0 and (share := self._share(stream, budget)) is not None:
                step.append(share)
                budget -= share.end - share.first
        if step:
            self._in_flight.append([share for share in step if share.stream in self._running])

    def _share(self, stream: Stream, budget: int) -> Share | None:
        if not stream.tables[0]:
            self._extend_prefix(stream)
        first = stream.num_planned
        if first >= len(stream.token_ids):
            return None
        if first < stream.num_known - 1:
            end = kept = min(stream.num_known, first + self._rng.randint(1, budget))
        else:
            end = min(len(stream.token_ids), first + 1 + self._rng.randint(0, min(self.load.max_drafts, budget - 1)))
            kept = self._rng.randint(first + 1, end)
        if not self._grow(stream, end):
            return None
        self._send(stream, end)
        share = Share(stream, first, end, kept, self._has_drafts_to_reject(stream))
        stream.num_planned = end
        self._compute(share)
        return share

    def _has_drafts_to_reject(self, stream: Stream) -> bool:
        shares = [share for step in self._in_flight for share in step if share.stream is stream]
        return any(share.kept < share.end and not share.is_void for share in shares)

    def _grow(self, stream: Stream, num_tokens: int) -> bool:
        """Make room in the full group. While nothing is in flight, others are preempted for it."""
        while self.blocks.allocate(stream.name, num_tokens, CachedPrefix()) is None:
            if self._in_flight:
                return False
            victim = self._rng.choice(self._running)
            self._preempt(victim)
            if victim is stream:
                return False
        return True

    def _send(self, stream: Stream, end: int) -> None:
        for table, ids in zip(stream.tables, self.blocks.advance(stream.name, end), strict=True):
            table.extend(ids)

    def _compute(self, share: Share) -> None:
        chain, tables = share.stream.chain, share.stream.tables
        num_right = 0 if share.is_void else share.kept
        stored = chain[:num_right] + [-1] * (share.end - num_right)
        for window, table, contents in zip(self.windows, tables, self._contents, strict=True):
            for position in range(share.first, share.end):
                contents[self._slot(table, position)] = stored[position]
            seen = 0 if window is None else max(0, share.first - window + 1)
            for position in range(seen, num_right):
                assert contents[self._slot(table, position)] == chain[position], f"foreign contents at {position}"

    def _slot(self, table: list[int], position: int) -> int:
        block, row = divmod(position, self.load.block_size)
        return table[block] * self.load.block_size + row

    def _book(self, step: list[Share]) -> None:
        """Take in what was kept."""
        for share in step:
            stream = share.stream
            if stream not in self._running or share.is_void:
                continue
            block_size = self.load.block_size
            first, last = share.first // block_size, share.kept // block_size
            stream.num_booked = share.kept
            stream.num_known = max(stream.num_known, min(share.kept + 1, len(stream.token_ids)))
            if share.kept < share.end:
                stream.num_planned = share.kept
                self.num_rejected += 1
            if first < last:
                for index in range(first, last if self.load.is_caching else 0):
                    self.blocks.register(stream.name, index, self._hashes(stream, last)[index])
                self.blocks.release_behind(stream.name, share.kept)
            if share.kept == len(stream.token_ids):
                self.num_finished += 1
                self._leave(stream)
