"""Draws from distributions that are known, truncation, and the random number of a token."""

from typing import Any

import numpy as np
import pytest
import torch

from orcinus.engine.sampling import native
from orcinus.engine.sampling.draw import (
    draw,
    draw_parameters,
    drop_below_,
    first_past,
    invert_cdf,
    thresholds_by_bits,
    thresholds_by_candidates,
    truncate_,
    uniforms,
)
from orcinus.engine.sampling.native import sample_rows
from orcinus.engine.sampling_params import SamplingParams


def frequencies(probs: torch.Tensor, num_draws: int = 20_000, way: str = "torch", **params: Any) -> torch.Tensor:
    """Return how often each token came, over as many positions of one seed."""
    logits = probs.log().expand(num_draws, -1)
    sampling = SamplingParams(**params)
    parameters = np.array([draw_parameters(sampling)] * num_draws, dtype=np.float32)
    numbers = uniforms([7] * num_draws, range(num_draws))
    library = native.sampling_library(logits) if way == "native" else None
    tokens = (
        draw(logits, parameters, numbers) if library is None else sample_rows(library, logits, parameters, numbers)[0]
    )
    return torch.bincount(tokens, minlength=probs.shape[-1]) / num_draws


def chi_square(observed: torch.Tensor, expected: torch.Tensor, num_draws: int) -> float:
    kept = expected > 0
    assert bool((observed[~kept] == 0).all())
    difference = (observed[kept] - expected[kept]) * num_draws
    return float((difference**2 / (expected[kept] * num_draws)).sum())


PROBS = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.03, 0.01])
# The 99.9th percentile of chi-square with 6 degrees of freedom.
CRITICAL = 22.5


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, PROBS),
        ({"temperature": 0.5}, PROBS**2 / (PROBS**2).sum()),
        ({"temperature": 2.0}, PROBS**0.5 / (PROBS**0.5).sum()),
        ({"top_k": 2}, torch.tensor([0.4, 0.25, 0, 0, 0, 0, 0]) / 0.65),
        ({"top_p": 0.6}, torch.tensor([0.4, 0.25, 0, 0, 0, 0, 0]) / 0.65),
        ({"top_p": 0.7}, torch.tensor([0.4, 0.25, 0.15, 0, 0, 0, 0]) / 0.8),
        ({"top_p": 0.01}, torch.tensor([1.0, 0, 0, 0, 0, 0, 0])),
        ({"min_p": 0.3}, torch.tensor([0.4, 0.25, 0.15, 0, 0, 0, 0]) / 0.8),
        # top_p counts what top_k left: of 0.4 + 0.25 + 0.15, half is reached by the first alone.
        ({"top_k": 3, "top_p": 0.5}, torch.tensor([1.0, 0, 0, 0, 0, 0, 0])),
        ({"top_k": 4, "min_p": 0.5}, torch.tensor([0.4, 0.25, 0, 0, 0, 0, 0]) / 0.65),
    ],
)
def test_draws_follow_the_distribution(way: str, params: dict[str, Any], expected: torch.Tensor) -> None:
    observed = frequencies(PROBS, way=way, **params)
    assert chi_square(observed, expected, 20_000) < CRITICAL


def test_chi_square_notices_a_slightly_wrong_distribution() -> None:
    assert chi_square(frequencies(PROBS, temperature=1.1), PROBS, 20_000) > CRITICAL


def test_uniforms_are_uniform_and_uncorrelated_over_positions_and_seeds() -> None:
    for values in (uniforms([3] * 10_000, range(10_000)), uniforms(range(10_000), [3] * 10_000)):
        counts = np.bincount((values * 20).astype(int), minlength=20)
        assert ((counts - 500) ** 2 / 500).sum() < 45.3  # 99.9th percentile, 19 degrees of freedom
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.04
        assert values.min() >= 0
        assert values.max() < 1


def test_uniforms_depend_on_nothing_but_seed_and_position() -> None:
    many = uniforms([5, -1, 2**64 - 1, 5], [10, 0, 7, 11])
    assert [uniforms([s], [p])[0] for s, p in ((5, 10), (-1, 0), (2**64 - 1, 7), (5, 11))] == many.tolist()
    assert len(set(many.tolist())) == 4


def test_truncation_by_candidates_equals_truncation_by_sorting() -> None:
    """A flat distribution over a large vocabulary needs more candidates than are looked at first."""
    generator = torch.Generator().manual_seed(1)
    probs = torch.rand(3, 5000, generator=generator)
    top_p = np.array([0.9, 0.1, 1.0], dtype=np.float32)
    top_k = np.array([0, 0, 30])
    kept = truncate_(probs.clone(), top_k, top_p)
    for i, (k, p) in enumerate(zip(top_k.tolist(), top_p.tolist(), strict=True)):
        order = probs[i].argsort(descending=True)[: k or None]
        running = probs[i][order].double().cumsum(0)
        count = int((running < p * running[-1]).sum()) + 1 if p < 1 else len(order)
        assert set(kept[i].nonzero().flatten().tolist()) == set(order[:count].tolist())


