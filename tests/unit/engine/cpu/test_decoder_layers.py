"""Native decoder layers compute what the layers compute that they stand for, and stand for no others."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.serving import ATTENTION_NAME, attention_function
from orcinus.engine.cpu.decoder_layers import num_native_layers
from orcinus.engine.cpu.native_linear import Kind
from orcinus.engine.startup.probe import probe_model
from tests.effort import slow_but_for
from tests.integration.tiny_models import random_model
from tests.unit.engine.cpu.kernel_choices import decoder_choices
from tests.unit.engine.cpu.tiny_layers import CPU, KINDS, MARGIN, SHAPE, Tiny, in_chunks, layers_by, noise, tokens

pytestmark = pytest.mark.skipif(not KINDS, reason="this CPU does not multiply what our kernels multiply")
each_kind = pytest.mark.parametrize("kind", KINDS)

_MOE: dict[str, Any] = {
    "head_dim": 64,
    "partial_rotary_factor": 0.5,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
_FULL_ATTENTION: dict[str, Any] = {"layer_types": ["full_attention"] * 3}
# Configuration class, what differs, and how many of the three layers have the family's form.
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("LlamaConfig", {}, 3),
    "llama-wide-heads": ("LlamaConfig", {"head_dim": 96, "num_key_value_heads": 1}, 3),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}, 3),
    "mistral-window": ("MistralConfig", {"sliding_window": 10}, 3),
    "qwen2-biases": ("Qwen2Config", {}, 3),
    "qwen3-head-norms": ("Qwen3Config", {}, 3),
    "glm4-partial-rotary": ("Glm4MoeConfig", _MOE, 3),
    "gemma-norms-with-one-added": ("GemmaConfig", {"hidden_act": "silu"}, 3),
    "qwen3_5-gates": ("Qwen3_5TextConfig", _FULL_ATTENTION | {"head_dim": 256}, 3),
    "qwen3_next-gates": ("Qwen3NextConfig", _FULL_ATTENTION | {"head_dim": 128, "mlp_only_layers": [0, 1, 2]}, 3),
    "lfm2-other-names": ("Lfm2Config", _FULL_ATTENTION | {"block_auto_adjust_ff_dim": False}, 3),
    "smollm3-one-without-rotary": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}, 2),
}
_BY_LAYER = ("no_rope_layers", "layer_types", "mlp_only_layers")
# Layers with the same or similar parts that compute something else.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.03,
            "logits_scaling": 8.0,
        },
    ),
    "gemma": ("GemmaConfig", {}),
    "gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3TextConfig", {}),
    "olmo": ("OlmoConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "cohere": ("CohereConfig", {}),
    "hunyuan": ("HunYuanDenseV1Config", {}),
    "ernie": ("Ernie4_5Config", {}),
    "unaligned-heads": ("LlamaConfig", {"head_dim": 16}),
    "unaligned-mlp": ("LlamaConfig", {"intermediate_size": 90}),
}


@pytest.fixture(autouse=True, scope="module", params=decoder_choices())
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    with layers_by(request.param):
        yield


@pytest.fixture(autouse=True)
def paged() -> Iterator[None]:
    AttentionInterface.register(ATTENTION_NAME, attention_function)
    with torch.inference_mode():
        yield


# A router that bfloat16 tips over says nothing about the dense layer before it.
@each_kind
@pytest.mark.parametrize("num_layers", slow_but_for([1, 3], 3))
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "glm4-partial-rotary"])
def test_native_layers_are_as_near_to_exact_as_transformers_own(family: str, num_layers: int, kind: Kind) -> None:
    class_name, settings, num_native = FAMILIES[family]
    settings = settings | {key: settings[key][:num_layers] for key in _BY_LAYER if key in settings}
    tiny = Tiny.of(class_name, **settings | {"num_hidden_layers": num_layers})
    sequences = [tokens(count, seed) for seed, count in enumerate((50, 1, 23, 37))]
    exact = [tiny.exactly(sequence) for sequence in sequences]
    own_noise = noise([tiny.whole(sequence) for sequence in sequences], exact)
    assert tiny.replace(kind) == min(num_native, num_layers)
    alone = [tiny.paged([sequence], [[(0, len(sequence))]])[0] for sequence in sequences]
    assert 0 < noise(alone, exact) <= own_noise * MARGIN[kind]
    together = tiny.paged(sequences, in_chunks([len(sequence) for sequence in sequences]))
    assert 0 < noise(together, exact) <= own_noise * MARGIN[kind]


@each_kind
def test_partial_rotary_positions_and_a_dense_layer_before_experts(kind: Kind) -> None:
    class_name, settings, num_native = FAMILIES["glm4-partial-rotary"]
    assert Tiny.of(class_name, **settings).replace(kind) == num_native
    dense = Tiny.of(class_name, **settings | {"num_hidden_layers": 1})
    sequence = tokens(50, 0)
    exact = dense.exactly(sequence)
    own_noise = noise([dense.whole(sequence)], [exact])
    assert dense.replace(kind) == 1
    assert 0 < noise(dense.paged([sequence], [[(0, 50)]]), [exact]) <= own_noise * MARGIN[kind]


# Every expert is asked for, so that none is chosen by a rounding.
_EXPERTS: dict[str, Any] = {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@each_kind
def test_what_comes_before_experts_is_native_and_they_stay(kind: Kind) -> None:
    tiny = Tiny.of("Qwen3MoeConfig", **_EXPERTS)
    sequences = [tokens(count, seed) for seed, count in enumerate((50, 1, 23))]
    exact = [tiny.exactly(sequence) for sequence in sequences]
    own_noise = noise([tiny.whole(sequence) for sequence in sequences], exact)
    own_experts = [layer.mlp for layer in tiny.layers]
    assert tiny.replace(kind) == 3
    assert [layer.mlp for layer in tiny.layers] == own_experts
    assert num_native_layers(tiny.served.model.causal_lm) == 0
    together = tiny.paged(sequences, in_chunks([len(sequence) for sequence in sequences]))
    assert 0 < noise(together, exact) <= own_noise * MARGIN[kind]


@each_kind
def test_a_sequence_does_not_depend_on_what_shares_its_steps(kind: Kind) -> None:
    tiny = Tiny.of("Qwen3Config")
    tiny.replace(kind)
    sequences = [tokens(count, seed) for seed, count in enumerate((41, 5, 30))]
    steps = in_chunks([len(sequence) for sequence in sequences])
    together = tiny.paged(sequences, steps)
    for i, sequence in enumerate(sequences):
        own_steps = [[spans[i]] for spans in steps if spans[i][1] > spans[i][0]]
        assert torch.equal(tiny.paged([sequence], own_steps)[0], together[i])


@each_kind
def test_chunks_change_nothing_but_the_rounding_of_attention(kind: Kind) -> None:
    tiny = Tiny.of("LlamaConfig")
    tiny.replace(kind)
    sequence = tokens(60, 1)
    whole = tiny.paged([sequence], [[(0, 60)]])
    decoded = tiny.paged([sequence], [[(i, i + 1)] for i in range(60)])
    assert noise(decoded, [whole[0].double()]) < {"bfloat16": 0.02, "int8": 0.1}[kind]


@each_kind
def test_threads_change_nothing_but_the_time(kind: Kind) -> None:
    tiny = Tiny.of("LlamaConfig", hidden_size=256, intermediate_size=512)
    tiny.replace(kind)
    assert isinstance(tiny.served.backend, NativeBackend)
    library, sequence = tiny.served.backend.library, tokens(60, 1)
    before = library.team
    results = []
    try:
        for count, own in ((1, True), (3, True), (3, False)):
            library.use_threads(count, own=own)
            results.append(tiny.paged([sequence], [[(0, 59)], [(59, 60)]])[0])
    finally:
        library.team = before
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])


@each_kind
def test_what_is_not_finite_stays_in_its_sequence(kind: Kind) -> None:
    tiny = Tiny.of("LlamaConfig")
    tiny.replace(kind)
    weight = tiny.served.model.causal_lm.get_input_embeddings().weight
    weight[7] = torch.nan
    sequences = [tokens(20, 0).clamp(min=8), torch.full((9,), 7)]
    together = tiny.paged(sequences, [[(0, 20), (0, 9)]])
    assert not together[1].isfinite().any()
    assert torch.equal(together[0], tiny.paged(sequences[:1], [[(0, 20)]])[0])


# --- layers that stay as they are -----------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("family", OTHERS)
def test_layers_that_compute_something_else_stay_as_they_are(family: str, kind: Kind) -> None:
    class_name, settings = OTHERS[family]
    tiny = Tiny.of(class_name, **settings)
    layers = tiny.layers
    assert tiny.replace(kind) == 0
    assert tiny.layers == layers


def scale_output(layer: Any, factor: float = 1.1) -> None:
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **kwargs) * factor


def scale_mlp(layer: Any) -> None:
    forward = layer.mlp.forward
    layer.mlp.forward = lambda x: forward(x) * 1.1


def use_gelu(layer: Any) -> None:
    layer.mlp.act_fn = nn.GELU()


def use_relu(layer: Any) -> None:
    layer.mlp.act_fn = nn.ReLU()


def use_another_eps(layer: Any) -> None:
    """Its norms compute with one that they do not tell."""
    norm = layer.input_layernorm
    plain = norm.forward

    def forward(x: Tensor) -> Tensor:
        told, norm.variance_epsilon = norm.variance_epsilon, 50.0
        try:
            return plain(x)  # type: ignore[no-any-return]
        finally:
            norm.variance_epsilon = told

    norm.forward = forward


def use_layer_norm(layer: Any) -> None:
    for name in ("input_layernorm", "post_attention_layernorm"):
        norm = nn.LayerNorm(64, bias=False, dtype=torch.bfloat16)
        norm.weight.copy_(getattr(layer, name).weight)
        setattr(layer, name, norm)


def use_norms_with_one_added(layer: Any) -> None:
    norm = layer.post_attention_layernorm
    plain = norm.forward
    norm.forward = lambda x: plain(x) + x / x.float().square().mean(-1, keepdim=True).sqrt().to(x.dtype)


def swap_gate_and_up(layer: Any) -> None:
    mlp = layer.mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.up_proj(x)) * mlp.gate_proj(x))


class Clipped(nn.Linear):
    """As `nn.Linear` but for its largest results."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1, 1)


