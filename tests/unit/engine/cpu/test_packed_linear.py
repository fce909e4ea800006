"""Packed linear layers give what plain ones give, alone and merged, and the model keeps what must not be packed."""

import sys
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orcinus.engine.cpu import packed_linear
from orcinus.engine.cpu.int8_linear import Int8Linear
from orcinus.engine.cpu.native_linear import NativeLinear, can_multiply
from orcinus.engine.cpu.packed_linear import (
    PackedEmbedding,
    PackedLinear,
    Packer,
    native_kind,
    pack_linears,
    pack_tied_head,
    packed_bytes,
    packer_for,
    scale_of,
)
from orcinus.engine.kernels.library import load_library
from orcinus.engine.platform.device import cpu_has_bfloat16

BFLOAT16 = torch.bfloat16
LIBRARY = load_library()


def packers() -> dict[str, Packer]:
    """All that this machine has."""
    found: dict[str, Packer] = {"torch int8": Int8Linear}
    if cpu_has_bfloat16():
        found["oneDNN"] = PackedLinear
    if LIBRARY is not None and can_multiply(LIBRARY, "bfloat16"):
        found["native bfloat16"] = partial(NativeLinear, LIBRARY, "bfloat16")
    if LIBRARY is not None and can_multiply(LIBRARY, "int8"):
        found["native int8"] = partial(NativeLinear, LIBRARY, "int8")
    return found


PACKERS = packers()
each_packer = pytest.mark.parametrize("name", PACKERS)


class Attention(nn.Module):
    """Three projections of one input, of unequal sizes as with grouped queries."""

    def __init__(self, *, has_bias: bool = False) -> None:
        super().__init__()
        self.q_proj = nn.Linear(48, 64, bias=has_bias)
        self.k_proj = nn.Linear(48, 16, bias=has_bias)
        self.v_proj = nn.Linear(48, 16, bias=has_bias)
        self.o_proj = nn.Linear(64, 64, bias=has_bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        together: Tensor = torch.cat([q, k, v, self.o_proj(q)], dim=-1)
        return together


class TiedModel(nn.Module):
    """An embedding and a head with one weight, as transformers' models name them."""

    def __init__(self, embedding: nn.Module | None = None) -> None:
        super().__init__()
        head: Any = nn.Linear(48, 70, bias=False)
        self.embedding: Any = embedding or nn.Embedding(70, 48)
        head.weight = self.embedding.weight
        self.head = head

    def get_input_embeddings(self) -> Any:
        return self.embedding

    def set_input_embeddings(self, module: nn.Module) -> None:
        self.embedding = module

    def get_output_embeddings(self) -> Any:
        return self.head

    def set_output_embeddings(self, module: nn.Module) -> None:
        self.head = module


def assert_same(got: Any, wanted: Any, name: str) -> None:
    """But for the last bit: the bias may be added before rounding, or after. In 8 bits but for a few percent."""
    if "int8" in name:
        assert float((got - wanted).float().norm() / wanted.float().norm()) < 0.02
    else:
        torch.testing.assert_close(got, wanted, rtol=2**-7, atol=2**-8)


@pytest.fixture(autouse=True)
def bfloat16() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(BFLOAT16)
    with torch.inference_mode():
        yield
    torch.set_default_dtype(torch.float32)


@each_packer
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 7, 130])
def test_a_packed_layer_gives_what_the_plain_one_gives(num_rows: int, has_bias: bool, name: str) -> None:
    linear = nn.Linear(48, 80, bias=has_bias)
    packed = PACKERS[name]([linear.weight], [linear.bias])
    x = torch.randn(1, num_rows, 48)
    assert_same(packed(x), linear(x), name)
    sliced = torch.randn(1, num_rows, 96)[..., 16:64]
    assert_same(packed(sliced), linear(sliced), name)
    assert_same(packed.weight, linear.weight, name)


@each_packer
@pytest.mark.parametrize("has_bias", [False, True])
def test_merged_projections_give_what_they_gave_apart(has_bias: bool, name: str) -> None:
    model = Attention(has_bias=has_bias)
    first, second = torch.randn(1, 5, 48), torch.randn(1, 9, 48)
    expected = [model(first), model(second)]
    projections = ("q_proj", "k_proj", "v_proj")
    weights = [getattr(model, projection).weight.clone() for projection in projections]
    biases = [getattr(model, projection).bias for projection in projections]
    assert pack_linears(model, PACKERS[name], BFLOAT16) == 4
    for x, y in zip((first, second, first), (*expected, expected[0]), strict=True):
        assert_same(model(x), y, name)
    for projection, weight, bias in zip(projections, weights, biases, strict=True):
        packed = getattr(model, projection)
        assert_same(packed.weight, weight, name)
        assert packed.bias is None if bias is None else torch.equal(packed.bias, bias)
        assert (packed.out_features, packed.in_features) == weight.shape


