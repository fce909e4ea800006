"""The tables of docs/operations.md are what the code that sizes a cache gives."""

from pathlib import Path

import pytest
import torch

from bench.sizing import SHAPES, slots_that_fit, tables, token_bytes
from orcinus.engine.attention.cache import bytes_per_block
from orcinus.engine.attention.interface import KVCacheSpec, LayerShape

PAGE = Path(__file__).parents[3] / "docs/operations.md"
BY_NAME = {shape.name: shape for shape in SHAPES}


def test_a_tokens_bytes_are_those_of_the_cache_that_is_allocated() -> None:
    layers = [KVCacheSpec(LayerShape(num_kv_heads=8, key_dim=128, value_dim=128))] * 28
    assert token_bytes(BY_NAME["Qwen3 0.6B"]) * 64 == bytes_per_block(layers, 64, torch.bfloat16)


def test_slots_are_what_is_left_over_what_a_sequence_takes() -> None:
    shape, gib = BY_NAME["Qwen3 0.6B"], 2**30
    per_sequence = 4096 * token_bytes(shape)
    assert slots_that_fit(shape, gib, "cpu", 16 * gib, 4096) == int(0.4 * 15 * gib) // per_sequence
    assert slots_that_fit(shape, gib, "cuda", 16 * gib, 4096) == int(0.9 * 16 * gib - 2 * gib) // per_sequence
    assert slots_that_fit(shape, gib, "cpu", gib, 4096) == 0
    assert slots_that_fit(shape, 3 * gib, "cuda", 4 * gib, 4096) == 0


@pytest.mark.slow
def test_tables_of_the_page_are_current() -> None:
    page = PAGE.read_text()
    part = page.partition("<!-- sizing:begin -->\n")[2].partition("\n<!-- sizing:end -->")[0]
    assert part == tables(4096)
