"""Reads the head for multi-token prediction that a checkpoint may have beside its model; transformers passes over it.

The weights are those of a layer behind the model's last one, and of what is before and behind it: as DeepSeek-V3 names
them, `model.layers.N.*`, or as Qwen3-Next does, `mtp.*`, also beside a multimodal model; or those of a GGUF file. The
layer is of the class of the model's own layers; embedding and head, of which a checkpoint may have copies there, are
the model's.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orcinus.config.engine_config import Speculation
from orcinus.engine.cpu.loaded_linears import LinearPacker
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.models.checkpoint import checkpoint_files, read_tensors, tensor_places
from orcinus.engine.models.gguf_head import has_gguf_head, name_of_gguf_head, read_gguf_head
from orcinus.engine.models.language_model import decoder_of
from orcinus.engine.models.mtp_head import MtpHead, MtpHeadError, check_shape
from orcinus.engine.models.packed_types import packed_types_of
from orcinus.engine.platform.lean_imports import on_meta_device
from orcinus.engine.platform.model_source import ModelSource, gguf_path

logger = logging.getLogger(__name__)

_EXPERT = re.compile(r"(.*mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
# Copies of the model's own weights.
_SHARED = ("embed_tokens.", "shared_head.head.")
# What Qwen3-Next's names begin with, behind `mtp.`, and what ours do.
_QWEN = {
    "fc.": "eh_proj.",
    "pre_fc_norm_embedding.": "enorm.",
    "pre_fc_norm_hidden.": "hnorm.",
    "layers.0.": "layer.",
    "norm.": "norm.",
}
# Parts of weights that AWQ, GPTQ, compressed-tensors, FP8 and MXFP4 quantize.
_QUANTIZED = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", "_scales", "_scale_inv")
_LATER_HEAD = re.compile(r"layers\.[1-9]")


def add_mtp_head(
    causal_lm: Any, source: ModelSource, speculation: Speculation, packer: LinearPacker | None = None
) -> None:
    """Make the checkpoint's head a part of the model, if it has one and the setting has a use for it.

    With a packer, the head of a GGUF file stays in its blocks where the model does. Raises `ModelLoadError` where the
    setting demands a head and it cannot be had.
    """
    try:
        if speculation not in {"mtp", "auto"}:
            if _has_head(source, causal_lm):
                logger.info("the checkpoint has an MTP head, which --speculation mtp or auto would use")
            return
        head = _load_mtp_head(source, causal_lm, packer)
    except MtpHeadError as error:
        if speculation == "mtp":
            raise ModelLoadError(
                f"speculation=mtp: the checkpoint's MTP head cannot be used, because {error}"
            ) from None
        logger.warning("the checkpoint's MTP head is not used, because %s", error)
        return
    if head is not None:
        causal_lm.mtp_head = head
        logger.info("the checkpoint's MTP head is loaded, and proposes drafts (--speculation %s)", speculation)
    elif speculation == "mtp":
        missing = _missing_head(source, getattr(_config_of(causal_lm), "num_hidden_layers", "N"))
        raise ModelLoadError(f"speculation=mtp: {missing}; ngram, suffix and auto need none")


def _missing_head(source: ModelSource, num_layers: int | str) -> str:
    if source.gguf_file is not None:
        return f"the GGUF file has no MTP head ({name_of_gguf_head(num_layers)})"
    return (
        f"the checkpoint has no MTP head of the kind of DeepSeek-V3 (model.layers.{num_layers}.eh_proj.weight) or of"
        " Qwen3-Next (mtp.fc.weight)"
    )


def _has_head(source: ModelSource, causal_lm: Any) -> bool:
    if source.gguf_file is None:
        return bool(_places_of_head(source, causal_lm))
    return _can_have_head(causal_lm) and has_gguf_head(gguf_path(source), _config_of(causal_lm).num_hidden_layers)


def _can_have_head(causal_lm: Any) -> bool:
    """Return whether the model is of the kind that a head is used beside."""
    return hasattr(_config_of(causal_lm), "num_hidden_layers") and hasattr(decoder_of(causal_lm), "rotary_emb")


def _load_mtp_head(source: ModelSource, causal_lm: Any, packer: LinearPacker | None) -> MtpHead | None:
    """Return the head with its weights, on the model's device; None where the checkpoint has none.

    Raises `MtpHeadError` for weights that do not fit the model's own layers.
    """
    if not _has_head(source, causal_lm):
        return None
    decoder, config = decoder_of(causal_lm), _config_of(causal_lm)
    like = _last_with_attention(decoder, config)
    head = _empty_head(decoder, config, like)
    if source.gguf_file is None:
        weights = _read_head(source, causal_lm)
    else:
        weights = _read_head_in_blocks(source, head, causal_lm, like, packer)
    expected = _expected(head, decoder, like)
    if different := sorted(weights.keys() ^ expected.keys()):
        raise MtpHeadError(f"its weights are not those of one of the model's own layers, first {different[0]}")
    for name, weight in weights.items():
        check_shape(name, weight.shape, expected[name].shape)
        weights[name] = weight.to(device=causal_lm.device, dtype=expected[name].dtype)
    head.load_state_dict(weights, assign=True)
    return head


def _read_head(source: ModelSource, causal_lm: Any) -> dict[str, Tensor]:
    places = _places_of_head(source, causal_lm)
    if quantized := next((name for name in sorted(places) if name.endswith(_QUANTIZED)), None):
        raise MtpHeadError(f"it is quantized: it has {quantized}")
    return _joined_experts(read_tensors(places))


def _read_head_in_blocks(
    source: ModelSource, head: MtpHead, causal_lm: Any, like: int, packer: LinearPacker | None
) -> dict[str, Tensor]:
    """Return the weights of a GGUF file's head that are not packed. One without a last norm takes the model's."""
    of_head = packer.of_part("mtp_head") if packer is not None and packed_types_of(causal_lm) else None
    weights = read_gguf_head(gguf_path(source), head, causal_lm, like, of_head)
    decoder: Any = decoder_of(causal_lm)
    weights.setdefault("norm.weight", decoder.norm.weight.detach())
    return weights


def _places_of_head(source: ModelSource, causal_lm: Any) -> dict[str, tuple[Path, str]]:
    """Return where the weights are that a checkpoint has of its first head, by the names that `MtpHead` has."""
    if not _can_have_head(causal_lm):
        return {}
    num_layers = _config_of(causal_lm).num_hidden_layers
    stored = dict(tensor_places(checkpoint_files(source)))
    for prefix, mark, name_in_head in (
        (f"model.layers.{num_layers}.", "eh_proj.", _name_in_head),
        ("mtp.", "fc.", _name_in_qwen_head),
    ):
        if any(name.startswith(prefix + mark) for name in stored):
            names = ((name_in_head(name.removeprefix(prefix)), name) for name in stored if name.startswith(prefix))
            return {own: (stored[name], name) for own, name in names if own is not None}
    return {}


def _config_of(causal_lm: Any) -> Any:
    return causal_lm.config.get_text_config(decoder=True)


def _name_in_head(name: str) -> str | None:
    """Return what `MtpHead` calls a weight of the checkpoint's layer; None for what it has from the model."""
    if name.startswith(_SHARED) or name.endswith("rotary_emb.inv_freq"):
        return None
    if name.startswith(("enorm.", "hnorm.", "eh_proj.")):
        return name
    return name.removeprefix("shared_head.") if name.startswith("shared_head.norm.") else f"layer.{name}"


