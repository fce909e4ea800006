"""Weights of a local checkpoint into a model, tensor by tensor, so that no second copy of them comes into being.

For checkpoints that hold exactly the model's weights, by name and shape: safetensors files, which are mapped where
their dtype is the model's and converted where it is not, and GGUF files. Whatever takes more is left to transformers.
"""

import copy
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orcinus.engine.attention.serving import ATTENTION_NAME
from orcinus.engine.cpu.loaded_linears import LinearPacker
from orcinus.engine.models.bare import bare_architecture, with_prefix
from orcinus.engine.models.gguf_file import read_gguf_weights
from orcinus.engine.models.quantized_checkpoint import QuantizedWeights, find_quantized, put_in
from orcinus.engine.models.text_half import decoder_prefix, names_in_checkpoint, renaming
from orcinus.engine.platform.lean_imports import import_meta_functions
from orcinus.engine.platform.memory import MappedFiles
from orcinus.engine.platform.model_source import ModelSource, gguf_path

logger = logging.getLogger(__name__)

_SINGLE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def read_checkpoint(
    source: ModelSource, model_class: Any, model_config: Any, dtype: torch.dtype, packer: LinearPacker | None = None
) -> Any | None:
    """Return the model on the CPU with the checkpoint's weights; None where transformers has to do more than that.

    With a packer, what a GGUF file has in blocks stays so.

    Besides memory this saves building the model on torch's meta device first, whose functions import half a second of
    sympy.
    """
    if not hasattr(model_class, "_from_config"):
        return None
    if getattr(model_config, "quantization_config", None) is not None:
        return _read_quantized(source, model_class, model_config, dtype, packer)
    files = [] if source.gguf_file else checkpoint_files(source)
    if not files and not source.gguf_file:
        return None
    from transformers.initialization import no_init_weights

    with no_init_weights():
        causal_lm = model_class._from_config(model_config, dtype=dtype, attn_implementation=ATTENTION_NAME)
    if dtype != torch.float32 and causal_lm._keep_in_fp32_modules_strict:
        return None
    weights = read_gguf_weights(gguf_path(source), causal_lm, dtype, packer) if source.gguf_file else _mapped(files)
    if bare_architecture(causal_lm) is not None:
        weights = {with_prefix(name, causal_lm): weight for name, weight in weights.items()}
    if not _are_those_of(weights, causal_lm):
        return None
    _fill(causal_lm, weights)
    return _with_generation_config(causal_lm, files)


def _read_quantized(
    source: ModelSource, model_class: Any, model_config: Any, dtype: torch.dtype, packer: LinearPacker | None
) -> Any | None:
    """Return the model of a checkpoint that is quantized, packed as it is where that can be, or None.

    Where its tensors are not the model's, by transformers' own names, transformers makes them of dequantized ones.
    """
    files = checkpoint_files(source)
    found = find_quantized(model_config.quantization_config, _mapped(files)) if files else None
    if found is None:
        return None
    plain_config = copy.deepcopy(model_config)
    del plain_config.quantization_config
    from transformers.initialization import no_init_weights

    with no_init_weights():
        causal_lm = model_class._from_config(plain_config, dtype=dtype, attn_implementation=ATTENTION_NAME)
    if not _is_filled(causal_lm, found, packer):
        if found.experts:
            return None
        del causal_lm
        logger.warning("weights of the checkpoint are dequantized: their names are not the model's own")
        import_meta_functions()
        causal_lm = model_class.from_pretrained(
            None,
            config=plain_config,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            state_dict=found.dequantized(dtype),
        )
    return _with_generation_config(causal_lm, files)


def _is_filled(causal_lm: Any, found: QuantizedWeights, packer: LinearPacker | None) -> bool:
    """Fill a model with quantized weights, if these are its own by transformers' names and nothing is missing."""
    dtype = causal_lm.dtype
    found.drop_zero_biases(causal_lm.state_dict())
    named = found.named_as_in(causal_lm)
    if named is None:
        return False
    left_out = named.leave_out_all_but(causal_lm.state_dict())
    if not _are_those_of(named.shaped(causal_lm, dtype), causal_lm):
        return False
    if left_out:
        logger.warning("the model has no place for %d weights of the checkpoint, first %s", len(left_out), left_out[0])
    _widen_those_of_float32(causal_lm)
    _fill(causal_lm, put_in(named, causal_lm, packer, dtype))
    return True


def _widen_those_of_float32(causal_lm: Any) -> None:
    """Give what a model computes in float32, whatever its own dtype is, weights of that dtype, as transformers does."""
    patterns = [re.compile(name.replace("*", ".*")) for name in causal_lm._keep_in_fp32_modules_strict or ()]
    for name, weight in causal_lm.state_dict(keep_vars=True).items():
        if any(pattern.search(name) for pattern in patterns):
            weight.data = weight.data.float()


def _with_generation_config(causal_lm: Any, files: list[Path]) -> Any:
    if files and (files[0].parent / "generation_config.json").is_file():
        causal_lm.generation_config = type(causal_lm.generation_config).from_pretrained(files[0].parent)
    return causal_lm


