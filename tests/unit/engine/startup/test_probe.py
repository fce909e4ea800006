"""What the first run of a model tells: how its layers attend, and so which backend is asked for."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from orcinus.engine.attention.choice import LayerKind
from orcinus.engine.attention.interface import LayerShape
from orcinus.engine.attention.serving import ATTENTION_NAME, attention_function
from orcinus.engine.attention.torch_backend import TorchBackend
from orcinus.engine.startup import probe
from orcinus.engine.startup.probe import probe_model
from tests.integration.tiny_models import FAMILIES, random_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("family", "windows", "softcap", "has_sinks"),
    [
        ("llama", [None] * 3, None, False),
        ("gemma2", [12, None, 12], 5.0, False),
        ("gpt_oss", [12, None, 12], None, True),
    ],
)
def test_a_backend_is_chosen_for_the_layers_that_the_model_has(
    family: str, windows: list[int | None], softcap: float | None, has_sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[torch.dtype, Sequence[LayerKind], int | None]] = []

    def choose(device: torch.device, dtype: torch.dtype, layers: Sequence[LayerKind], block_size: int | None) -> Any:
        asked.append((dtype, layers, block_size))
        return TorchBackend()

    monkeypatch.setattr(probe, "choose_backend", choose)
    AttentionInterface.register(ATTENTION_NAME, attention_function)
    class_name, settings = FAMILIES[family]
    with torch.inference_mode():
        probe_model(random_model(class_name, "bfloat16", ATTENTION_NAME, **settings), CPU, block_size=48)
    ((dtype, layers, block_size),) = asked
    assert (dtype, block_size) == (torch.bfloat16, 48)
    assert {(layer.num_heads, layer.shape) for layer in layers} == {(4, LayerShape(2, 16, 16))}
    assert {layer.spec.softcap for layer in layers} == {softcap}
    assert {layer.spec.sinks is not None for layer in layers} == {has_sinks}
    assert sorted(map(str, (layer.spec.window for layer in layers))) == sorted(map(str, windows))
