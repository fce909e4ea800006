"""Chooses the attention backend for a device, a dtype and the installed torch, once, when a model is loaded."""

import logging
from subprocess import SubprocessError

import numpy as np
import torch

from orcinus.engine.attention.flash_backend import FlashBackend, paged_varlen_attn
from orcinus.engine.attention.interface import AttentionBackend, AttentionSpec, LayerShape, batch_metadata
from orcinus.engine.attention.native_backend import NATIVE_DTYPES, NativeBackend
from orcinus.engine.attention.torch_backend import TorchBackend
from orcinus.engine.kernels.library import load_library

logger = logging.getLogger(__name__)

# What torch and Triton raise over kernels that they cannot build, launch or call; Triton needs a C compiler.
_FAILURES = (ImportError, RuntimeError, OSError, SubprocessError, TypeError, ValueError)
_BLOCK_SIZE, _HEAD_DIM = 16, 64


def choose_backend(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """Return the fastest backend that this device, this dtype and this torch have."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return _backend_in_place(device, dtype)
    if device.type == "cpu" and dtype in NATIVE_DTYPES:
        library = load_library()
        if library is not None:
            return NativeBackend(library)
    return TorchBackend()


def _backend_in_place(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """Return what reads the cache in place on a GPU from Ampere on; older ones have too little shared memory for it."""
    fallback = _triton_backend(device, dtype)
    varlen_attn = paged_varlen_attn() if dtype in (torch.float16, torch.bfloat16) else None
    if varlen_attn is None:
        return fallback
    flash = FlashBackend(varlen_attn, fallback)
    return flash if _works(flash, device, dtype) else fallback


def _triton_backend(device: torch.device, dtype: torch.dtype) -> TorchBackend:
    """Return the Triton backend, or the gathering one. CUDA builds of torch bring Triton along, on Linux."""
    try:
        from orcinus.engine.attention.triton_backend import TritonBackend
    except ImportError as error:
        logger.warning("attention gathers the blocks of the cache before it reads them: %s", error)
        return TorchBackend()
    backend = TritonBackend(torch.cuda.get_device_properties(device).multi_processor_count)
    return backend if _works(backend, device, dtype) else TorchBackend()


def _works(backend: TorchBackend, device: torch.device, dtype: torch.dtype) -> bool:
    try:
        try_out(backend, device, dtype)
    except _FAILURES as error:
        logger.warning("attention does without %s, which does not work here: %s", backend.name, error)
        return False
    return True


def try_out(backend: TorchBackend, device: torch.device, dtype: torch.dtype) -> None:
    """Attend in two small steps, with a chunk and without. Raises whatever keeps kernels from running."""
    block_size = max(_BLOCK_SIZE, backend.block_size_multiple)
    layer = backend.allocate(LayerShape(1, _HEAD_DIM, _HEAD_DIM), 1, block_size, dtype, device)
    for spans in ([(0, 1), (0, 2)], [(0, 1), (0, 1)]):
        meta = batch_metadata(spans, np.zeros((len(spans), 1), dtype=np.int32), block_size, device)
        query = torch.zeros(meta.query_start[-1], 2, _HEAD_DIM, dtype=dtype, device=device)
        backend.attend(layer, query, AttentionSpec(1.0), meta).cpu()  # to the host, where launches report their errors
