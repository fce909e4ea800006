"""The sampler on batches whose tokens are known."""

from typing import Any

import pytest
import torch

from orcinus.engine.sampling.sampler import Sampler
from tests.unit.engine.sampling.rows import EOS, masked, row, sample

pytestmark = pytest.mark.usefixtures("way")


def test_greedy_takes_the_likeliest_token() -> None:
    assert sample([0.0, 1.0, 3.0, 2.0, 0, 0, 0, 0], row(temperature=0)) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_greedy_rows_are_the_same_alone_and_beside_drawn_ones_in_any_dtype(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(4)).to(dtype)
    logits[1, 7] = logits[1, 200] = 90.0  # equals: the first
    logits[2, 3], logits[3] = torch.nan, -torch.inf
    greedy = [row(temperature=0)] * 5
    expected = logits.float().argmax(dim=-1).tolist()
    for rows in (greedy, [*greedy[:4], row()]):
        sampled = Sampler([EOS]).sample(logits.clone(), rows, [1] * 5)
        assert sampled.is_finite == [True, True, False, False, True]
        assert (sampled.token_ids[:2], sampled.token_ids[1]) == (expected[:2], 7)
        assert sampled.has_choice == [True] * 5


def test_top_k_of_one_is_greedy_among_equals() -> None:
    logits = [1.0, 3.0, 3.0, 3.0, 0, 0, 0, 0]
    assert {sample(logits, row(top_k=1, seed=s)) for s in range(20)} == {1}


def test_huge_top_k_is_no_limit() -> None:
    tokens = {sample([1.0] * 8, row(top_k=10**30, seed=s)) for s in range(100)}
    assert tokens == set(range(8))


def test_a_row_is_sampled_alike_alone_and_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3000, generator=generator) * 3
    rows = [
        row(temperature=1.0, seed=1),
        row(temperature=0.7, top_p=0.9, seed=2),
        row(temperature=0),
        row(temperature=1.5, top_k=2000, seed=4),
        row(temperature=1.0, min_p=0.05, top_p=0.999999, seed=5),
        row(logit_bias={17: 4.0}, seed=6),
    ]
    positions = [5, 9, 2, 40, 1, 3]
    sampler = Sampler([EOS])
    together = sampler.sample(logits.clone(), rows, positions).token_ids
    for i in range(6):
        assert sampler.sample(logits[i : i + 1].clone(), [rows[i]], [positions[i]]).token_ids == [together[i]]


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"repetition_penalty": 5e-324}])
def test_numbers_that_are_nothing_in_float32_leave_a_choice(params: dict[str, Any]) -> None:
    made = row(prompt=[3], temperature=5e-324, **params)
    assert sample([0, 0, 1.0, 4.0, -torch.inf, 2.0, 0, 0], made) == 3


def test_broken_row_is_reported_and_leaves_the_others_alone() -> None:
    logits = torch.zeros(4, 8)
    logits[:, 5] = 50.0
    logits[1, 3] = torch.nan
    logits[2, 3] = torch.inf
    rows = [row(seed=1), row(seed=2, top_p=0.5), row(temperature=0), row(seed=4, logprobs=1)]
    sampled = Sampler([EOS]).sample(logits, rows, [1, 1, 1, 1])
    assert sampled.is_finite == [True, False, False, True]
    assert (sampled.token_ids[0], sampled.token_ids[3]) == (5, 5)


def test_minus_infinity_is_a_legal_logit() -> None:
    logits = [float("-inf")] * 8
    logits[6] = 0.0
    sampled = Sampler([EOS]).sample(torch.tensor([logits]), [row(seed=1)], [1])
    assert (sampled.token_ids, sampled.is_finite) == ([6], [True])


def test_a_row_without_a_token_to_choose_is_reported_and_leaves_the_others_alone() -> None:
    rows = [
        masked([]),
        row(temperature=0),
        row(allowed_token_ids=(3,), bad_words_token_ids=((3,),), temperature=0, logprobs=1),
        masked([4], top_p=0.5),
    ]
    sampled = Sampler([EOS]).sample(torch.zeros(4, 8), rows, [1, 1, 1, 1])
    assert sampled.has_choice == [False, True, False, True]
    assert sampled.is_finite == [True] * 4
    assert (sampled.token_ids[1], sampled.token_ids[3]) == (0, 4)