def test_each_weight_is_freed_before_the_next_layer_is_packed() -> None:
    model = nn.ModuleList([Attention() for _ in range(3)]).to(BFLOAT16)
    weights = [weakref.ref(layer.o_proj.weight) for layer in model if isinstance(layer, Attention)]
    num_alive: list[int] = []

    def pack(parts: Sequence[Tensor], biases: Sequence[Tensor | None]) -> nn.Module:
        num_alive.append(sum(weight() is not None for weight in weights))
        return Int8Linear(parts, biases)

    assert pack_linears(model, pack, BFLOAT16) == 12
    assert num_alive[1::2] == [3, 2, 1]  # when a layer's `o_proj` is packed


@each_packer
def test_a_part_is_of_the_input_that_it_was_called_with(name: str) -> None:
    model = Attention()
    first, second = torch.randn(1, 3, 48), torch.randn(1, 3, 48)
    expected = [model.q_proj(first), model.k_proj(second), model.q_proj(second), model.v_proj(second)]
    pack_linears(model, PACKERS[name], BFLOAT16)
    got = [model.q_proj(first), model.k_proj(second), model.q_proj(second), model.v_proj(second)]
    for part, wanted in zip(got, expected, strict=True):
        assert_same(part, wanted, name)


def test_a_merge_multiplies_once_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Attention()
    pack_linears(model, Int8Linear, BFLOAT16)
    num_products = 0
    multiply = Int8Linear.forward

    def count(self: Int8Linear, x: Tensor) -> Tensor:
        nonlocal num_products
        num_products += 1
        return multiply(self, x)

    monkeypatch.setattr(Int8Linear, "forward", count)
    x = torch.randn(1, 3, 48)
    num_references = sys.getrefcount(x)
    model(x)
    assert num_products == 2, "the projections together, and o_proj"
    assert sys.getrefcount(x) == num_references


@each_packer
def test_bytes_of_merged_layers_are_counted_once(name: str) -> None:
    model = Attention()
    plain_bytes = sum(parameter.nbytes for parameter in model.parameters())
    pack_linears(model, PACKERS[name], BFLOAT16)
    assert list(model.parameters()) == []
    assert packed_bytes(model) == plain_bytes // (2 if "int8" in name else 1)


def test_siblings_of_which_one_has_no_bias_are_packed_apart() -> None:
    model = Attention(has_bias=True)
    model.k_proj = nn.Linear(48, 16, bias=False)
    x = torch.randn(1, 3, 48)
    expected = model(x)
    assert pack_linears(model, Int8Linear, BFLOAT16) == 4
    assert {type(child) for child in model.children()} == {Int8Linear}
    assert_same(model(x), expected, "int8")


def test_weights_that_are_kept_stay_as_they_are() -> None:
    model = TiedModel()
    head = model.head
    assert pack_linears(model, Int8Linear, BFLOAT16, keep=[model.embedding.weight]) == 0
    assert model.head is head


def test_layers_of_another_kind_stay_as_they_are() -> None:
    class Own(nn.Linear):
        """Computes something of its own."""

    model = nn.ModuleList([Own(48, 48), nn.Linear(48, 48, dtype=torch.float32)])
    before = list(model)
    assert pack_linears(model, Int8Linear, BFLOAT16) == 0
    assert list(model) == before


# --- a head that shares the embedding's weight -----------------------------------------------------------


@each_packer
def test_tied_head_is_packed_and_the_embedding_looks_up_what_it_did(name: str) -> None:
    model = TiedModel()
    ids, x = torch.tensor([[3, 69, 0], [3, 12, 31]]), torch.randn(1, 5, 48)
    rows, logits, weight = model.embedding(ids), model.head(x), model.embedding.weight
    is_packed = pack_tied_head(model, PACKERS[name])
    assert is_packed is (name != "oneDNN"), "no row can be read from oneDNN's layout"
    assert torch.equal(model.embedding(ids), rows)
    assert torch.equal(model.embedding.weight, weight)
    assert_same(model.head(x), logits, name)
    assert isinstance(model.embedding, PackedEmbedding) is (name == "native bfloat16")


def test_heads_that_are_not_tied_or_compute_otherwise_are_left_alone() -> None:
    class Scaled(nn.Embedding):
        """Multiplies what it looks up, as Gemma's does."""

    untied, without_head = TiedModel(), TiedModel()
    untied.head = nn.Linear(48, 70, bias=False)
    without_head.head = None
    for model in (untied, without_head, TiedModel(Scaled(70, 48)), TiedModel(nn.Embedding(70, 48, max_norm=1.0))):
        embedding, head = model.embedding, model.head
        assert not pack_tied_head(model, Int8Linear)
        assert model.embedding is embedding
        assert model.head is head


