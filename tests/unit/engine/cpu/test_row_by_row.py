"""Deterministic mode's arithmetic: products and functions whose numbers know nothing of other rows, to the last bit."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orcinus.engine.cpu.row_by_row import Multiply, RowByRow
from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import INSTRUCTION_SETS, Library, load_library
from tests.effort import scaled

CPU = torch.device("cpu")
BEST = load_library()
LEVELS: list[int | None] = [None, *range(0 if BEST is None else INSTRUCTION_SETS.index(BEST.instruction_set) + 1)]
NAMES = ["torch", *INSTRUCTION_SETS][: len(LEVELS)]
each_level = pytest.mark.parametrize("level", LEVELS, ids=NAMES)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


def library_of(level: int | None) -> Library | None:
    """None for torch's own operations."""
    return None if level is None else Library(library_path(), level)


def normal(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@each_level
@settings(max_examples=scaled(60))
@given(
    count=st.integers(0, 14) | st.integers(90, 200),
    width=st.integers(1, 130),
    columns=st.integers(1, 140),
    dtype=DTYPES,
    is_transposed=st.booleans(),
    has_bias=st.booleans(),
)
def test_products_are_what_the_definition_says_row_by_row(
    level: int | None, count: int, width: int, columns: int, dtype: torch.dtype, is_transposed: bool, has_bias: bool
) -> None:
    x, bias = normal(count, width, dtype=dtype), normal(columns, seed=2, dtype=dtype) if has_bias else None
    weight = normal(columns, width, seed=1, dtype=dtype).t() if is_transposed else normal(width, columns, dtype=dtype)
    multiply = Multiply(library_of(level))
    product = multiply(x, weight, bias)
    exact = x.double() @ weight.double() + (0 if bias is None else bias.double())
    torch.testing.assert_close(
        product.double(),
        exact,
        rtol=0.02 if dtype is torch.bfloat16 else 1e-4,
        atol=0.1 if dtype is torch.bfloat16 else 1e-4,
    )
    for i in range(0, count, 7):
        assert torch.equal(multiply(x[i : i + 1], weight, bias), product[i : i + 1])
    assert torch.equal(multiply(x[count // 3 :], weight, bias), product[count // 3 :])


@pytest.mark.parametrize("level", LEVELS[1:], ids=NAMES[1:])
def test_products_are_the_same_however_many_threads_share_them(level: int) -> None:
    library = Library(library_path(), level)
    x, weight = normal(130, 300), normal(500, 300, seed=1).t()
    alone = Multiply(library)(x, weight)
    library.use_threads(3, own=True)
    assert torch.equal(Multiply(library)(x, weight), alone)


def test_rows_may_be_strided_and_weights_too() -> None:
    multiply, x, weight = Multiply(load_library()), normal(9, 64), normal(64, 40)
    expected = multiply(x[:, :32].contiguous(), weight[:32])
    assert torch.equal(multiply(x[:, :32], weight[:32]), expected)
    torch.testing.assert_close(multiply(x.t().contiguous().t()[:, :32], weight[:32]), expected)
    torch.testing.assert_close(
        multiply(x[:, :32], weight.repeat(1, 2)[:32, ::2]),
        multiply(x[:, :32], weight.repeat(1, 2)[:32, ::2].contiguous()),
    )


def of(x: Tensor, *size: int, seed: int = 1) -> Tensor:
    """A weight of the same type."""
    return normal(*size, seed=seed, dtype=x.dtype)


def in_two_groups(x: Tensor) -> Tensor:
    """The first rows by one weight, all others by another."""
    weights, ends = of(x, 2, 48, 64), torch.tensor([min(len(x), 4), len(x)], dtype=torch.int32)
    return F.grouped_mm(x, weights, offs=ends)


# What models call, on (rows, 48). Each is a function of rows.
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: F.linear(x, of(x, 70, 48), of(x, 70, seed=2)),
    "linear of three dimensions": lambda x: F.linear(x.unsqueeze(0), of(x, 70, 48))[0],
    "matmul": lambda x: x @ of(x, 48, 70),
    "addmm": lambda x: torch.addmm(of(x, 70, seed=2), x, of(x, 48, 70)),
    "addmm in parts": lambda x: torch.addmm(of(x, 1, 70, seed=2), x, of(x, 48, 70), beta=0.5, alpha=2),
    "einsum": lambda x: torch.einsum("nd,ed->ne", x, of(x, 70, 48)),
    "bmm": lambda x: torch.bmm(x.unsqueeze(1), of(x, 48, 70).expand(len(x), 48, 70)).squeeze(1),
    "baddbmm": lambda x: torch.baddbmm(of(x, 1, 1, 70), x.unsqueeze(1), of(x, 48, 70).expand(len(x), 48, 70)).squeeze(
        1
    ),
    "mv": lambda x: x @ of(x, 48),
    "gelu": F.gelu,
    "gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid of one column": lambda x: torch.sigmoid(x[:, :1]),
    "tanh of some columns": lambda x: torch.tanh(x[:, 3:40]),
    "exp in place": lambda x: x[:, :1].clone().exp_(),
    "cosine": lambda x: torch.cos(x * 1e4),
    "power": lambda x: x.abs().pow(1.7),
    "softmax": lambda x: torch.softmax(x, dim=-1),
    "layer norm": lambda x: F.layer_norm(x, (48,), of(x, 48)),
    "root of the mean square": lambda x: torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * x,
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the mode leaves torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("library", [load_library(), None], ids=["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_row_of_an_operation_depends_on_the_others(name: str, dtype: torch.dtype, library: Library | None) -> None:
    x, mode = 3 * normal(37, 48, dtype=dtype), RowByRow(library)

    def computed(rows: Tensor) -> Tensor:
        with torch.inference_mode(), mode:
            return OPERATIONS[name](rows)

    whole = computed(x)
    torch.testing.assert_close(whole, OPERATIONS[name](x), rtol=0.05, atol=0.05)
    for first, end in ((0, 1), (3, 4), (36, 37), (0, 16), (1, 30), (2, 37)):
        assert torch.equal(computed(x[first:end])[max(0, 4 - first) :], whole[max(4, first) : end])


@pytest.mark.usefixtures("one_thread")
def test_of_groups_each_has_its_own_weight_whatever_the_others_hold() -> None:
    x, mode = normal(37, 48), RowByRow(load_library())
    with torch.inference_mode(), mode:
        whole, first = in_two_groups(x), in_two_groups(x[:9])
    torch.testing.assert_close(whole, in_two_groups(x))
    assert torch.equal(first, whole[:9])
