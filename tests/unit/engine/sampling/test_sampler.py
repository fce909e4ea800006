"""The sampler on distributions that are known."""

from typing import Any

import numpy as np
import pytest
import torch

from orcinus.engine.grammar.masks import pack_tokens
from orcinus.engine.sampling.sampler import (
    BadWords,
    Sampler,
    SamplingRow,
    apply_penalties,
    draw,
    draw_columns,
    drop_below_,
    invert_cdf,
    penalty_counts,
    thresholds_by_bits,
    thresholds_by_candidates,
    token_logprobs,
    truncate_,
    uniforms,
    unpack_bits,
    unpack_bits_on_device,
)
from orcinus.engine.sampling_params import SamplingParams

EOS = 1


def row(prompt: list[int] | None = None, output: list[int] | None = None, **params: Any) -> SamplingRow:
    sampling = SamplingParams(**{"max_tokens": 100, "seed": 0, **params})
    prompt, output = prompt or [0], output or []
    made = SamplingRow(sampling, sampling.seed or 0, len(prompt))
    made.counts = penalty_counts(sampling, prompt + output, len(prompt))
    if sampling.bad_words_token_ids:
        made.bad_words = BadWords(sampling.bad_words_token_ids, output)
    if sampling.allowed_token_ids:
        made.allowed = pack_tokens(sampling.allowed_token_ids, 8)
    return made


class FakeMatcher:
    """A grammar that allows `token_ids`, is finished after one of them, and takes `leading` for whatever is drawn."""

    def __init__(self, token_ids: list[int], vocab_size: int = 8, leading: int | None = None) -> None:
        self.mask = pack_tokens(token_ids, vocab_size)
        self.error: str | None = None
        self.is_finished = False
        self.is_steered = False
        self._leading = leading

    def fill_mask(self) -> None:
        raise AssertionError("masks are filled before sampling")

    def choose(self, token_id: int) -> int:
        return token_id if self._leading is None else self._leading

    def accept(self, token_id: int) -> None:
        self.is_finished = True

    def give_up(self, reason: str) -> None:
        self.error = reason


def masked(token_ids: list[int], **params: Any) -> SamplingRow:
    made = row(**params)
    made.matcher = FakeMatcher(token_ids)
    return made


def sample(logits: list[float], made: SamplingRow, position: int = 1) -> int:
    return Sampler([EOS]).sample(torch.tensor([logits]), [made], [position]).token_ids[0]


def frequencies(probs: torch.Tensor, num_draws: int = 20_000, **params: Any) -> torch.Tensor:
    """How often each token came, over as many positions of one seed."""
    logits = probs.log().expand(num_draws, -1)
    sampling = SamplingParams(**params)
    columns = np.array([draw_columns(sampling)] * num_draws, dtype=np.float32)
    tokens = draw(logits, columns, uniforms([7] * num_draws, range(num_draws)))
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
def test_draws_follow_the_distribution(params: dict[str, Any], expected: torch.Tensor) -> None:
    observed = frequencies(PROBS, **params)
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


def test_repetition_penalty_weakens_tokens_of_prompt_and_output() -> None:
    made = row(prompt=[2], output=[3], temperature=0, repetition_penalty=2.0)
    assert sample([0, 0, 4.0, 4.0, 2.5, 0, 0, 0], made) == 4
    assert sample([-9.0, -9, -3.0, -3.0, -5, -9, -9, -9], made) == 4  # negative logits are multiplied


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"repetition_penalty": 5e-324}])
def test_numbers_that_are_nothing_in_float32_leave_a_choice(params: dict[str, Any]) -> None:
    made = row(prompt=[3], temperature=5e-324, **params)
    assert sample([0, 0, 1.0, 4.0, -torch.inf, 2.0, 0, 0], made) == 3


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    logits = [0, 0, 3.0, 2.9, 2.8, 0, 0, 0]
    made = row(prompt=[2, 2], output=[3, 3, 4], temperature=0, frequency_penalty=1.0)
    assert sample(logits, made) == 2
    logits[2] = 0
    assert sample(logits, made) == 4  # 2.8 - 1 against 2.9 - 2
    assert sample(logits, row(prompt=[2], output=[3, 3, 4], temperature=0, presence_penalty=1.0)) == 3


def test_penalty_counts_grow_with_what_is_generated() -> None:
    made = row(prompt=[2], temperature=0, frequency_penalty=2.0)
    assert made.counts is not None
    assert sample([0, 0, 0, 1.0, 0.5, 0, 0, 0], made) == 3
    made.counts.add(3)
    assert sample([0, 0, 0, 1.0, 0.5, 0, 0, 0], made) == 4