def _name_in_qwen_head(name: str) -> str | None:
    """Return what `MtpHead` calls a weight of Qwen's; None for heads behind the first. Unknown names stay."""
    if _LATER_HEAD.match(name):
        return None
    return next((own + name.removeprefix(theirs) for theirs, own in _QWEN.items() if name.startswith(theirs)), name)


def _last_with_attention(decoder: Any, config: Any) -> int:
    """Return the number of the model's last layer that attends to everything, which a head's does; or of the last."""
    kinds = (getattr(config, "layer_types", None) or [])[: len(decoder.layers)]
    return max((i for i, kind in enumerate(kinds) if kind == "full_attention"), default=len(decoder.layers) - 1)


def _empty_head(decoder: Any, config: Any, like: int) -> MtpHead:
    """Return a head without weights, whose layer is of the class and the kind of one of the model's."""
    own: Any = decoder.layers[like]
    with on_meta_device():
        layer = type(own)(config, like)
        norm_class = type(own.input_layernorm)
        return MtpHead(layer, norm_class, decoder.rotary_emb, config.hidden_size, config.rms_norm_eps)


def _expected(head: MtpHead, decoder: Any, like: int) -> dict[str, Tensor]:
    """Return tensors without values, of the shapes that the head's weights must have and the model's types."""
    types = {f"layer.{name}": weight.dtype for name, weight in decoder.layers[like].state_dict().items()}
    plain, dtype = (torch.float32, torch.bfloat16, torch.float16), decoder.norm.weight.dtype
    own = {name: types[name] if types.get(name) in plain else dtype for name in head.state_dict()}
    return {name: weight.to(own[name]) for name, weight in head.state_dict().items()}


def _joined_experts(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with those of experts, which a checkpoint has one by one, as transformers' classes have them.

    These are (num_experts, 2 * width, hidden_size), gates before what they gate, and (num_experts, hidden_size, width).
    """
    found = {name: match for name in weights if (match := _EXPERT.fullmatch(name))}
    joined = {name: weight for name, weight in weights.items() if name not in found}
    for module in dict.fromkeys(match[1] for match in found.values()):
        numbers = sorted({int(match[2]) for match in found.values() if match[1] == module})
        try:
            joined[f"{module}.gate_up_proj"] = torch.stack(
                [_of_expert(weights, module, number, ("gate_proj", "up_proj")) for number in numbers]
            )
            joined[f"{module}.down_proj"] = torch.stack(
                [_of_expert(weights, module, number, ("down_proj",)) for number in numbers]
            )
        except KeyError as error:
            raise MtpHeadError(f"the checkpoint lacks {error.args[0]}") from error
    return joined


def _of_expert(weights: dict[str, Tensor], module: str, number: int, parts: Iterable[str]) -> Tensor:
    return torch.cat([weights[f"{module}.{number}.{part}.weight"] for part in parts])
