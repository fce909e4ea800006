"""The structures of the kernels' C interface, and the check that the library has them laid out in the same way.

The sources declare each of them too (`common.h`, `linear.h`, `structures.h`). Knows nothing of what they are for.
"""

import ctypes
from ctypes import c_char_p, c_float, c_int32, c_int64, c_void_p


class Step(ctypes.Structure):
    """`struct Step` of common.h: where the tokens of a step lie."""

    _fields_ = (
        ("num_tokens", c_int64),
        ("num_seqs", c_int64),
        ("block_size", c_int64),
        ("table_stride", c_int64),
        ("query_start", c_void_p),
        ("seq_lens", c_void_p),
        ("block_tables", c_void_p),
        ("slots", c_void_p),
    )


class Cache(ctypes.Structure):
    """`struct Cache` of common.h: one layer's keys and values."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("num_kv_heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("is_bf16", c_int64),
        ("is_interleaved", c_int64),
        ("is_int8", c_int64),
    )


class Attention(ctypes.Structure):
    """`struct Attention` of common.h: the tensors of one layer in one step, and how it attends."""

    _fields_ = (
        ("step", c_void_p),
        ("cache", c_void_p),
        ("query", c_void_p),
        ("new_keys", c_void_p),
        ("new_values", c_void_p),
        ("out", c_void_p),
        ("out_token", c_int64),
        ("query_token", c_int64),
        ("query_head", c_int64),
        ("key_token", c_int64),
        ("key_head", c_int64),
        ("value_token", c_int64),
        ("value_head", c_int64),
        ("num_heads", c_int64),
        ("window", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("sinks", c_void_p),
    )


class Linear(ctypes.Structure):
    """`struct Linear` of linear.h: packed weights."""

    _fields_ = (
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("sums", c_void_p),
        ("groups", c_void_p),
        ("next", c_void_p),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("is_int8", c_int64),
        ("kernel", c_int64),
    )


class Groups(ctypes.Structure):
    """`struct Groups` of grouped.h: how values of 4 or 8 bits and their scales are kept."""

    _fields_ = (
        ("table", c_void_p),
        ("bits", c_int64),
        ("value_bits", c_int64),
        ("size", c_int64),
        ("zero", c_int64),
        ("scales", c_int64),
        ("has_offsets", c_int64),
        ("kernel", c_int64),
    )


class GroupedRows(ctypes.Structure):
    """`struct GroupedRows` of grouped.h: rows of a weight as values with their scales, before they are packed."""

    _fields_ = (
        ("values", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("scale_parts", c_void_p),
        ("offset_parts", c_void_p),
        ("column_scales", c_void_p),
        ("count", c_int64),
        ("value_stride", c_int64),
    )


class BlockRows(ctypes.Structure):
    """`struct BlockRows` of grouped.h: rows of a weight in the blocks of a file."""

    _fields_ = (
        ("data", c_void_p),
        ("order", c_void_p),
        ("count", c_int64),
        ("row_bytes", c_int64),
        ("packing", c_int64),
        ("block_inputs", c_int64),
        ("block_bytes", c_int64),
    )


class Norm(ctypes.Structure):
    """`struct Norm` of structures.h: a norm's weight, if any."""

    _fields_ = (("weight", c_void_p), ("eps", c_float), ("is_zero_centred", c_int32))


class AttentionMixer(ctypes.Structure):
    """`struct AttentionMixer` of structures.h: how a layer attends, besides its products."""

    _fields_ = (
        ("query_norm", Norm),
        ("key_norm", Norm),
        ("num_heads", c_int64),
        ("head_dim", c_int64),
        ("has_gate", c_int64),
    )


class DeltaNetMixer(ctypes.Structure):
    """`struct DeltaNetMixer` of structures.h: a gated delta net, besides its products."""

    _fields_ = (
        ("conv_weight", c_void_p),
        ("conv_bias", c_void_p),
        ("rates", c_void_p),
        ("dt_bias", c_void_p),
        ("conv_states", c_void_p),
        ("states", c_void_p),
        ("norm", Norm),
        ("taps", c_int64),
        ("key_heads", c_int64),
        ("heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("slot_bytes", c_int64),
        ("beta_scale", c_float),
    )


class ConvolutionMixer(ctypes.Structure):
    """`struct ConvolutionMixer` of structures.h: a short convolution between two gates, besides its products."""

    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("states", c_void_p),
        ("taps", c_int64),
        ("slot_bytes", c_int64),
    )


