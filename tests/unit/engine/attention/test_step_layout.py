"""Where tokens lie, against the definition, one token at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orcinus.engine.attention.step_layout import lay_out

BLOCK = 4

spans = st.lists(st.tuples(st.integers(0, 20), st.one_of(st.just(1), st.integers(1, 12))), min_size=1, max_size=6).map(
    lambda pairs: sorted(pairs, key=lambda pair: pair[1] > 1)
)


@given(spans)
def test_every_token_is_where_its_sequence_and_position_say(pairs: list[tuple[int, int]]) -> None:
    firsts, lengths = np.array(pairs, dtype=np.int64).T
    tables = np.random.default_rng(0).permutation(len(pairs) * 8).astype(np.int32).reshape(len(pairs), 8)
    layout = lay_out(firsts, firsts + lengths, [tables, tables[::-1]], BLOCK)
    tokens = [(i, first + j) for i, (first, length) in enumerate(pairs) for j in range(length)]
    assert layout.sequences.tolist() == [i for i, _ in tokens]
    assert layout.positions.tolist() == [position for _, position in tokens]
    for slots, table in zip(layout.slots, layout.block_tables, strict=True):
        assert slots.tolist() == [table[i, p // BLOCK] * BLOCK + p % BLOCK for i, p in tokens]
    assert (layout.block_tables[1] == tables[::-1]).all()
    assert layout.query_start.tolist() == [sum(length for _, length in pairs[:i]) for i in range(len(pairs) + 1)]
    assert layout.seq_lens.tolist() == [first + length for first, length in pairs]
    assert layout.num_decodes == sum(length == 1 for _, length in pairs)
    assert layout.is_decode == all(length == 1 for _, length in pairs)


def test_slots_of_large_caches_do_not_overflow() -> None:
    tables = np.array([[2**31 - 1]], dtype=np.int32)
    layout = lay_out(np.array([3]), np.array([4]), [tables], 256)
    assert layout.slots[0].tolist() == [(2**31 - 1) * 256 + 3]
