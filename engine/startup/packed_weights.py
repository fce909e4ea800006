"""Weights as they were packed at load, kept for the next start: it maps them, and reads none of the checkpoint's.

Those that were rounded, and those that the checkpoint has in groups (GGUF, AWQ, GPTQ, compressed-tensors). They are
found by what they depend on: the checkpoint, what they were rounded to, and the kernels' sources. Whatever
keeps them from being kept or used costs the time that it takes without them, and nothing else.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.cpu.packed_linear import native_kind
from orcinus.engine.cpu.packed_sources import name_linears
from orcinus.engine.cpu.packed_store import Description, KeptProducts, described, described_groups, put_in
from orcinus.engine.kernels.build import source_hash
from orcinus.engine.kernels.library import Library, load_library
from orcinus.engine.models.checkpoint import checkpoint_files
from orcinus.engine.models.checkpoint_identity import checkpoint_identity
from orcinus.engine.platform.model_source import ModelSource, model_source
from orcinus.engine.platform.tensor_cache import TensorCache
from orcinus.engine.startup.probe import ServedModel

logger = logging.getLogger(__name__)

_FORMAT = 1  # of the description, and of which weights are packed as one
_LEAST_BYTES = 64 * 2**20  # what is less is packed again as quickly

Describe = Callable[[Any], tuple[dict[str, Tensor], Description] | None]


class KeptWeights:
    """Holds whether a model's packed weights are kept ones, and where they are to be kept if not.

    `describe` returns the tensors and the description of those that it is about.
    """

    def __init__(
        self, cache: TensorCache | None = None, key: str = "", describe: Describe = described, *, are_used: bool = False
    ) -> None:
        self.are_used = are_used
        self._cache = cache
        self._key = key
        self._describe = describe

    def keep(self, served: ServedModel) -> threading.Thread | None:
        """Start to write a model's packed weights, if they are new and can be put in again."""
        if self._cache is None or self.are_used:
            return None
        found = self._describe(served.model.causal_lm)
        if found is None or any(spec.latents is not None for spec in served.kv.values()):
            return None  # latents are made of plain weights
        tensors, products = found
        if sum(tensor.nbytes for tensor in tensors.values()) < _LEAST_BYTES:
            return None
        given = (self._key, tensors, products)
        writing = threading.Thread(target=self._cache.write, args=given, name="packed weights", daemon=True)
        writing.start()
        return writing


def kept_groups(config: EngineConfig, device: torch.device) -> tuple[KeptProducts, KeptWeights]:
    """Return what is kept of a checkpoint that has its weights in groups, and what is to be kept of it."""
    library, directory = load_library(), config.packed_weights_dir
    if config.quantization is not None or directory is None or device.type != "cpu" or library is None:
        return KeptProducts(), KeptWeights()
    source = model_source(config.model)
    identity = _identity(source, _has_groups)
    if identity is None:
        return KeptProducts(), KeptWeights()
    key, cache = _hash(library, (_FORMAT, identity, "groups")), TensorCache(Path(directory))
    found = cache.read(key)
    if found is None:
        return KeptProducts(), KeptWeights(cache, key, described_groups)
    return KeptProducts(found.tensors, found.description), KeptWeights(are_used=True)


def _has_groups(source: ModelSource) -> bool:
    """Return whether a checkpoint's weights may be in groups."""
    if source.gguf_file:
        return True
    files = checkpoint_files(source)
    return bool(files) and b'"quantization_config"' in (files[0].parent / "config.json").read_bytes()


def kept_weights(config: EngineConfig, device: torch.device, causal_lm: Any) -> KeptWeights:
    """Put packed weights that were kept into a model that has just been loaded, if there are some."""
    library = load_library()
    directory = config.packed_weights_dir
    if directory is None or device.type != "cpu" or library is None:
        return KeptWeights()
    key = _key(config, causal_lm, library)
    if key is None:
        return KeptWeights()
    library.use_threads(torch.get_num_threads(), own=False)
    cache = TensorCache(Path(directory))
    if (found := cache.read(key)) is not None:
        try:
            put_in(causal_lm, library, found.tensors, found.description)
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("packed weights that were kept are not used: %s", error)
        else:
            return KeptWeights(are_used=True)
    name_linears(causal_lm)
    return KeptWeights(cache, key)


def _key(config: EngineConfig, causal_lm: Any, library: Library) -> str | None:
    """Return what packed weights are found by: a hash of all that they depend on; None where they are not kept."""
    if config.quantization in (None, "none") or native_kind(library, causal_lm.dtype, config.quantization) is None:
        return None
    if getattr(causal_lm.config, "quantization_config", None) is not None:
        return None
    identity = _identity(model_source(config.model))
    if identity is None:
        return None
    numbers: tuple[Any, ...] = (_FORMAT, identity, config.quantization, str(causal_lm.dtype))
    if hasattr(causal_lm, "mtp_head"):
        numbers += ("mtp_head",)
    return _hash(library, numbers)


def _identity(source: ModelSource, is_of_interest: Callable[[ModelSource], bool] = lambda source: True) -> str | None:
    """Return what tells a checkpoint from others. One that cannot be read is for who loads it to complain of."""
    try:
        return checkpoint_identity(source) if is_of_interest(source) else None
    except (OSError, ValueError) as error:
        logger.info("packed weights are not kept: %s", error)
        return None


def _hash(library: Library, numbers: tuple[Any, ...]) -> str:
    """Return the hash of what weights depend on, the kernels among it."""
    kernels = (source_hash(), library.instruction_set, library.grouped_kernel, library.has_matrix_units)
    return hashlib.sha256(json.dumps(numbers + kernels).encode()).hexdigest()[:32]
