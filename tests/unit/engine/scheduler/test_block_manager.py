import pytest

from orcinus.engine.messages import CacheGroup
from orcinus.engine.scheduler.block_manager import BlockManager


@pytest.fixture
def blocks() -> BlockManager:
    return BlockManager([CacheGroup(num_blocks=8, num_layers=1)], block_size=4)


def hashes(count: int, name: str = "h") -> list[bytes]:
    return [f"{name}{index}".encode() for index in range(count)]


def test_a_table_covers_its_tokens_and_no_more(blocks: BlockManager) -> None:
    assert len(blocks.allocate("a", 9) or []) == 3
    assert blocks.allocate("a", 12) == []
    assert len(blocks.allocate("a", 13) or []) == 1
    assert blocks.num_used_blocks == 4
    blocks.check_integrity()


def test_an_allocation_that_does_not_fit_changes_nothing(blocks: BlockManager) -> None:
    blocks.allocate("a", 24)
    assert blocks.allocate("b", 12) is None
    assert blocks.block_table("b") == ()
    assert blocks.num_free_blocks == 2
    blocks.check_integrity()


def test_all_blocks_are_back_when_everyone_is_gone(blocks: BlockManager) -> None:
    blocks.allocate("a", 10)
    blocks.allocate("b", 10)
    blocks.free("a")
    blocks.free("b")
    blocks.free("never seen")
    assert blocks.num_free_blocks == 8
    blocks.check_integrity()


def test_a_registered_prefix_is_shared_and_counted(blocks: BlockManager) -> None:
    known = hashes(2)
    table = blocks.allocate("a", 8) or []
    for index, block_hash in enumerate(known):
        blocks.register("a", index, block_hash)
    prefix = blocks.find_prefix([*known, b"other"])
    assert prefix.full == table
    assert blocks.allocate("b", 10, prefix) == [*table, blocks.block_table("b")[2]]
    assert blocks.num_used_blocks == 3
    blocks.free("a")
    assert blocks.num_used_blocks == 3
    blocks.check_integrity()


def test_a_freed_block_is_found_by_its_hash_until_it_is_handed_out_again(blocks: BlockManager) -> None:
    blocks.allocate("a", 4)
    blocks.register("a", 0, b"known")
    blocks.free("a")
    assert len(blocks.find_prefix([b"known"])) == 1
    blocks.allocate("b", 28)
    assert len(blocks.find_prefix([b"known"])) == 1, "blocks with nothing to be found are used first"
    blocks.allocate("c", 4)
    assert not blocks.find_prefix([b"known"])
    blocks.check_integrity()


def test_the_end_of_a_freed_prefix_is_reused_before_its_start(blocks: BlockManager) -> None:
    known = hashes(8)
    blocks.allocate("a", 32)
    for index, block_hash in enumerate(known):
        blocks.register("a", index, block_hash)
    blocks.free("a")
    blocks.allocate("b", 12)
    assert len(blocks.find_prefix(known)) == 5


def test_free_cached_blocks_taken_as_a_prefix_are_not_counted_as_free_twice(blocks: BlockManager) -> None:
    known = hashes(4)
    blocks.allocate("a", 16)
    for index, block_hash in enumerate(known):
        blocks.register("a", index, block_hash)
    blocks.free("a")
    prefix = blocks.find_prefix(known)
    assert blocks.allocate("b", 36, prefix) is None
    assert blocks.allocate("b", 32, prefix) is not None
    assert blocks.num_free_blocks == 0
    blocks.check_integrity()


def test_fresh_blocks_are_swapped_for_ones_computed_meanwhile(blocks: BlockManager) -> None:
    known = hashes(2)
    blocks.allocate("late", 12)
    blocks.allocate("early", 8)
    for index, block_hash in enumerate(known):
        blocks.register("early", index, block_hash)
    assert blocks.extend_prefix("late", [*known, b"unknown"], 0) == 2
    assert blocks.block_table("late")[:2] == blocks.block_table("early")
    assert blocks.num_used_blocks == 3
    blocks.check_integrity()


def test_the_first_block_of_a_hash_stays_the_known_one(blocks: BlockManager) -> None:
    first = blocks.allocate("a", 4)
    blocks.allocate("b", 4)
    blocks.register("a", 0, b"same")
    blocks.register("b", 0, b"same")
    assert blocks.find_prefix([b"same"]).full == first
    blocks.check_integrity()


