"""What the front end knows of an engine's cache."""

import random

from orcinus.engine.frontend.prefix_index import PrefixIndex

SCOPE = (None, None)


def test_whole_blocks_from_the_start_are_found() -> None:
    index = PrefixIndex(4, 100)
    index.add([1, 2, 3, 4, 5, 6, 7, 8, 9], SCOPE)
    asked = ([1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 2, 3, 4, 9, 6, 7, 8], [5, 6, 7, 8])
    assert [index.num_cached(tokens, SCOPE) for tokens in asked] == [0, 4, 8, 4, 0]


def test_a_block_counts_only_after_the_ones_before_it() -> None:
    index = PrefixIndex(1, 100)
    index.add([1, 2, 3], SCOPE)
    assert index.num_cached([2, 2, 3], SCOPE) == 0


def test_scopes_have_nothing_in_common() -> None:
    index = PrefixIndex(2, 100)
    index.add([1, 2, 3, 4], ("a", None))
    assert [index.num_cached([1, 2, 3, 4], scope) for scope in (("a", None), ("b", None), SCOPE, (None, "a"))] == [
        *(4, 0, 0, 0)
    ]


def test_what_was_used_last_is_kept_and_the_beginning_longest() -> None:
    index = PrefixIndex(1, 4)
    index.add([1, 2], SCOPE)
    index.add([3, 4], SCOPE)
    index.add([1, 2], SCOPE)
    index.add([5], SCOPE)
    assert [index.num_cached(tokens, SCOPE) for tokens in ([1, 2], [3, 4], [5])] == [2, 1, 1]


def test_memory_is_bounded_whatever_comes() -> None:
    randomness = random.Random(0)
    index = PrefixIndex(1, 50)
    for _ in range(200):
        index.add([randomness.randrange(9) for _ in range(randomness.randrange(3000))], SCOPE)
        assert len(index) <= 50
    assert len(PrefixIndex(1, 10**9)) == 0
    huge = PrefixIndex(1, 10**9)
    for start in range(0, 80_000, 1000):
        huge.add(range(start, start + 1000), SCOPE)
    assert len(huge) == 65_536


def test_an_index_without_blocks_finds_nothing_and_one_that_is_cleared_neither() -> None:
    for index in (PrefixIndex(1, 0), PrefixIndex(1, 9)):
        index.add([1, 2, 3], SCOPE)
        index.clear()
        assert index.num_cached([1, 2, 3], SCOPE) == len(index) == 0
    never = PrefixIndex(1, 0)
    never.add([1], SCOPE)
    assert never.num_cached([1], SCOPE) == 0