def clip_queries(layer: Any) -> None:
    layer.self_attn.q_proj.__class__ = Clipped


def wrap_queries(layer: Any) -> None:
    """In a module that does not tell of what size it is."""
    layer.self_attn.q_proj = nn.Sequential(layer.self_attn.q_proj)


def tell_no_eps(layer: Any) -> None:
    norm = layer.input_layernorm
    eps, plain = norm.variance_epsilon, norm.forward

    def forward(x: Tensor) -> Tensor:
        norm.variance_epsilon = eps
        try:
            return plain(x)  # type: ignore[no-any-return]
        finally:
            norm.variance_epsilon = None

    norm.forward = forward
    norm.variance_epsilon = None


def leave_out_a_residual(layer: Any) -> None:
    attention = layer.self_attn
    plain = attention.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out, weights = plain(*args, **kwargs)
        return out - kwargs["hidden_states"] * 0.2, weights

    attention.forward = forward


CHANGES = [
    scale_output,
    scale_mlp,
    use_gelu,
    use_relu,
    use_another_eps,
    use_layer_norm,
    use_norms_with_one_added,
    swap_gate_and_up,
    clip_queries,
    wrap_queries,
    tell_no_eps,
    leave_out_a_residual,
]


@each_kind
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_one_changed_layer_stays_and_the_others_are_replaced(change: Any, kind: Kind) -> None:
    model = random_model("LlamaConfig", "bfloat16", ATTENTION_NAME, **SHAPE)
    changed = model.model.layers[1]
    change(changed)
    tiny = Tiny(probe_model(model, CPU), None)
    assert tiny.replace(kind) == 2
    assert tiny.layers[1] is changed


