import pytest

from orcinus.engine.scheduler.block_manager import BlockManager


@pytest.fixture
def blocks() -> BlockManager:
    return BlockManager(num_blocks=8, block_size=4)


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
    assert prefix == table
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
    assert blocks.find_prefix([b"known"]) == []
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
    assert blocks.find_prefix([b"same"]) == first
    blocks.check_integrity()
