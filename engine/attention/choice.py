"""Chooses the attention backend for a model's layers, a device and the installed torch, once, at start-up."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from subprocess import SubprocessError

import numpy as np
import torch

from orcinus.engine.attention.flash_backend import FlashBackend, can_attend, paged_varlen_attn
from orcinus.engine.attention.interface import AttentionBackend, AttentionSpec, LayerCache, LayerShape, batch_metadata
from orcinus.engine.attention.native_backend import NATIVE_DTYPES, NativeBackend
from orcinus.engine.attention.torch_backend import TorchBackend
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.platform.device import is_broken

logger = logging.getLogger(__name__)

# What torch and Triton raise over kernels that they cannot build, launch or call; Triton needs a C compiler.
_FAILURES = (ImportError, RuntimeError, OSError, SubprocessError, TypeError, ValueError)
_BLOCK_SIZE = 16
# Of the largest value, against float32. Weights and values are rounded to the dtype of the cache.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Says of a layer what decides whether a kernel can serve it."""

    num_heads: int
    shape: LayerShape
    spec: AttentionSpec

    @property
    def key(self) -> tuple[object, ...]:
        """Return what is the same for layers that compile to the same kernels."""
        spec = self.spec
        return self.num_heads, self.shape, spec.scale, spec.window, spec.softcap, spec.sinks is None


PLAIN_LAYER = LayerKind(2, LayerShape(1, 64, 64), AttentionSpec(0.125))


def choose_backend(
    device: torch.device,
    dtype: torch.dtype,
    layers: Sequence[LayerKind] = (PLAIN_LAYER,),
    block_size: int | None = None,
) -> AttentionBackend:
    """Return the fastest backend that these layers, this device, this dtype and this torch have.

    `block_size` is the setting, if there is one: a backend that cannot work with it is passed over.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        distinct = {layer.key: layer for layer in layers}
        return _backend_in_place(device, dtype, [*distinct.values()], block_size)
    if device.type == "cpu" and dtype in NATIVE_DTYPES:
        library = load_library()
        if library is not None:
            return NativeBackend(library)
    return TorchBackend()


def _backend_in_place(
    device: torch.device, dtype: torch.dtype, layers: list[LayerKind], block_size: int | None
) -> AttentionBackend:
    """Return what reads the cache in place on a GPU from Ampere on; older ones have too little shared memory for it."""
    varlen_attn = paged_varlen_attn() if dtype in (torch.float16, torch.bfloat16) else None
    page = block_size or FlashBackend.block_size_multiple
    suited = [layer for layer in layers if can_attend(layer.shape, layer.spec)]
    others = [layer for layer in layers if not can_attend(layer.shape, layer.spec)]
    if varlen_attn is not None and suited and page % FlashBackend.block_size_multiple == 0:
        flash = FlashBackend(varlen_attn, TorchBackend())
        if _works(flash, device, dtype, suited, page):
            return FlashBackend(varlen_attn, _triton_backend(device, dtype, others, page)) if others else flash
    return _triton_backend(device, dtype, layers, block_size or _BLOCK_SIZE)


def _triton_backend(device: torch.device, dtype: torch.dtype, layers: list[LayerKind], block_size: int) -> TorchBackend:
    """Return the Triton backend, or the gathering one. CUDA builds of torch bring Triton along, on Linux."""
    try:
        from orcinus.engine.attention.triton_backend import TritonBackend
    except ImportError as error:
        logger.warning("attention gathers the blocks of the cache before it reads them: %s", error)
        return TorchBackend()
    backend = TritonBackend(torch.cuda.get_device_properties(device).multi_processor_count)
    return backend if _works(backend, device, dtype, layers, block_size) else TorchBackend()


def _works(
    backend: TorchBackend, device: torch.device, dtype: torch.dtype, layers: list[LayerKind], block_size: int
) -> bool:
    try:
        for layer in layers:
            try_out(backend, device, dtype, layer, block_size)
    except _FAILURES as error:
        if is_broken(device):
            raise ModelLoadError(f"attention by {backend.name} leaves the device unusable: {error}") from error
        logger.warning("attention does without %s, which does not work here: %s", backend.name, error)
        return False
    return True


def try_out(backend: TorchBackend, device: torch.device, dtype: torch.dtype, layer: LayerKind, block_size: int) -> None:
    """Attend in two small steps as the layer does, with a chunk and without, and compare with gathering in float32.

    Raises whatever keeps kernels from running, and `RuntimeError` for one that computes something else.
    """
    cache = backend.allocate(layer.shape, 6, block_size, dtype, device)
    generator = torch.Generator(device).manual_seed(0)
    for cached in (cache.keys, cache.values):
        cached.normal_(generator=generator)
    exact = LayerCache(cache.keys.float(), cache.values.float())
    tables = np.array([[4, 1], [0, 5], [3, 2]], dtype=np.int32)
    single, first, chunk = (block_size + 4, block_size + 5), (0, 1), (3, block_size + 9)
    for spans in ([single, first, chunk], [single, first]):
        meta = batch_metadata(spans, tables[: len(spans)], block_size, device)
        shape = (meta.query_start[-1], layer.num_heads, layer.shape.key_dim)
        query = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        expected = TorchBackend().attend(exact, query.float(), layer.spec, meta)
        got = backend.attend(cache, query, layer.spec, meta).float()
        error = float((got - expected).abs().max() / expected.abs().max())
        if not error <= _TOLERANCE[dtype]:
            raise RuntimeError(f"its result for {layer.num_heads} heads, {layer.shape} is wrong by {error:.2g}")
