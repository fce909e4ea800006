"""How much KV cache there is, and what it allows: blocks, context length, slots and tokens per step.

Pure arithmetic over what the model and the device offer. Knows no tensors and allocates nothing.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.messages import CacheGroup
from orcinus.engine.scheduler.cache_groups import Concurrency, GroupCost, bytes_of, fit_groups, groups_of

logger = logging.getLogger(__name__)

# Of what is free, on a CPU: it shares the memory with everything else on the machine. `resolve_cache_size` bounds it by
# what all slots can use, which small models reach long before.
_CPU_MEMORY_SHARE = 0.4
_CUDA_MEMORY_SHARE = 0.9

# Of the KV cache's memory on a CPU, and of the host's free memory for a GPU: what snapshots of states get. So few of
# them are of little use that they may have more of a small cache.
_SNAPSHOT_SHARE = 8
_FEW_SNAPSHOTS = 8
# Two for the output, and two for places in the prompt that the next turn may go on from.
_SNAPSHOTS_PER_SLOT = 4

_DEFAULT_NUM_SEQS = {"cpu": 32, "cuda": 256}
_DEFAULT_BATCHED_TOKENS = {"cpu": 512, "cuda": 2048}
_DEFAULT_BLOCK_SIZE = {"cpu": 64, "cuda": 16}


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds what one step may hold."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Gives the cache's size as resolved at start-up."""

    groups: list[CacheGroup]
    block_size: int
    num_bytes: int
    max_model_len: int

    @property
    def num_blocks(self) -> int:
        """Return the blocks of the group that keeps everything, which decides how many tokens requests may have."""
        return self.groups[0].num_blocks


def resolve_limits(config: EngineConfig, device_type: str, block_size_multiple: int = 1) -> BatchLimits:
    """Fill in what the settings leave open. Raises `ModelLoadError` where they contradict each other."""
    num_seqs = config.max_num_seqs or _DEFAULT_NUM_SEQS[device_type]
    default_tokens = max(_DEFAULT_BATCHED_TOKENS[device_type], num_seqs)
    num_tokens = config.max_num_batched_tokens or default_tokens
    if num_tokens < num_seqs:
        raise ModelLoadError(
            f"max_num_batched_tokens ({num_tokens}) is smaller than max_num_seqs ({num_seqs}): "
            "a step must have room for one token of every running request"
        )
    default_block = max(_DEFAULT_BLOCK_SIZE[device_type], block_size_multiple)
    block_size = config.block_size or default_block
    if block_size % block_size_multiple:
        raise ModelLoadError(
            f"block_size must be a multiple of {block_size_multiple} for the attention of this device, got {block_size}"
        )
    return BatchLimits(num_seqs, num_tokens, block_size)


def default_cpu_memory(available_bytes: int, num_engines: int = 1, weight_bytes: int = 0) -> int:
    """Return the KV cache's share of the memory that is free when the weights are loaded, or each engine's of several.

    Of several, the first one is asked while it is alone: the others will need their `weight_bytes` too.
    """
    left = max(0, available_bytes - (num_engines - 1) * weight_bytes)
    return int(left * _CPU_MEMORY_SHARE) // num_engines


def default_cuda_memory(total_bytes: int, used_at_peak_bytes: int) -> int:
    """Return what weights and the largest step leave of the device's share."""
    return max(0, int(total_bytes * _CUDA_MEMORY_SHARE) - used_at_peak_bytes)


def check_memory(wanted_bytes: int, total_bytes: int) -> None:
    """Raise `ModelLoadError` if a setting asks for more than there is, however little of it would be used.

    `wanted_bytes` are for all engines that share that memory.
    """
    if wanted_bytes > total_bytes:
        from orcinus.config.values import format_bytes  # pydantic, which the engine does without

        wanted, total = format_bytes(wanted_bytes), format_bytes(total_bytes)
        raise ModelLoadError(f"kv_cache_memory is {wanted}, but there are {total} of memory in all")


def resolve_cache_size(
    config: EngineConfig,
    limits: BatchLimits,
    *,
    wanted_len: int,
    memory_bytes: int,
    costs: Sequence[GroupCost],
) -> CacheSize:
    """Return the blocks of each group, and the context length, that fit `memory_bytes`.

    Never more blocks than all slots can use. An open `max_model_len` shrinks to what fits; raises `ModelLoadError` with
    both numbers where an explicit one does not.
    """
    concurrency = _concurrency(limits)
    blocks_per_seq = math.ceil(wanted_len / limits.block_size)
    most_blocks = limits.max_num_seqs * blocks_per_seq
    groups = fit_groups(costs, memory_bytes, most_full_blocks=most_blocks, concurrency=concurrency)
    fits = groups[0].num_blocks * limits.block_size
    if fits < 1 or (config.max_model_len is not None and wanted_len > fits):
        needed = bytes_of(groups_of(blocks_per_seq, costs, concurrency), costs)
        raise ModelLoadError(
            f"a context of {wanted_len} tokens needs {needed / 2**20:.1f} MiB of KV "
            f"cache, and there are {memory_bytes / 2**20:.1f} MiB: at most {fits} tokens fit "
            "(max_model_len, kv_cache_memory)"
        )
    if fits < wanted_len:
        logger.warning(
            "the KV cache holds %d tokens, so the context is %d tokens and not the model's %d: give it more memory"
            " (kv_cache_memory), or say that this is meant (max_model_len)",
            fits,
            fits,
            wanted_len,
        )
    return CacheSize(groups, limits.block_size, bytes_of(groups, costs), min(wanted_len, fits))


