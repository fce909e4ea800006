"""Which backend a device gets; a GPU's is told by a torch that pretends to have one."""

import sys
from subprocess import CalledProcessError
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from orcinus.engine.attention import choice
from orcinus.engine.attention.choice import choose_backend, try_out
from orcinus.engine.attention.flash_backend import FlashBackend
from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerCache
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.torch_backend import TorchBackend
from orcinus.engine.kernels.library import load_library

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


class Gpu:
    """What torch says of a GPU, and what it brings along."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from orcinus.engine.attention.triton_backend import TritonBackend

        self._patch = monkeypatch
        self.triton_backend = TritonBackend
        self.has(capability=(9, 0), varlen=True)

    def has(
        self,
        *,
        capability: tuple[int, int] = (9, 0),
        varlen: bool = True,
        triton: Exception | None = None,
        flash: Exception | None = None,
    ) -> None:
        def try_out(backend: TorchBackend, device: torch.device, dtype: torch.dtype) -> None:
            raise_if({FlashBackend: flash, self.triton_backend: triton}[type(backend)])

        properties = SimpleNamespace(multi_processor_count=132)
        self._patch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        self._patch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        self._patch.setattr(choice, "paged_varlen_attn", lambda: refuse if varlen else None)
        self._patch.setattr(choice, "try_out", try_out)


def raise_if(error: Exception | None) -> None:
    if error is not None:
        raise error


def refuse(*args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("this layer is not for FlashAttention")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    pytest.importorskip("triton")
    return Gpu(monkeypatch)


def test_a_gpu_has_flash_attention_first_and_then_triton(gpu: Gpu) -> None:
    backend = choose_backend(CUDA, torch.bfloat16)
    assert type(backend) is FlashBackend
    assert type(backend.fallback) is gpu.triton_backend
    assert type(choose_backend(CUDA, torch.float32)) is gpu.triton_backend
    gpu.has(varlen=False)
    assert type(choose_backend(CUDA, torch.float16)) is gpu.triton_backend


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler"), CalledProcessError(1, "gcc")])
def test_a_gpu_gathers_what_flash_attention_cannot_do_where_triton_does_not_work(
    error: Exception, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.has(triton=error)
    assert type(choose_backend(CUDA, torch.float32)) is TorchBackend
    assert str(error) in caplog.text
    backend = choose_backend(CUDA, torch.bfloat16)
    assert type(backend) is FlashBackend
    assert type(backend.fallback) is TorchBackend
    gpu.has(varlen=False, triton=error)
    assert type(choose_backend(CUDA, torch.bfloat16)) is TorchBackend


@pytest.mark.parametrize("error", [RuntimeError("must be both set"), TypeError("unexpected keyword argument")])
def test_a_gpu_goes_on_with_triton_where_flash_attention_does_not_work(
    error: Exception, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.has(flash=error)
    assert type(choose_backend(CUDA, torch.bfloat16)) is gpu.triton_backend
    assert f"without flash-varlen, which does not work here: {error}" in caplog.text
    gpu.has(flash=error, triton=RuntimeError("no compiler"))
    assert type(choose_backend(CUDA, torch.bfloat16)) is TorchBackend


def test_a_backend_is_tried_out_with_chunks_and_with_single_tokens_alone() -> None:
    num_queries: list[int] = []

    class Noting(TorchBackend):
        def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
            num_queries.append(meta.max_query_len)
            return super().attend(layer, query, spec, meta)

    try_out(Noting(), CPU, torch.float32)
    assert num_queries == [2, 1]
    with pytest.raises(AssertionError, match="not for FlashAttention"):
        try_out(FlashBackend(refuse, TorchBackend()), CPU, torch.float32)


def test_a_gpu_gathers_where_there_is_no_triton(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orcinus.engine.attention.triton_backend", None)
    assert type(choose_backend(CUDA, torch.float32)) is TorchBackend


def test_a_gpu_older_than_ampere_gathers(gpu: Gpu) -> None:
    gpu.has(capability=(7, 5))
    assert type(choose_backend(CUDA, torch.float16)) is TorchBackend


def test_cpu_gathers_where_the_native_kernel_is_missing_or_has_no_such_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert type(choose_backend(CPU, torch.float16)) is TorchBackend
    monkeypatch.setattr(choice, "load_library", lambda: None)
    assert type(choose_backend(CPU, torch.bfloat16)) is TorchBackend


@pytest.mark.skipif(load_library() is None, reason="there is no native kernel here")
def test_cpu_reads_the_cache_in_place_where_the_native_kernel_is() -> None:
    assert type(choose_backend(CPU, torch.bfloat16)) is NativeBackend
    assert type(choose_backend(CPU, torch.float32)) is NativeBackend
