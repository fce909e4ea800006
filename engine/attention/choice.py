"""Chooses the attention backend for a device, a dtype and the installed torch, once, when a model is loaded."""

import logging
from subprocess import SubprocessError

import torch

from orcinus.engine.attention.flash_backend import FlashBackend, paged_varlen_attn
from orcinus.engine.attention.interface import AttentionBackend
from orcinus.engine.attention.native_backend import NATIVE_DTYPES, NativeBackend
from orcinus.engine.attention.torch_backend import TorchBackend
from orcinus.engine.kernels.library import load_library

logger = logging.getLogger(__name__)


def choose_backend(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """The fastest backend that this device, this dtype and this torch have."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return _backend_in_place(device, dtype)
    if device.type == "cpu" and dtype in NATIVE_DTYPES:
        library = load_library()
        if library is not None:
            return NativeBackend(library)
    return TorchBackend()


def _backend_in_place(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """For a GPU from Ampere on. Older ones have too little shared memory for the kernels."""
    backend = _triton_backend(device, dtype)
    varlen_attn = paged_varlen_attn() if dtype in (torch.float16, torch.bfloat16) else None
    return backend if varlen_attn is None else FlashBackend(varlen_attn, backend)


def _triton_backend(device: torch.device, dtype: torch.dtype) -> TorchBackend:
    """CUDA builds of torch bring Triton along, on Linux. To launch anything it needs a C compiler."""
    try:
        from orcinus.engine.attention.triton_backend import TritonBackend

        backend = TritonBackend(torch.cuda.get_device_properties(device).multi_processor_count)
        backend.try_out(device, dtype)
    except (ImportError, RuntimeError, OSError, SubprocessError) as error:
        logger.warning("blocks of the cache are gathered before they are attended to: Triton does not work: %s", error)
        return TorchBackend()
    return backend
