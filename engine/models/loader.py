"""Loads a causal language model through transformers, or says in one sentence why it cannot be served.

Whatever is wrong with a checkpoint or an architecture becomes a `ModelLoadError` here, before a request is taken.
Knows nothing of caches, requests or scheduling.
"""

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
import torch

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.attention.serving import ATTENTION_NAME, attention_function
from orcinus.engine.cpu.loaded_linears import LinearPacker
from orcinus.engine.cpu.packed_store import KeptProducts
from orcinus.engine.errors import InvalidRequestError, ModelLoadError, reason_of
from orcinus.engine.kernels.library import load_library
from orcinus.engine.models.bare import bare_architecture, is_bare
from orcinus.engine.models.checkpoint import read_checkpoint, read_quantized_half, read_text_half
from orcinus.engine.models.context import drop_scaling_by_step, fix_rope, has_known_chunks
from orcinus.engine.models.gguf_config import read_gguf_config
from orcinus.engine.models.indexers import indexed_layer_types
from orcinus.engine.models.mtp_weights import add_mtp_head
from orcinus.engine.models.own_attention import has_interface, is_vouched_for
from orcinus.engine.models.text_half import causal_class, drop_towers, key_mapping, new_text_half, settle_text_config
from orcinus.engine.platform.device import cpu_has_bfloat16
from orcinus.engine.platform.lean_imports import import_meta_functions, wait_for_transformers
from orcinus.engine.platform.model_source import ModelSource, model_source
from orcinus.engine.recurrent.binding import bind_recurrent_layers, has_recurrence
from orcinus.engine.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What configurations call the number of experts.
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_SERVABLE_LAYERS = {"full_attention", "sliding_attention"}
_BESIDE_STATES = {"linear_attention", "conv", "mamba", "hybrid", "hybrid_sliding", "attention", "mlp", "moe"}
_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class MissingWeightsError(ModelLoadError):
    """Says that a checkpoint lacks weights of the model, or has them under names that its class does not know."""


def load_causal_lm(config: EngineConfig, device: torch.device, kept: KeptProducts | None = None) -> Any:
    """Return the model in evaluation mode on its device, attending through the paged interface.

    What is `kept` of an earlier start is not packed again. Raises `ModelLoadError`, whatever transformers, safetensors
    or the hub made of it.
    """
    if config.quantization not in (None, "none") and device.type != "cpu":
        raise ModelLoadError(f"quantization={config.quantization} (of weights) is for CPUs alone so far")
    source = model_source(config.model)
    _check_files(source)
    try:
        return _load(source, config, device, kept)
    except ModelLoadError:
        raise
    except KeyError as error:
        if error.args == (ATTENTION_NAME,):
            raise ModelLoadError(
                f"{config.model} has several classes of attention to choose from, and none goes by transformers' "
                "attention interface"
            ) from error
        raise ModelLoadError(f"cannot load {config.model}: {reason_of(error)}") from error
    except Exception as error:  # transformers, safetensors, the hub and remote code raise whatever they like
        raise ModelLoadError(f"cannot load {config.model}: {reason_of(error)}") from error


def _load(source: ModelSource, config: EngineConfig, device: torch.device, kept: KeptProducts | None) -> Any:
    wait_for_transformers()
    from transformers import AttentionInterface, AutoConfig

    AttentionInterface.register(ATTENTION_NAME, attention_function)
    if source.gguf_file is not None:
        model_config = read_gguf_config(source)
    else:
        model_config = AutoConfig.from_pretrained(source.path_or_id, trust_remote_code=config.trust_remote_code)
    text_config = model_config.get_text_config(decoder=True)
    packer = _packer(config, kept) if device.type == "cpu" else None
    load = _whole_model if text_config is model_config else _text_half
    causal_lm = load(source, config, model_config, device, packer=packer)
    fix_rope(causal_lm, text_config, config.max_model_len)
    drop_scaling_by_step(causal_lm)
    bind_recurrent_layers(causal_lm)
    add_mtp_head(causal_lm, source, config.speculation, packer)
    causal_lm.eval().requires_grad_(False)
    return causal_lm if causal_lm.device.type == device.type else causal_lm.to(device)


