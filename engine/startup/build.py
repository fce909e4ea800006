"""Builds the executor: loads the model, checks and warms it up, sizes and allocates its KV cache.

Decides once, at start-up, what runs where: the device, the attention backend, the linear layers' layout, the memory.
What a step does is the model runner's.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from orcinus.config.engine_config import EngineConfig, Speculation
from orcinus.engine.attention.cache import allocate_cache
from orcinus.engine.attention.interface import KVCacheSpec, PagedLayer
from orcinus.engine.attention.serving import PagedAttention
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library, use_kernels
from orcinus.engine.messages import EngineInfo
from orcinus.engine.models.language_model import LanguageModel
from orcinus.engine.models.loader import eos_token_ids, load_causal_lm, sampling_defaults
from orcinus.engine.models.packed_types import packed_types_of
from orcinus.engine.models.text_half import text_half_of
from orcinus.engine.platform.device import (
    available_memory,
    device_memory,
    device_monitor,
    device_name,
    memory_limit,
    resolve_device,
    use_available_cores,
)
from orcinus.engine.platform.memory import large_blocks_given_back, populate
from orcinus.engine.recurrent.states import StatePool
from orcinus.engine.runner.cuda_graphs import CudaRecorder
from orcinus.engine.runner.drafts import Drafter
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.runner.mtp_drafter import MtpDrafter
from orcinus.engine.runner.past_answers import PastAnswers
from orcinus.engine.runner.pooling import resolve_pooling
from orcinus.engine.runner.text_drafter import OwnText, TextDrafter
from orcinus.engine.sampling.choice import triton_sampler
from orcinus.engine.sampling.sampler import Sampler
from orcinus.engine.startup.cache_dtype import check_int8_device, with_int8_cache
from orcinus.engine.startup.cache_size import (
    BatchLimits,
    CacheSize,
    StateSize,
    check_memory,
    default_cpu_memory,
    resolve_cache_size,
    resolve_limits,
    resolve_states,
    useful_states,
    wanted_context,
)
from orcinus.engine.startup.cpu_layout import lay_out_for_cpu, weight_bytes
from orcinus.engine.startup.determinism import check_device, check_positions, settle_determinism
from orcinus.engine.startup.device_memory import measured_cuda_memory
from orcinus.engine.startup.label_tokens import declared_labels
from orcinus.engine.startup.packed_weights import KeptWeights, kept_groups, kept_weights
from orcinus.engine.startup.probe import (
    ServedModel,
    cache_groups,
    check_paged,
    expect_own_logits,
    probe_model,
)

if TYPE_CHECKING:
    from orcinus.engine.grammar.compiler import GrammarCompiler
    from orcinus.engine.sampling.triton_sampler import TritonSampler

logger = logging.getLogger(__name__)

# Grammars over a larger vocabulary are loaded for before they come, if this much memory is left.
_LARGE_VOCABULARY = 32_768
_MEMORY_FOR_GRAMMARS = 1 << 30
# Drafts of a request in a step, where all are tried, and where some are chosen.
_MAX_DRAFTS = 8
_MAX_WEIGHED_DRAFTS = 16


def build_executor(config: EngineConfig) -> tuple[EngineInfo, ModelRunner]:
    """Load the model, check and warm it up, size and allocate its KV cache.

    Raises `ModelLoadError` for anything that keeps the model from being served.
    """
    started = time.monotonic()
    device = _checked_device(config)
    use_available_cores()
    if config.kernels != "auto":
        use_kernels(config.kernels)
    products, groups = kept_groups(config, device)
    with large_blocks_given_back(), _collector_off():
        causal_lm = load_causal_lm(config, device, products)
    with torch.inference_mode():
        served, kept = _probed(causal_lm, config, device)
        limits = resolve_limits(config, device.type, served.backend.block_size_multiple)
        served, obstacle = _settled(served, config, limits, device, is_kept=kept.are_used)
        size, states, runner = _with_cache(served, config, limits, device)
    for weights in (kept, groups):
        weights.keep(served)
    if device.type == "cuda":
        runner.record_decodes(CudaRecorder(), size.max_model_len)
    if obstacle is not None and config.deterministic is None and device.type == "cpu":
        logger.info("what shares a step may change the last bits of an answer (see --deterministic): %s", obstacle)
    load_time_s = time.monotonic() - started
    info = _engine_info(
        config, served, limits, size, states, is_deterministic=obstacle is None, device=device, load_time_s=load_time_s
    )
    return info, runner


def _checked_device(config: EngineConfig) -> torch.device:
    """Return the device to run on. Raises `ModelLoadError` if it has not what the settings ask for."""
    device = resolve_device(config.device)
    if config.deterministic:
        check_device(device)
    if config.kv_cache_dtype == "int8":
        check_int8_device(device)
    if config.kv_cache_memory is not None:
        wanted = config.kv_cache_memory * config.num_sharing_memory
        check_memory(wanted, memory_limit() if device.type == "cpu" else device_memory(device))
    return device


def _settled(
    served: ServedModel, config: EngineConfig, limits: BatchLimits, device: torch.device, *, is_kept: bool
) -> tuple[ServedModel, str | None]:
    """Return the model as it will run, and what keeps it from being deterministic, if anything does."""
    served, logits = _laid_out(served, config, limits.block_size, device, is_kept=is_kept)
    if config.kv_cache_dtype == "int8":
        served, logits = with_int8_cache(served, logits, limits.block_size, device)
    if device.type != "cpu":
        return served, "it runs on a GPU"
    return settle_determinism(served, config.deterministic, logits, limits.block_size)


def _with_cache(
    served: ServedModel, config: EngineConfig, limits: BatchLimits, device: torch.device
) -> tuple[CacheSize, StateSize, ModelRunner]:
    """Size and allocate the KV cache and the states beside it. Returns both sizes, and what runs with them."""
    wanted_len = wanted_context(config, served.max_context, is_open=served.has_open_context)
    specs, costs = cache_groups(served, limits.block_size, wanted_len)
    sampler = triton_sampler(device, served.model.causal_lm.dtype)
    make_runner = partial(_model_runner, config, served, limits, device=device, num_groups=len(costs), sampler=sampler)
    memory = config.kv_cache_memory or _default_cache_memory(
        served,
        specs,
        limits,
        wanted_len,
        make_runner=make_runner,
        device=device,
        num_engines=config.num_sharing_memory,
    )
    states = _resolve_states(config, served, limits, memory, device)
    memory -= states.slot_bytes + _snapshot_bytes(states, device)
    size = resolve_cache_size(config, limits, wanted_len=wanted_len, memory_bytes=memory, costs=costs)
    states = useful_states(config, states, size)
    num_slots = states.num_slots + states.num_draft_slots
    pool = StatePool(served.states, num_slots, states.num_snapshots, device=device)
    num_blocks = [group.num_blocks for group in size.groups]
    layers = allocate_cache(served.backend, specs, num_blocks, size.block_size, dtype=served.cache_dtype, device=device)
    if device.type == "cpu":
        stored = [layer for layer in layers.values() if not layer.only_reads]
        caches = [tensor for layer in stored for tensor in (layer.cache.keys, layer.cache.values)]
        populate([*caches, pool.slots, pool.snapshots])
    runner = make_runner(layers)
    runner.states = pool
    return size, states, runner


def _probed(causal_lm: Any, config: EngineConfig, device: torch.device) -> tuple[ServedModel, KeptWeights]:
    """Run a model that has just been loaded, with packed weights that were kept if there are some."""
    if config.deterministic:
        check_positions(causal_lm)
    num_parameters = int(causal_lm.num_parameters())
    kept = kept_weights(config, device, causal_lm)
    served = probe_model(causal_lm, device, block_size=config.block_size)
    return replace(served, num_parameters=num_parameters) if kept.are_used else served, kept


def _laid_out(
    served: ServedModel, config: EngineConfig, block_size: int, device: torch.device, *, is_kept: bool
) -> tuple[ServedModel, torch.Tensor]:
    """Lay the weights out for the device. Returns the model, and the probe's logits, which are checked.

    Weights that were kept from an earlier start are rounded already: what the model computes of them is what it does.
    """
    has_few_bits = config.quantization == "int4" and not is_kept
    if has_few_bits:
        check_paged(served, block_size, device)
    if device.type == "cpu":
        with large_blocks_given_back():
            lay_out_for_cpu(served, _quantization(config), is_deterministic=bool(config.deterministic))
    if has_few_bits:
        served = expect_own_logits(served, block_size, device)
    is_quantized = bool(packed_types_of(served.model.causal_lm)) or _quantization(config) is not None
    return served, check_paged(served, block_size, device, is_quantized=is_quantized)


def _quantization(config: EngineConfig) -> str | None:
    """Return what plain weights are quantized to at load."""
    return None if config.quantization == "none" else config.quantization


def _resolve_states(
    config: EngineConfig, served: ServedModel, limits: BatchLimits, memory_bytes: int, device: torch.device
) -> StateSize:
    row_bytes = sum(module.bytes_per_slot for module in served.states)
    has_drafts = _speculation(config, served) != "off"
    if device.type == "cpu" or not row_bytes:
        return resolve_states(config, limits, row_bytes, memory_bytes, has_drafts=has_drafts)
    num_engines = 1 if config.share is None else config.share.num_engines
    host_bytes = available_memory() // num_engines
    return resolve_states(config, limits, row_bytes, memory_bytes, host_bytes, has_drafts=has_drafts)


def _snapshot_bytes(states: StateSize, device: torch.device) -> int:
    """Return what snapshots take of the memory that the KV cache lies in."""
    return states.snapshot_bytes if device.type == "cpu" else 0


def _default_cache_memory(
    served: ServedModel,
    specs: dict[nn.Module, KVCacheSpec],
    limits: BatchLimits,
    wanted_len: int,
    *,
    make_runner: Callable[[dict[nn.Module, PagedLayer]], ModelRunner],
    device: torch.device,
    num_engines: int,
) -> int:
    if device.type == "cpu":
        return default_cpu_memory(available_memory(), num_engines, weight_bytes(served.model.causal_lm))
    return measured_cuda_memory(
        served, specs, limits, wanted_len, make_runner=make_runner, record=CudaRecorder(), device=device
    )


def _model_runner(
    config: EngineConfig,
    served: ServedModel,
    limits: BatchLimits,
    layers: dict[nn.Module, PagedLayer],
    *,
    device: torch.device,
    num_groups: int,
    sampler: "TritonSampler | None",
) -> ModelRunner:
    eos = eos_token_ids(served.model.causal_lm)
    return ModelRunner(
        served.model,
        PagedAttention(served.backend, layers),
        Sampler(eos, sampler),
        block_size=limits.block_size,
        device=device,
        device_monitor=device_monitor(device),
        make_compiler=lambda: _grammar_compiler(config, served, eos),
        max_num_seqs=limits.max_num_seqs,
        num_cache_groups=num_groups,
        runs_ahead=device.type == "cuda",
        drafter=make_drafter(_speculation(config, served), served.model),
        seed=config.seed or 0,
    )


def _speculation(config: EngineConfig, served: ServedModel) -> Speculation:
    """Return the setting; a model without a head has nothing to draft.

    Raises `ModelLoadError` where the model's MTP head is asked for, and was dropped.
    """
    if config.speculation == "mtp" and served.model.mtp_head is None:
        raise ModelLoadError("speculation=mtp: the checkpoint's MTP head cannot be used: see the log")
    return config.speculation if served.model.has_head else "off"


def make_drafter(speculation: Speculation, model: LanguageModel) -> Drafter | None:
    """Return what proposes drafts for a model by this setting."""
    if speculation == "mtp":
        return MtpDrafter(model)
    if speculation == "auto":
        texts = TextDrafter([OwnText(), PastAnswers()], _MAX_WEIGHED_DRAFTS)
        return texts if model.mtp_head is None else MtpDrafter(model, texts)
    if speculation == "suffix":
        return TextDrafter([PastAnswers()], _MAX_DRAFTS)
    return TextDrafter([OwnText()], _MAX_DRAFTS) if speculation == "ngram" else None


def _grammar_compiler(config: EngineConfig, served: ServedModel, eos: list[int]) -> "GrammarCompiler":
    from orcinus.engine.grammar.compiler import GrammarCompiler
    from orcinus.engine.text.tokenizer import Tokenizer

    def load() -> Tokenizer:
        return Tokenizer.load(config.model, trust_remote_code=config.trust_remote_code)

    return GrammarCompiler(load, served.model.vocab_size, eos)


@contextmanager
def _collector_off() -> Iterator[None]:
    """Keep the collector off: loading makes millions of objects that stay, and collecting costs 0.6 s for nothing.

    Afterwards it is as it was. To freeze what there is would be up to a process of our own: an `LLM` stands in a
    caller's, whose garbage would stay with it.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _engine_info(
    config: EngineConfig,
    served: ServedModel,
    limits: BatchLimits,
    size: CacheSize,
    states: StateSize,
    *,
    is_deterministic: bool,
    device: torch.device,
    load_time_s: float,
) -> EngineInfo:
    causal_lm = served.model.causal_lm
    return EngineInfo(
        model=config.model,
        architecture=served.model.name,
        num_parameters=served.num_parameters,
        weight_bytes=weight_bytes(causal_lm),
        dtype=_name_of(causal_lm.dtype),
        device=device.type,
        device_name=device_name(device),
        attention_backend=served.backend.name,
        vocab_size=served.model.vocab_size,
        eos_token_ids=eos_token_ids(causal_lm),
        sampling_defaults=sampling_defaults(causal_lm) if config.use_generation_config else {},
        max_model_len=size.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        num_kv_blocks=size.num_blocks,
        block_size=size.block_size,
        kv_cache_bytes=size.num_bytes + states.slot_bytes + _snapshot_bytes(states, device),
        cache_groups=size.groups,
        enable_prefix_caching=config.enable_prefix_caching and (not served.states or states.num_snapshots > 0),
        batching=config.batching,
        load_time_s=load_time_s,
        pooling=resolve_pooling(config.pooling, config.model),
        label_token_ids=declared_labels(config.model, served.model.vocab_size),
        hidden_size=served.model.hidden_size,
        quantization=_quantization(config),
        packed_types=packed_types_of(causal_lm),
        is_deterministic=is_deterministic,
        lacks_kernels=device.type == "cpu" and load_library() is None,
        text_half_of=text_half_of(causal_lm),
        has_head=served.model.has_head,
        state_bytes=states.row_bytes,
        num_state_snapshots=states.num_snapshots,
        kv_cache_dtype=_name_of(served.stored_dtype),
        speculation=_speculation(config, served),
        has_mtp_head=served.model.mtp_head is not None,
        warms_grammars=_warms_grammars(config, served),
    )


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _warms_grammars(config: EngineConfig, served: ServedModel) -> bool:
    """Return the setting; by default it is on where loading takes long, and where what it takes is not missed."""
    if config.warm_grammars is not None:
        return config.warm_grammars and served.model.has_head
    is_large = served.model.has_head and served.model.vocab_size > _LARGE_VOCABULARY
    return is_large and available_memory() >= _MEMORY_FOR_GRAMMARS
