"""Whether a model is served deterministically: alone, in any batch and in any chunks, to the last bit.

Where all of its layers run natively it is so by itself, once a short check has found nothing against it. Elsewhere
it is made so on demand (`engine.cpu.row_by_row`, the attention backend's `token_by_token`), and checked. It knows no
requests.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from orcinus.engine.attention.by_token import token_by_token
from orcinus.engine.attention.cache import allocate_cache
from orcinus.engine.attention.interface import batch_metadata
from orcinus.engine.attention.serving import PagedAttention
from orcinus.engine.attention.step_context import StepContext, step_context
from orcinus.engine.cpu.decoder_layers import num_native_layers
from orcinus.engine.cpu.row_by_row import RowByRow
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.models.context import varying_rope
from orcinus.engine.recurrent.layer_states import LayerStates
from orcinus.engine.startup.probe import PROBE_TOKENS, ServedModel, allocate_states, paged_probe_logits

_CPU = torch.device("cpu")


def check_device(device: torch.device) -> None:
    """Raise `ModelLoadError` on a device where deterministic mode would promise what is not so."""
    if device.type != "cpu":
        raise ModelLoadError(
            f"deterministic mode is for CPUs alone so far, and the device is {device.type} (--device cpu)"
        )


def settle_determinism(
    served: ServedModel, wanted: bool | None, chunked_logits: Tensor, block_size: int
) -> tuple[ServedModel, str | None]:
    """Return the model as it is served, laid out for a CPU already, and what keeps it from being deterministic, if so.

    `wanted` is None where it should be if it costs nothing. `chunked_logits` are what `check_paged` returned. Raises
    `ModelLoadError` if it is demanded and cannot be.
    """
    if wanted is False:
        return served, "it was declined"
    obstacle = _obstacle(served, chunked_logits, block_size)
    if wanted is None:
        return served, obstacle
    if obstacle is not None:
        served = _row_by_row(served)
    check_deterministic(served, block_size)
    return served, None


def _row_by_row(served: ServedModel) -> ServedModel:
    """Return the model with arithmetic that keeps rows apart.

    torch has one thread from then on: where its threads share a tensor, they round otherwise.
    """
    served.model.use_arithmetic(RowByRow(load_library()))
    torch.set_num_threads(1)
    return replace(served, backend=token_by_token(served.backend))


# ---- what is deterministic by itself


def _obstacle(served: ServedModel, chunked_logits: Tensor, block_size: int) -> str | None:
    """Return what speaks against the model's rows being kept apart as it is, or None."""
    count = num_native_layers(served.model.causal_lm)
    total = len(served.specs) + sum(isinstance(states, LayerStates) for states in served.states)
    if count < total:
        return f"{total - count} of {total} layers do not run natively"
    if kinds := varying_rope(served.model.causal_lm):
        return f"its rotary positions ({kinds[0]}) depend on the longest sequence of a step"
    operations = _Operations()
    with operations:
        whole = paged_probe_logits(served, [[(0, 0), (0, PROBE_TOKENS)]], block_size, _CPU)
    if operations.unknown:
        return f"its code uses {', '.join(sorted(operations.unknown))}"
    return None if torch.equal(whole, chunked_logits) else "its code mixes the rows of a step"


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations of torch of which it is not known that each row's numbers are computed in one way.

    That is known of those that move numbers, and of those whose every number is rounded once from a few others, whether
    it is computed in a vector or not. Our kernels are none of torch's operations.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _keeps_rows_apart(func, args):
            return func(*args, **kwargs)
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        self.unknown.add(str(func))
        return func(*args, **kwargs)


_ATEN = torch.ops.aten
_MOVING = (
    *(
        _ATEN.embedding,
        _ATEN.index,
        _ATEN.index_select,
        _ATEN.gather,
        _ATEN.cat,
        _ATEN.stack,
        _ATEN.clone,
        _ATEN.copy_,
        _ATEN.flip,
    ),
    *(_ATEN._to_copy, _ATEN.where, _ATEN.arange, _ATEN.zeros, _ATEN.ones, _ATEN.full, _ATEN.empty, _ATEN.empty_like),
    *(_ATEN.zeros_like, _ATEN.ones_like, _ATEN.full_like, _ATEN.new_empty, _ATEN.scalar_tensor),
    *(_ATEN.lift_fresh, _ATEN.detach_),
)
_ROUNDED_ONCE = (
    *(_ATEN.add, _ATEN.sub, _ATEN.mul, _ATEN.div, _ATEN.neg, _ATEN.abs, _ATEN.sqrt, _ATEN.rsqrt, _ATEN.reciprocal),
    *(_ATEN.add_, _ATEN.mul_, _ATEN.div_, _ATEN.floor_divide, _ATEN.remainder, _ATEN.fmod),
    *(_ATEN.eq, _ATEN.ne, _ATEN.lt, _ATEN.le, _ATEN.gt, _ATEN.ge),
)
# In vectors and in what is left behind them torch has one function for each.
_OF_VECTORS = (_ATEN.cos, _ATEN.sin)
_KNOWN = frozenset((*_MOVING, *_ROUNDED_ONCE, *_OF_VECTORS))
# Sums of more numbers than this may be shared by threads.
_WIDEST_SUM = 32768