# --- groups ---------------------------------------------------------------------------------------------


def with_window(num_blocks: int, window: int = 6, num_full: int = 16) -> BlockManager:
    """Blocks of 4 tokens: a window of 6 keys reaches into the two blocks before a block's first token."""
    return BlockManager([CacheGroup(num_full, 1), CacheGroup(num_blocks, 1, window)], block_size=4)


def compute(blocks: BlockManager, name: str, end: int, known: list[bytes] | None = None) -> list[list[int]]:
    """A step up to `end`, taken in."""
    ids = blocks.advance(name, end)
    for index, block_hash in enumerate(known or []):
        blocks.register(name, index, block_hash)
    blocks.release_behind(name, end)
    blocks.check_integrity()
    return ids


def held(blocks: BlockManager, name: str, group: int = 1) -> list[int]:
    """Return the indices of a table that have a block which the request holds, where no other holds block 0."""
    pools = [blocks._full, *(window.pool for window in blocks._windows)]
    table = blocks._tables[name][group]
    assert all(pools[group]._ref_counts[block] for block in table.held)
    return [*range(table.start, len(table.blocks))]


def test_window_lets_go_of_a_block_as_soon_as_no_later_token_sees_it() -> None:
    blocks = with_window(8)
    blocks.allocate("a", 17)
    compute(blocks, "a", 8)
    assert held(blocks, "a") == [0, 1], "the token at 8 sees the one at 3"
    blocks.advance("a", 9)
    blocks.release_behind("a", 9)
    assert held(blocks, "a") == [1, 2], "the token at 9 sees those from 4 on"
    compute(blocks, "a", 16)
    assert held(blocks, "a") == [2, 3]
    assert held(blocks, "a", group=0) == [0, 1, 2, 3, 4]


def test_window_takes_blocks_step_by_step_and_the_full_group_at_once() -> None:
    blocks = with_window(8)
    blocks.allocate("a", 16)
    full, window = blocks.advance("a", 6)
    assert (len(full), len(window)) == (4, 2)
    assert blocks.advance("a", 7) == [[], []]
    assert [len(ids) for ids in blocks.advance("a", 13)] == [0, 2]
    assert blocks.block_table("a", 1)[:2] == window


def test_step_longer_than_the_window_has_blocks_for_all_its_tokens_until_it_is_taken_in() -> None:
    blocks = with_window(8)
    blocks.allocate("a", 32)
    blocks.advance("a", 32)
    assert held(blocks, "a") == [*range(8)]
    blocks.release_behind("a", 32)
    assert held(blocks, "a") == [6, 7]


def test_step_planned_ahead_takes_nothing_from_the_one_in_flight() -> None:
    blocks = with_window(8)
    blocks.allocate("a", 32)
    blocks.advance("a", 16)
    blocks.advance("a", 24)
    assert held(blocks, "a") == [0, 1, 2, 3, 4, 5]
    blocks.release_behind("a", 16)
    assert held(blocks, "a") == [2, 3, 4, 5]


def test_tokens_that_were_rejected_are_computed_again_in_the_blocks_they_had() -> None:
    blocks = with_window(8)
    blocks.allocate("a", 20)
    compute(blocks, "a", 10)
    blocks.advance("a", 17)  # one token and six drafts, of which none is kept
    blocks.release_behind("a", 11)
    assert held(blocks, "a") == [1, 2, 3, 4], "the token at 11 sees the one at 6"
    table = [*blocks.block_table("a", 1)]
    assert blocks.advance("a", 18) == [[], []]
    assert blocks.block_table("a", 1) == table


def test_what_lies_behind_the_window_is_found_until_it_is_handed_out_again() -> None:
    blocks = with_window(5)
    known = hashes(4)
    blocks.allocate("a", 17)
    compute(blocks, "a", 16, known)
    assert held(blocks, "a") == [2, 3]
    prefix = blocks.find_prefix(known[:2])
    assert (len(prefix), [len(group) for group in prefix.windows]) == (2, [2])
    blocks.allocate("b", 12)
    blocks.advance("b", 12)
    assert not blocks.find_prefix(known[:2])
    assert len(blocks.find_prefix(known)) == 4, "its last blocks are held"
    blocks.check_integrity()


