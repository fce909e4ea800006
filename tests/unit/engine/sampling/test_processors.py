"""What parameters and grammars do to the logits."""

from typing import Any

import numpy as np
import pytest
import torch

from orcinus.engine.grammar.thought import Thought, ThoughtMatcher
from orcinus.engine.sampling.processors import apply_penalties, unpack_bits, unpack_bits_on_device
from orcinus.engine.sampling.sampler import Sampler
from orcinus.engine.sampling_params import Thinking
from tests.unit.engine.sampling.rows import EOS, FakeMatcher, masked, row, sample

pytestmark = pytest.mark.usefixtures("way")


def test_repetition_penalty_weakens_tokens_of_prompt_and_output() -> None:
    made = row(prompt=[2], output=[3], temperature=0, repetition_penalty=2.0)
    assert sample([0, 0, 4.0, 4.0, 2.5, 0, 0, 0], made) == 4
    assert sample([-9.0, -9, -3.0, -3.0, -5, -9, -9, -9], made) == 4  # negative logits are multiplied


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    logits = [0, 0, 3.0, 2.9, 2.8, 0, 0, 0]
    made = row(prompt=[2, 2], output=[3, 3, 4], temperature=0, frequency_penalty=1.0)
    assert sample(logits, made) == 2
    logits[2] = 0
    assert sample(logits, made) == 4  # 2.8 - 1 against 2.9 - 2
    assert sample(logits, row(prompt=[2], output=[3, 3, 4], temperature=0, presence_penalty=1.0)) == 3
    logits[2] = 3.0
    both = row(prompt=[2], output=[3, 4], temperature=0, presence_penalty=2.0, repetition_penalty=1.01)
    assert sample(logits, both) == 2  # which the repetition penalty alone looks at


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
    more = row(temperature=0, min_tokens=3, more_eos_token_ids=(2,))
    assert sample(logits, more, position=3) == 3
    ignoring_more = row(temperature=0, min_tokens=3, more_eos_token_ids=(1, 2), ignore_eos=True)
    assert sample(logits, ignoring_more, position=3) == 1


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


def test_the_token_that_leads_to_the_end_is_taken_and_its_logprob_told() -> None:
    for temperature in (0.0, 1.0):
        made = row(temperature=temperature, logprobs=1)
        made.matcher = FakeMatcher([2, 5], replacement=5)
        sampled = Sampler([EOS]).sample(torch.tensor([[0.0, 0, 90.0, 0, 0, 0, 0, 0]]), [made], [1])
        assert sampled.token_ids == [5]
        (entry,) = sampled.logprobs
        assert entry is not None
        assert (entry.token_id, entry.logprob, entry.top[0][0]) == (5, -90.0, 2)


@pytest.mark.parametrize("params", [{"allowed_token_ids": (2,)}, {"bad_words_token_ids": ((5,),)}])
def test_a_token_that_leads_to_the_end_is_left_out_where_another_parameter_rules_it_out(params: Any) -> None:
    made = row(temperature=0, **params)
    made.matcher = FakeMatcher([2, 5], replacement=5)
    assert sample([0.0] * 8, made) == 2
    made = row(temperature=0)
    made.matcher = FakeMatcher([2, 5], replacement=8)  # the end that no model has
    assert sample([0.0] * 8, made) == 2


@pytest.mark.parametrize("params", [{"allowed_token_ids": (2,)}, {"bad_words_token_ids": ((5,),)}, {"min_tokens": 9}])
def test_the_end_of_a_thought_comes_whatever_rules_it_out_and_its_logprob_is_the_models(params: Any) -> None:
    for temperature in (0.0, 1.0):
        made = row(temperature=temperature, logprobs=0, logit_bias={5: -100.0}, stop_token_ids=[5], **params)
        made.matcher = FakeMatcher([2], replacement=5)
        made.matcher.overrules = True
        sampled = Sampler([EOS]).sample(torch.tensor([[0.0, 0, 90.0, 0, 0, 0, 0, 0]]), [made], [1])
        assert sampled.token_ids == [5]
        (entry,) = sampled.logprobs
        assert entry is not None
        assert (entry.token_id, entry.logprob) == (5, -90.0)


def test_a_matcher_without_a_mask_rules_nothing_out() -> None:
    made = row(temperature=0, allowed_token_ids=[3])
    made.matcher = ThoughtMatcher(Thought(Thinking(end=(6,), budget=9)), 8)
    assert sample([9.0, 0, 0, 1, 0, 0, 0, 0], made) == 3


def test_a_grammar_is_not_asked_about_a_row_that_failed() -> None:
    made = row(temperature=0)
    made.matcher = FakeMatcher([2, 5], replacement=5)
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