def _whole_model(
    source: ModelSource,
    config: EngineConfig,
    model_config: Any,
    device: torch.device,
    *,
    packer: LinearPacker | None,
) -> Any:
    model_class = _model_class(model_config, config.trust_remote_code)
    _check_architecture(model_config, model_class)
    dtype = _dtype(config, model_config, device, is_gguf=source.gguf_file is not None)
    causal_lm = None
    if device.type == "cpu":
        causal_lm = read_checkpoint(source, model_class, model_config, dtype, packer)
    if causal_lm is None:
        causal_lm = _from_pretrained(source, config, model_class, model_config, dtype=dtype, device=device)
    return causal_lm


def _packer(config: EngineConfig, kept: KeptProducts | None) -> LinearPacker | None:
    """Return what packs weights as their file has them, unless they are to be others or there are no kernels."""
    library = load_library() if config.quantization is None else None
    if library is None:
        return None
    library.use_threads(torch.get_num_threads(), own=False)
    return LinearPacker(library, kept)


def _text_half(
    source: ModelSource, config: EngineConfig, whole_config: Any, device: torch.device, *, packer: LinearPacker | None
) -> Any:
    """Return the language model of a multimodal checkpoint, whose other weights are not read."""
    whole_class = _whole_class(whole_config, config.trust_remote_code)
    model_class = causal_class(whole_config.get_text_config(decoder=True))
    text_config = settle_text_config(whole_config, whole_class.__name__, model_class)
    _check_architecture(whole_config, model_class or whole_class)
    dtype = _dtype(config, whole_config, device, is_gguf=source.gguf_file is not None)
    given_class, given_config = (whole_class, whole_config) if model_class is None else (model_class, text_config)
    settings = next(
        filter(None, [vars(each).pop("quantization_config", None) for each in (whole_config, text_config)]), None
    )
    causal_lm = new_text_half(given_class, given_config, dtype)
    is_filled, names = False, dict[str, str]()
    if settings is not None and device.type == "cpu":
        is_filled = read_quantized_half(source, causal_lm, settings, packer)
    if not is_filled:
        is_filled, names = read_text_half(source, causal_lm)
    if not is_filled:
        if settings is not None:
            whole_config.quantization_config = given_config.quantization_config = settings
        load = partial(_from_pretrained, source, config, dtype=dtype, device=device)
        causal_lm = _converted_half(load, (model_class, text_config), (whole_class, whole_config), names)
    causal_lm.generation_config = _generation_config(source, whole_config)
    return causal_lm


def _converted_half(
    load: Callable[..., Any], half: tuple[Any, Any], whole: tuple[Any, Any], names: dict[str, str]
) -> Any:
    """Return a language model whose weights transformers converts: by its own class, if that has one and knows them.

    Else the multimodal class reads the whole checkpoint, and its towers are dropped: it knows what its weights become.
    """
    missing = None
    if half[0] is not None:
        try:
            return load(*half, renamed=key_mapping(names))
        except MissingWeightsError as error:
            missing = error
    try:
        causal_lm = load(*whole)
    except MissingWeightsError as error:
        raise missing or error from error
    drop_towers(causal_lm)
    return causal_lm