def _keeps_rows_apart(func: Any, args: tuple[Any, ...]) -> bool:
    packet = func.overloadpacket
    if func.is_view or packet in _KNOWN:
        return True
    if packet is _ATEN.pow:
        return bool(args[1] == 2)
    if packet is _ATEN.mean:  # of each row
        return args[0].dtype is torch.float32 and args[1] == [-1] and args[0].shape[-1] <= _WIDEST_SUM
    return packet is _ATEN.bmm and args[0].shape[-1] == 1  # every number is one product


# ---- positions


def check_positions(causal_lm: nn.Module) -> None:
    """Raise `ModelLoadError` for rotary positions whose angles depend on the longest sequence of a step."""
    if kinds := varying_rope(causal_lm):
        raise ModelLoadError(
            f"{type(causal_lm).__name__} cannot be served deterministically: its rotary positions ({kinds[0]})"
            " depend on the longest sequence of a step"
        )


# ---- the check of what was demanded

# Ends of the chunks in which the checked sequence is computed: beside another one, and alone. Single tokens, chunks
# that begin and end anywhere, few rows and many. The whole is longer than what the attention takes at once.
_ENDS = (
    ((1, 8, 40, 41, 50, 77), (30, 31, 32, 60, 61, 77)),
    ((1, 2, 5, 40, 76, 77),),
)


def check_deterministic(served: ServedModel, block_size: int) -> None:
    """Compute a sequence whole and alone, then in chunks of several sizes: not a bit may differ.

    Raises `ModelLoadError` for a model whose code mixes rows in a way that is not known here.
    """
    length = min(_ENDS[0][0][-1], served.max_context)
    whole = _computed(served, block_size, [[(0, 0, length)]], length)
    for ends in _ENDS:
        steps = _steps(*([min(end, length) for end in own] for own in ends))
        in_chunks = _computed(served, block_size, steps, length)
        differing = [i for i, (a, b) in enumerate(zip(whole, in_chunks, strict=True)) if not torch.equal(a, b)]
        if differing:
            raise ModelLoadError(
                f"{served.model.name} cannot be served deterministically: what it computes for the token at position"
                f" {differing[0]} depends on what shares the step"
            )


def _steps(*ends: list[int]) -> list[list[tuple[int, int, int]]]:
    """Return, for each step, the (sequence, first, end) that it computes, single tokens first."""
    spans = [[(i, a, b) for a, b in zip([0, *own], own, strict=False)] for i, own in enumerate(ends)]
    steps = [[part for part in step if part[1] < part[2]] for step in zip(*spans, strict=True)]
    return [sorted(step, key=lambda part: part[2] - part[1] > 1) for step in steps if step]


def _computed(
    served: ServedModel, block_size: int, steps: list[list[tuple[int, int, int]]], length: int
) -> list[Tensor]:
    """Compute the hidden state and the logits, as one tensor, at each position of sequence 0."""
    width = math.ceil(length / block_size)
    layers = allocate_cache(served.backend, served.kv, [2 * width], block_size, dtype=served.cache_dtype, device=_CPU)
    attention = PagedAttention(served.backend, layers)
    tables = np.arange(2 * width, dtype=np.int32).reshape(2, width)
    allocate_states(served, 2, _CPU)
    computed: list[Tensor] = []
    for step in steps:
        metadata = batch_metadata([span[1:] for span in step], tables[[s[0] for s in step]], block_size, _CPU)
        sequences = torch.cat([torch.full((end - first,), i) for i, first, end in step])
        positions = torch.cat([torch.arange(first, end) for _, first, end in step])
        with step_context(StepContext(attention, (metadata,), state_slots=torch.tensor([span[0] for span in step]))):
            hidden = served.model.hidden_states(
                (positions * 37 + sequences * 11 + 5) % served.model.vocab_size, positions
            )
        rows = torch.cat([hidden, served.model.logits(hidden)], dim=-1)
        computed += rows[sequences == 0]
    return computed
