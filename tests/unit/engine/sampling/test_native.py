"""The native sampler against float64 and against torch, in every instruction set."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import INSTRUCTION_SETS, Library, load_library
from orcinus.engine.sampling.draw import draw, draw_parameters, uniforms
from orcinus.engine.sampling.native import choose, logprobs_of, sample_rows
from orcinus.engine.sampling.sampler import Sampler
from orcinus.engine.sampling_params import SamplingParams
from tests.effort import scaled
from tests.unit.engine.sampling.reference import expected_of, is_on_edge
from tests.unit.engine.sampling.rows import EOS, FakeMatcher, row

BEST = load_library()
# The last one adds products alone.
LEVELS = range(0 if BEST is None else min(INSTRUCTION_SETS.index(BEST.instruction_set), 2) + 1)
LIBRARIES = [Library(library_path(), level) for level in LEVELS]
DTYPES = [torch.float32, torch.bfloat16]
LAST_UNIFORM = 1 - 2**-24

pytestmark = pytest.mark.skipif(BEST is None, reason="there is no native kernel here")
each_library = pytest.mark.parametrize("library", LIBRARIES, ids=INSTRUCTION_SETS[: len(LIBRARIES)])


def drawn(library: Library, logits: Tensor, sampling: SamplingParams, uniform: NDArray[np.float32]) -> list[int]:
    """Return the token of one row of logits by each of the random numbers."""
    parameters = np.array([draw_parameters(sampling)] * len(uniform), dtype=np.float32)
    chosen = sample_rows(library, logits.expand(len(uniform), -1), parameters, uniform)
    token_ids: list[int] = chosen[0].tolist()
    assert bool(chosen[1:].all())
    return token_ids


SAMPLING = st.builds(
    SamplingParams,
    temperature=st.sampled_from([1e-3, 0.5, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([1e-6, 0.3, 0.8, 0.95, 0.999, 1.0]) | st.floats(0.01, 1.0),
    top_k=st.sampled_from([0, 1, 2, 20, 127, 128, 129, 1000]) | st.integers(1, 3000),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
)


@st.composite
def rows_of_logits(draw_: st.DrawFn) -> Tensor:
    """Make them peaked, flat or full of equals, with impossible tokens or without."""
    width = draw_(st.sampled_from([1, 2, 15, 16, 17, 255, 256, 257, 3000]) | st.integers(1, 3000))
    rng = np.random.default_rng(draw_(st.integers(0, 2**32 - 1)))
    logits = rng.normal(0, draw_(st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0])), width)
    if draw_(st.booleans()):
        logits -= draw_(st.sampled_from([1.0, 3.0])) * np.log1p(rng.permutation(width))
    if draw_(st.booleans()):
        logits = np.round(logits)
    impossible = rng.random(width) < draw_(st.sampled_from([0.0, 0.0, 0.5, 0.99]))
    impossible[rng.integers(width)] = False
    logits[impossible] = -np.inf
    return torch.from_numpy(logits).to(draw_(st.sampled_from(DTYPES)))


@settings(max_examples=scaled(400), deadline=None)
@given(rows_of_logits(), SAMPLING)
def test_each_token_that_is_kept_is_drawn_by_its_random_number(logits: Tensor, sampling: SamplingParams) -> None:
    exact = logits.double().numpy()
    assume(not is_on_edge(exact, sampling))
    expected = expected_of(exact, sampling)
    for library in LIBRARIES:
        assert drawn(library, logits, sampling, expected.uniforms) == expected.tokens.tolist()


@settings(max_examples=scaled(200), deadline=None)
@given(rows_of_logits(), SAMPLING)
def test_no_random_number_draws_what_is_not_kept(logits: Tensor, sampling: SamplingParams) -> None:
    exact = logits.double().numpy()
    assume(not is_on_edge(exact, sampling))
    kept = expected_of(exact, sampling).probs > 0
    numbers = np.array([0.0, 2**-24, 0.1, 0.5, 0.9, LAST_UNIFORM], dtype=np.float32)
    for library in LIBRARIES:
        assert all(kept[token] for token in drawn(library, logits, sampling, numbers))


@pytest.mark.parametrize("shape", ["flat", "peaked"])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
        {"top_p": 0.95},
        {"temperature": 2.0, "top_p": 0.95},
        {"top_p": 0.9, "top_k": 50_000, "min_p": 0.001},
    ],
    ids=str,
)
@each_library
def test_a_large_vocabulary_is_drawn_from_as_by_torch(library: Library, params: dict[str, Any], shape: str) -> None:
    generator = torch.Generator().manual_seed(1)
    num_rows, vocab_size = 8, 151_936
    logits = torch.randn(num_rows, vocab_size, generator=generator)
    if shape == "peaked":
        logits -= 1.5 * torch.log1p(torch.rand(num_rows, vocab_size, generator=generator).argsort(dim=-1).float())
    logits = logits.bfloat16()
    parameters = np.array([draw_parameters(SamplingParams(**params))] * num_rows, dtype=np.float32)
    numbers = uniforms(range(num_rows), [5] * num_rows)
    tokens = sample_rows(library, logits, parameters, numbers)[0]
    assert tokens.tolist() == draw(logits.float(), parameters, numbers).tolist()


@each_library
def test_a_row_depends_on_itself_alone(library: Library) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = (2 * torch.randn(7, 5000, generator=generator)).bfloat16()
    rows = [row(seed=i, top_p=0.99, logprobs=5, repetition_penalty=1.2, prompt=[i, i + 1]) for i in range(7)]
    positions = np.arange(7) + 2
    tokens = choose(library, logits, rows, positions, [EOS])[0]
    logprobs = logprobs_of(library, logits, np.arange(7), tokens.numpy(), 5)
    threaded = Library(library_path(), INSTRUCTION_SETS.index(library.instruction_set))
    for num_threads in (1, 3):
        threaded.use_threads(num_threads, own=True)
        for i in range(7):
            assert choose(threaded, logits[i : i + 1], [rows[i]], positions[i : i + 1], [EOS])[0].item() == tokens[i]
        assert torch.equal(choose(threaded, logits, rows, positions, [EOS])[0], tokens)
        again = logprobs_of(threaded, logits.flip(0), np.arange(7)[::-1].copy(), tokens.numpy(), 5)
        assert [array.tolist() for array in again] == [array.tolist() for array in logprobs]


@each_library
@pytest.mark.parametrize("width", [1, 16, 17, 256, 1000])
def test_the_only_possible_token_is_drawn_wherever_it_is(library: Library, width: int) -> None:
    numbers = np.array([0, 0.5, LAST_UNIFORM], dtype=np.float32)
    for params in ({}, {"top_p": 0.1}, {"top_k": 5}, {"min_p": 1.0}, {"top_k": 3, "top_p": 0.5}):
        for token in {0, width // 2, width - 1}:
            logits = torch.full((width,), -torch.inf)
            logits[token] = -3.0
            assert drawn(library, logits, SamplingParams(**params), numbers) == [token] * 3


@each_library
def test_of_equals_all_are_kept_or_the_first_is_the_likeliest(library: Library) -> None:
    logits, numbers = torch.zeros(1000), (np.arange(0.5, 1000) / 1000).astype(np.float32)
    for params in ({}, {"top_p": 0.3}, {"top_k": 7}, {"top_k": 7, "top_p": 0.3}):
        assert drawn(library, logits, SamplingParams(**params), numbers) == list(range(1000))
    likeliest = choose(library, logits.expand(2, -1), [row(temperature=0), row(top_k=1)], np.ones(2, np.int64), [])[0]
    assert likeliest.tolist() == [0, 0]


@each_library
@pytest.mark.parametrize("seen", [4.0, -4.0])
def test_a_sample_that_sees_only_the_largest_or_the_smallest_misleads_nobody(library: Library, seen: float) -> None:
    """Every tenth of 1,280 logits is what samples take at first."""
    exact = np.random.default_rng(1).normal(size=1280)
    exact[::10] += seen
    logits = torch.from_numpy(exact).float()
    for top_k, top_p in ((200, 1.0), (700, 1.0), (1270, 1.0), (0, 0.3), (0, 0.99), (900, 0.95)):
        sampling = SamplingParams(top_k=top_k, top_p=top_p)
        expected = expected_of(logits.double().numpy(), sampling)
        assert drawn(library, logits, sampling, expected.uniforms) == expected.tokens.tolist()


@each_library
@pytest.mark.parametrize("num_possible", [100, 135, 200])
def test_hardly_more_values_than_a_sample_has_are_narrowed_down_whatever_their_number(
    library: Library, num_possible: int
) -> None:
    rng = np.random.default_rng(num_possible)
    logits = torch.full((270,), -torch.inf)
    logits[rng.choice(270, num_possible, replace=False)] = torch.from_numpy(rng.normal(size=num_possible)).float()
    exact = logits.double().numpy()
    for top_k in range(1, 269):
        for top_p in (0.999, 1.0):
            sampling = SamplingParams(top_k=top_k, top_p=top_p)
            expected = expected_of(exact, sampling)
            numbers = expected.uniforms[[0, -1]]
            tokens = expected.tokens[[0, -1]].tolist()
            assert drawn(library, logits, sampling, numbers) == tokens


@each_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 15, 64, 65, 1000])
def test_the_likeliest_is_the_first_of_the_largest_and_what_is_not_finite_is_told(
    library: Library, dtype: torch.dtype, width: int
) -> None:
    logits = torch.randn(40, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    logits[:20] = (2 * logits[:20]).round()  # equals
    logits[37, width // 2], logits[38, width - 1], logits[39] = torch.nan, torch.inf, -torch.inf
    for rows in ([row(temperature=0)] * 40, [row(temperature=0, logit_bias={0: 0.0})] * 40):
        tokens, is_finite, _ = choose(library, logits, rows, np.ones(40, np.int64), [EOS])
        assert is_finite.tolist() == [1] * 37 + [0] * 3
        assert tokens[:37].tolist() == logits[:37].float().numpy().argmax(axis=-1).tolist()


def changed_row(rng: np.random.Generator, vocab_size: int) -> Any:
    """Make a request with some of all that changes logits."""

    def some(count: int) -> list[int]:
        token_ids: list[int] = rng.integers(0, vocab_size, count).tolist()
        return token_ids

    params: dict[str, Any] = {"seed": int(rng.integers(1000)), "temperature": float(rng.choice([0.0, 0.9]))}
    if rng.random() < 0.6:
        params["repetition_penalty"] = float(rng.choice([0.5, 1.3]))
        params["frequency_penalty"] = float(rng.choice([0.0, 0.7]))
        params["presence_penalty"] = float(rng.choice([0.0, -1.5]))
    if rng.random() < 0.5:
        params["logit_bias"] = dict(zip(some(5), [100.0, -100.0, 1.5, 0.0, -2.0], strict=True))
    if rng.random() < 0.5:
        params |= {"min_tokens": 30, "stop_token_ids": tuple(some(3))}
    if rng.random() < 0.5:
        params["bad_words_token_ids"] = tuple((token,) for token in some(4))
    made = row(prompt=some(6), output=some(9), **params)
    if rng.random() < 0.5:
        made.matcher = FakeMatcher(some(int(rng.integers(1, 40))), vocab_size)
    return made


@settings(max_examples=scaled(100), deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 31, 64, 700]), st.sampled_from(DTYPES))
def test_changed_logits_are_those_of_the_processors(seed: int, vocab_size: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    rows = [changed_row(rng, vocab_size) for _ in range(8)]
    logits = torch.from_numpy(4 * rng.normal(size=(8, vocab_size))).to(dtype)
    positions = np.array([made.num_prompt_tokens + 9 for made in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orcinus.engine.sampling.native.load_library", lambda: None)
        expected = Sampler([EOS]).sample(logits.clone(), rows, positions)
    for library in LIBRARIES:
        tokens, is_finite, has_choice = choose(library, logits, rows, positions, [EOS])
        assert (is_finite.tolist(), has_choice.tolist()) == (expected.is_finite, expected.has_choice)
        for token, other, can_draw in zip(tokens.tolist(), expected.token_ids, expected.has_choice, strict=True):
            assert token == other or not can_draw


@each_library
def test_a_token_that_the_model_has_not_changes_nothing(library: Library) -> None:
    made = row(prompt=[-1, 8, 2**40], output=[9], temperature=0, repetition_penalty=0.1, logit_bias={8: 100.0, -1: 9.0})
    tokens = choose(library, torch.arange(8.0).unsqueeze(0), [made], np.array([9]), [8])[0]
    assert tokens.tolist() == [7]
    none = row(temperature=0, min_tokens=5, bad_words_token_ids=tuple((token,) for token in range(8)))
    assert choose(library, torch.zeros(1, 8), [none], np.array([2]), [8])[2].tolist() == [0]


@settings(max_examples=scaled(100), deadline=None)
@given(rows_of_logits(), st.sampled_from([0, 1, 5, 20, 3000]), st.integers(0, 2**32 - 1))
def test_logprobs_are_those_of_float64_and_the_best_come_in_order(logits: Tensor, num_top: int, seed: int) -> None:
    width = logits.shape[0]
    num_top, token = min(num_top, width), seed % width
    exact = torch.log_softmax(logits.double(), dim=-1).numpy()
    order = np.argsort(-logits.double().numpy(), kind="stable")[:num_top]
    for library in LIBRARIES:
        own, ids, best = logprobs_of(library, logits.unsqueeze(0), np.zeros(1, np.int64), np.array([token]), num_top)
        assert ids[0].tolist() == order.tolist()
        np.testing.assert_allclose(best[0], exact[order], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(own, exact[token : token + 1], rtol=1e-6, atol=1e-6)


@each_library
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_logprobs_of_a_broken_row_are_nan_and_those_of_the_others_are_not(library: Library, broken: float) -> None:
    logits = torch.zeros(3, 300)
    logits[0, 299], logits[1, 5] = broken, -torch.inf
    own, _, best = logprobs_of(library, logits, np.array([0, 1, 2]), np.array([3, 5, 3]), 2)
    assert np.isnan(own).tolist() == [True, False, False]
    assert np.isnan(best).all(axis=1).tolist() == [True, False, False]
    assert own[1] == -np.inf