@each_kind
@pytest.mark.parametrize(
    "change", [scale_output, clip_queries, leave_out_a_residual], ids=lambda change: change.__name__
)
def test_a_changed_layer_with_experts_stays(change: Any, kind: Kind) -> None:
    model = random_model("Qwen3MoeConfig", "bfloat16", ATTENTION_NAME, **SHAPE | _EXPERTS)
    changed = model.model.layers[1]
    change(changed)
    tiny = Tiny(probe_model(model, CPU), None)
    assert tiny.replace(kind) == 2
    assert tiny.layers[1] is changed


def do_not_add_one(layer: Any) -> None:
    norm = layer.post_attention_layernorm
    norm.forward = lambda x: norm.weight * norm._norm(x.float()).to(x.dtype)


class Changing(nn.Module):
    """Changes what a layer gives, whichever that layer is by then."""

    def __init__(self, layer: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._layer, self._change = layer, change

    def forward(self, x: Tensor) -> Tensor:
        return self._change(self._layer(x))


def change_queries(layer: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Of queries with their gates, (..., heads, 2, head_dim)."""
    attention = layer.self_attn
    forward, width = attention.forward, attention.head_dim

    def changed(*args: Any, **kwargs: Any) -> Any:
        plain = attention.q_proj
        attention.q_proj = Changing(plain, lambda x: change(x.view(*x.shape[:-1], -1, 2, width)).flatten(-3))
        try:
            return forward(*args, **kwargs)
        finally:
            attention.q_proj = plain

    attention.forward = changed


def put_gates_before_queries(layer: Any) -> None:
    change_queries(layer, lambda x: x.flip(-2))


def halve_gates(layer: Any) -> None:
    change_queries(layer, lambda x: x * torch.tensor([[1.0], [0.5]], dtype=x.dtype))


@each_kind
@pytest.mark.parametrize(
    "change", [do_not_add_one, put_gates_before_queries, halve_gates], ids=lambda change: change.__name__
)
def test_a_changed_layer_with_gates_stays_and_the_others_are_replaced(change: Any, kind: Kind) -> None:
    settings = SHAPE | _FULL_ATTENTION | {"head_dim": 256}
    model = random_model("Qwen3_5TextConfig", "bfloat16", ATTENTION_NAME, **settings)
    changed = model.model.layers[1]
    change(changed)
    tiny = Tiny(probe_model(model, CPU), None)
    assert tiny.replace(kind) == 2
    assert tiny.layers[1] is changed


@each_kind
@pytest.mark.parametrize("factor", [100, 10_000])
@pytest.mark.parametrize("change", [scale_mlp, use_gelu, use_layer_norm], ids=lambda change: change.__name__)
def test_a_changed_layer_stays_where_it_adds_little_to_large_hidden_states(
    change: Any, factor: int, kind: Kind
) -> None:
    """As in trained models, whose residual stream is many times what one layer adds to it."""
    model = random_model("LlamaConfig", "bfloat16", ATTENTION_NAME, **SHAPE)
    model.model.embed_tokens.weight.mul_(factor)
    changed = model.model.layers[1]
    change(changed)
    tiny = Tiny(probe_model(model, CPU), None)
    assert tiny.replace(kind) == 2
    assert changed in tiny.layers


@each_kind
def test_layer_that_scales_queries_at_far_positions_alone_stays(kind: Kind) -> None:
    """As Ministral 3 does from a sixteenth of its context on."""
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "llama_4_scaling_beta": 0.5}
    rope |= {"original_max_position_embeddings": 64}
    tiny = Tiny.of("Ministral3Config", rope_parameters=rope)
    sequence = tokens(200, 0)
    exact = tiny.exactly(sequence)
    own_noise = noise([tiny.whole(sequence)], [exact])
    tiny.replace(kind)
    assert noise(tiny.paged([sequence], [[(0, 200)]]), [exact]) <= own_noise * MARGIN[kind]


@each_kind
def test_another_eps_that_a_norm_tells_is_used(kind: Kind) -> None:
    tiny = Tiny.of("LlamaConfig", rms_norm_eps=0.5)
    sequence = tokens(30, 0)
    exact = tiny.exactly(sequence)
    own_noise = noise([tiny.whole(sequence)], [exact])
    assert tiny.replace(kind) == 3
    assert noise(tiny.paged([sequence], [[(0, 30)]]), [exact]) <= own_noise * MARGIN[kind]


@each_kind
def test_weights_of_replaced_layers_are_freed_though_the_layers_are_named(kind: Kind) -> None:
    tiny = Tiny.of("LlamaConfig")
    layers: list[Any] = tiny.layers
    modules = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
    weights = [weakref.ref(module.weight) for module in modules]
    del modules
    assert tiny.replace(kind) == 3
    assert [weight() is not None for weight in weights] == [False] * 21
    assert len(layers) == 3


def test_layers_of_float32_stay_as_they_are() -> None:
    tiny = Tiny(probe_model(random_model("LlamaConfig", "float32", ATTENTION_NAME, **SHAPE), CPU), None)
    assert tiny.replace(KINDS[0]) == 0