def read_text_half(source: ModelSource, causal_lm: Any) -> tuple[bool, dict[str, str]]:
    """Fill a language model on the CPU from the multimodal checkpoint that it is a part of, and read no other weight.

    Returns whether it is filled, which it is not where the checkpoint lacks weights or has them in another form, and
    what the checkpoint calls those that it has.
    """
    files = checkpoint_files(source)
    shapes = {file: _shapes(file) for file in files}
    file_of = {name: file for file, names in shapes.items() for name in names}
    stored = {name: shape for names in shapes.values() for name, shape in names.items()}
    expected = {name: tuple(weight.shape) for name, weight in causal_lm.state_dict().items()}
    names = names_in_checkpoint(expected, stored, decoder_prefix(causal_lm))
    if causal_lm.dtype != torch.float32 and causal_lm._keep_in_fp32_modules_strict:
        return False, names
    missing = expected.keys() - names.keys() - causal_lm.all_tied_weights_keys.keys()
    if missing or any(stored[names[name]] != expected[name] for name in names):
        return False, names
    weights = read_tensors({name: (file_of[stored_name], stored_name) for name, stored_name in names.items()})
    if not _are_those_of(weights, causal_lm):
        return False, names
    _fill(causal_lm, weights)
    return True, names


def _fill(causal_lm: Any, weights: dict[str, Tensor]) -> None:
    """Give the model the weights as they are, tied as transformers would: not where both are there and differ."""
    expected = causal_lm.state_dict()
    _convert(weights, expected)
    causal_lm.load_state_dict(weights, strict=False, assign=True)
    causal_lm.tie_weights(missing_keys=set(expected) - set(weights), recompute_mapping=False)


def read_quantized_half(source: ModelSource, causal_lm: Any, settings: Any, packer: LinearPacker | None) -> bool:
    """Fill a language model on the CPU from the multimodal checkpoint that it is a part of, which is quantized so.

    Returns whether it is filled, as `read_checkpoint` fills one that stands alone.
    """
    files = checkpoint_files(source)
    found = find_quantized(settings, _mapped(files)) if files else None
    if found is None:
        return False
    expected = {name: tuple(weight.shape) for name, weight in causal_lm.state_dict().items()}
    rename = renaming(expected, found.shapes, decoder_prefix(causal_lm))
    return rename is not None and _is_filled(causal_lm, found.part(rename), packer)


def read_tensors(places: dict[str, tuple[Path, str]]) -> dict[str, Tensor]:
    """Return tensors, mapped, by the names that they are wanted under; the rest of their files is not touched."""
    from safetensors import safe_open

    weights: dict[str, Tensor] = {}
    for file in sorted({file for file, _ in places.values()}):
        with safe_open(file, framework="pt") as opened:
            weights |= {name: opened.get_tensor(stored) for name, (where, stored) in places.items() if where == file}
    return weights


def tensor_places(files: list[Path]) -> Iterator[tuple[str, Path]]:
    """Yield the name of each tensor in these files, of which only the headers are read, and the file that has it."""
    for file in files:
        yield from ((name, file) for name in _shapes(file))


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a file, of which only the header is read."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


def checkpoint_files(source: ModelSource) -> list[Path]:
    """Return a checkpoint's safetensors files, brought into the hub's cache if need be; none where there are none."""
    return _safetensors_files(source.directory) if source.is_local else _files_of_hub(source)


def _files_of_hub(source: ModelSource) -> list[Path]:
    """Return the hub's files in its cache, which they are brought into first."""
    from transformers.utils.hub import cached_file

    def fetched(name: str) -> Path | None:
        found = cached_file(source.path_or_id, name, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    if (single := fetched(_SINGLE_FILE)) is not None:
        return [single]
    index = fetched(_INDEX)
    if index is None:
        return []
    names = set(json.loads(index.read_text())["weight_map"].values())
    files = [fetched(str(name)) for name in sorted(names)]
    return [file for file in files if file is not None]


def _safetensors_files(directory: Path | None) -> list[Path]:
    """Return the files that transformers would read, or none where that is for transformers to find out."""
    if directory is None:
        return []
    if (directory / _SINGLE_FILE).is_file():
        return [directory / _SINGLE_FILE]
    try:
        names = set(json.loads((directory / _INDEX).read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    files = [directory / name for name in sorted(names)]
    return files if all(file.is_file() for file in files) else []


def _mapped(files: list[Path]) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name: weight for file in files for name, weight in load_file(file).items()}


def _are_those_of(weights: dict[str, Tensor], causal_lm: Any) -> bool:
    """Return whether they are the model's by name and shape, in numbers of the same sort."""
    expected = {name: (w.shape, w.is_floating_point()) for name, w in causal_lm.state_dict().items()}
    for name in causal_lm.all_tied_weights_keys:
        if name not in weights:
            expected.pop(name, None)
    return expected == {name: (w.shape, w.is_floating_point()) for name, w in weights.items()}


def _convert(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Convert what has another dtype than is expected, each in place of the pages that it was read from."""
    files = MappedFiles()
    for name, weight in weights.items():
        if weight.dtype != expected[name].dtype:
            weights[name] = weight.to(expected[name].dtype)
            files.release(weight)
