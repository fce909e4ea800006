"""Which backend a device gets for a model's layers; a GPU's is told by a torch that pretends to have one."""

import sys
from collections.abc import Callable
from dataclasses import replace
from subprocess import CalledProcessError
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from orcinus.engine.attention import choice
from orcinus.engine.attention.choice import PLAIN_LAYER, LayerKind, choose_backend, try_out
from orcinus.engine.attention.flash_backend import FlashBackend, paged_varlen_attn
from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerCache, LayerShape
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.torch_backend import TorchBackend
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from tests.unit.engine.attention.flash_attention_2 import flash_attention_2

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
SHAPE = LayerShape(2, 128, 128)
PLAIN = LayerKind(16, SHAPE, AttentionSpec(0.1))
WINDOWED = LayerKind(16, SHAPE, AttentionSpec(0.1, window=100))
SOFTCAPPED = LayerKind(16, SHAPE, AttentionSpec(0.1, softcap=50.0))
WITH_SINKS = LayerKind(16, SHAPE, AttentionSpec(0.1, sinks=torch.zeros(16)))
WIDE = LayerKind(8, LayerShape(1, 512, 512), AttentionSpec(0.1))
UNEVEN = LayerKind(8, LayerShape(1, 192, 128), AttentionSpec(0.1))


