"""Experts in groups: each row by its experts' own weights, whatever the others are."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.moe import use_experts_implementation

from orcinus.engine.cpu.grouped_weight import INT4, INT8, GroupForm
from orcinus.engine.cpu.native_experts import NativeExperts, can_replace
from orcinus.engine.cpu.native_linear import NativeLinear
from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import KERNEL_CHOICES, Library, load_library
from tests.unit.engine.cpu.grouped_forms import FORMS, Numbers, random_numbers

pytestmark = pytest.mark.skipif(load_library() is None, reason="there is no library here")

EXPERTS, HIDDEN, WIDTH = 5, 64, 96


class _Experts(nn.Module):
    """Experts as transformers writes them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(EXPERTS, 2 * WIDTH, HIDDEN))
        self.down_proj = nn.Parameter(torch.zeros(EXPERTS, HIDDEN, WIDTH))
        self.act_fn = functional.silu if config is None else config

    def forward(self, *_: Any) -> Any:
        raise NotImplementedError


class _Clamped(_Experts):
    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up[..., ::2], gate_up[..., 1::2]
        return (up.clamp(-1, 1) + 1) * gate.clamp(max=1) * torch.sigmoid(gate * 1.7)


SiluExperts: Any = use_experts_implementation(_Experts)
ClampedExperts: Any = use_experts_implementation(is_concatenated=False, has_bias=True)(_Clamped)


def library_of(kernels: str) -> Library:
    library = Library(library_path())
    library.use_threads(2, own=True)
    library.use_kernels(kernels)
    return library


def weights_of(forms: tuple[GroupForm, GroupForm, GroupForm]) -> list[Numbers]:
    sizes = ((EXPERTS * WIDTH, HIDDEN), (EXPERTS * WIDTH, HIDDEN), (EXPERTS * HIDDEN, WIDTH))
    return [random_numbers(form, *size, seed=i) for i, (form, size) in enumerate(zip(forms, sizes, strict=True))]


def random_input(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, two experts of each, the last of which nobody chooses, and their weights."""
    generator = torch.Generator().manual_seed(num_tokens)
    rows = torch.randn(num_tokens, HIDDEN, generator=generator).bfloat16() * 0.2
    choices = torch.rand(num_tokens, EXPERTS - 1, generator=generator).topk(2).indices
    return rows, choices, torch.rand(num_tokens, 2, generator=generator).bfloat16()


def one_by_one(
    module: Any, library: Library, forms: Any, numbers: list[Numbers], biases: list[Any], given: Any
) -> Tensor:
    """What layers of each expert by itself give, with the module's own gate between them."""
    rows, choices, factors = given
    outputs = []
    for token, row in enumerate(rows):
        total = torch.zeros(HIDDEN)
        for expert, factor in zip(choices[token].tolist(), factors[token], strict=True):

            def layer(i: int, x: Tensor, expert: int = expert) -> Tensor:
                size = numbers[i].rows.shape[0] // EXPERTS
                part = slice(expert * size, (expert + 1) * size)
                bias = None if biases[i] is None else biases[i][part]
                weight: Any = numbers[i].rows.part(part.start, part.stop)
                product: Tensor = NativeLinear(library, forms[i], [weight], [bias])(x)
                return product

            gate, up = layer(0, row[None]), layer(1, row[None])
            both = torch.cat([gate, up], -1) if module.is_concatenated else torch.stack([gate, up], -1).flatten(1)
            total += layer(2, module._apply_gate(both))[0].float() * factor.float()
        outputs.append(total)
    return torch.stack(outputs).bfloat16()


@pytest.mark.parametrize("kernels", [*KERNEL_CHOICES])
@pytest.mark.parametrize("name", FORMS)
def test_experts_give_what_their_layers_do_by_themselves(name: str, kernels: str) -> None:
    """To the last bit, with a gate of the model's own."""
    library, forms = library_of(kernels), (FORMS[name], FORMS[name], INT8)
    numbers, module = weights_of(forms), ClampedExperts(None)
    biases = [torch.randn(weight.rows.shape[0]) for weight in numbers]
    assert can_replace(module)
    native = NativeExperts(library, module, [(f, n.rows) for f, n in zip(forms, numbers, strict=True)], biases)
    given = random_input(7)
    assert torch.equal(native(*given), one_by_one(module, library, forms, numbers, biases, given))
    assert list(native.parameters()) == []


def test_gate_and_up_may_have_forms_of_their_own() -> None:
    library, forms = library_of("amx"), (INT4, INT8, FORMS["exponents"])
    numbers, module = weights_of(forms), SiluExperts(None)
    native = NativeExperts(library, module, [(f, n.rows) for f, n in zip(forms, numbers, strict=True)], [None] * 3)
    given = random_input(7)
    assert torch.equal(native(*given), one_by_one(module, library, forms, numbers, [None] * 3, given))
    assert native.bytes_of_weights == [weight.nbytes for weight in (*native._first, native._down)]


@pytest.mark.parametrize(("activation", "is_fused"), [(functional.silu, True), (functional.gelu, False)])
def test_gate_is_fused_where_it_is_that_of_the_kernels(activation: Any, is_fused: bool) -> None:
    """With one rounding less."""
    library, forms = library_of("amx"), (INT4, INT4, INT4)
    numbers, module = weights_of(forms), SiluExperts(activation)
    native = NativeExperts(library, module, [(f, n.rows) for f, n in zip(forms, numbers, strict=True)], [None] * 3)
    assert native._is_fused is is_fused
    given = random_input(7)
    wanted = one_by_one(module, library, forms, numbers, [None] * 3, given).float()
    assert float((native(*given).float() - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("kernels", ["avx2", "amx"])
def test_rows_do_not_depend_on_what_shares_the_step(kernels: str) -> None:
    """Experts get more rows than are multiplied at once, and of some steps none."""
    library, forms = library_of(kernels), (INT4, INT4, INT8)
    numbers = weights_of(forms)
    weights = [(form, part.rows) for form, part in zip(forms, numbers, strict=True)]
    native = NativeExperts(library, SiluExperts(None), weights, [None] * 3)
    given = random_input(1200)
    together = native(*given)
    for first, end in ((0, 1), (5, 40), (1199, 1200)):
        assert torch.equal(native(*(part[first:end] for part in given)), together[first:end])


def test_other_modules_are_left_alone() -> None:
    other = nn.Module()
    other.gate_up_proj = other.down_proj = nn.Parameter(torch.zeros(EXPERTS, 2 * WIDTH, HIDDEN))
    assert not can_replace(other)
    assert not can_replace(nn.Linear(2, 2))
