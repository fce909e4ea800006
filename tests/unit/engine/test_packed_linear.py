"""Packed linear layers give what plain ones give, alone and merged, and the model keeps what must not be packed."""

import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from engine import packed_linear
from engine.packed_linear import PackedLinear, can_pack, pack_linears

pytestmark = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.bfloat16), reason="this CPU does not multiply bfloat16"
)


class Attention(nn.Module):
    """Three projections of one input, of unequal sizes as with grouped queries."""

    def __init__(self, *, has_bias: bool = False) -> None:
        super().__init__()
        self.q_proj = nn.Linear(48, 64, bias=has_bias)
        self.k_proj = nn.Linear(48, 16, bias=has_bias)
        self.v_proj = nn.Linear(48, 16, bias=has_bias)
        self.o_proj = nn.Linear(64, 48, bias=has_bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        together: Tensor = torch.cat([q, k, v, self.o_proj(q)], dim=-1)
        return together


def assert_same(got: Tensor, wanted: Tensor) -> None:
    """But for the last bit: the bias may be added before rounding, or after."""
    torch.testing.assert_close(got, wanted, rtol=2**-7, atol=2**-8)


@pytest.fixture(autouse=True)
def bfloat16() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 7, 130])
@torch.inference_mode()
def test_a_packed_layer_gives_what_the_plain_one_gives(num_rows: int, has_bias: bool) -> None:
    linear = nn.Linear(48, 80, bias=has_bias)
    packed = PackedLinear(linear.weight, linear.bias)
    x = torch.randn(1, num_rows, 48)
    assert_same(packed(x), linear(x))
    sliced = torch.randn(1, num_rows, 96)[..., 16:64]
    assert_same(packed(sliced), linear(sliced))
    assert torch.equal(packed.weight, linear.weight)


@pytest.mark.parametrize("has_bias", [False, True])
@torch.inference_mode()
def test_merged_projections_give_what_they_gave_apart(has_bias: bool) -> None:
    model = Attention(has_bias=has_bias)
    first, second = torch.randn(1, 5, 48), torch.randn(1, 9, 48)
    expected = [model(first), model(second)]
    weights = [layer.weight.clone() for layer in (model.q_proj, model.k_proj, model.v_proj)]
    assert pack_linears(model) == 4
    for x, y in zip((first, second, first), (*expected, expected[0]), strict=True):
        assert_same(model(x), y)
    for layer, weight in zip((model.q_proj, model.k_proj, model.v_proj), weights, strict=True):
        assert torch.equal(layer.weight, weight)
        assert (layer.bias is None) != has_bias


@torch.inference_mode()
def test_a_part_is_of_the_input_that_it_was_called_with(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Attention()
    first, second = torch.randn(1, 3, 48), torch.randn(1, 3, 48)
    expected = [model.q_proj(first), model.k_proj(second), model.q_proj(second), model.v_proj(second)]
    pack_linears(model)
    got = [model.q_proj(first), model.k_proj(second), model.q_proj(second), model.v_proj(second)]
    for part, wanted in zip(got, expected, strict=True):
        assert_same(part, wanted)


@torch.inference_mode()
def test_a_merge_multiplies_once_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Attention()
    pack_linears(model)
    num_products = 0
    multiply = PackedLinear.forward

    def count(self: PackedLinear, x: Tensor) -> Tensor:
        nonlocal num_products
        num_products += 1
        return multiply(self, x)

    monkeypatch.setattr(PackedLinear, "forward", count)
    x = torch.randn(1, 3, 48)
    num_references = sys.getrefcount(x)
    model(x)
    assert num_products == 2, "the projections together, and o_proj"
    assert sys.getrefcount(x) == num_references


def test_weights_that_are_shared_stay_as_they_are() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(32, 48), "head": nn.Linear(48, 32, bias=False)})
    embedding, head = model["embedding"], model["head"]
    assert isinstance(embedding, nn.Embedding)
    assert isinstance(head, nn.Linear)
    head.weight = embedding.weight
    assert pack_linears(model, keep=[embedding.weight]) == 0
    assert model["head"] is head


def test_layers_of_another_kind_stay_as_they_are() -> None:
    class Own(nn.Linear):
        """Computes something of its own."""

    model = nn.ModuleList([Own(48, 48), nn.Linear(48, 48, dtype=torch.float32)])
    before = list(model)
    assert pack_linears(model) == 0
    assert list(model) == before


def test_without_the_operators_nothing_is_packed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(packed_linear.PackedLinear, "__init__", refuse)
    assert not can_pack(torch.device("cpu"), torch.bfloat16)
    assert "no such operator" in caplog.text


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.bfloat16), ("cpu", torch.float32)])
def test_packing_is_for_bfloat16_on_a_cpu(device: str, dtype: torch.dtype) -> None:
    assert not can_pack(torch.device(device), dtype)
