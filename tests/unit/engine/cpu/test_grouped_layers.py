"""Native layers whose weights are in groups: near to the same layers with the weights that they stand for."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.serving import ATTENTION_NAME, attention_function
from orcinus.engine.cpu import layer_replacement
from orcinus.engine.cpu.decoder_layers import NativeWeights
from orcinus.engine.cpu.grouped_weight import GroupedWeight
from orcinus.engine.cpu.native_linear import GROUP_FORMS, Kind
from orcinus.engine.kernels.library import load_library
from tests.unit.engine.cpu.tiny_layers import Tiny, in_chunks, noise, tokens

LIBRARY = load_library()
KINDS: list[Kind] = ["int4", "int8-groups"]
# Of the noise of transformers' own bfloat16: rows are rounded to 8 bits before each product.
MARGIN = 4.0

pytestmark = pytest.mark.skipif(LIBRARY is None or not LIBRARY.has_decoder, reason="there are no native layers here")
each_kind = pytest.mark.parametrize("kind", KINDS)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "odd-sizes": ("LlamaConfig", {"hidden_size": 80, "intermediate_size": 144}),
    "biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "qwen3": ("Qwen3Config", {}),
}


@pytest.fixture(autouse=True)
def paged() -> Iterator[None]:
    AttentionInterface.register(ATTENTION_NAME, attention_function)
    with torch.inference_mode():
        yield


def rounded(weight: Tensor, kind: Kind) -> Tensor:
    """What a weight is in this kind, in float32."""
    assert LIBRARY is not None
    if kind not in GROUP_FORMS:
        return weight.float()
    return GroupedWeight(LIBRARY, GROUP_FORMS[kind], [weight], [None]).exact_rows(torch.arange(weight.shape[0]))


def round_exact(tiny: Tiny, kind: Kind, **of_names: Kind) -> None:
    """Give the model in float64 the weights that the native layers will have."""
    plain = dict(tiny.served.model.causal_lm.named_modules())
    for name, module in tiny.exact.named_modules():
        if isinstance(module, nn.Linear) and "layers" in name:
            own = of_names.get(name.rpartition(".")[2], kind)
            module.weight.copy_(rounded(plain[name].weight, own))


@each_kind
@pytest.mark.parametrize("family", FAMILIES)
def test_native_layers_are_near_to_those_with_the_weights_that_they_stand_for(family: str, kind: Kind) -> None:
    class_name, settings = FAMILIES[family]
    tiny = Tiny.of(class_name, **settings)
    sequences = [tokens(count, seed) for seed, count in enumerate((50, 1, 23, 37))]
    own_noise = noise([tiny.whole(s) for s in sequences], [tiny.exactly(s) for s in sequences])
    round_exact(tiny, kind)
    exact = [tiny.exactly(sequence) for sequence in sequences]
    assert tiny.replace(kind) == 3
    together = tiny.paged(sequences, in_chunks([len(sequence) for sequence in sequences]))
    assert 0 < noise(together, exact) <= own_noise * MARGIN


@each_kind
def test_a_sequence_does_not_depend_on_what_shares_its_steps(kind: Kind) -> None:
    """Nor do its bits on whether there are enough rows in a step for matrix units."""
    tiny = Tiny.of("Qwen3Config")
    tiny.replace(kind)
    sequences = [tokens(count, seed) for seed, count in enumerate((41, 5, 30, 60))]
    steps = in_chunks([len(sequence) for sequence in sequences])
    together = tiny.paged(sequences, steps)
    for i, sequence in enumerate(sequences):
        own_steps = [[spans[i]] for spans in steps if spans[i][1] > spans[i][0]]
        assert torch.equal(tiny.paged([sequence], own_steps)[0], together[i])


@pytest.mark.parametrize(
    "kinds",
    [
        {"q_proj": "int4", "k_proj": "int4", "v_proj": "int8-groups"},
        {"q_proj": "int8-groups", "k_proj": "bfloat16", "v_proj": "int4"},
    ],
)
def test_projections_of_a_layer_may_have_different_kinds(
    kinds: dict[str, Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, sequence = Tiny.of("LlamaConfig", attention_bias=True), tokens(50, 0)
    own_noise = noise([tiny.whole(sequence)], [tiny.exactly(sequence)])
    round_exact(tiny, "int4", **kinds)

    def mixed(parts: Any, mixer: Any, library: Any, kind: Kind) -> NativeWeights:
        return NativeWeights(parts, mixer, library, kind, projection_kinds=kinds)

    monkeypatch.setattr(layer_replacement, "NativeWeights", mixed)
    monkeypatch.setitem(layer_replacement._TOLERANCE, "int4", 1.0)  # the trial knows of one kind alone
    assert isinstance(tiny.served.backend, NativeBackend)
    assert tiny.replace("int4") == 3
    exact = [tiny.exactly(sequence)]
    whole = tiny.paged([sequence], [[(0, 50)]])
    decoded = tiny.paged([sequence], [[(i, i + 1)] for i in range(50)])
    assert 0 < noise(whole, exact) <= own_noise * MARGIN
    assert 0 < noise(decoded, exact) <= own_noise * MARGIN


def test_layers_are_not_native_where_the_kernels_may_not_use_avx2() -> None:
    assert LIBRARY is not None
    try:
        LIBRARY.use_kernels("generic")
        assert not LIBRARY.has_decoder
        assert not LIBRARY.has_plain_linear
        assert LIBRARY.instruction_set == "generic"
        LIBRARY.use_kernels("avx2")
        assert LIBRARY.has_decoder
        assert LIBRARY.has_plain_linear
        assert LIBRARY.instruction_set == "avx2"
    finally:
        LIBRARY.use_kernels("amx")
    assert LIBRARY.has_decoder
