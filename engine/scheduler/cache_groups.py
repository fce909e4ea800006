"""How many blocks each group of layers gets: arithmetic by which the pool of a window never runs dry.

Layers that keep everything (the full group) decide who may run. Layers with a sliding window hold few blocks of each
request, and their pools are sized here so that a request which has blocks of the full group finds enough of theirs.
Knows neither requests nor devices.

Why `window_demand` suffices: let `c = blocks_behind(window)`. Of a request with `b` tokens booked (computed for
certain) and blocks for `n` tokens after them, `BlockManager` holds the blocks from index `b // block_size - c` up to
token `b + n`. These are at most `c + 1` if `n <= 1`, and at most `c + 1 + ceil((n - 1) / block_size) <= c + 2 + n /
block_size` else. Summed over all running requests: at most `max_num_seqs * (c + 2) + num_tokens_in_flight /
block_size`.

Why as many blocks as the full group has suffice, too: each window block that is held lies at the same index of a
table as a full block, and no full block lies beside two different window blocks. A request has one of each beside
each other when it takes them fresh. Requests come to share a full block by its hash, and then share the window block
that the same hash finds. That is the one that was registered with the full block, because a hash which the full pool
has lost is lost in the window's pool as well (`BlockPool`, followers). Or it is one registered later, after nobody
held the first one any more. So as long as the full pool has had a block to give, the window's pool has a free one to
put beside it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from orcinus.engine.messages import CacheGroup

# A prefix counts as cached only if the windows have its last blocks, too, and running requests pass many blocks through
# their pools. So there is room for what finished requests left: one block for so many of the full group.
_FULL_BLOCKS_PER_CACHED = 4


@dataclass(frozen=True, slots=True)
class GroupCost:
    """Layers whose keys and values are kept alike, and what one block costs in all of them."""

    num_layers: int
    bytes_per_block: int
    window: int | None = None  # as in `CacheGroup`


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Says how much can be under way at once.

    `num_tokens_in_flight` counts the tokens that have blocks and are not booked: those of a step, or of two where a
    step is planned before the last one is known. Draft tokens that were rejected keep their blocks until the sequence
    has come so far, and are not counted if a sequence tries at most `block_size` at once: for these `window_demand` has
    room in what it gives each sequence.
    """

    max_num_seqs: int
    num_tokens_in_flight: int
    block_size: int


def blocks_behind(window: int, block_size: int) -> int:
    """Return how many blocks before a block hold keys that its first token sees."""
    return -(-(window - 1) // block_size)


def window_demand(window: int, concurrency: Concurrency) -> int:
    """Return how many blocks a group with this window needs at most, however many the full group has."""
    per_seq = blocks_behind(window, concurrency.block_size) + 2
    return concurrency.max_num_seqs * per_seq + concurrency.num_tokens_in_flight // concurrency.block_size


def num_window_blocks(num_full_blocks: int, window: int, concurrency: Concurrency) -> int:
    """Return the blocks of a group with this window beside a full group of so many: it never runs dry."""
    cached = -(-num_full_blocks // _FULL_BLOCKS_PER_CACHED)
    return min(num_full_blocks, max(window_demand(window, concurrency), cached))


def groups_of(num_full_blocks: int, costs: Sequence[GroupCost], concurrency: Concurrency) -> list[CacheGroup]:
    """Return the groups with so many blocks in the first one, which keeps everything, and what the others need."""
    assert [cost.window is None for cost in costs] == [i == 0 for i in range(len(costs))], "one group keeps everything"
    groups = [CacheGroup(num_full_blocks, costs[0].num_layers)]
    for cost in costs[1:]:
        assert cost.window is not None
        num_blocks = num_window_blocks(num_full_blocks, cost.window, concurrency)
        groups.append(CacheGroup(num_blocks, cost.num_layers, cost.window))
    return groups


def bytes_of(groups: Sequence[CacheGroup], costs: Sequence[GroupCost]) -> int:
    """Return what the blocks of these groups take."""
    return sum(group.num_blocks * cost.bytes_per_block for group, cost in zip(groups, costs, strict=True))


def fit_groups(
    costs: Sequence[GroupCost], memory_bytes: int, *, most_full_blocks: int, concurrency: Concurrency
) -> list[CacheGroup]:
    """Return the groups with as many blocks as fit into the memory, and at most `most_full_blocks` in the first one.

    That one keeps everything. A model whose layers all have windows has none in it: then it costs nothing and counts
    the tokens of running requests, and has more blocks than the windows only where these are enough for all sequences
    at any length.
    """

    def num_bytes(num_full: int) -> int:
        return bytes_of(groups_of(num_full, costs, concurrency), costs)

    # The bytes never fall when the full group grows.
    num_full = bisect_right(range(1, most_full_blocks + 1), memory_bytes, key=num_bytes)
    return groups_of(num_full, costs, concurrency)
