"""Layers that are packed as one, each by itself, and weights that were packed before."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orcinus.engine.cpu import layer_parts
from orcinus.engine.cpu.grouped_weight import GroupedWeight
from orcinus.engine.cpu.joined_linear import LinearPart, joined_parts
from orcinus.engine.cpu.native_linear import GROUP_FORMS, Kind, NativeLinear, PackedWeight, packed_weight
from orcinus.engine.kernels.library import load_library

LIBRARY: Any = load_library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="there is no library here")
KINDS: list[Kind] = ["int8", "int4", "int8-groups"]
WIDTH = 96


def able(kind: Kind) -> None:
    if kind == "int8" and not LIBRARY.has_plain_linear:
        pytest.skip("these kernels need AVX-512")


def plain(sizes: list[int], seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(size, WIDTH, generator=generator).bfloat16() for size in sizes]
    return weights, [torch.randn(size, generator=generator).bfloat16() for size in sizes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sizes", "alternates"), [([48, 32, 16], False), ([48, 48], True), ([40], False)])
def test_each_part_is_what_its_own_product_is(kind: Kind, sizes: list[int], alternates: bool) -> None:
    """To the last bit: a column's number depends on no other column. In any order of its outputs."""
    able(kind)
    weights, biases = plain(sizes)
    generator = torch.Generator().manual_seed(1)
    orders = [torch.randperm(size, generator=generator) for size in sizes]
    x = torch.randn(5, WIDTH, generator=generator).bfloat16()
    given = [weight[order] for weight, order in zip(weights, orders, strict=True)]
    given_biases = [bias[order] for bias, order in zip(biases, orders, strict=True)]
    packed = packed_weight(LIBRARY, kind, given, given_biases, alternates=alternates)
    linear = NativeLinear.over(LIBRARY, packed, given_biases)
    parts = joined_parts(linear, sizes, orders, alternates=alternates)
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        assert isinstance(part, LinearPart)
        alone = NativeLinear(LIBRARY, kind, [weight], [bias])
        assert (part.in_features, part.out_features) == (WIDTH, weight.shape[0])
        assert torch.equal(part(x), alone(x))
        assert torch.equal(part.weight, alone.weight)
    assert sum(part.packed_bytes for part in parts if isinstance(part, LinearPart)) == packed.nbytes


def test_one_alone_in_its_own_order_is_the_product_itself() -> None:
    linear = nn.Linear(4, 4)
    assert joined_parts(linear, [4], [None]) == [linear]


def test_parts_of_one_input_take_one_product() -> None:
    count = 0

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return super().forward(x)

    first, second = joined_parts(Counted(4, 6), [4, 2], [None, None])
    for x in torch.randn(3, 2, 4).unbind():
        assert first(x).shape == (2, 4)
        assert second(x).shape == (2, 2)
    assert count == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sizes", "alternates"), [([48, 32], False), ([48, 48], True)])
def test_restored_weight_gives_what_it_gave(kind: Kind, sizes: list[int], alternates: bool) -> None:
    able(kind)
    weights, biases = plain(sizes)
    packed = packed_weight(LIBRARY, kind, weights, biases, alternates=alternates)
    tensors = {name: tensor.clone() for name, tensor in packed.tensors.items()}
    shape, own = (sum(sizes), WIDTH), list(zip(sizes, biases, strict=True))
    restored: PackedWeight | GroupedWeight
    if (form := GROUP_FORMS.get(kind)) is not None:
        restored = GroupedWeight.restored(LIBRARY, form, shape, tensors, own, alternates=alternates)
    else:
        restored = PackedWeight.restored(LIBRARY, kind, shape, tensors, own, alternates=alternates)
    x = torch.randn(7, WIDTH).bfloat16()
    first, second = (NativeLinear.over(LIBRARY, weight, biases)(x) for weight in (packed, restored))
    assert torch.equal(first, second)
    assert torch.equal(packed.unpacked(), restored.unpacked())


def test_tensors_of_another_size_are_refused() -> None:
    packed = packed_weight(LIBRARY, "int4", *plain([32]))
    for tensors in ({"panels": packed.tensors["panels"][:-64]}, {"panels": packed.tensors["panels"].view(torch.int8)}):
        with pytest.raises(ValueError, match="no panels of"):
            GroupedWeight.restored(LIBRARY, GROUP_FORMS["int4"], (32, WIDTH), tensors, [(32, None)], alternates=False)


def test_weights_of_8_bits_that_are_packed_by_themselves_become_no_native_mlp() -> None:
    """They would have to be rounded a second time."""
    able("int8")
    weights, _ = plain([96, 96, 96])
    gate, up, down = (NativeLinear(LIBRARY, "int8", [weight], [None]) for weight in weights)
    assert not layer_parts._is_gated(gate, up, down, hidden=WIDTH)
    first, second = joined_parts(
        NativeLinear(LIBRARY, "int4", weights[:2], [None, None]), [96, 96], [None, None], alternates=True
    )
    assert layer_parts._is_gated(first, second, down, hidden=WIDTH)