class Gpu:
    """Says what torch says of a GPU and brings along; notes what is tried out there, and lets it fail as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from orcinus.engine.attention.triton_backend import TritonBackend

        self._patch = monkeypatch
        self.triton_backend = TritonBackend
        self.tried: list[tuple[str, LayerKind, int]] = []
        self.has()

    def has(
        self,
        *,
        capability: tuple[int, int] = (9, 0),
        varlen: bool = True,
        triton: Exception | None = None,
        flash: Exception | None = None,
        is_broken: bool = False,
    ) -> None:
        def try_out(
            backend: TorchBackend, device: torch.device, dtype: torch.dtype, layer: LayerKind, block_size: int
        ) -> None:
            self.tried.append((backend.name, layer, block_size))
            raise_if({FlashBackend: flash, self.triton_backend: triton}[type(backend)])

        properties = SimpleNamespace(multi_processor_count=132)
        self._patch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        self._patch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        self._patch.setattr(choice, "paged_varlen_attn", lambda: refuse if varlen else None)
        self._patch.setattr(choice, "try_out", try_out)
        self._patch.setattr(choice, "is_broken", lambda device: is_broken)


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
    assert type(choose_backend(CUDA, torch.bfloat16)) is FlashBackend
    assert type(choose_backend(CUDA, torch.float32)) is gpu.triton_backend
    gpu.has(varlen=False)
    assert type(choose_backend(CUDA, torch.float16)) is gpu.triton_backend


def test_a_backend_is_tried_out_with_each_kind_of_layer_that_it_is_to_serve(gpu: Gpu) -> None:
    layers = [PLAIN, WINDOWED, replace(PLAIN), SOFTCAPPED, replace(WINDOWED), WIDE]
    backend = choose_backend(CUDA, torch.bfloat16, layers)
    assert type(backend) is FlashBackend
    assert type(backend.fallback) is gpu.triton_backend
    flash, triton = ("flash-varlen", PLAIN, 256), ("triton", SOFTCAPPED, 256)
    assert gpu.tried == [flash, ("flash-varlen", WINDOWED, 256), triton, ("triton", WIDE, 256)]
    gpu.tried.clear()
    assert type(choose_backend(CUDA, torch.float32, [PLAIN, PLAIN, SOFTCAPPED])) is gpu.triton_backend
    assert gpu.tried == [("triton", PLAIN, 16), ("triton", SOFTCAPPED, 16)]


@pytest.mark.parametrize("layer", [SOFTCAPPED, WITH_SINKS, WIDE, UNEVEN], ids=["softcap", "sinks", "wide", "uneven"])
def test_a_model_without_a_layer_for_flash_attention_is_not_tied_to_its_blocks(layer: LayerKind, gpu: Gpu) -> None:
    backend = choose_backend(CUDA, torch.bfloat16, [layer])
    assert type(backend) is gpu.triton_backend
    assert backend.block_size_multiple == 1
    assert gpu.tried == [("triton", layer, 16)]


def test_a_block_size_that_flash_attention_cannot_read_has_triton(gpu: Gpu) -> None:
    assert type(choose_backend(CUDA, torch.bfloat16, [PLAIN], 32)) is gpu.triton_backend
    assert type(choose_backend(CUDA, torch.bfloat16, [PLAIN], 512)) is FlashBackend
    assert gpu.tried == [("triton", PLAIN, 32), ("flash-varlen", PLAIN, 512)]


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler"), CalledProcessError(1, "gcc")])
def test_a_gpu_gathers_what_flash_attention_cannot_do_where_triton_does_not_work(
    error: Exception, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.has(triton=error)
    assert type(choose_backend(CUDA, torch.float32)) is TorchBackend
    assert str(error) in caplog.text
    backend = choose_backend(CUDA, torch.bfloat16, [PLAIN, SOFTCAPPED])
    assert type(backend) is FlashBackend
    assert type(backend.fallback) is TorchBackend
    gpu.has(varlen=False, triton=error)
    assert type(choose_backend(CUDA, torch.bfloat16)) is TorchBackend


@pytest.mark.parametrize("error", [RuntimeError("must be both set"), TypeError("unexpected keyword argument")])
def test_a_gpu_goes_on_with_triton_where_flash_attention_does_not_work(
    error: Exception, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.has(flash=error)
    assert type(choose_backend(CUDA, torch.bfloat16, [PLAIN, SOFTCAPPED])) is gpu.triton_backend
    assert gpu.tried == [("flash-varlen", PLAIN, 256), ("triton", PLAIN, 16), ("triton", SOFTCAPPED, 16)]
    assert f"without flash-varlen, which does not work here: {error}" in caplog.text
    gpu.has(flash=error, triton=RuntimeError("no compiler"))
    assert type(choose_backend(CUDA, torch.bfloat16)) is TorchBackend


def test_a_kernel_that_breaks_the_device_leaves_nothing_to_go_on_with(gpu: Gpu) -> None:
    gpu.has(flash=RuntimeError("illegal memory access"), is_broken=True)
    with pytest.raises(ModelLoadError, match="flash-varlen leaves the device unusable: illegal memory access"):
        choose_backend(CUDA, torch.bfloat16)


def test_a_gpu_gathers_where_there_is_no_triton(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orcinus.engine.attention.triton_backend", None)
    assert type(choose_backend(CUDA, torch.float32)) is TorchBackend


def test_a_gpu_older_than_ampere_gathers(gpu: Gpu) -> None:
    gpu.has(capability=(7, 5))
    assert type(choose_backend(CUDA, torch.float16)) is TorchBackend


class Changed(TorchBackend):
    """Gathers, and changes the result; notes the most queries of each step."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.max_query_lens: list[int] = []

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
        self.max_query_lens.append(meta.max_query_len)
        return self.change(super().attend(layer, query, spec, meta))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "layer",
    [PLAIN_LAYER, PLAIN, WINDOWED, SOFTCAPPED, WITH_SINKS, UNEVEN],
    ids=["default", "plain", "window", "softcap", "sinks", "uneven"],
)
def test_a_backend_is_tried_out_with_chunks_and_with_single_tokens_alone(layer: LayerKind, dtype: torch.dtype) -> None:
    backend = Changed(lambda out: out)
    try_out(backend, CPU, dtype, layer, 16)
    assert backend.max_query_lens == [22, 1]


@pytest.mark.parametrize("change", [lambda out: out.roll(1, dims=1), lambda out: out * torch.nan], ids=["heads", "nan"])
def test_a_backend_that_computes_something_else_does_not_work(change: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"result for 16 heads, .* is wrong by"):
        try_out(Changed(change), CPU, torch.bfloat16, PLAIN, 16)


@pytest.mark.parametrize("layer", [PLAIN_LAYER, PLAIN, WINDOWED], ids=["default", "plain", "window"])
def test_flash_attention_takes_what_it_is_tried_out_with(layer: LayerKind) -> None:
    varlen_attn = paged_varlen_attn()
    if varlen_attn is None:
        pytest.skip("this torch's varlen_attn takes no block table")
    backend = FlashBackend(varlen_attn, TorchBackend())
    with flash_attention_2() as kernel:
        try_out(backend, CPU, torch.bfloat16, layer, 256)
        assert len(kernel.is_packed) == 2
        with pytest.raises(RuntimeError, match="fp16 and bf16"):
            try_out(backend, CPU, torch.float32, layer, 256)
        with pytest.raises(RuntimeError, match="divisible by 256"):
            try_out(backend, CPU, torch.bfloat16, layer, 128)


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
