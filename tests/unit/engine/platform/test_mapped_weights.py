"""Mapped weights give their memory back and stay what they are; memory of another kind is left alone."""

import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from orcinus.engine.platform.mapped_weights import MappedFiles

NUM_BYTES = 64 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own way of telling what is mapped")
def test_a_mapped_weight_gives_its_memory_back_and_can_still_be_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file({"w": torch.rand(NUM_BYTES // 4), "other": torch.ones(8)}, tmp_path / "model.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    total = float(weights["w"].sum())
    process = psutil.Process()
    before = process.memory_info().rss
    assert MappedFiles().let_go(weights["w"])
    assert before - process.memory_info().rss > NUM_BYTES * 0.9
    assert float(weights["w"].sum()) == total
    assert float(weights["other"].sum()) == 8


def test_memory_of_this_process_is_left_alone() -> None:
    weight = torch.ones(NUM_BYTES // 4)
    assert not MappedFiles().let_go(weight)
    assert float(weight.sum()) == NUM_BYTES / 4
