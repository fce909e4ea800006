"""Lengths of prompts and outputs, and gaps between arrivals."""

import argparse
import itertools
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.server.load.arrivals import arrival_times
from orcinus.server.load.lengths import Lengths, parse_lengths


def draws(text: str, count: int = 4000) -> list[int]:
    rng, lengths = random.Random(1), parse_lengths(text)
    return [lengths.draw(rng) for _ in range(count)]


def test_a_fixed_length_is_always_the_same() -> None:
    assert set(draws("128")) == {128}


def test_uniform_lengths_reach_both_ends() -> None:
    drawn = draws("uniform:3..9")
    assert set(drawn) == set(range(3, 10))
    assert statistics.fmean(drawn) == pytest.approx(6, abs=0.2)


def test_exponential_lengths_have_their_mean_and_are_clipped() -> None:
    drawn = draws("exponential:64,1..100000")
    assert statistics.fmean(drawn) == pytest.approx(64, rel=0.1)
    assert statistics.median(drawn) == pytest.approx(44, rel=0.15)
    assert {min(draws("exponential:64,8..256")), max(draws("exponential:64,8..256"))} == {8, 256}


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(0, 500), st.floats(0.5, 1000), st.integers())
def test_no_length_is_out_of_its_bounds(shortest: int, more: int, mean: float, seed: int) -> None:
    lengths = Lengths("", shortest, shortest + more, mean)
    assert shortest <= lengths.draw(random.Random(seed)) <= shortest + more


@pytest.mark.parametrize(
    "text",
    ["", "0", "-4", "1.5", "٣", "uniform:8..4", "uniform:0..4", "uniform:4", "exponential:64", "exponential:0,1..2"],
)
def test_what_is_no_length_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=repr(text)):
        parse_lengths(text)


def test_without_a_rate_all_arrive_at_once() -> None:
    assert arrival_times(3, float("inf"), 1.0, random.Random(0)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_of_the_rate_and_the_spread_of_the_burstiness(burstiness: float) -> None:
    times = arrival_times(20_001, 5.0, burstiness, random.Random(2))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert statistics.fmean(gaps) == pytest.approx(1 / 5, rel=0.05)
    assert statistics.pstdev(gaps) * 5 == pytest.approx(burstiness**-0.5, rel=0.05)


def test_arrivals_are_those_of_the_seed() -> None:
    first, again, other = (arrival_times(9, 2.0, 1.0, random.Random(seed)) for seed in (3, 3, 4))
    assert first == again != other
