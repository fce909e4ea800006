"""Attention over whole tensors."""

from orcinus.engine.attention.dense import causal_mask
from tests.unit.engine.attention.cases import CPU


def test_causal_mask_lines_up_with_the_last_key() -> None:
    mask = causal_mask(2, 4, 3, CPU)
    assert mask.tolist() == [[True, True, True, False], [False, True, True, True]]
