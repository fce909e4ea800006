"""Has a model's keys and values cached in 8 bits, where that is asked for and can be. Knows no requests."""

from dataclasses import replace

import torch
from torch import Tensor

from orcinus.engine.attention.interface import KVCacheSpec
from orcinus.engine.attention.native_backend import NATIVE_DTYPES, NativeBackend, int8_obstacle
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.startup.probe import PROBE_CHUNKS, ServedModel, paged_probe_logits, relative_error

# Relative error of the probe's logits against those from an exact cache: as for weights of few bits.
_TOLERANCE = 0.3


def check_int8_device(device: torch.device) -> None:
    """Raise `ModelLoadError` on a device whose attention reads no bytes."""
    if device.type != "cpu":
        raise ModelLoadError(
            f"kv_cache_dtype=int8 is for CPUs alone so far, and the device is {device.type} (--kv-cache-dtype auto)"
        )


def with_int8_cache(
    served: ServedModel, exact_logits: Tensor, block_size: int, device: torch.device
) -> tuple[ServedModel, Tensor]:
    """Return the model with a cache in 8 bits, and the probe's logits in chunks from it.

    `exact_logits` are those from a cache in the model's own type. Raises `ModelLoadError` for what cannot be cached so.
    """
    if obstacle := _obstacle(served, block_size):
        raise ModelLoadError(
            f"kv_cache_dtype=int8 cannot be had for {served.model.name}: {obstacle} (--kv-cache-dtype auto)"
        )
    assert isinstance(served.backend, NativeBackend)
    served = replace(served, backend=NativeBackend(served.backend.library, stores_int8=True))
    logits = paged_probe_logits(served, PROBE_CHUNKS, block_size, device)
    if not (error := relative_error(logits, exact_logits)) <= _TOLERANCE:
        raise ModelLoadError(
            f"kv_cache_dtype=int8 changes the logits of {served.model.name} by {error:.0%}, and up to {_TOLERANCE:.0%}"
            " would be served (--kv-cache-dtype auto)"
        )
    return served, logits


def _obstacle(served: ServedModel, block_size: int) -> str | None:
    if not served.kv:
        return "it caches no keys and values"
    if served.cache_dtype not in NATIVE_DTYPES:
        known = " or ".join(str(dtype).removeprefix("torch.") for dtype in NATIVE_DTYPES)
        return f"it computes in {str(served.cache_dtype).removeprefix('torch.')}, and would need {known} (dtype)"
    if not isinstance(served.backend, NativeBackend):
        return "it needs the native kernels, which there are none of here: see the log"
    return next(filter(None, (_obstacle_of(spec, block_size) for spec in served.kv.values())), None)


def _obstacle_of(spec: KVCacheSpec, block_size: int) -> str | None:
    if spec.latents is not None:
        return "it caches latents (multi-head latent attention), and these are kept exactly"
    return int8_obstacle(spec.shape, block_size)