def _generation_config(source: ModelSource, model_config: Any) -> Any:
    """Return what `generate` of the checkpoint's own class would go by."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source.path_or_id)
    except OSError:  # there is none
        return GenerationConfig.from_model_config(model_config)


def _from_pretrained(
    source: ModelSource,
    config: EngineConfig,
    model_class: Any,
    model_config: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    renamed: dict[str, str] | None = None,
) -> Any:
    """transformers' own way, which converts, dequantizes and joins files as a checkpoint needs it."""
    options: dict[str, Any] = _gguf_options(source.gguf_file) if source.gguf_file else {"use_safetensors": True}
    if renamed:
        options["key_mapping"] = renamed
    if device.type != "cpu":
        # Each weight goes there as it is read, the host never has them all, and quantized ones are unpacked there.
        options["device_map"] = {"": device}
    import_meta_functions()
    with progress_bars_on_a_terminal():
        causal_lm, loading = model_class.from_pretrained(
            source.path_or_id,
            config=model_config,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **options,
        )
    missing = sorted(loading["missing_keys"])
    if missing and (bare := bare_architecture(causal_lm)):
        raise ModelLoadError(f"{bare} is not a causal language model, without or with its head")
    if missing:
        raise MissingWeightsError(
            f"the checkpoint of {config.model} lacks {len(missing)} of the model's weights, first {missing[0]}"
        )
    gc.collect()  # cycles that keep copies of the weights, and would stay if they were frozen
    return causal_lm


