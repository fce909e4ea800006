"""What serving takes of a GPU's memory beside the KV cache: measured, by the largest step and by recording two steps.

Runs the model runner itself, over a cache of a few blocks that all requests share: what they compute means nothing.
Not yet run on a GPU.
"""

import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from orcinus.engine.attention.cache import allocate_cache
from orcinus.engine.attention.interface import KVCacheSpec, PagedLayer
from orcinus.engine.errors import ModelLoadError, reason_of
from orcinus.engine.messages import NewRequest, ScheduledRequest, StepPlan
from orcinus.engine.platform.device import device_memory, is_out_of_memory
from orcinus.engine.runner.cuda_graphs import Recorder, recorded_sizes
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import MAX_LOGPROBS, SamplingParams
from orcinus.engine.startup.cache_size import BatchLimits, default_cuda_memory
from orcinus.engine.startup.probe import ServedModel, allocate_states

logger = logging.getLogger(__name__)

# What asks for the most temporaries that a row of logits can have.
_SAMPLING = SamplingParams(
    temperature=1.0, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.1, logprobs=MAX_LOGPROBS, max_tokens=2
)


@dataclass(frozen=True, slots=True)
class MemoryInUse:
    """Gives bytes on the device beside the KV cache and modules' states.

    `at_peak` is in use, by any process, in the largest step; `recordings` of all batch sizes come on top.
    """

    at_peak: int
    recordings: int


def measured_cuda_memory(
    served: ServedModel,
    specs: Mapping[nn.Module, KVCacheSpec],
    limits: BatchLimits,
    max_len: int,
    *,
    make_runner: Callable[[dict[nn.Module, PagedLayer]], ModelRunner],
    record: Recorder,
    device: torch.device,
) -> int:
    """Return how many bytes are left to the KV cache and modules' states, with sequences of up to `max_len` tokens.

    Raises `ModelLoadError` if the largest step does not fit.
    """
    try:
        used = _measure(served, specs, limits, max_len, make_runner=make_runner, record=record, device=device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ModelLoadError(
            f"a step of {limits.max_num_batched_tokens} tokens and {limits.max_num_seqs} requests does not fit beside "
            f"the weights (max_num_batched_tokens, max_num_seqs): {reason_of(error)}"
        ) from error
    total = device_memory(device)
    left = default_cuda_memory(total, used.at_peak + used.recordings)
    logger.info(
        "of %.2f GiB on the device, a step needs %.2f at its peak, recordings take %.2f, the KV cache may have %.2f",
        *(num_bytes / 2**30 for num_bytes in (total, used.at_peak, used.recordings, left)),
    )
    return left


def _measure(
    served: ServedModel,
    specs: Mapping[nn.Module, KVCacheSpec],
    limits: BatchLimits,
    max_len: int,
    *,
    make_runner: Callable[[dict[nn.Module, PagedLayer]], ModelRunner],
    record: Recorder,
    device: torch.device,
) -> MemoryInUse:
    num_groups = 1 + max(spec.group for spec in specs.values())
    plan = largest_step(limits, max_len, num_groups)
    num_blocks = 1 + max(max(item.new_block_ids[0]) for item in plan.scheduled)
    allocate_states(served, limits.max_num_seqs + 1, device)
    layers = allocate_cache(
        served.backend, specs, [num_blocks] * num_groups, limits.block_size, dtype=served.cache_dtype, device=device
    )
    runner = make_runner(layers)
    stored = [layer.cache for layer in layers.values() if not layer.only_reads]
    scratch = sum(cache.keys.nbytes + cache.values.nbytes for cache in stored)
    scratch += sum((limits.max_num_seqs + 1) * module.bytes_per_slot for module in served.states)
    at_peak = _peak(runner, plan, device) - scratch
    recordings = _recordings(runner, limits.max_num_seqs, max_len, record, device)
    del layers, stored, runner
    _let_go()
    return MemoryInUse(at_peak, recordings)


def largest_step(limits: BatchLimits, max_len: int, num_groups: int) -> StepPlan:
    """Return a step of as many tokens, in as many requests, as one may have, all of which sample with everything on.

    The first request has as many tokens as the others leave, which is the most that attention can meet.
    """
    scheduled, new, left = [], [], limits.max_num_batched_tokens
    for i in range(limits.max_num_seqs):
        length = min(max_len, left - (limits.max_num_seqs - 1 - i))
        left -= length
        blocks = list(range(-(-length // limits.block_size)))
        scheduled.append(
            ScheduledRequest(
                request_id=str(i), num_computed_tokens=0, num_tokens=length, new_block_ids=[blocks] * num_groups
            )
        )
        new.append(NewRequest(request_id=str(i), token_ids=[0] * length, num_prompt_tokens=length, sampling=_SAMPLING))
    return StepPlan(scheduled=scheduled, new_requests=new)


def _peak(runner: ModelRunner, plan: StepPlan, device: torch.device) -> int:
    """Return the bytes in use on the device, by any process, at the peak of a step."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    runner.execute(plan)
    runner.execute(StepPlan(scheduled=[], released=[item.request_id for item in plan.scheduled]))
    free, total = torch.cuda.mem_get_info(device)
    outside_torch = total - free - torch.cuda.memory_reserved(device)
    return int(torch.cuda.max_memory_allocated(device)) + max(0, outside_torch)


def _recordings(runner: ModelRunner, max_num_seqs: int, max_len: int, record: Recorder, device: torch.device) -> int:
    """Return what all recordings take, by the two largest: the others share what these have, and cost as the second."""
    largest, *others = recorded_sizes(max_num_seqs)
    before = _used(device)
    runner.record_decodes(record, max_len, [largest])
    assert runner.graphs is not None
    with_one = _used(device)
    runner.graphs.record_sizes(others[:1])
    with_two = _used(device)
    runner.graphs = None
    return max(0, with_one - before) + max(0, with_two - with_one) * len(others)


def _used(device: torch.device) -> int:
    _let_go()
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _let_go() -> None:
    """Give back to the device what nothing needs any more."""
    gc.collect()
    torch.cuda.empty_cache()