class DecoderLayer(ctypes.Structure):
    """`struct DecoderLayer` of structures.h: the weights of one layer."""

    _fields_ = (
        ("projections", c_void_p),
        ("mixer_out", c_void_p),
        ("gate_up", c_void_p),
        ("down", c_void_p),
        ("attention", c_void_p),
        ("delta_net", c_void_p),
        ("convolution", c_void_p),
        ("mixer_norm", Norm),
        ("mlp_norm", Norm),
        ("hidden_size", c_int64),
    )


class DecoderCall(ctypes.Structure):
    """`struct DecoderCall` of structures.h: consecutive layers in one step."""

    _fields_ = (
        ("layers", c_void_p),
        ("attentions", c_void_p),
        ("segments", c_void_p),
        ("num_layers", c_int64),
        ("num_tokens", c_int64),
        ("hidden", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("out", c_void_p),
        ("hidden_stride", c_int64),
        ("rotary_stride", c_int64),
        ("rotary_dim", c_int64),
    )


class PlainProduct(ctypes.Structure):
    """`struct PlainProduct` of structures.h: rows times a weight as a model has it."""

    _fields_ = (
        ("x", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("out", c_void_p),
        ("count", c_int64),
        ("in_features", c_int64),
        ("columns", c_int64),
        ("x_stride", c_int64),
        ("in_stride", c_int64),
        ("column_stride", c_int64),
        ("out_stride", c_int64),
        ("is_bf16", c_int64),
    )


class LogitChanges(ctypes.Structure):
    """`struct LogitChanges` of structures.h: what a request does to its logits."""

    _fields_ = (
        ("penalized", c_void_p),
        ("counts", c_void_p),
        ("num_penalized", c_int64),
        ("repetition", c_float),
        ("frequency", c_float),
        ("presence", c_float),
        ("biased", c_void_p),
        ("biases", c_void_p),
        ("num_biased", c_int64),
        ("ends", c_void_p),
        ("num_ends", c_int64),
        ("impossible", c_void_p),
        ("num_impossible", c_int64),
        ("mask", c_void_p),
    )


class Sampling(ctypes.Structure):
    """`struct Sampling` of structures.h: rows of logits, and the tokens chosen of them."""

    _fields_ = (
        ("logits", c_void_p),
        ("num_rows", c_int64),
        ("vocab_size", c_int64),
        ("stride", c_int64),
        ("is_bf16", c_int64),
        ("parameters", c_void_p),
        ("uniforms", c_void_p),
        ("changes", c_void_p),
        ("tokens", c_void_p),
        ("is_finite", c_void_p),
        ("has_choice", c_void_p),
    )


class Logprobs(ctypes.Structure):
    """`struct Logprobs` of structures.h: log-probabilities of rows of logits."""

    _fields_ = (
        ("logits", c_void_p),
        ("num_rows", c_int64),
        ("vocab_size", c_int64),
        ("stride", c_int64),
        ("is_bf16", c_int64),
        ("rows", c_void_p),
        ("tokens", c_void_p),
        ("num_top", c_int64),
        ("logprobs", c_void_p),
        ("top_logprobs", c_void_p),
        ("top_ids", c_void_p),
    )


class Segments(ctypes.Structure):
    """`struct Segments` of structures.h: the sequences of a step and where their states lie."""

    _fields_ = (
        ("num_seqs", c_int64),
        ("query_start", c_void_p),
        ("slots", c_void_p),
        ("is_new", c_void_p),
    )


class Convolution(ctypes.Structure):
    """`struct Convolution` of structures.h: a causal convolution of each channel."""

    _fields_ = (
        ("segments", c_void_p),
        ("x", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("out", c_void_p),
        ("states", c_void_p),
        ("channels", c_int64),
        ("taps", c_int64),
        ("x_token", c_int64),
        ("out_token", c_int64),
        ("slot_bytes", c_int64),
        ("is_bf16", c_int64),
        ("has_silu", c_int64),
    )


class DeltaRule(ctypes.Structure):
    """`struct DeltaRule` of structures.h: the gated delta rule."""

    _fields_ = (
        ("segments", c_void_p),
        ("query", c_void_p),
        ("key", c_void_p),
        ("value", c_void_p),
        ("beta", c_void_p),
        ("decay", c_void_p),
        ("out", c_void_p),
        ("states", c_void_p),
        ("key_heads", c_int64),
        ("heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("query_token", c_int64),
        ("query_head", c_int64),
        ("key_token", c_int64),
        ("key_head", c_int64),
        ("value_token", c_int64),
        ("value_head", c_int64),
        ("out_token", c_int64),
        ("decay_token", c_int64),
        ("decay_head", c_int64),
        ("beta_token", c_int64),
        ("beta_head", c_int64),
        ("slot_bytes", c_int64),
        ("is_bf16", c_int64),
        ("has_float_beta", c_int64),
        ("has_channel_decay", c_int64),
        ("is_normalized", c_int64),
    )


class Mamba2(ctypes.Structure):
    """`struct Mamba2` of structures.h: a state space of Mamba-2."""

    _fields_ = (
        ("segments", c_void_p),
        ("x", c_void_p),
        ("dt", c_void_p),
        ("dt_bias", c_void_p),
        ("b", c_void_p),
        ("c", c_void_p),
        ("a", c_void_p),
        ("d", c_void_p),
        ("out", c_void_p),
        ("states", c_void_p),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("groups", c_int64),
        ("state_dim", c_int64),
        ("x_token", c_int64),
        ("x_head", c_int64),
        ("dt_token", c_int64),
        ("dt_head", c_int64),
        ("b_token", c_int64),
        ("b_group", c_int64),
        ("c_token", c_int64),
        ("c_group", c_int64),
        ("out_token", c_int64),
        ("slot_bytes", c_int64),
        ("is_bf16", c_int64),
        ("has_softplus", c_int64),
        ("dt_min", c_float),
        ("dt_max", c_float),
    )


class SelectiveScan(ctypes.Structure):
    """`struct SelectiveScan` of structures.h: a selective state space of Mamba."""

    _fields_ = (
        ("segments", c_void_p),
        ("x", c_void_p),
        ("dt", c_void_p),
        ("dt_bias", c_void_p),
        ("b", c_void_p),
        ("c", c_void_p),
        ("z", c_void_p),
        ("a", c_void_p),
        ("d", c_void_p),
        ("out", c_void_p),
        ("states", c_void_p),
        ("channels", c_int64),
        ("state_dim", c_int64),
        ("x_token", c_int64),
        ("dt_token", c_int64),
        ("dt_channel", c_int64),
        ("b_token", c_int64),
        ("c_token", c_int64),
        ("z_token", c_int64),
        ("out_token", c_int64),
        ("slot_bytes", c_int64),
        ("is_bf16", c_int64),
        ("has_softplus", c_int64),
    )


class Team(ctypes.Structure):
    """`struct Team` of common.h: the threads that help."""

    _fields_ = (("parallel", c_void_p), ("num_threads", c_int64))


STRUCTURES: tuple[type[ctypes.Structure], ...] = (
    Step,
    Cache,
    Attention,
    Linear,
    Groups,
    GroupedRows,
    BlockRows,
    Norm,
    AttentionMixer,
    DeltaNetMixer,
    ConvolutionMixer,
    DecoderLayer,
    DecoderCall,
    PlainProduct,
    LogitChanges,
    Sampling,
    Logprobs,
    Segments,
    Convolution,
    DeltaRule,
    Mamba2,
    SelectiveScan,
    Team,
)

_Layout = dict[str, tuple[int, int]]
"""(offset, size) in bytes by the name of a field; that of the structure itself has no name."""


class _FieldLayout(ctypes.Structure):
    _fields_ = (("structure", c_char_p), ("field", c_char_p), ("offset", c_int64), ("size", c_int64))


def check_layouts(functions: ctypes.CDLL) -> None:
    """Raise `RuntimeError` if the library has a structure laid out in another way than this module."""
    theirs = _layouts_of(functions)
    for structure in STRUCTURES:
        _check_layout(structure.__name__, _layout_of(structure), theirs.get(structure.__name__, {}))


def _check_layout(name: str, ours: _Layout, theirs: _Layout) -> None:
    for field in [*ours, *theirs]:
        if ours.get(field) != theirs.get(field):
            raise RuntimeError(
                f"struct {name} is another one in the library: {field or 'the whole'} has (offset, size)"
                f" {theirs.get(field)} there and {ours.get(field)} here"
            )


def _layout_of(structure: type[ctypes.Structure]) -> _Layout:
    fields = {field[0]: getattr(structure, field[0]) for field in structure._fields_}
    return {name: (field.offset, field.size) for name, field in fields.items()} | {"": (0, ctypes.sizeof(structure))}


def _layouts_of(functions: ctypes.CDLL) -> dict[str, _Layout]:
    """Return the library's own layouts, by the name of the structure."""
    functions.orcinus_layouts.restype = ctypes.POINTER(_FieldLayout)
    layouts: dict[str, _Layout] = {}
    for entry in functions.orcinus_layouts():
        if entry.structure is None:
            return layouts
        layouts.setdefault(entry.structure.decode(), {})[entry.field.decode()] = (entry.offset, entry.size)
    raise AssertionError("a pointer has no end")
