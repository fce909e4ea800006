"""Chooses how tokens are sampled on a device, once, at start-up: by the Triton kernels if they work there.

On a CPU the sampler itself takes the native kernel, where there is one.
"""

import logging
from subprocess import SubprocessError
from typing import TYPE_CHECKING, Any

import torch

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.platform.device import is_broken
from orcinus.engine.sampling.row import SamplingRow
from orcinus.engine.sampling.sampler import Sampler
from orcinus.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from orcinus.engine.sampling.triton_sampler import TritonSampler

logger = logging.getLogger(__name__)

# What torch and Triton raise over kernels that they cannot build or launch; Triton needs a C compiler.
_FAILURES = (ImportError, RuntimeError, OSError, SubprocessError, TypeError, ValueError)
_VOCAB_SIZE = 10_000  # of the trial: no multiple of anything that kernels work with
_TRIED: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.0, "top_p": 0.95, "logprobs": 3},
    {"temperature": 1.0, "min_p": 0.05, "logit_bias": {3: 1.0}},
    {"temperature": 0, "min_tokens": 2, "stop_token_ids": (7,), "bad_words_token_ids": ((9,),)},
]
_TOLERANCE = 1e-4  # of log-probabilities


def triton_sampler(device: torch.device, dtype: torch.dtype) -> "TritonSampler | None":
    """Return the Triton sampler, tried out on the device with logits of this dtype; None where torch is to do it."""
    if device.type != "cuda":
        return None
    try:
        from orcinus.engine.sampling.triton_sampler import TritonSampler

        sampler = TritonSampler()
        try_out(sampler, device, dtype)
    except _FAILURES as error:
        if is_broken(device):
            raise ModelLoadError(f"sampling by Triton leaves the device unusable: {error}") from error
        logger.warning("sampling does without Triton, which does not work here: %s", error)
        return None
    return sampler


def try_out(sampler: "TritonSampler", device: torch.device, dtype: torch.dtype) -> None:
    """Sample a few rows by Triton and by torch.

    Logits are whole numbers with few large ones, so that no rounding decides. Raises whatever keeps kernels from
    running, and `RuntimeError` for kernels that choose other tokens.
    """
    generator = torch.Generator().manual_seed(0)
    shape = len(_TRIED), _VOCAB_SIZE
    logits = torch.randint(-20, 0, shape, generator=generator)
    logits.scatter_(1, torch.randint(_VOCAB_SIZE, (shape[0], 12), generator=generator), 8)
    logits[:, _VOCAB_SIZE - 1] = 10
    on_device = logits.to(device, dtype)
    rows = [SamplingRow(SamplingParams(**params), seed, 1) for seed, params in enumerate(_TRIED)]
    expected = Sampler([1]).sample(on_device.clone(), rows, [1] * len(rows))
    got = Sampler([1], sampler).sample(on_device, rows, [1] * len(rows))
    if got.token_ids != expected.token_ids:
        raise RuntimeError(f"it chooses other tokens than torch: {got.token_ids} and not {expected.token_ids}")
    for entry, other in zip(got.logprobs, expected.logprobs, strict=True):
        if entry is not None and other is not None and not abs(entry.logprob - other.logprob) <= _TOLERANCE:
            raise RuntimeError(f"it gives a log-probability of {entry.logprob} and not {other.logprob}")
