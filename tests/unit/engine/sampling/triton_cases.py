"""The Triton sampler held to float64 and to torch, run by `test_triton_sampler` in a process of its own.

Whether kernels are interpreted is settled when Triton is imported. On a GPU the same cases run compiled.
"""

import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from orcinus.engine.sampling import choice, native
from orcinus.engine.sampling.choice import try_out
from orcinus.engine.sampling.history import TokenHistory
from orcinus.engine.sampling.row import SamplingRow
from orcinus.engine.sampling.sampler import SampledRows, Sampler
from orcinus.engine.sampling.triton_sampler import TritonSampler
from orcinus.engine.sampling_params import SamplingParams
from tests.effort import scaled
from tests.unit.engine.sampling.reference import expected_of, is_on_edge
from tests.unit.engine.sampling.rows import EOS, FakeMatcher, row

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [
    pytest.mark.skipif(
        DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
        reason="needs a CUDA device, or TRITON_INTERPRET=1",
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, over NaN and infinities
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TILE = 64


def drawn(logits: Tensor, sampling: SamplingParams, uniforms: Any) -> list[int]:
    """Return the token of one row of logits by each of the random numbers."""
    rows = [SamplingRow(sampling, 0, 1) for _ in uniforms]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orcinus.engine.sampling.triton_sampler.uniforms", lambda seeds, positions: uniforms)
        chosen, _ = TritonSampler(TILE).choose(
            logits.to(DEVICE).expand(len(rows), -1),
            rows,
            np.ones(len(rows), np.int64),
            eos_token_ids=[],
            history=None,
        )
    assert bool(chosen[1:].all())
    token_ids: list[int] = chosen[0].tolist()
    return token_ids


SAMPLING = st.builds(
    SamplingParams,
    temperature=st.sampled_from([1e-3, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([1e-6, 0.3, 0.95, 0.999, 1.0, 1.0]) | st.floats(0.01, 1.0),
    top_k=st.sampled_from([0, 2, 20]) | st.integers(2, 300),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
)


@st.composite
def rows_of_logits(draw_: st.DrawFn) -> Tensor:
    """Make them peaked, flat or full of equals, with impossible tokens or without."""
    width = draw_(st.sampled_from([1, 2, 63, 64, 65, 256]) | st.integers(1, 300))
    rng = np.random.default_rng(draw_(st.integers(0, 2**32 - 1)))
    logits = rng.normal(0, draw_(st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0])), width)
    if draw_(st.booleans()):
        logits = np.round(logits)
    impossible = rng.random(width) < draw_(st.sampled_from([0.0, 0.0, 0.5, 0.99]))
    impossible[rng.integers(width)] = False
    logits[impossible] = -np.inf
    return torch.from_numpy(logits).to(draw_(st.sampled_from(DTYPES)))


@settings(max_examples=scaled(30), deadline=None)
@given(rows_of_logits(), SAMPLING)
def test_what_is_kept_is_drawn_by_its_random_number_and_nothing_else_is(
    logits: Tensor, sampling: SamplingParams
) -> None:
    exact = logits.double().numpy()
    assume(not is_on_edge(exact, sampling))
    expected = expected_of(exact, sampling)
    some = np.unique(np.linspace(0, len(expected.tokens) - 1, 3).astype(int))
    assert drawn(logits, sampling, expected.uniforms[some]) == expected.tokens[some].tolist()
    numbers = np.array([0.0, 0.5, 1 - 2**-24], dtype=np.float32)
    assert all(expected.probs[token] > 0 for token in drawn(logits, sampling, numbers))


@pytest.mark.parametrize("params", [{"top_k": 5}, {"top_k": 20, "top_p": 0.5}, {"top_p": 0.1}], ids=str)
def test_among_nearly_equal_tokens_exactly_those_are_kept_that_should_be(params: dict[str, Any]) -> None:
    logits = torch.from_numpy(np.random.default_rng(4).permutation(130) / 1000).float()
    sampling = SamplingParams(**params)
    expected = expected_of(logits.double().numpy(), sampling).tokens.tolist()
    num_draws = 3 * len(expected)  # about three for each token, so that one more or less shows
    numbers = (np.arange(0.5, num_draws) / num_draws).astype(np.float32)
    assert sorted(set(drawn(logits, sampling, numbers))) == expected


def test_top_p_counts_as_many_tokens_as_top_k_left_where_more_are_equal() -> None:
    """The best token weighs 7.4, and four of ten equals 1 each: 0.7 of that is more than the best one has."""
    logits = torch.full((100,), -3.0)
    logits[50], logits[60:70] = 2.0, 0.0
    for top_p, count in ((0.7, 11), (0.6, 1)):
        sampling = SamplingParams(top_k=5, top_p=top_p)
        expected = expected_of(logits.double().numpy(), sampling)
        assert len(expected.tokens) == count
        assert drawn(logits, sampling, expected.uniforms[-1:]) == expected.tokens[-1:].tolist()


def both(logits: Tensor, rows: list[SamplingRow], positions: Any, history: TokenHistory | None = None) -> SampledRows:
    """Sample by Triton and by torch, which have to agree, and return what came of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "load_library", lambda: None)
        expected = Sampler([EOS]).launch(logits.to(DEVICE, copy=True), rows, positions, history).wait()
        got = Sampler([EOS], TritonSampler(TILE)).launch(logits.to(DEVICE, copy=True), rows, positions, history).wait()
    assert got.is_finite == expected.is_finite
    chosen = zip(got.token_ids, expected.token_ids, got.is_finite, got.has_choice, strict=True)
    assert all(token == other for token, other, is_finite, can_draw in chosen if is_finite and can_draw)
    choices = zip(got.has_choice, expected.has_choice, got.is_finite, strict=True)
    assert all(one == other for one, other, is_finite in choices if is_finite)
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_likeliest_is_the_first_of_the_largest_and_what_is_not_finite_is_told(dtype: torch.dtype) -> None:
    logits = torch.randn(8, 150, generator=torch.Generator().manual_seed(1)).to(dtype)
    logits[0, [7, 140]] = 90.0
    logits[1, [100, 149]] = 90.0
    logits[4, 149], logits[5, 3], logits[6], logits[7] = torch.nan, torch.inf, -torch.inf, 0.0
    for params in ({"temperature": 0}, {"temperature": 0, "logit_bias": {0: 0.0}}, {"top_p": 0.1}):
        sampled = both(logits, [row(**params) for _ in range(8)], [1] * 8)
        assert sampled.is_finite == [True, True, True, True, False, False, False, True]
        if "top_p" not in params:
            assert [sampled.token_ids[i] for i in (0, 1, 7)] == [7, 100, 0]


def test_of_equals_all_are_kept() -> None:
    numbers = (np.arange(0.5, 100, 9) / 100).astype(np.float32)
    for params in ({}, {"top_p": 0.3}, {"top_k": 7}, {"top_k": 7, "top_p": 0.3}):
        assert drawn(torch.zeros(100), SamplingParams(**params), numbers) == list(range(0, 100, 9))


def changed_row(rng: np.random.Generator, vocab_size: int, history: TokenHistory, slot: int) -> tuple[SamplingRow, int]:
    """Make a request with some of all that changes logits, whose last token only the device knows; and its length."""

    def some(count: int) -> list[int]:
        token_ids: list[int] = rng.integers(0, vocab_size, count).tolist()
        return token_ids

    prompt, output = some(6), some(9)
    params: dict[str, Any] = {"seed": int(rng.integers(1000)), "temperature": float(rng.choice([0.0, 0.9]))}
    if rng.random() < 0.6:
        params["repetition_penalty"] = float(rng.choice([0.5, 1.0, 1.3]))
        params["frequency_penalty"] = float(rng.choice([0.0, 0.7]))
        params["presence_penalty"] = float(rng.choice([0.0, -1.5]))
    if rng.random() < 0.5:
        params["logit_bias"] = dict(zip(some(5), [100.0, -100.0, 1.5, 0.0, -2.0], strict=True))
    if rng.random() < 0.5:
        params |= {"min_tokens": 30, "stop_token_ids": tuple(some(3))}
    if rng.random() < 0.5:
        words = [tuple(some(1)), (output[-1], *some(1)), (*output[-2:], *some(1)), (*some(1), *some(1))]
        params["bad_words_token_ids"] = tuple(words)
    if rng.random() < 0.5:
        params["logprobs"] = int(rng.integers(0, 6))
    made = row(prompt=prompt, output=output[:-1], **params)
    made.counts, made.slot = None, slot
    if rng.random() < 0.4:
        made.matcher = FakeMatcher(some(int(rng.integers(1, 40))), vocab_size)
    if made.sampling.has_penalties:
        history.begin(slot, made.sampling, prompt + output[:-1], len(prompt))
    added = torch.tensor(output[-1:], device=DEVICE)
    history.add(np.array([slot]), added, np.array([made.sampling.has_penalties]))
    return made, len(prompt) + len(output)


@settings(max_examples=scaled(10), deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 31, 64, 130]), st.sampled_from(DTYPES))
def test_changed_logits_are_those_of_the_processors(seed: int, vocab_size: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    history = TokenHistory(9, vocab_size, DEVICE)
    made = [changed_row(rng, vocab_size, history, slot) for slot in (8, 1, 5, 0)]
    rows, positions = [each for each, _ in made], [position for _, position in made]
    logits = torch.from_numpy(4 * rng.normal(size=(4, vocab_size))).to(dtype)
    both(logits, rows, positions, history)


def test_a_bad_word_is_completed_by_a_token_that_only_the_device_knows() -> None:
    history = TokenHistory(2, 70, DEVICE)
    history.add(np.array([1, 0]), torch.tensor([6, 5], device=DEVICE), np.array([False, False]))
    rows = [row(output=[4], temperature=0, bad_words_token_ids=((4, 6, 69), (7,))) for _ in range(2)]
    for slot, made in enumerate(rows):
        made.slot = slot
    logits = torch.zeros(2, 70)
    logits[:, 7], logits[:, 69], logits[:, 68] = 9.0, 8.0, 7.0
    assert both(logits, rows, [3, 3], history).token_ids == [69, 68]


def test_an_end_that_has_to_wait_does_not_come_where_a_mask_leaves_it_out() -> None:
    params: dict[str, Any] = {"temperature": 0, "min_tokens": 5, "stop_token_ids": (5,)}
    rows = [row(bad_words_token_ids=((3,),), **params), row(**params)]
    for made in rows:
        made.matcher = FakeMatcher([3], 70)
    sampled = both(torch.zeros(2, 70), rows, [1, 1])
    assert (sampled.has_choice, sampled.token_ids[1]) == ([False, True], 3)


def test_a_row_depends_on_itself_alone() -> None:
    logits = 2 * torch.randn(5, 200, generator=torch.Generator().manual_seed(2))
    rows = [row(seed=i, top_p=0.9, logprobs=3, logit_bias={i: 2.0} if i % 2 else {}) for i in range(5)]
    together = both(logits, rows, [3] * 5)
    for i in range(5):
        alone = Sampler([EOS], TritonSampler(TILE)).sample(logits[i : i + 1].to(DEVICE), [rows[i]], [3])
        assert (alone.token_ids, alone.logprobs) == ([together.token_ids[i]], [together.logprobs[i]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_top", [0, 1, 20, 130])
def test_logprobs_are_those_of_float64_and_the_best_come_in_order(num_top: int, dtype: torch.dtype) -> None:
    logits = (2 * torch.randn(4, 130, generator=torch.Generator().manual_seed(3))).to(dtype)
    logits[1] = logits[1].round()
    logits[2, 20:] = -torch.inf
    logits[3, 5] = torch.nan
    rows, tokens = torch.tensor([2, 1, 0, 3]), torch.tensor([3, 129, 64, 0])
    found = TritonSampler(TILE).logprobs_of(logits.to(DEVICE), rows.to(DEVICE), tokens.to(DEVICE), num_top)
    own, ids, best = (each.cpu().numpy() for each in found)
    for i, (number, token) in enumerate(zip(rows.tolist(), tokens.tolist(), strict=True)):
        if number == 3:
            assert np.isnan(own[i])
            assert np.isnan(best[i]).all()
            continue
        exact = torch.log_softmax(logits[number].double(), dim=-1).numpy()
        order = np.argsort(-exact, kind="stable")[:num_top]
        assert ids[i].tolist() == order.tolist()
        np.testing.assert_allclose(best[i], exact[order], rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(own[i], exact[token], rtol=2e-6, atol=2e-6)


def test_a_sampler_is_tried_out_and_one_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_VOCAB_SIZE", 300)
    try_out(TritonSampler(TILE), DEVICE, torch.float32)
    right = TritonSampler.choose

    def wrong(self: TritonSampler, *args: Any, **named: Any) -> tuple[Tensor, Tensor]:
        chosen, logits = right(self, *args, **named)
        chosen[0, -1] += 1
        return chosen, logits

    monkeypatch.setattr(TritonSampler, "choose", wrong)
    with pytest.raises(RuntimeError, match="chooses other tokens"):
        try_out(TritonSampler(TILE), DEVICE, torch.float32)
