"""Which blocks the gathering backend gathers."""

import math

from orcinus.engine.attention.interface import batch_metadata
from orcinus.engine.attention.torch_backend import TorchBackend
from tests.unit.engine.attention.cases import BLOCK, CPU, shuffled_tables


def test_decode_rows_of_very_different_lengths_do_not_pad_each_other() -> None:
    spans = [(i, i + 1) for i in (0, 2, 3, 5, 60, 61, 30)]
    meta = batch_metadata(spans, shuffled_tables(7, 16), BLOCK, CPU)
    gathers = TorchBackend()._gathers_of(meta, None)
    gathered = sum(group.blocks.numel() for group in gathers.decodes)
    needed = sum(math.ceil(length / BLOCK) for length in meta.seq_lens)
    assert sorted(row for group in gathers.decodes for row in group.rows.tolist()) == list(range(7))
    assert gathered <= 2 * needed
    assert len(gathers.decodes) == 2


def test_window_gathers_only_the_blocks_it_sees() -> None:
    meta = batch_metadata([(63, 64)], shuffled_tables(1, 16), BLOCK, CPU)
    group = TorchBackend()._gathers_of(meta, 5).decodes[0]
    assert group.blocks.tolist() == meta.block_tables[0, 14:].tolist()