# --- which packing ---------------------------------------------------------------------------------------


def machine(monkeypatch: pytest.MonkeyPatch, *, is_strong: bool, onednn: bool = True) -> Any:
    """The library of a machine that it has kernels for, or only those for any."""
    monkeypatch.setattr(packed_linear, "_has_onednn", lambda: onednn)
    return SimpleNamespace(has_plain_linear=is_strong)


def kind_and_packing(library: Any, dtype: torch.dtype, quantization: str | None) -> tuple[Any, Any]:
    packer = packer_for(library, dtype, quantization)
    return native_kind(library, dtype, quantization), packer.func if isinstance(packer, partial) else packer


def test_our_kernels_are_taken_where_the_cpu_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    library = machine(monkeypatch, is_strong=True)
    assert kind_and_packing(library, BFLOAT16, None) == ("bfloat16", NativeLinear)
    assert kind_and_packing(library, BFLOAT16, "int8") == ("int8", NativeLinear)
    assert kind_and_packing(library, torch.float32, "int8") == ("int8", NativeLinear)
    assert kind_and_packing(library, torch.float32, None) == (None, None)


def test_a_row_that_must_not_depend_on_others_is_multiplied_by_our_kernels_or_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strong = machine(monkeypatch, is_strong=True)
    assert isinstance(packer_for(strong, BFLOAT16, None, is_deterministic=True), partial)
    weak = machine(monkeypatch, is_strong=False)
    for library in (None, weak):
        assert packer_for(library, BFLOAT16, None, is_deterministic=True) is None
        assert packer_for(library, BFLOAT16, "int8", is_deterministic=True) is Int8Linear


@pytest.mark.parametrize("onednn", [True, False])
def test_machine_without_our_kernels_uses_torch(monkeypatch: pytest.MonkeyPatch, onednn: bool) -> None:
    weak = machine(monkeypatch, is_strong=False, onednn=onednn)
    for library in (None, weak):
        assert kind_and_packing(library, BFLOAT16, None) == (None, PackedLinear if onednn else None)
        assert kind_and_packing(library, BFLOAT16, "int8") == (None, Int8Linear)
        assert kind_and_packing(library, torch.float32, None) == (None, None)
        assert kind_and_packing(library, torch.float32, "int8") == (None, Int8Linear)


def test_without_onednns_operators_nothing_is_packed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(packed_linear, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(packed_linear.PackedLinear, "__init__", refuse)
    assert packer_for(None, BFLOAT16, None) is None
    assert "no such operator" in caplog.text


def test_cpu_that_emulates_bfloat16_keeps_its_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "cpu_has_bfloat16", lambda: False)
    assert packer_for(None, BFLOAT16, None) is None


class ScaledEmbedding(nn.Embedding):
    """Multiplies its rows, or changes them otherwise."""

    def __init__(self, change: Any) -> None:
        super().__init__(8, 40, dtype=BFLOAT16)
        self.change = change

    def forward(self, ids: Tensor) -> Tensor:
        changed: Tensor = self.change(super().forward(ids))
        return changed


@pytest.mark.parametrize(
    ("change", "scale"),
    [(lambda rows: rows * 50.5, 50.5), (lambda rows: rows, 1.0), (lambda rows: rows.relu() + 1, None)],
)
def test_scale_of_an_embedding_is_seen_by_its_numbers(change: Any, scale: float | None) -> None:
    assert scale_of(ScaledEmbedding(change)) == scale


@pytest.mark.skipif(LIBRARY is None, reason="there is no library here")
def test_packed_embedding_multiplies_its_rows() -> None:
    assert LIBRARY is not None
    plain = ScaledEmbedding(lambda rows: rows * 50.5)
    packed = NativeLinear(LIBRARY, "int8-groups", [plain.weight.detach()], [None]).packed
    ids = torch.tensor([[0, 5], [7, 5]])
    wanted = PackedEmbedding(packed, BFLOAT16)(ids) * torch.tensor(50.5, dtype=BFLOAT16)
    assert torch.equal(PackedEmbedding(packed, BFLOAT16, scale=50.5)(ids), wanted)


@pytest.mark.skipif(LIBRARY is None, reason="there is no library here")
def test_biases_of_groups_are_what_kernels_read_whatever_torchs_default_is() -> None:
    assert LIBRARY is not None
    assert torch.get_default_dtype() is BFLOAT16
    bias = torch.randn(24)
    linear = NativeLinear(LIBRARY, "int8-groups", [torch.randn(24, 40)], [bias])
    assert torch.equal(linear(torch.zeros(2, 40)), bias.expand(2, 24))