@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_the_smallest_probability_kept_is_the_same_by_candidates_and_by_bits(spread: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = spread * torch.randn(40, 3000, generator=generator)
    probs = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    probs[::3] = (probs[::3] * 50).round() / 50  # many equals, and zeros
    probs[:, 2990:] = 0
    limit = torch.tensor([1, 7, 100, 2000, 3000] * 8).unsqueeze(1)
    share = torch.tensor([0.0001, 0.3, 0.9, 0.999, 1.0, 0.5, 0.95, 0.1] * 5, dtype=torch.float32).unsqueeze(1)
    expected = thresholds_by_candidates(probs, limit, share)
    assert thresholds_by_bits(probs, limit, share).tolist() == expected.tolist()


@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_truncation_of_a_large_vocabulary_keeps_what_sorting_says(spread: float) -> None:
    """Peaked and flat, so that the likeliest of the first candidates, of more, and of all are needed."""
    generator = torch.Generator().manual_seed(5)
    top_k = np.array([0, 0, 0, 1, 50, 64, 65, 300, 300, 5000])
    top_p = np.array([0.1, 0.5, 0.999, 1, 1, 0.9, 0.5, 1, 0.3, 0.8], dtype=np.float32)
    probs = (torch.randn(len(top_k), 20_000, generator=generator) * spread).exp()
    kept = truncate_(probs.clone(), top_k, top_p)
    for i, (k, p) in enumerate(zip(top_k.tolist(), top_p.tolist(), strict=True)):
        order = probs[i].argsort(descending=True)[: k or None]
        running = probs[i][order].double().cumsum(0)
        count = int((running < p * running[-1]).sum()) + 1 if p < 1 else len(order)
        assert set(kept[i].nonzero().flatten().tolist()) == set(order[:count].tolist())
        assert torch.equal(kept[i][order[:count]], probs[i][order[:count]])


def test_what_is_dropped_is_below_the_threshold_and_nothing_else() -> None:
    probs = torch.tensor([[0.1, 0.2, 0.3, 0.2], [0.1, 0.2, 0.3, 0.0], [0.1, 0.2, 0.3, 1.0]])
    thresholds = torch.tensor([[0.2], [0.0], [1.0]])
    expected = torch.where(probs >= thresholds, probs, 0.0)
    assert torch.equal(drop_below_(probs.clone(), thresholds), expected)
    assert (expected > 0).sum(dim=1).tolist() == [3, 3, 1]


@pytest.mark.parametrize("vocab_size", [1, 127, 128, 129, 5000])
def test_the_block_and_then_the_token_is_where_the_running_sum_passes(vocab_size: int) -> None:
    probs = torch.rand(200, vocab_size, generator=torch.Generator().manual_seed(2)).double()
    probs[:, 1:][probs[:, 1:] < 0.7] = 0.0
    uniform = torch.rand(200, generator=torch.Generator().manual_seed(3)).double()
    uniform[:2] = torch.tensor([0.0, 1 - 2**-24])
    cdf = probs.cumsum(dim=-1)
    expected = torch.searchsorted(cdf, uniform.unsqueeze(1) * cdf[:, -1:], right=True).squeeze(1)
    assert torch.equal(invert_cdf(probs, uniform), expected)


def test_impossible_tokens_are_never_drawn_whatever_the_random_number() -> None:
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    edge = torch.tensor([0.0, 0.4999999, 0.5, 1 - 2**-24])
    assert invert_cdf(probs.expand(4, -1), edge).tolist() == [1, 1, 3, 3]


def test_a_running_sum_that_grows_by_rounding_draws_no_impossible_token() -> None:
    """Sums of parallel devices are not monotone to the last bit, and grow or shrink where nothing is added."""
    weights = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.5, 0.0, 0.5, 0.0]])
    sums = torch.tensor([[0.5, 0.5000001, 0.9999999, 1.0], [0.5, 0.4999999, 1.0, 0.9999999]])
    for target, expected in ((0.4, [0, 0]), (0.50000004, [2, 2]), (0.99999994, [2, 2]), (1.0, [2, 2])):
        assert first_past(sums, weights, torch.full((2, 1), target)).flatten().tolist() == expected


def test_a_row_without_any_weight_gives_some_token() -> None:
    for weight in (0.0, float("nan")):
        weights = torch.full((1, 4), weight)
        assert first_past(weights.cumsum(1), weights, torch.full((1, 1), 0.5)).tolist() == [[0]]


def test_tokens_as_likely_as_the_last_one_kept_are_kept_too_whatever_shares_the_batch() -> None:
    vocab_size = 4000
    tied = torch.zeros(vocab_size)
    tied[1000:1010] = 2.0
    tied[::2] += 1.0
    flat = torch.zeros(vocab_size)  # needs the whole row sorted, and makes its neighbour's be sorted too
    top_k, top_p = np.array([7, 0]), np.array([1.0, 0.999], dtype=np.float32)
    probs = torch.softmax(torch.stack([tied, flat]), dim=-1)
    alone = truncate_(probs[:1].clone(), top_k[:1], top_p[:1])
    together = truncate_(probs.clone(), top_k, top_p)
    assert torch.equal(alone[0], together[0])
    assert alone[0].nonzero().flatten().tolist() == list(range(1000, 1010))
