"""The arithmetic of the GPU check: what a step has to read at least."""

import msgspec
import pytest

from bench.gpu_check import roofline_ms
from orcinus.engine.messages import CacheGroup
from tests.unit.server.process.test_summary import INFO

BANDWIDTH = 1e9
PER_LAYER_TOKEN = 100  # bytes


def test_a_model_without_windows_reads_all_tokens_of_each_sequence() -> None:
    info = msgspec.structs.replace(INFO, weight_bytes=0, num_kv_blocks=8, block_size=4, kv_cache_bytes=8 * 4 * 300)
    assert roofline_ms(info, 2, 10, BANDWIDTH) == pytest.approx(1000 * 2 * 10 * 300 / BANDWIDTH)


def test_a_layer_with_a_window_reads_the_window_alone() -> None:
    groups = [CacheGroup(num_blocks=8, num_layers=1), CacheGroup(num_blocks=2, num_layers=5, window=6)]
    num_bytes = 4 * (8 * 1 + 2 * 5) * PER_LAYER_TOKEN
    info = msgspec.structs.replace(
        INFO, weight_bytes=0, num_kv_blocks=8, block_size=4, kv_cache_bytes=num_bytes, cache_groups=groups
    )
    for context, num_seen in ((10, 10 + 5 * 6), (4, 6 * 4)):
        expected_s = 3 * num_seen * PER_LAYER_TOKEN / BANDWIDTH
        assert roofline_ms(info, 3, context, BANDWIDTH) == pytest.approx(1000 * expected_s)
