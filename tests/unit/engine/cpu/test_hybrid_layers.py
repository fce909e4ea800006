"""Native layers with delta nets and short convolutions compute what their own code does, and go on from states."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.serving import ATTENTION_NAME, attention_function
from orcinus.engine.cpu.decoder_layers import NativeDecoder
from orcinus.engine.cpu.native_linear import Kind
from orcinus.engine.recurrent.binding import bind_recurrent_layers
from orcinus.engine.startup.probe import probe_model
from tests.effort import slow_but_for
from tests.integration.tiny_models import random_model
from tests.unit.engine.cpu.kernel_choices import decoder_choices
from tests.unit.engine.cpu.tiny_layers import CPU, KINDS, MARGIN, SHAPE, Tiny, in_chunks, layers_by, noise, tokens

pytestmark = pytest.mark.skipif(not KINDS, reason="this CPU does not multiply what our kernels multiply")
each_kind = pytest.mark.parametrize("kind", KINDS)

_DELTA_NET: dict[str, Any] = {
    "head_dim": 128,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_DENSE: dict[str, Any] = {"mlp_only_layers": [0, 1, 2]}
_CONV: dict[str, Any] = {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False}
# Configuration class, what differs, and how many of the three layers are native.
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "qwen3_5": ("Qwen3_5TextConfig", _DELTA_NET, 3),
    "qwen3_5-odd-heads": (
        "Qwen3_5TextConfig",
        _DELTA_NET | {"linear_key_head_dim": 20, "linear_num_key_heads": 3, "linear_num_value_heads": 9},
        3,
    ),
    "qwen3_next-by-key-head": ("Qwen3NextConfig", _DELTA_NET | _DENSE, 3),
    "olmo_hybrid": ("OlmoHybridConfig", _DELTA_NET | {"linear_num_value_heads": 2, "linear_allow_neg_eigval": True}, 2),
    "lfm2": ("Lfm2Config", _CONV, 3),
    "lfm2-biases": ("Lfm2Config", _CONV | {"conv_bias": True, "conv_L_cache": 5}, 3),
}
# Every expert is asked for, so that none is chosen by a rounding.
_EXPERTS: dict[str, Any] = {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SHARED: dict[str, Any] = {"shared_expert_intermediate_size": 32}
FAMILIES |= {
    "qwen3_5-experts": ("Qwen3_5MoeTextConfig", _DELTA_NET | _EXPERTS | _SHARED, 3),
    "lfm2-experts": ("Lfm2MoeConfig", _CONV | _EXPERTS | {"num_dense_layers": 1}, 3),
}
MIXED = ["qwen3_5", "lfm2"]


@pytest.fixture(autouse=True, scope="module", params=decoder_choices())
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    with layers_by(request.param):
        yield


@pytest.fixture(autouse=True)
def paged() -> Iterator[None]:
    AttentionInterface.register(ATTENTION_NAME, attention_function)
    with torch.inference_mode():
        yield


@each_kind
@pytest.mark.parametrize(
    "family", slow_but_for(FAMILIES, "qwen3_5", "qwen3_next-by-key-head", "lfm2", "qwen3_5-experts")
)
def test_native_layers_are_as_near_to_exact_as_transformers_own(family: str, kind: Kind) -> None:
    class_name, settings, num_native = FAMILIES[family]
    tiny = Tiny.of(class_name, **settings)
    sequences = [tokens(count, seed) for seed, count in enumerate((50, 1, 23, 37))]
    exact = [tiny.exactly(sequence) for sequence in sequences]
    own_noise = noise([tiny.whole(sequence) for sequence in sequences], exact)
    assert tiny.replace(kind) == num_native
    alone = [tiny.paged([sequence], [[(0, len(sequence))]])[0] for sequence in sequences]
    assert 0 < noise(alone, exact) <= own_noise * MARGIN[kind]
    together = tiny.paged(sequences, in_chunks([len(sequence) for sequence in sequences]))
    assert 0 < noise(together, exact) <= own_noise * MARGIN[kind]


@pytest.mark.parametrize("family", MIXED)
def test_mixed_layers_are_one_call(family: str) -> None:
    tiny = Tiny.of(*FAMILIES[family][:1], **FAMILIES[family][1])
    tiny.replace()
    (decoder,) = tiny.layers
    assert isinstance(decoder, NativeDecoder)
    assert len(decoder.layers) == 3


@each_kind
@pytest.mark.parametrize("family", MIXED)
def test_a_token_has_the_same_bits_alone_and_in_any_batch_and_chunk(family: str, kind: Kind) -> None:
    class_name, settings, _ = FAMILIES[family]
    tiny = Tiny.of(class_name, **settings)
    tiny.replace(kind)
    sequences = [tokens(count, seed) for seed, count in enumerate((41, 5, 30))]
    together = tiny.paged(sequences, in_chunks([len(sequence) for sequence in sequences]))
    for sequence, beside_others in zip(sequences, together, strict=True):
        length = len(sequence)
        assert torch.equal(tiny.paged([sequence], [[(0, length)]])[0], beside_others)
        assert torch.equal(tiny.paged([sequence], [[(i, i + 1)] for i in range(length)])[0], beside_others)


@each_kind
@pytest.mark.parametrize("family", MIXED)
def test_threads_change_nothing_but_the_time(family: str, kind: Kind) -> None:
    class_name, settings, _ = FAMILIES[family]
    tiny = Tiny.of(class_name, **settings | {"hidden_size": 256, "intermediate_size": 512})
    tiny.replace(kind)
    assert isinstance(tiny.served.backend, NativeBackend)
    library, sequence = tiny.served.backend.library, tokens(60, 1)
    before = library.team
    results = []
    try:
        for count in (1, 3):
            library.use_threads(count, own=True)
            results.append(tiny.paged([sequence], [[(0, 59)], [(59, 60)]])[0])
    finally:
        library.team = before
    assert torch.equal(results[1], results[0])


@each_kind
@pytest.mark.parametrize("family", MIXED)
def test_what_is_not_finite_stays_in_its_sequence(family: str, kind: Kind) -> None:
    class_name, settings, _ = FAMILIES[family]
    tiny = Tiny.of(class_name, **settings)
    tiny.replace(kind)
    weight = tiny.served.model.causal_lm.get_input_embeddings().weight
    weight[7] = torch.nan
    sequences = [tokens(20, 0).clamp(min=8), torch.full((9,), 7)]
    together = tiny.paged(sequences, [[(0, 20), (0, 9)]])
    assert not together[1].isfinite().any()
    assert torch.equal(together[0], tiny.paged(sequences[:1], [[(0, 20)]])[0])


# --- layers that stay as they are -----------------------------------------------------------------------


def change_what_mixes(layer: Any, change: Callable[[Tensor], Tensor]) -> None:
    mixer = layer.linear_attn
    forward = mixer.forward
    mixer.forward = lambda *args, **kwargs: change(forward(*args, **kwargs))


def scale_what_mixes(layer: Any) -> None:
    change_what_mixes(layer, lambda x: x * 1.1)


def leave_out_the_gate(layer: Any) -> None:
    norm = layer.linear_attn.norm
    plain = norm.forward
    norm.forward = lambda x, gate: plain(x, torch.ones_like(gate))


def add_one_to_the_output_norm(layer: Any) -> None:
    norm = layer.linear_attn.norm
    plain = norm.forward

    def forward(x: Tensor, gate: Tensor) -> Tensor:
        weight = norm.weight
        norm.weight = nn.Parameter(weight + 1, requires_grad=False)
        try:
            return plain(x, gate)  # type: ignore[no-any-return]
        finally:
            norm.weight = weight

    norm.forward = forward


def forget_faster(layer: Any) -> None:
    """By a parameter that its own code alone reads."""
    mixer = layer.linear_attn
    forward = mixer.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        rates = mixer.A_log
        mixer.A_log = nn.Parameter(rates + 1, requires_grad=False)
        try:
            return forward(*args, **kwargs)
        finally:
            mixer.A_log = rates

    mixer.forward = changed


def convolve_without_activation(layer: Any) -> None:
    layer.linear_attn.activation = None


CHANGES = [
    scale_what_mixes,
    leave_out_the_gate,
    add_one_to_the_output_norm,
    forget_faster,
    convolve_without_activation,
]


@each_kind
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_one_changed_layer_stays_and_the_others_are_replaced(change: Any, kind: Kind) -> None:
    class_name, settings, num_native = FAMILIES["qwen3_5"]
    model = random_model(class_name, "bfloat16", ATTENTION_NAME, **SHAPE | settings)
    bind_recurrent_layers(model)
    changed = model.model.layers[2]
    change(changed)
    tiny = Tiny(probe_model(model, CPU), None)
    assert tiny.replace(kind) == num_native - 1
    assert tiny.layers[2] is changed


@each_kind
def test_layers_that_were_not_given_states_stay(kind: Kind) -> None:
    class_name, settings, _ = FAMILIES["lfm2"]
    model = random_model(class_name, "bfloat16", ATTENTION_NAME, **SHAPE | settings)
    tiny = Tiny(probe_model(model, CPU), None)
    assert tiny.replace(kind) == 1
