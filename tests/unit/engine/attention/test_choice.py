"""Which backend a GPU gets, told by a torch that pretends to have one."""

import sys
from dataclasses import replace
from subprocess import CalledProcessError
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from orcinus.engine.attention import torch_backend as attention
from orcinus.engine.attention.torch_backend import (
    AttentionSpec,
    LayerCache,
    LayerShape,
    TorchBackend,
    VarlenBackend,
    batch_metadata,
    choose_backend,
)

pytest.importorskip("triton")

from orcinus.engine.attention.triton_backend import TritonBackend

CUDA = torch.device("cuda")


class Gpu:
    """What torch says of a GPU, and what it brings along."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.has(capability=(9, 0), varlen=True)

    def has(
        self, *, capability: tuple[int, int] = (9, 0), varlen: bool = True, triton: Exception | None = None
    ) -> None:
        properties = SimpleNamespace(multi_processor_count=132)
        self._patch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        self._patch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        self._patch.setattr(attention, "_paged_varlen_attn", lambda: refuse if varlen else None)
        self._patch.setattr(TritonBackend, "try_out", lambda *_: raise_if(triton))


def raise_if(error: Exception | None) -> None:
    if error is not None:
        raise error


def refuse(*args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("this layer is not for FlashAttention")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def test_a_gpu_has_flash_attention_first_and_then_triton(gpu: Gpu) -> None:
    backend = choose_backend(CUDA, torch.bfloat16)
    assert type(backend) is VarlenBackend
    assert type(backend.fallback) is TritonBackend
    assert type(choose_backend(CUDA, torch.float32)) is TritonBackend
    gpu.has(varlen=False)
    assert type(choose_backend(CUDA, torch.float16)) is TritonBackend


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler"), CalledProcessError(1, "gcc")])
def test_a_gpu_gathers_what_flash_attention_cannot_do_where_triton_does_not_work(
    error: Exception, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.has(triton=error)
    assert type(choose_backend(CUDA, torch.float32)) is TorchBackend
    assert str(error) in caplog.text
    backend = choose_backend(CUDA, torch.bfloat16)
    assert type(backend) is VarlenBackend
    assert type(backend.fallback) is TorchBackend
    gpu.has(varlen=False, triton=error)
    assert type(choose_backend(CUDA, torch.bfloat16)) is TorchBackend


def test_a_gpu_gathers_where_there_is_no_triton(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orcinus.engine.attention.triton_backend", None)
    assert type(choose_backend(CUDA, torch.float32)) is TorchBackend


def test_a_gpu_older_than_ampere_gathers(gpu: Gpu) -> None:
    gpu.has(capability=(7, 5))
    assert type(choose_backend(CUDA, torch.float16)) is TorchBackend


class Noting(TorchBackend):
    num_calls = 0

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: Any) -> Tensor:
        self.num_calls += 1
        return super().attend(layer, query, spec, meta)


@pytest.mark.parametrize(
    ("spec", "value_dim"),
    [
        (AttentionSpec(0.3, softcap=2.0), 8),
        (AttentionSpec(0.3, sinks=torch.zeros(4)), 8),
        (AttentionSpec(0.3), 6),
    ],
    ids=["softcap", "sinks", "value size"],
)
def test_what_flash_attention_cannot_do_goes_to_the_other_backend(spec: AttentionSpec, value_dim: int) -> None:
    cpu = torch.device("cpu")
    other = Noting()
    backend = VarlenBackend(refuse, other)
    layer = backend.allocate(LayerShape(2, 8, value_dim), 2, 4, torch.float32, cpu)
    query, keys, values = torch.randn(3, 4, 8), torch.randn(3, 2, 8), torch.randn(3, 2, value_dim)
    meta = batch_metadata([(0, 3)], torch.zeros(1, 1, dtype=torch.int32).numpy(), 4, cpu)
    out = backend.run(layer, query, keys, values, spec=spec, meta=meta)
    assert other.num_calls == 1
    with pytest.raises(RuntimeError, match="on the host"):
        backend.run(layer, query, keys, values, spec=spec, meta=replace(meta, is_recorded=True))
    again = TorchBackend().run(layer, query, keys, values, spec=spec, meta=meta)
    torch.testing.assert_close(out, again)