def test_penalties_are_those_of_their_definition_over_the_whole_vocabulary() -> None:
    rng = np.random.default_rng(0)
    logits, vocab_size = torch.randn(12, 50, generator=torch.Generator().manual_seed(0)), 50
    rows, expected = [], logits.clone()
    for i in range(12):
        prompt, output = (rng.integers(0, vocab_size, size).tolist() for size in (i, 3 * i))
        params = {
            "repetition_penalty": float(rng.choice([1.0, 0.7, 1.5])),
            "frequency_penalty": float(rng.choice([0.0, 0.25, -0.5])),
            "presence_penalty": float(rng.choice([0.0, 1.0, -0.5])),
        }
        made = row(prompt=prompt or [0], output=output[: i // 2], temperature=0, **params)
        for token in output[i // 2 :]:
            made.add(token)
        rows.append(made)
        counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=vocab_size)
        for token in {*(prompt or [0]), *output}:
            value, times = expected[i, token], params["repetition_penalty"]
            value = value / times if value > 0 else value * times
            value -= params["frequency_penalty"] * counts[token] + params["presence_penalty"] * (counts[token] > 0)
            expected[i, token] = value
    assert len({made.counts is None for made in rows}) == 2
    apply_penalties(logits, rows, np.zeros(12, dtype=np.int64))
    torch.testing.assert_close(logits, expected)


def test_logit_bias_forces_and_forbids() -> None:
    logits = [0, 0, 5.0, 4.0, 0, 0, 0, 0]
    assert sample(logits, row(temperature=0, logit_bias={2: -100.0})) == 3
    assert {sample(logits, row(logit_bias={6: 100.0}, seed=s)) for s in range(20)} == {6}


def test_min_tokens_holds_off_what_would_end_the_request() -> None:
    logits = [0, 9.0, 8.0, 7.0, 0, 0, 0, 0]
    made = row(temperature=0, min_tokens=3, stop_token_ids=(2,))
    assert sample(logits, made, position=3) == 3  # two tokens so far
    assert sample(logits, made, position=4) == 1
    ignoring = row(temperature=0, min_tokens=3, stop_token_ids=(2,), ignore_eos=True)
    assert sample(logits, ignoring, position=3) == 1


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


def test_logprobs_are_those_before_temperature_penalties_and_bias() -> None:
    logits = [0.5, 0, 2.0, 1.0, 0, 0, 0, 0]
    expected = torch.log_softmax(torch.tensor(logits), dim=-1)
    made = row(prompt=[2], temperature=0, repetition_penalty=1.5, logit_bias={3: 50.0}, logprobs=2)
    entry = Sampler([EOS]).sample(torch.tensor([logits]), [made], [1]).logprobs[0]
    assert entry is not None
    assert entry.token_id == 3
    assert entry.logprob == pytest.approx(float(expected[3]))
    assert [token for token, _ in entry.top] == [2, 3]
    assert [logprob for _, logprob in entry.top] == pytest.approx([float(expected[2]), float(expected[3])])


def test_only_rows_that_ask_get_logprobs() -> None:
    rows = [row(temperature=0), row(temperature=0, logprobs=0)]
    first, second = Sampler([EOS]).sample(torch.rand(2, 8), rows, [1, 1]).logprobs
    assert first is None
    assert second is not None
    assert second.top == []


def test_token_logprobs_gives_each_row_as_many_as_it_asks_for() -> None:
    table = torch.log_softmax(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), dim=-1)
    few, many = token_logprobs(table, torch.tensor([0, 0]), [1, 3])()
    assert [token for token, _ in few.top] == [2]
    assert [token for token, _ in many.top] == [0, 1, 2]


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


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_mask_leaves_only_its_tokens(temperature: float) -> None:
    logits = [9.0, 0, 8.0, 7.0, 6.5, 0, 0, 10.0]
    drawn = {sample(logits, masked([3, 4], temperature=temperature, seed=seed)) for seed in range(40)}
    assert drawn == ({3} if temperature == 0 else {3, 4})


@pytest.mark.parametrize("vocab_size", [1, 8, 31, 32, 33, 64, 1000])
def test_any_token_of_any_vocabulary_can_be_the_only_one(vocab_size: int) -> None:
    for token_id in {0, vocab_size // 2, vocab_size - 1}:
        made = row()
        made.matcher = FakeMatcher([token_id, vocab_size], vocab_size)  # the last one is the end that no model has
        sampled = Sampler([EOS]).sample(torch.zeros(1, vocab_size), [made], [1])
        assert (sampled.token_ids, sampled.has_choice) == ([token_id], [True])


@pytest.mark.parametrize("num_bits", [1, 31, 32, 33, 64, 1000])
def test_bits_are_unpacked_alike_on_every_device(num_bits: int) -> None:
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (3, num_bits // 32 + 1), dtype=np.int32)
    expected = [[bool(row[i // 32] >> (i % 32) & 1) for i in range(num_bits)] for row in words]
    for unpack in (unpack_bits, unpack_bits_on_device):
        assert unpack(torch.from_numpy(words), num_bits).tolist() == expected


def test_a_mask_holds_whatever_penalties_and_biases_say() -> None:
    params: dict[str, Any] = {"temperature": 0, "presence_penalty": 2.0, "logit_bias": {0: 100, 5: -100}}
    made = row(output=[5, 5], **params)
    made.matcher = FakeMatcher([5])
    assert sample([0.0] * 8, made, 3) == 5


@pytest.mark.parametrize("num_rows", [1, 16])
@pytest.mark.parametrize("count", [0, 1, 5, 300])
def test_of_equally_likely_tokens_those_with_the_lower_ids_are_told(num_rows: int, count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    logprobs = -torch.randint(1, 4, (num_rows, 300), generator=generator).float()
    entries = token_logprobs(logprobs, torch.zeros(num_rows, dtype=torch.int64), [count] * num_rows)()
    best = [sorted((-logprob, token) for token, logprob in enumerate(row))[:count] for row in logprobs.tolist()]
    assert [entry.top for entry in entries] == [[(token, -cost) for cost, token in row] for row in best]


def test_the_token_that_leads_to_the_end_is_taken_and_its_logprob_told() -> None:
    for temperature in (0.0, 1.0):
        made = row(temperature=temperature, logprobs=1)
        made.matcher = FakeMatcher([2, 5], leading=5)
        sampled = Sampler([EOS]).sample(torch.tensor([[0.0, 0, 90.0, 0, 0, 0, 0, 0]]), [made], [1])
        assert sampled.token_ids == [5]
        (entry,) = sampled.logprobs
        assert entry is not None
        assert (entry.token_id, entry.logprob, entry.top[0][0]) == (5, -90.0, 2)


@pytest.mark.parametrize("params", [{"allowed_token_ids": (2,)}, {"bad_words_token_ids": ((5,),)}])
def test_a_token_that_leads_to_the_end_is_left_out_where_another_parameter_rules_it_out(params: Any) -> None:
    made = row(temperature=0, **params)
    made.matcher = FakeMatcher([2, 5], leading=5)
    assert sample([0.0] * 8, made) == 2
    made = row(temperature=0)
    made.matcher = FakeMatcher([2, 5], leading=8)  # the end that no model has
    assert sample([0.0] * 8, made) == 2


def test_a_grammar_is_not_asked_about_a_row_that_failed() -> None:
    made = row(temperature=0)
    made.matcher = FakeMatcher([2, 5], leading=5)
    sampled = Sampler([EOS]).sample(torch.full((1, 8), torch.nan), [made], [1])
    assert sampled.is_finite == [False]
    assert sampled.token_ids != [5]


def test_the_end_that_a_mask_asks_for_comes_even_before_min_tokens() -> None:
    assert sample([0.0] * 8, masked([EOS], temperature=0, min_tokens=5)) == EOS
    assert sample([0.0] * 8, masked([EOS, 6], temperature=0, min_tokens=5)) == 6


def test_allowed_tokens_are_the_only_ones_and_meet_those_of_a_grammar() -> None:
    logits = [9.0, 0, 8.0, 7.0, 1.0, 0, 0, 10.0]
    assert sample(logits, row(temperature=0, allowed_token_ids=(3, 4))) == 3
    assert sample(logits, masked([4, 7], temperature=0, allowed_token_ids=(3, 4))) == 4


def test_the_last_token_of_a_bad_word_is_ruled_out_where_the_others_were_generated() -> None:
    logits = [0.0, 0, 9.0, 8.0, 0, 0, 0, 0]
    params: dict[str, Any] = {"temperature": 0, "bad_words_token_ids": ((5, 6, 2), (3, 3))}
    assert sample(logits, row(output=[5, 6], **params), 3) == 3
    assert sample(logits, row(output=[6], **params), 2) == 2
    assert sample(logits, row(prompt=[5, 6], output=[4], **params), 4) == 2
    made = row(output=[5], **params)
    assert sample(logits, made, 2) == 2
    made.add(6)
    assert sample(logits, made, 3) == 3
    assert sample(logits, row(temperature=0, bad_words_token_ids=((2,),))) == 3


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


def test_logprobs_are_those_before_any_mask() -> None:
    logits = [0.5, 0, 2.0, 1.0, 0, 0, 0, 0]
    expected = torch.log_softmax(torch.tensor(logits), dim=-1)
    made = masked([3], temperature=0, logprobs=1)
    (entry,) = Sampler([EOS]).sample(torch.tensor([logits]), [made], [1]).logprobs
    assert entry is not None
    assert (entry.token_id, entry.top[0][0]) == (3, 2)
    assert entry.logprob == pytest.approx(float(expected[3]))


def test_a_row_takes_its_token_in_wherever_it_is_followed() -> None:
    made = masked([3], presence_penalty=1.0, bad_words_token_ids=((3, 4),))
    was_finished = made.is_finished
    made.add(3)
    assert (was_finished, made.is_finished) == (False, True)
    assert made.counts is not None
    assert (made.counts.token_ids.tolist(), made.counts.counts.tolist()) == ([3], [1])
    assert made.bad_words is not None
    assert made.bad_words.last_tokens() == [4]
    assert not row().is_finished
