"""The truth test: whatever the engine does to share the model, each request gets what it would get alone.

The reference is transformers' own `generate`, with its own attention and its own cache, one request at a time.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from orcinus.engine.messages import AddRequest, EngineInfo
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor
from tests.effort import slow_but_for
from tests.integration.tiny_models import FAMILIES, VOCAB_SIZE, build_model, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    NUM_REQUESTS,
    Case,
    core_with_few_blocks,
    greedy_cases,
    random_tokens,
    sampled_cases,
    serve,
    serve_together_and_alone,
)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: build_model(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="module")
def executor_of(model_of: Callable[[str], Path]) -> Callable[[str], tuple[EngineInfo, ModelRunner]]:
    """Loaded once per family. The scheduler is told of few blocks, so that four requests do not fit for long."""

    def load(family: str) -> tuple[EngineInfo, ModelRunner]:
        config = engine_config(model_of(family), max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)
        return build_executor(config)

    return cache(load)


@pytest.mark.parametrize("family", slow_but_for(FAMILIES, "llama", "gemma2", "qwen3_moe"))
def test_batched_greedy_output_equals_generate_alone(
    family: str,
    model_of: Callable[[str], Path],
    executor_of: Callable[[str], tuple[EngineInfo, ModelRunner]],
) -> None:
    rng = random.Random(family)
    cases = greedy_cases(model_of(family), rng, NUM_REQUESTS)
    run = serve(core_with_few_blocks(executor_of(family)), cases, rng)
    for case, outcome in zip(cases, run.outcomes, strict=True):
        assert outcome.error is None
        assert outcome.token_ids == case.expected
    # What the test is about must have happened.
    assert run.num_preemptions > 0
    assert run.num_cached_tokens > 0
    assert run.max_running > 1
    assert max(len(case.prompt) for case in cases) > (engine_config(Path()).max_num_batched_tokens or 0) > 0
    assert len({token for case in cases for token in case.expected}) > VOCAB_SIZE // 8


@pytest.mark.parametrize("family", slow_but_for(["llama", "gpt2", "qwen3_moe"], "llama"))
def test_steps_launched_ahead_of_the_last_ones_tokens_give_what_steps_in_turn_give(
    family: str, model_of: Callable[[str], Path], executor_of: Callable[[str], tuple[EngineInfo, ModelRunner]]
) -> None:
    rng = random.Random(family)
    cases = greedy_cases(model_of(family), rng, 14) + sampled_cases(rng, 7)
    words = *((token, 7) for token in range(3, 100)), (8,), (9,)
    for case in sampled_cases(rng, 2):
        sampling = msgspec.structs.replace(case.sampling, bad_words_token_ids=words, presence_penalty=0.5)
        cases.append(replace(case, sampling=sampling))
    in_turn = serve(core_with_few_blocks(executor_of(family)), cases, random.Random(1), "in turn")
    runner = executor_of(family)[1]
    runner.runs_ahead = True
    ahead = serve(core_with_few_blocks(executor_of(family)), cases, random.Random(1), "ahead")
    runner.runs_ahead = False
    for case, one, other in zip(cases, in_turn.outcomes, ahead.outcomes, strict=True):
        assert other.token_ids == (case.expected or one.token_ids)
        assert [delta.logprobs is None for delta in one.deltas] == [delta.logprobs is None for delta in other.deltas]
    assert ahead.max_running > 1


@pytest.mark.parametrize("family", slow_but_for(["llama", "gemma2", "qwen3_moe"], "llama"))
def test_seeded_sampling_does_not_depend_on_what_shares_the_batch(
    family: str, executor_of: Callable[[str], tuple[EngineInfo, ModelRunner]]
) -> None:
    rng = random.Random(family)
    cases = sampled_cases(rng, 18)
    assert serve_together_and_alone(executor_of(family), cases, rng).num_preemptions > 0


def test_different_seeds_sample_different_tokens(
    executor_of: Callable[[str], tuple[EngineInfo, ModelRunner]],
) -> None:
    case = sampled_cases(random.Random(3), 1)[0]
    cases = [replace(case, sampling=SamplingParams(max_tokens=12, ignore_eos=True, seed=s)) for s in range(6)]
    run = serve(core_with_few_blocks(executor_of("llama")), cases, random.Random(4), "seeds")
    assert len({tuple(outcome.token_ids) for outcome in run.outcomes}) == len(cases)


@pytest.mark.parametrize("kind", [3, 6], ids=["penalties", "min_tokens"])
def test_resumed_request_samples_the_same_tokens_as_an_unbroken_one(
    kind: int,
    executor_of: Callable[[str], tuple[EngineInfo, ModelRunner]],
) -> None:
    case = sampled_cases(random.Random(5), 7)[kind]
    whole = serve(core_with_few_blocks(executor_of("llama")), [case], random.Random(6), f"whole{kind}")
    expected = whole.outcomes[0].token_ids
    assert len(expected) > 5
    core = core_with_few_blocks(executor_of("llama"))
    core.add_request(
        AddRequest(
            request_id=f"resumed{kind}",
            prompt_token_ids=case.prompt,
            sampling=case.sampling,
            arrival_time=0.0,
            output_token_ids=expected[:5],
        )
    )
    resumed: list[int] = []
    while core.has_work:
        for delta in core.step().deltas:
            resumed += delta.token_ids
    assert resumed == expected[5:]


@pytest.mark.parametrize("family", slow_but_for(["llama", "gemma2", "opt"], "llama"))
def test_prompt_logprobs_are_those_of_the_model_in_whatever_chunks(
    family: str,
    model_of: Callable[[str], Path],
    executor_of: Callable[[str], tuple[EngineInfo, ModelRunner]],
) -> None:
    from transformers import AutoModelForCausalLM

    prompt = random_tokens(random.Random(7), 50)
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=3)
    run = serve(core_with_few_blocks(executor_of(family)), [Case(prompt, sampling, [])], random.Random(8), "echo")
    entries = run.outcomes[0].deltas[0].prompt_logprobs
    assert entries is not None
    assert entries[0] is None
    assert [entry.token_id for entry in entries[1:] if entry] == prompt[1:]
    model = AutoModelForCausalLM.from_pretrained(model_of(family), dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        expected = torch.log_softmax(model(torch.tensor([prompt])).logits[0], dim=-1)
    for position, entry in enumerate(entries[1:]):
        assert entry is not None
        assert entry.logprob == pytest.approx(float(expected[position, entry.token_id]), abs=1e-4)
        top = expected[position].topk(3).values.tolist()
        assert [logprob for _, logprob in entry.top] == pytest.approx(top, abs=1e-4)


def test_request_with_broken_logits_fails_alone(tmp_path: Path, model_of: Callable[[str], Path]) -> None:
    poison = VOCAB_SIZE - 1
    directory = poisoned_model(model_of("llama"), tmp_path, poison)
    rng = random.Random(9)
    healthy = [
        replace(case, prompt=[token for token in case.prompt if token != poison] or [5])
        for case in sampled_cases(rng, 12)
    ]
    broken = Case([8, poison, *random_tokens(rng, 30)], SamplingParams(temperature=0, max_tokens=5), [])
    executor = build_executor(engine_config(directory, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE))
    mixed = serve(core_with_few_blocks(executor), [broken, *healthy[:6], broken, *healthy[6:]], rng, "mixed")
    failed = [mixed.outcomes.pop(7), mixed.outcomes.pop(0)]
    assert all(outcome.error is not None and outcome.token_ids == [] for outcome in failed)
    for case, outcome in zip(healthy, mixed.outcomes, strict=True):
        assert outcome.error is None
        assert len(outcome.token_ids) >= max(1, case.sampling.min_tokens)


def test_request_that_finds_the_cached_prefix_of_a_broken_one_breaks_too(
    tmp_path: Path, model_of: Callable[[str], Path]
) -> None:
    poison = VOCAB_SIZE - 1
    directory = poisoned_model(model_of("llama"), tmp_path, poison)
    executor = build_executor(engine_config(directory, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE))
    core = core_with_few_blocks(executor, 48)
    rng = random.Random(10)
    broken = Case([8, poison, *random_tokens(rng, 40)], SamplingParams(temperature=0, max_tokens=5), [])
    first = serve(core, [broken], rng, "first")
    again = serve(core, [broken], rng, "again")
    assert again.num_cached_tokens > 0
    assert [run.outcomes[0].error is None for run in (first, again)] == [False, False]


def test_request_aborted_before_it_was_found_broken_harms_nobody(
    tmp_path: Path, model_of: Callable[[str], Path]
) -> None:
    poison = VOCAB_SIZE - 1
    directory = poisoned_model(model_of("llama"), tmp_path, poison)
    executor = build_executor(engine_config(directory, max_model_len=MAX_MODEL_LEN, block_size=8))
    core = core_with_few_blocks(executor, MAX_MODEL_LEN // 8)
    request = AddRequest(
        request_id="aborted", prompt_token_ids=[poison] * 80, sampling=SamplingParams(max_tokens=5), arrival_time=0.0
    )
    core.add_request(request)
    core.step()  # a chunk of the prompt, not its end
    core.abort_requests(["aborted"])
    # Of 12 blocks the ten that hold nothing are taken first, then one that the aborted chunk filled: its last.
    case = Case([5] * 81, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), [])
    outcome = serve(core, [case], random.Random(11), "after").outcomes[0]
    assert outcome.error is None
    assert len(outcome.token_ids) == 4


def poisoned_model(source: Path, directory: Path, token_id: int) -> Path:
    """A copy whose embedding of one token is not a number. Nobody else's logits may notice."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[token_id] = torch.nan
        model.get_output_embeddings().weight[token_id] = 0.0
    model.save_pretrained(directory)
    return directory