@dataclass(frozen=True, slots=True)
class StateSize:
    """Says what the states of a model take that keeps some beside keys and values; without any, nothing."""

    row_bytes: int  # of one sequence
    num_slots: int
    num_snapshots: int = 0
    num_draft_slots: int = 0  # for states behind drafts

    @property
    def slot_bytes(self) -> int:
        return (self.num_slots + self.num_draft_slots) * self.row_bytes

    @property
    def snapshot_bytes(self) -> int:
        return self.num_snapshots * self.row_bytes


def resolve_states(
    config: EngineConfig,
    limits: BatchLimits,
    row_bytes: int,
    memory_bytes: int,
    host_bytes: int | None = None,
    *,
    has_drafts: bool = False,
) -> StateSize:
    """Return how many states of so many bytes there are: those of slots, as many behind drafts, and snapshots.

    `memory_bytes` is what the KV cache and all states have, or, where snapshots are in other memory, of which
    `host_bytes` are free, the KV cache and the states of slots. Raises `ModelLoadError` if there is not so much.
    """
    if not row_bytes:
        return StateSize(0, 0)
    size = StateSize(row_bytes, limits.max_num_seqs + 1)  # one is no request's, see `StepContext`
    if has_drafts:
        size = replace(size, num_draft_slots=limits.max_num_seqs)
    left = memory_bytes - size.slot_bytes
    name = f"the states of {limits.max_num_seqs} sequences (max_num_seqs)"
    if has_drafts:
        name = f"{name}, two of each for the sake of drafts (speculation={config.speculation})"
    _check_states(name, size.slot_bytes, memory_bytes, "kv_cache_memory")
    if not config.enable_prefix_caching:
        return size
    left, source = (left, "kv_cache_memory") if host_bytes is None else (host_bytes, "the host's free memory")
    if (wanted := config.state_cache_memory) is None:
        few = _FEW_SNAPSHOTS * row_bytes
        wanted = max(left // _SNAPSHOT_SHARE, few if few <= left // 2 else 0)
    _check_states("state_cache_memory", wanted, left, f"what is left of {source}")
    _check_snapshot(config.state_cache_memory, row_bytes)
    return replace(size, num_snapshots=wanted // row_bytes)


def _check_states(name: str, wanted_bytes: int, there_bytes: int, source: str) -> None:
    """Raise `ModelLoadError` if there is not so much. All of it may be wanted: some models keep nothing but states."""
    if wanted_bytes > there_bytes:
        from orcinus.config.values import format_bytes  # pydantic, which the engine does without

        wanted, there = format_bytes(wanted_bytes), format_bytes(max(0, there_bytes))
        raise ModelLoadError(f"{name}: {wanted} are wanted, but {source} is {there}")


def _check_snapshot(setting_bytes: int | None, row_bytes: int) -> None:
    """Raise `ModelLoadError` for a setting that is not 0 and has no room for a snapshot."""
    if setting_bytes and setting_bytes < row_bytes:
        from orcinus.config.values import format_bytes  # pydantic, which the engine does without

        setting, row = format_bytes(setting_bytes), format_bytes(row_bytes)
        raise ModelLoadError(
            f"state_cache_memory: {setting} have no room for a snapshot, which takes {row}; 0 keeps none"
        )


def useful_states(config: EngineConfig, states: StateSize, cache: CacheSize) -> StateSize:
    """Return the states without snapshots that the cache, as it came out, has no use for.

    There is one at most after each block; and unless a setting says how many, they take no more than their share of it,
    or as many as each slot has use for, where that is more.
    """
    most = cache.num_blocks
    if config.state_cache_memory is None and states.num_snapshots:
        share = cache.num_bytes // (_SNAPSHOT_SHARE - 1) // states.row_bytes
        most = min(most, max(_FEW_SNAPSHOTS, _SNAPSHOTS_PER_SLOT * states.num_slots, share))
    return replace(states, num_snapshots=min(states.num_snapshots, most))


def _concurrency(limits: BatchLimits) -> Concurrency:
    """Return how much is under way at once: a step, and the next one where it is planned before this one is known."""
    return Concurrency(limits.max_num_seqs, 2 * limits.max_num_batched_tokens, limits.block_size)


def wanted_context(config: EngineConfig, model_max_len: int, *, is_open: bool = False) -> int:
    """Return the setting, or all that the model has. Raises `ModelLoadError` for a setting beyond what is not open."""
    if config.max_model_len is None:
        return model_max_len
    if config.max_model_len > model_max_len and not is_open:
        raise ModelLoadError(
            f"max_model_len is {config.max_model_len}, but the model's own context has {model_max_len} tokens"
        )
    return config.max_model_len
