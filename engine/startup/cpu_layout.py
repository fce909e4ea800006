"""How a loaded model's weights are laid out for a CPU: which parts our kernels take over, and in which numbers.

The one place that decides it, once, when a model is loaded.
"""

import logging
from typing import Any

import torch
from torch import nn

from orcinus.engine.attention.interface import AttentionSpec, LayerShape
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.serving import LaterCall
from orcinus.engine.cpu.layer_replacement import replace_layers
from orcinus.engine.cpu.packed_linear import (
    PackedEmbedding,
    native_kind,
    pack_linears,
    pack_own_head,
    pack_tied_head,
    packed_bytes,
    packer_for,
)
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.startup.probe import ServedModel

logger = logging.getLogger(__name__)


def lay_out_for_cpu(served: ServedModel, quantization: str | None, *, is_deterministic: bool = False) -> None:
    """Change the model in place: whole decoder layers where that can be, then the linear layers that are left.

    With `is_deterministic`, by no means that do not compute each row alike. Raises `ModelLoadError` for 4 bits where
    there are no kernels that multiply them.
    """
    causal_lm: Any = served.model.causal_lm
    library, dtype = load_library(), causal_lm.dtype
    if library is None and quantization == "int4":
        raise ModelLoadError("quantization=int4 needs the native kernels, which there are none of here: see the log")
    if library is not None:
        library.use_threads(torch.get_num_threads(), own=False)
    kind = native_kind(library, dtype, quantization)
    num_layers = 0
    has_decoder = library is not None and library.has_decoder
    if kind is not None and has_decoder and dtype is torch.bfloat16 and isinstance(served.backend, NativeBackend):
        num_layers = replace_layers(causal_lm, served.recorded_calls, _replaceable(served), served.backend, kind)
    served.recorded_calls.clear()
    pack = packer_for(library, dtype, quantization, is_deterministic=is_deterministic)
    num_linears = 0
    if pack is not None and (pack_tied_head(causal_lm, pack) or pack_own_head(causal_lm, pack)):
        num_linears = 1 + pack_linears(causal_lm, pack, dtype)
    elif pack is not None:
        # A head that shares its weight with the embedding would be there twice.
        embedding = causal_lm.get_input_embeddings()
        keep = [] if isinstance(embedding, PackedEmbedding) else [embedding.weight]
        num_linears = pack_linears(causal_lm, pack, dtype, keep=keep)
    if library is not None and (num_layers > 0 or is_deterministic):
        library.use_threads(torch.get_num_threads(), own=True)
    logger.debug("%d layers run natively, %d linear layers are packed (%s)", num_layers, num_linears, kind or dtype)


def _replaceable(served: ServedModel) -> dict[nn.Module, tuple[LayerShape, AttentionSpec]]:
    """Return the attention modules that run once, and neither hand their keys on to another layer nor have them."""
    sharing = {spec.source for spec in served.kv.values()}
    sharing |= {key.layer for key in served.kv if isinstance(key, LaterCall)}
    own = {module: spec for module, spec in served.kv.items() if spec.source is None and module not in sharing}
    return {module: (spec.shape, served.specs[module]) for module, spec in own.items()}


def weight_bytes(causal_lm: nn.Module) -> int:
    """Return the bytes of all weights as they are used, packed or not."""
    plain = {tensor.data_ptr(): tensor.nbytes for tensor in (*causal_lm.parameters(), *causal_lm.buffers())}
    return sum(plain.values()) + packed_bytes(causal_lm)
