"""The native kernels of recurrent layers: their numbers, and the same bits for a token in any chunk and any batch."""

from collections.abc import Callable, Sequence
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import INSTRUCTION_SETS, Library, load_library
from orcinus.engine.recurrent.native_scans import NativeScans, can_convolve, can_run_delta_rule, can_scan
from tests.unit.engine.kernels.recurrent_layers import (
    EPS,
    Inputs,
    Layer,
    Segments,
    convolution,
    delta_rule,
    joined,
    mamba2,
    selective,
)

BEST = load_library()
# Beyond AVX-512 there is nothing that these kernels use.
LEVELS = range(0 if BEST is None else min(INSTRUCTION_SETS.index(BEST.instruction_set), 2) + 1)
DTYPES = (torch.float32, torch.bfloat16)

pytestmark = pytest.mark.skipif(BEST is None, reason="there is no native kernel here")

LAYERS: dict[str, Callable[..., Layer]] = {
    "convolution": partial(convolution, channels=96, taps=4, has_bias=False, activation="silu"),
    "biased convolution of odd channels": partial(convolution, channels=77, taps=3, has_bias=True, activation=None),
    "narrow convolution of many taps": partial(convolution, channels=5, taps=8, has_bias=True, activation="silu"),
    "delta rule": partial(delta_rule, key_heads=2, heads=4, key_dim=128, value_dim=128),
    "delta rule of small heads": partial(delta_rule, key_heads=3, heads=3, key_dim=8, value_dim=8),
    "delta rule of longer values": partial(delta_rule, key_heads=1, heads=2, key_dim=96, value_dim=176),
    "delta rule of longer keys": partial(delta_rule, key_heads=2, heads=2, key_dim=64, value_dim=24),
    "delta rule of odd heads": partial(delta_rule, key_heads=1, heads=1, key_dim=19, value_dim=75, has_float_beta=True),
    "delta rule of the longest keys": partial(delta_rule, key_heads=1, heads=2, key_dim=512, value_dim=40),
    "delta rule without a norm": partial(delta_rule, key_heads=2, heads=2, key_dim=32, value_dim=32, normalized=False),
    "delta attention": partial(delta_rule, key_heads=2, heads=2, key_dim=64, value_dim=96, by_channel=True),
    "delta attention of odd heads": partial(
        delta_rule, key_heads=1, heads=2, key_dim=21, value_dim=16, by_channel=True
    ),
    "mamba-2": partial(mamba2, heads=4, head_dim=64, groups=2, state_dim=128),
    "mamba-2 of odd heads": partial(mamba2, heads=3, head_dim=35, groups=1, state_dim=24, has_d=False),
    "mamba-2 of bounded steps": partial(mamba2, heads=2, head_dim=8, groups=1, state_dim=256, dt_limit=(0.3, 1.1)),
    "mamba": partial(selective, channels=80, state_dim=16),
    "mamba of odd sizes": partial(selective, channels=37, state_dim=9, has_z=False),
    "mamba of large states": partial(selective, channels=20, state_dim=40, by_channel=True),
}


@cache
def scans(level: int, threads: int = 1) -> NativeScans:
    library = Library(library_path(), level)
    library.use_threads(threads, own=True)
    return NativeScans(library)


