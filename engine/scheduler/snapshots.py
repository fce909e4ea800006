"""Where requests of a model with states begin with snapshots, and where they leave some.

Besides keys and values such a model keeps a state of each sequence, which changes with every token. So a prefix can be
reused only as far as its blocks are cached and a copy was made of the state after them. Copies are made where a later
request may begin, always after a full block:

* at the ends of messages in the prompt: the first, behind which other conversations begin, and the last two, behind
  which this one goes on, or is tried again;
* after the last full block of the prompt, for the same prompt again;
* where cached blocks end that the prompt shares with others, if none was there: the next one to come this way finds it;
* after each full block of the output, in place of the one before: there an answer goes on, and a request whose step
  failed. Who is preempted for want of blocks loses the last ones at once, so one is left some blocks behind as well.
  It is the state in front of drafts that is copied, so no draft is tried at the end of a block or behind it.

Prompts are cut there into chunks. Which snapshots are kept is the rule of `state_cache`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from orcinus.engine.messages import HeadUse
from orcinus.engine.scheduler.block_manager import BlockManager, CachedPrefix
from orcinus.engine.scheduler.prefix_reuse import ComingHashes, PrefixReuse
from orcinus.engine.scheduler.request import Request
from orcinus.engine.scheduler.scheduled_step import StepBuilder
from orcinus.engine.scheduler.slots import Slots
from orcinus.engine.scheduler.state_cache import Snapshot, StateCache

_BLOCKS_BEHIND = 8  # a place of the output after so many blocks keeps its snapshot until the next such place has one


@dataclass(slots=True)
class _Saving:
    """A snapshot that a step in flight makes."""

    row: int
    is_rolling: bool


@dataclass(slots=True)
class _Places:
    """Holds where a running request has to do with snapshots. Places are numbers of blocks."""

    marks: list[int]  # where it still leaves one on its way through the prompt, ascending
    held: Snapshot | None = None  # which it begins with, until its first chunk is planned
    rolling: Snapshot | None = None  # its newest one behind the prompt
    behind: Snapshot | None = None  # the last one there that was left behind
    saving: dict[int, _Saving] = field(default_factory=dict)


class SnapshotReuse(PrefixReuse):
    """Lets requests begin with cached blocks and the snapshot of the state after them."""

    def __init__(self, blocks: BlockManager, cache: StateCache, eos_token_ids: frozenset[int]) -> None:
        super().__init__(blocks, is_enabled=True)
        self._cache = cache
        self._eos_token_ids = eos_token_ids
        self._places: dict[str, _Places] = {}  # of those that run

    # --- where a request begins -----------------------------------------------------------------------------

    def find(self, request: Request) -> CachedPrefix:
        hashes = self.reusable_hashes(request)
        prefix = self._blocks.find_prefix(hashes)
        while (num_blocks := self._last_snapshot(hashes, len(prefix))) < len(prefix):
            prefix = self._blocks.find_prefix(hashes[:num_blocks])
        return prefix

    def begin(self, request: Request, num_blocks: int) -> None:
        super().begin(request, num_blocks)
        self._places[request.request_id] = places = _Places(self._marks(request))
        self._hold(places, self.reusable_hashes(request), num_blocks)

    def announce(self, prompts: Sequence[Request], coming: ComingHashes) -> None:
        for request in prompts:
            if request.is_known:
                hashes = self._hashes(request)
                coming.expect(hashes[mark - 1] for mark in self._places[request.request_id].marks)

    def load_row(self, request: Request) -> int:
        """Return the snapshot that a request's chunk begins with, -1 for none: it is planned now."""
        places = self._places[request.request_id]
        held, places.held = places.held, None
        if held is None:
            return -1
        self._cache.release(held, was_used=True)
        self._cache.counts.num_loads += 1
        return held.row

    def _last_snapshot(self, hashes: Sequence[bytes], num_blocks: int) -> int:
        """Return after how many of the first `num_blocks` blocks the last snapshot is; 0 is the start."""
        nearest = self._cache.nearest(hashes, num_blocks)
        return 0 if nearest is None else nearest.num_blocks

    def _hold(self, places: _Places, hashes: Sequence[bytes], num_blocks: int) -> None:
        """Keep the snapshot that a request begins with, in place of an earlier one."""
        if places.held is not None:
            self._cache.release(places.held, was_used=False)
            places.held = None
        if num_blocks:
            places.held = self._cache.find(hashes[num_blocks - 1])
            assert places.held is not None
            self._cache.hold(places.held)

    def _extend(self, request: Request, hashes: Sequence[bytes], start: int) -> int:
        end = self._blocks.num_cached(hashes, start)
        while start < (num_blocks := self._last_snapshot(hashes, end)) < end:
            end = self._blocks.num_cached(hashes[:num_blocks], start)
        if num_blocks <= start:
            return start
        end = super()._extend(request, hashes[:num_blocks], start)
        self._hold(self._places[request.request_id], hashes, end)
        return end

    def _is_coming(self, hashes: Sequence[bytes], start: int, coming: ComingHashes) -> bool:
        """Return whether others are on the way to a snapshot, or to where the way of this request leaves theirs.

        To compute the same tokens beside them would bring nothing: they would have the step's tokens in turns.
        """
        return coming.has_any(hashes[start:])

    # --- where it leaves snapshots --------------------------------------------------------------------------

    def save_row(self, request: Request, end: int, *, is_decoding: bool) -> int:
        """Return the snapshot that is made after a request's chunk up to position `end`; -1 for none."""
        if end % self._block_size:
            return -1
        places, place = self._places[request.request_id], end // self._block_size
        if is_decoding and place not in places.saving and request.sampling.pooling is None:
            self._reserve(request, places, place)
        saving = places.saving.get(place)
        return -1 if saving is None else saving.row

    def book(self, request: Request, start: int, end: int) -> None:
        super().book(request, start, end)
        places, place = self._places[request.request_id], end // self._block_size
        saving = None if end % self._block_size else places.saving.pop(place, None)
        if saving is None:
            return
        self._cache.counts.num_saves += 1
        snapshot = self._cache.put(saving.row, request.known_hashes, place, is_rolling=saving.is_rolling)
        if saving.is_rolling:
            self._replace_rolling(places, snapshot)

    def _replace_rolling(self, places: _Places, snapshot: Snapshot | None) -> None:
        outdated, places.rolling = places.rolling, snapshot
        if outdated is not None and outdated.num_blocks % _BLOCKS_BEHIND == 0:
            outdated, places.behind = places.behind, outdated
        if outdated is not None:
            self._cache.discard(outdated)

    def leave(self, request: Request) -> None:
        places = self._places.pop(request.request_id)
        if places.held is not None:
            self._cache.release(places.held, was_used=False)
        for saving in places.saving.values():
            self._cache.drop(saving.row)

    def _marks(self, request: Request) -> list[int]:
        """Return where a request leaves snapshots on its way through the tokens that it has."""
        if request.sampling.pooling is not None:
            return []
        block_size, last = self._block_size, (request.num_tokens - 1) // self._block_size
        ends = self._message_ends(request)
        marks = {min(end // block_size, last) for end in [*ends[:1], *ends[-2:]]}
        return sorted((marks | {last}) - {0})

    def _message_ends(self, request: Request) -> list[int]:
        """Return the positions behind the messages of a prompt that have a full block before their ends."""
        is_end = self._eos_token_ids.union(request.sampling.more_eos_token_ids).__contains__
        prompt = request.token_ids[: request.num_prompt_tokens]
        ends = [position for position, token_id in enumerate(prompt, 1) if is_end(token_id)]
        return [end for end in ends if end >= self._block_size]

    def _cut(self, request: Request, hashes: Sequence[bytes], num_tokens: int) -> int:
        """Return how many of its next tokens a request computes at once: up to its next snapshot, if that is before."""
        first = request.num_computed_tokens
        places = self._places[request.request_id]
        places.marks = [mark for mark in places.marks if mark * self._block_size > first]
        branch = self._branch(hashes, first // self._block_size)
        for place in sorted({*places.marks, *branch}):
            if place * self._block_size > first + num_tokens:
                break
            if self._reserve(request, places, place):
                return place * self._block_size - first
        return num_tokens

    def _branch(self, hashes: Sequence[bytes], start: int) -> list[int]:
        """Return where a request comes to the end of blocks that are cached from `start` on, if there are any."""
        end = start + self._blocks.num_known(hashes, start)
        return [] if end == start else [end]

    def _reserve(self, request: Request, places: _Places, place: int) -> bool:
        """Take a row for a snapshot. Return False if it is not worth one, or there is one of these tokens already."""
        hashes = self._hashes(request)
        is_rolling = place * self._block_size >= request.num_prompt_tokens
        if place <= len(hashes) and self._cache.find(hashes[place - 1]) is not None:
            return False
        nearest = self._cache.nearest(hashes, min(place - 1, len(hashes)))
        outdated = places.rolling if is_rolling else None
        if outdated is not None and outdated.num_blocks % _BLOCKS_BEHIND == 0:
            outdated = places.behind
        known = 0 if nearest is None else nearest.num_blocks
        cost = place - max(known, max(places.saving, default=0))
        row = self._cache.reserve(cost, is_rolling=is_rolling, instead_of=outdated)
        if row is None:
            return False
        places.saving[place] = _Saving(row, is_rolling)
        return True

    def _hashes(self, request: Request) -> list[bytes]:
        """Return the hashes of all blocks whose tokens are known."""
        return request.block_hashes(self._block_size, len(request.token_ids) // self._block_size)

    # --- to be looked at ------------------------------------------------------------------------------------

    def rows_in_flight(self) -> set[int]:
        """Return the rows that steps in flight write to, of requests that have not left."""
        return {saving.row for places in self._places.values() for saving in places.saving.values()}

    def check_integrity(self, running: Sequence[Request]) -> None:
        assert self._places.keys() == {request.request_id for request in running}, "who has places is not who runs"
        holds: Counter[Snapshot] = Counter()
        for request in running:
            places = self._places[request.request_id]
            num_held = 0 if places.held is None else places.held.num_blocks
            assert num_held == 0 or not request.is_known, "a snapshot is held that was loaded"
            assert request.is_known or num_held * self._block_size == request.num_computed_tokens, "no state to begin"
            if places.held is not None:
                holds[places.held] += 1
        self._cache.check_integrity(self.rows_in_flight(), holds)


class SnapshotStepBuilder(StepBuilder):
    """Says with each request's share of a step which snapshots are loaded before it and saved after it."""

    def __init__(
        self,
        slots: Slots,
        number: int,
        now: float,
        snapshots: SnapshotReuse,
        *,
        wants_drafts: bool = True,
        head: HeadUse = "guesses",
    ) -> None:
        super().__init__(slots, number, now, wants_drafts=wants_drafts, head=head)
        self._snapshots = snapshots

    def add(self, request: Request, num_tokens: int, new_block_ids: list[list[int]]) -> None:
        super().add(request, num_tokens, new_block_ids)
        item = self.step.plan.scheduled[-1]
        self._use_snapshots(
            request, is_decoding=item.num_samples > 0 or item.num_computed_tokens >= request.num_prefill_tokens
        )

    def add_drafts(self, request: Request, draft_token_ids: list[int]) -> None:
        super().add_drafts(request, draft_token_ids)
        self._use_snapshots(request, is_decoding=True)

    def _use_snapshots(self, request: Request, *, is_decoding: bool) -> None:
        scheduled = self.step.plan.scheduled
        item = scheduled[-1]
        load = self._snapshots.load_row(request)
        save = self._snapshots.save_row(request, item.known_end, is_decoding=is_decoding)
        if load >= 0 or save >= 0:
            scheduled[-1] = msgspec.structs.replace(item, load_state=load, save_state=save)