def test_prefix_is_cut_back_to_where_the_window_has_all_that_is_seen_after_it() -> None:
    blocks = with_window(8, window=6, num_full=32)
    known = hashes(6)
    blocks.allocate("a", 25)
    compute(blocks, "a", 24, known)
    blocks.free("a")
    blocks.allocate("b", 20)
    blocks.advance("b", 20)  # takes the two that had nothing in them, then the blocks that were let go of first
    assert [blocks._windows[0].pool.find(block_hash) is not None for block_hash in known] == [False] * 3 + [True] * 3
    assert len(blocks.find_prefix(known)) == 6
    assert len(blocks.find_prefix(known[:5])) == 5
    assert not blocks.find_prefix(known[:4]), "the token at 16 sees the one at 11, which is lost"


def test_prefix_of_several_windows_is_one_that_satisfies_them_all() -> None:
    blocks = BlockManager([CacheGroup(32, 1), CacheGroup(8, 1, 6), CacheGroup(32, 1, 2)], block_size=4)
    known = hashes(6)
    blocks.allocate("a", 25)
    compute(blocks, "a", 24, known)
    blocks.free("a")
    wide, narrow = blocks._windows
    for index in (5, 2):
        narrow.pool.forget(known[index])
    assert len(blocks.find_prefix(known)) == 5
    wide.pool.forget(known[3])
    assert len(blocks.find_prefix(known)) == 2, "5 lacks the block at 3 in one window, 3 the one at 2 in the other"
    assert len(blocks.find_prefix(known[:3])) == 2


def test_prefix_evicted_in_the_full_group_is_found_in_no_window() -> None:
    blocks = with_window(16, num_full=8)
    known = hashes(4)
    blocks.allocate("a", 17)
    compute(blocks, "a", 16, known)
    blocks.free("a")
    blocks.allocate("b", 32)
    assert not blocks.find_prefix(known)
    assert [blocks._windows[0].pool.find(block_hash) for block_hash in known] == [None] * 4
    blocks.check_integrity()


def test_hit_holds_blocks_in_every_group() -> None:
    blocks = with_window(8)
    known = hashes(4)
    blocks.allocate("a", 17)
    compute(blocks, "a", 16, known)
    blocks.allocate("b", 20, blocks.find_prefix(known))
    full, window = blocks.advance("b", 20)
    assert full[:4] == blocks.block_table("a")[:4]
    assert window[:2] == [0, 0], "what lies behind the window is any block"
    assert window[2:4] == blocks.block_table("a", 1)[2:4]
    blocks.free("a")
    assert held(blocks, "b") == [2, 3, 4]
    blocks.check_integrity()


def test_preempted_request_finds_what_it_computed_in_all_groups() -> None:
    blocks = with_window(8)
    known = hashes(4)
    blocks.allocate("a", 18)
    compute(blocks, "a", 17, known)
    blocks.free("a")
    assert blocks.num_used_blocks == blocks._windows[0].pool.num_used_blocks == 0
    prefix = blocks.find_prefix(known)
    assert len(prefix) == 4
    blocks.allocate("a", 18, prefix)
    assert [len(ids) for ids in blocks.advance("a", 18)] == [5, 5]
    assert held(blocks, "a") == [2, 3, 4]
    blocks.check_integrity()


def test_prefix_computed_meanwhile_takes_the_place_of_a_shorter_one_in_all_groups() -> None:
    blocks = with_window(12)
    known = hashes(5)
    blocks.allocate("early", 21)
    compute(blocks, "early", 8, known[:2])
    blocks.allocate("late", 24, blocks.find_prefix(known))
    assert held(blocks, "late") == [0, 1]
    compute(blocks, "early", 20, known)
    assert blocks.extend_prefix("late", known, 2) == 3
    assert held(blocks, "late") == [3, 4]
    assert blocks.block_table("late", 1)[3:] == blocks.block_table("early", 1)[3:5]
    assert blocks.block_table("late")[:5] == blocks.block_table("early")[:5]
    blocks.check_integrity()


def test_window_changes_no_block_of_the_full_group(blocks: BlockManager) -> None:
    beside = with_window(8, num_full=8)
    for manager in (blocks, beside):
        manager.allocate("a", 9)
        manager.advance("a", 9)
        manager.free("a")
    assert blocks.allocate("b", 20) == beside.allocate("b", 20)
    assert blocks.advance("b", 20) == [[*blocks.block_table("b")]]