def alone(layer: Layer, native: NativeScans, cuts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The outputs of a sequence computed up to each of these positions in turn, and its state then."""
    states, parts = layer.states(3), []
    for first, end in zip([0, *cuts], cuts, strict=False):
        segments = Segments.of([end - first], [1], [first == 0])
        parts.append(layer.run(native, layer.cut(first, end), states, segments))
    return torch.cat(parts), states[1]


def assert_near(found: Tensor, expected: Tensor, error: Tensor | float) -> None:
    difference = (found.double() - expected).abs()
    assert bool((difference <= error).all()), f"{float((difference - error).max())} more than there may be"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 7, 50])
@pytest.mark.parametrize("name", LAYERS)
def test_a_sequence_is_computed_as_the_definition_says(name: str, length: int, dtype: torch.dtype, level: int) -> None:
    layer = LAYERS[name](dtype, length=length)
    out, state = alone(layer, scans(level), [length])
    exact = layer.exact(layer.inputs, torch.zeros(layer.state_shape, dtype=layer.state_dtype))
    assert_near(out, exact.out, exact.out_error)
    assert_near(state, exact.state, exact.state_error)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_sequence_goes_on_from_the_state_in_its_slot(name: str, dtype: torch.dtype, level: int) -> None:
    layer = LAYERS[name](dtype, length=3)
    states = layer.states(2)
    states[1] = torch.randn(layer.state_shape, generator=torch.Generator().manual_seed(1))
    exact = layer.exact(layer.inputs, states[1].clone())
    out = layer.run(scans(level), layer.inputs, states, Segments.of([3], [1], [False]))
    assert_near(out, exact.out, exact.out_error)
    assert_near(states[1], exact.state, exact.state_error)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_token_has_the_same_bits_in_any_chunk(name: str, dtype: torch.dtype, level: int) -> None:
    layer = LAYERS[name](dtype, length=40)
    whole = alone(layer, scans(level), [40])
    for cuts in (range(1, 41), [16, 40], [3, 4, 21, 39, 40]):
        parts = alone(layer, scans(level), cuts)
        assert torch.equal(parts[0], whole[0])
        assert torch.equal(parts[1], whole[1])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_sequence_has_the_same_bits_in_any_batch(name: str, dtype: torch.dtype, threads: int, level: int) -> None:
    lengths, slots, is_new = [1, 1, 19, 5], [4, 0, 5, 2], [False, True, True, False]
    layer = LAYERS[name](dtype, length=sum(lengths))
    states = layer.states(6, fill=0.5)
    before = states.clone()
    out = layer.run(scans(level, threads), layer.inputs, states, Segments.of(lengths, slots, is_new))
    for index, part in enumerate(torch.split(out, lengths)):
        by_itself, first = before.clone(), sum(lengths[:index])
        segments = Segments.of([lengths[index]], [slots[index]], [is_new[index]])
        inputs = layer.cut(first, first + lengths[index])
        assert torch.equal(layer.run(scans(level), inputs, by_itself, segments), part)
        assert torch.equal(by_itself[slots[index]], states[slots[index]])
    assert torch.equal(states[[1, 3]], before[[1, 3]])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_drafts_leave_a_state_before_them_and_one_behind_them(
    name: str, dtype: torch.dtype, threads: int, level: int
) -> None:
    """Of two sequences, one of which begins; beside them is one without drafts."""
    native = scans(level, threads)
    long, short, plain = (LAYERS[name](dtype, length=length, seed=7) for length in (21, 12, 9))
    _, before_long = alone(long, scans(level), [18])
    whole_out, behind_long = alone(long, scans(level), [21])
    _, before_short = alone(short, scans(level), [2])
    short_out, behind_short = alone(short, scans(level), [12])
    plain_out, plain_end = alone(plain, scans(level), [9])
    states = long.states(8)
    long.run(native, long.cut(0, 16), states, Segments.of([16], [6], [True]))
    step = joined([long.cut(16, 21), plain.cut(0, 9), short.cut(0, 12)])
    segments = Segments.of([2, 3, 9, 2, 10], [6, -1 - 2, 5, 1, -1 - 3], [False, False, True, True, False])
    out = long.run(native, step, states, segments)
    assert torch.equal(out[:5], whole_out[16:])
    assert torch.equal(out[5:14], plain_out)
    assert torch.equal(out[14:], short_out)
    for slot, state in {6: before_long, 2: behind_long, 5: plain_end, 1: before_short, 3: behind_short}.items():
        assert torch.equal(states[slot], state)
    assert bool(states[[0, 4, 7]].isnan().all())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", LAYERS)
def test_numbers_that_are_not_finite_stay_in_their_sequence(name: str, level: int) -> None:
    layer = LAYERS[name](torch.float32, length=12)
    clean = alone(layer, scans(level), [12])
    states = layer.states(3)  # of NaN
    broken = {key: torch.full_like(tensor, torch.nan) for key, tensor in layer.inputs.items()}
    inputs = joined([broken, layer.inputs, broken])
    out = layer.run(scans(level), inputs, states, Segments.of([12, 12, 12], [0, 1, 2], [True, True, False]))
    assert torch.equal(out[12:24], clean[0])
    assert torch.equal(states[1], clean[1])
    assert bool(out[:12].isnan().all())
    assert bool(out[24:].isnan().all())


@pytest.mark.parametrize("level", LEVELS)
def test_memory_between_the_states_of_slots_is_left_alone(level: int) -> None:
    for make in LAYERS.values():
        layer = make(torch.float32, length=5)
        rows = torch.full((3, 64 + torch.Size(layer.state_shape).numel()), 7.0)
        states = rows[:, 32:-32].view(3, *layer.state_shape)
        layer.run(scans(level), joined([layer.inputs] * 2), states, Segments.of([5, 5], [2, 0], [True, True]))
        assert bool((rows[:, :32] == 7).all())
        assert bool((rows[:, -32:] == 7).all())
        assert bool((rows[1] == 7).all())


def gate(level: int, dt: Tensor, a: Tensor, x: Tensor, state: Tensor, *, has_softplus: bool) -> Tensor:
    """One token of channels with states of one number, of which each is asked for."""
    states, one = state.clone().view(1, -1, 1), torch.ones(1, 1, 1)
    out = scans(level).selective_scan(
        x.view(1, -1, 1),
        dt.view(1, -1, 1),
        a=a.view(-1, 1),
        b=one,
        c=one,
        d=None,
        z=None,
        has_softplus=has_softplus,
        states=states,
        segments=Segments.of([1], [0], [False]),
    )
    return out[0, :, 0]


@pytest.mark.parametrize("level", LEVELS)
def test_softplus_is_good_to_a_few_units_in_the_last_place(level: int) -> None:
    dt = torch.cat([torch.linspace(-80, 80, 10_000), torch.linspace(-1, 1, 1000), torch.tensor([0.0, 1000.0])])
    zeros, ones = torch.zeros_like(dt), torch.ones_like(dt)
    found = gate(level, dt, -ones, ones, zeros, has_softplus=True)
    exact = torch.log1p(dt.double().exp()).where(dt < 40, dt.double())
    assert_near(found, exact, 8 * EPS * exact)


@pytest.mark.parametrize("level", LEVELS)
def test_decays_are_good_to_a_few_units_in_the_last_place(level: int) -> None:
    dt = torch.linspace(0, 86, 10_000)
    ones = torch.ones_like(dt)
    exact = (-dt.double()).exp()
    assert_near(gate(level, dt, -ones, 0 * ones, ones, has_softplus=False), exact, 8 * EPS * exact)


@pytest.mark.parametrize("level", LEVELS)
def test_decays_beyond_float32_are_nothing_or_infinite(level: int) -> None:
    rates = torch.tensor([-1000.0, -torch.inf, 89.0, 1000.0, torch.inf, torch.nan])
    ones = torch.ones(6)
    found = gate(level, ones, rates, 0 * ones, ones, has_softplus=False)
    assert torch.equal(
        found.nan_to_num(-1.0), torch.tensor([0.0, 0.0, torch.inf, torch.inf, torch.inf, -1.0]).nan_to_num(-1.0)
    )


@pytest.mark.parametrize("level", LEVELS)
def test_convolution_in_bfloat16_rounds_as_torch_does(level: int) -> None:
    """But where the order of a sum in float32 decides, which is one in thousands."""
    layer = convolution(torch.bfloat16, length=200, channels=64, taps=4, has_bias=False, activation="silu")
    out, _ = alone(layer, scans(level), [200])
    weight: Tensor = layer.shared["weight"]
    inputs: Inputs = layer.inputs
    theirs = F.silu(F.conv1d(inputs["x"].t().unsqueeze(0), weight.unsqueeze(1), padding=3, groups=64)[0, :, :200]).t()
    assert float((out != theirs).double().mean()) < 0.002


def test_what_is_beyond_the_kernels_is_said_to_be() -> None:
    half = torch.bfloat16
    assert can_convolve(half, torch.zeros(2, 8).bfloat16(), "silu")
    assert not can_convolve(half, torch.zeros(2, 9).bfloat16(), "silu")
    assert not can_convolve(half, torch.zeros(2, 4).bfloat16(), "gelu")
    assert not can_convolve(half, torch.zeros(2, 4), None)
    assert not can_convolve(torch.float16, torch.zeros(2, 4).half(), None)
    assert [can_run_delta_rule(half, key_dim) for key_dim in (512, 513)] == [True, False]
    assert [can_scan(half, state_dim) for state_dim in (256, 257)] == [True, False]
    assert not can_run_delta_rule(torch.float16, 64)
    assert not can_scan(torch.float64, 64)