def _gguf_options(gguf_file: str) -> dict[str, Any]:
    """Return what has transformers dequantize: left to itself, it looks for kernels, and advises to install some."""
    from transformers import GgufConfig

    return {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def progress_bars_on_a_terminal() -> Iterator[None]:
    """transformers' own bars, and the hub's for downloads, where somebody sees them and no log is made of them."""
    from transformers.utils import logging as transformers_logging

    if sys.stderr.isatty():
        yield
        return
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _check_files(source: ModelSource) -> None:
    """Raise `ModelLoadError` over what a local directory lacks; hub repositories are left to the hub's messages."""
    if source.directory is None or source.gguf_file is not None:
        return
    if not (source.directory / "config.json").is_file():
        raise ModelLoadError(f"{source.directory} has no config.json: it is not a transformers model")
    if any(source.directory.glob("*.safetensors")):
        return
    pickled = any(source.directory.glob("*.bin"))
    hint = "; its .bin files are pickles, which are never loaded: convert them" if pickled else ""
    raise ModelLoadError(f"{source.directory} has no .safetensors file{hint}")


def _model_class(model_config: Any, trust_remote_code: bool) -> Any:
    """Return the class that the checkpoint names, so that only its own modelling code is imported."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    if trust_remote_code and "AutoModelForCausalLM" in (getattr(model_config, "auto_map", None) or {}):
        return transformers.AutoModelForCausalLM
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    architecture = (model_config.architectures or [names.get(model_config.model_type)])[0]
    if is_bare(architecture, model_config.model_type):
        model_config.tie_word_embeddings = True  # the class wants a head, which no weights are spent on
        architecture = names[model_config.model_type]
    known = {*names.values(), *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()}  # that write text
    if architecture is None or architecture not in known or not hasattr(transformers, architecture):
        raise ModelLoadError(
            f"{architecture or model_config.model_type} is not a causal language model that this transformers knows"
        )
    return getattr(transformers, architecture)


def _whole_class(whole_config: Any, trust_remote_code: bool) -> Any:
    """Return the multimodal class that a checkpoint names. It must be one that writes text."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    if trust_remote_code and getattr(whole_config, "auto_map", None):
        raise ModelLoadError(
            f"{whole_config.model_type} is a multimodal model with code of its own; only those whose code "
            "transformers has are served, by their language model"
        )
    architecture = (whole_config.architectures or [NAMES.get(whole_config.model_type)])[0]
    whole_class = getattr(transformers, str(architecture), None)
    if whole_class is None or not whole_class.can_generate():
        raise ModelLoadError(
            f"{architecture or whole_config.model_type} is not a causal language model that this transformers knows"
        )
    return whole_class


def _check_architecture(model_config: Any, model_class: Any) -> None:
    """Refuse by name what the probe would find out later, or not at all."""
    name = (model_config.architectures or [model_class.__name__])[0]
    text_config = model_config.get_text_config(decoder=True)
    if model_config.is_encoder_decoder or text_config.is_encoder_decoder:
        raise ModelLoadError(f"{name} is an encoder-decoder model; only decoder-only models can be served")
    if getattr(text_config, "is_causal", True) is False:
        raise ModelLoadError(
            f"{name} attends in both directions (is_causal is false); only causal models can be served"
        )
    servable = _SERVABLE_LAYERS | ({"chunked_attention"} if has_known_chunks(text_config) else set())
    servable |= indexed_layer_types(text_config)
    is_recurrent = has_recurrence(model_class)
    if is_recurrent:
        servable = servable | _BESIDE_STATES
    strange = set(getattr(text_config, "layer_types", None) or []) - servable
    if strange:
        raise ModelLoadError(
            f"{name} has layers of type {', '.join(sorted(strange))}: only full and sliding-window attention, and "
            "layers whose states are of a known kind, can be served"
        )
    if getattr(model_class, "_is_stateful", False) and not is_recurrent:
        raise ModelLoadError(f"{name} keeps recurrent state, which a paged cache cannot hold")
    if (
        _has_heads(text_config)
        and model_class.__name__ != "AutoModelForCausalLM"
        and not (is_vouched_for(model_class) or has_interface(model_class))
    ):
        raise ModelLoadError(
            f"{name} computes its attention itself, not through transformers' attention interface, so that it cannot "
            "be computed from a paged cache"
        )


def _has_heads(text_config: Any) -> bool:
    """Return whether a configuration names heads of attention, which may be other ones in each layer."""
    try:
        return getattr(text_config, "num_attention_heads", None) is not None
    except Exception:  # transformers' answer to who asks for one number where there are several
        return True


def _dtype(config: EngineConfig, model_config: Any, device: torch.device, *, is_gguf: bool) -> torch.dtype:
    """Return the checkpoint's own dtype, or the nearest that the device computes well."""
    if config.dtype != "auto":
        if config.dtype == "float16" and device.type == "cpu":
            logger.warning("float16 is very slow on a CPU; bfloat16 and float32 are not")
        return _DTYPES[config.dtype]
    declared = torch.bfloat16 if is_gguf else (model_config.dtype or torch.float32)
    if device.type != "cpu" or declared == torch.float32:
        return declared
    is_packed = is_gguf or getattr(model_config, "quantization_config", None) is not None
    by_torch = not is_packed and _has_experts(model_config.get_text_config(decoder=True))
    return torch.bfloat16 if multiplies_bfloat16(by_torch=by_torch) else torch.float32


def _has_experts(text_config: Any) -> bool:
    return any((getattr(text_config, name, None) or 0) > 1 for name in _EXPERT_COUNTS)


def multiplies_bfloat16(*, by_torch: bool = False) -> bool:
    """Whether products in bfloat16 are fast on this CPU, by its own instructions or by kernels that widen numbers.

    torch multiplies experts, unless they are packed, and without such instructions is slower than in float32.
    """
    library = load_library()
    return cpu_has_bfloat16() or (not by_torch and library is not None and library.has_plain_linear)


def eos_token_ids(causal_lm: Any) -> list[int]:
    """Return the tokens that end a sequence: generation_config.json's, else config.json's."""
    for source in (getattr(causal_lm, "generation_config", None), causal_lm.config):
        eos = getattr(source, "eos_token_id", None)
        if eos is not None:
            return [int(token) for token in (eos if isinstance(eos, list | tuple) else [eos])]
    return []


def sampling_defaults(causal_lm: Any) -> dict[str, int | float]:
    """Return the defaults that the model's author recommends: what generation_config.json sets."""
    stated = causal_lm.generation_config.to_diff_dict() if causal_lm.generation_config is not None else {}
    defaults = {}
    for name in _SAMPLING_DEFAULTS:
        if (value := stated.get(name)) is None:
            continue
        try:
            msgspec.convert({name: value}, SamplingParams)
        except (InvalidRequestError, msgspec.ValidationError) as error:
            logger.warning("the model's generation_config.json is passed over: %s", error)
        else:
            defaults[name] = value
    return defaults
