from orcinus.engine.scheduler.block_pool import BlockPool


def test_hash_that_a_pool_has_lost_is_lost_in_its_followers() -> None:
    follower = BlockPool(3)
    pool = BlockPool(1, [follower])
    pool.register(pool.take_oldest_free(), b"known")
    block = follower.take_oldest_free()
    follower.register(block, b"known")
    pool.release(0)
    follower.release(block)
    assert follower.find(b"known") == block
    pool.take_oldest_free()
    assert follower.find(b"known") is None
    assert follower.take_oldest_free() == block, "with nothing in it to be found again it is reused first"


def test_block_that_is_held_stays_with_its_holder_when_its_hash_is_lost() -> None:
    follower = BlockPool(2)
    pool = BlockPool(1, [follower])
    pool.register(pool.take_oldest_free(), b"known")
    block = follower.take_oldest_free()
    follower.register(block, b"known")
    pool.release(0)
    pool.take_oldest_free()
    follower.check_integrity([[block]])
    pool.check_integrity([[0]])
    assert follower.num_used_blocks == 1
    follower.release(block)
    assert follower.take_oldest_free() == block
