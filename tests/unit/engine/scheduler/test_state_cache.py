"""Which snapshots are kept: the books under any operations, and the rule of what goes first."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orcinus.engine.scheduler.state_cache import Snapshot, StateCache


def chain(*blocks: int) -> list[bytes]:
    """Return the hashes of blocks with these contents: each stands for all up to its end."""
    return [bytes(blocks[: index + 1]) for index in range(len(blocks))]


def put(cache: StateCache, hashes: list[bytes], cost: int | None = None, *, is_rolling: bool = False) -> Snapshot:
    """Make a snapshot after the last of these blocks."""
    nearest = cache.nearest(hashes, len(hashes) - 1)
    known = 0 if nearest is None else nearest.num_blocks
    row = cache.reserve(len(hashes) - known if cost is None else cost)
    assert row is not None
    snapshot = cache.put(row, hashes, len(hashes), is_rolling=is_rolling)
    assert snapshot is not None
    return snapshot


def kept(cache: StateCache) -> set[bytes]:
    return set(cache.hashes)


def test_of_snapshots_that_cost_the_same_the_least_recently_used_one_goes() -> None:
    cache = StateCache(3)
    first, second, third = (put(cache, chain(number, 0)) for number in (1, 2, 3))
    cache.touch(first)
    put(cache, chain(4, 0))
    assert kept(cache) == {first.key, third.key, bytes([4, 0])}
    assert second.key not in cache.hashes


def test_who_goes_on_from_a_snapshot_uses_it_and_who_leaves_before_does_not() -> None:
    cache = StateCache(2)
    first, second = put(cache, chain(1, 0)), put(cache, chain(2, 0))
    for snapshot, was_used in ((first, True), (second, False)):
        cache.hold(snapshot)
        cache.release(snapshot, was_used=was_used)
    put(cache, chain(3, 0))
    assert kept(cache) == {first.key, bytes([3, 0])}


def test_what_costs_less_to_compute_again_goes_first_though_it_was_used_later() -> None:
    cache = StateCache(3)
    long, short, middle = put(cache, chain(1, *range(9))), put(cache, chain(2, 0)), put(cache, chain(3, *range(4)))
    for snapshot in (long, middle, short):
        cache.touch(snapshot)
    put(cache, chain(4, *range(5)))
    assert kept(cache) == {long.key, middle.key, bytes([4, *range(5)])}


def test_what_nobody_uses_goes_in_the_end_whatever_it_costs() -> None:
    cache = StateCache(2)
    expensive = put(cache, chain(1, *range(20)))
    num_later = 0
    while expensive.key in cache.hashes:
        num_later += 1
        row = cache.reserve(3)
        if row is not None:
            cache.put(row, chain(2, num_later, 0), 3, is_rolling=False)
    assert 20 // 3 <= num_later <= 20


def test_a_cost_counts_from_the_nearest_snapshot_before() -> None:
    cache = StateCache(8)
    hashes = chain(*range(10))
    last = put(cache, hashes)
    assert (last.parent, last.cost) == (None, 10)
    middle = put(cache, hashes[:6])
    assert (last.parent, last.cost, middle.cost) == (middle, 4, 6)
    branch = put(cache, [*hashes[:7], *(bytes([*range(7), 99, index]) for index in range(3))])
    assert (branch.parent, branch.cost) == (middle, 4)
    first = put(cache, hashes[:2])
    assert (middle.parent, middle.cost) == (first, 4)
    cache.forget(middle.key)
    assert (last.parent, last.cost, branch.cost) == (first, 8, 8)


def test_one_before_it_makes_a_snapshot_cheap_and_without_it_dear() -> None:
    cache = StateCache(3)
    hashes = chain(*range(10))
    base, last, other = put(cache, hashes[:9]), put(cache, hashes), put(cache, chain(50, 51, 52))
    put(cache, chain(60, 61, 62))
    assert last.key not in cache.hashes, "one block, though it is the last of ten"
    assert kept(cache) == {base.key, other.key, bytes([60, 61, 62])}


def test_a_newcomer_that_would_be_the_first_to_go_is_not_taken_and_time_passes() -> None:
    cache = StateCache(1)
    put(cache, chain(*range(5)))
    assert [cache.reserve(2, is_rolling=True) for _ in range(9)] == [None] * 9
    taken = [cache.reserve(2) is not None for _ in range(3)]
    assert taken == [False, False, True]


def test_what_is_held_stays() -> None:
    cache = StateCache(2)
    held, other = put(cache, chain(1, 0)), put(cache, chain(2, *range(9)))
    cache.hold(held)
    put(cache, chain(3, *range(9)))
    assert held.key in cache.hashes
    assert other.key not in cache.hashes
    cache.release(held, was_used=False)
    put(cache, chain(4, *range(9)))
    assert held.key not in cache.hashes


def test_where_all_are_held_there_is_no_row() -> None:
    cache = StateCache(1)
    cache.hold(put(cache, chain(1)))
    assert cache.reserve(100) is None


def test_a_rolling_snapshot_gives_up_its_row_to_the_next_one_before_any_other_is_evicted() -> None:
    cache = StateCache(2)
    cheap = put(cache, chain(9))
    rolling = put(cache, chain(1, 2, 3), is_rolling=True)
    row = cache.reserve(1, instead_of=rolling)
    assert row == rolling.row
    assert kept(cache) == {cheap.key}


def test_a_rolling_snapshot_that_others_went_on_from_is_not_discarded() -> None:
    cache = StateCache(2)
    rolling = put(cache, chain(1, 2, 3), is_rolling=True)
    cache.hold(rolling)
    cache.release(rolling, was_used=True)
    cache.discard(rolling)
    assert kept(cache) == {rolling.key}


def test_a_second_snapshot_of_the_same_tokens_is_dropped() -> None:
    cache = StateCache(2)
    there = put(cache, chain(1, 2))
    row = cache.reserve(2)
    assert row is not None
    assert cache.put(row, chain(1, 2), 2, is_rolling=False) is None
    assert kept(cache) == {there.key}
    cache.check_integrity(set(), {})


BLOCKS = st.lists(st.integers(0, 1), min_size=1, max_size=7)


class Operations(RuleBasedStateMachine):
    """Any operations in any order, with many prefixes in common."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = StateCache(4)
        self.reserved: set[int] = set()
        self.held: list[Snapshot] = []
        self.rolling: list[Snapshot] = []

    @rule(cost=st.integers(1, 8), data=st.data())
    def reserve(self, cost: int, data: st.DataObject) -> None:
        outdated = data.draw(st.sampled_from([None, *self.rolling]))
        row = self.cache.reserve(cost, is_rolling=outdated is not None, instead_of=outdated)
        assert row not in self.reserved
        if row is not None:
            self.reserved.add(row)

    @precondition(lambda self: self.reserved)
    @rule(blocks=BLOCKS, is_rolling=st.booleans())
    def put(self, blocks: list[int], is_rolling: bool) -> None:
        row = self.reserved.pop()
        hashes = chain(*blocks)
        was_there = self.cache.find(hashes[-1])
        made = self.cache.put(row, hashes, len(hashes), is_rolling=is_rolling)
        assert (made is None) == (was_there is not None)
        if made is not None and is_rolling:
            self.rolling.append(made)

    @precondition(lambda self: self.reserved)
    @rule()
    def drop(self) -> None:
        self.cache.drop(self.reserved.pop())

    @rule(blocks=BLOCKS)
    def hold(self, blocks: list[int]) -> None:
        nearest = self.cache.nearest(chain(*blocks), len(blocks))
        if nearest is not None:
            self.cache.hold(nearest)
            self.held.append(nearest)

    @precondition(lambda self: self.held)
    @rule(was_used=st.booleans())
    def release(self, was_used: bool) -> None:
        self.cache.release(self.held.pop(), was_used=was_used)

    @rule(blocks=BLOCKS)
    def forget(self, blocks: list[int]) -> None:
        block_hash = chain(*blocks)[-1]
        if all(snapshot.key != block_hash for snapshot in self.held):
            self.cache.forget(block_hash)
            assert self.cache.find(block_hash) is None

    @precondition(lambda self: self.rolling)
    @rule()
    def discard(self) -> None:
        self.cache.discard(self.rolling.pop())

    @invariant()
    def books_balance(self) -> None:
        self.cache.check_integrity(self.reserved, Counter(self.held))
        for snapshot in self.held:
            assert self.cache.find(snapshot.key) is snapshot


TestOperations = Operations.TestCase
TestOperations.settings = settings(stateful_step_count=40)
