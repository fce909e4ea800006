"""Prefixes of a model with states, reused by snapshots: the tokens are those of transformers' `generate`."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from orcinus.engine.core import EngineCore
from orcinus.engine.kernels.library import load_library
from orcinus.engine.messages import AddRequest, EngineInfo, TokenLogprobs
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor
from tests.effort import slow_but_for
from tests.integration.test_step_context import AloneWithAverage, executor_of, record
from tests.integration.tiny_models import build_model, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    NUM_REQUESTS,
    Case,
    generate_alone,
    info_with_blocks,
    random_tokens,
    serve,
)

NUM_SLOTS = 4
EOS = 2
FEW_BLOCKS = 26
FAMILIES = ("qwen3_5", "lfm2", "bamba", "kimi_linear", "jamba")  # one of each kind of state


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model("llama", tmp_path_factory.mktemp("llama"), max_position_embeddings=2048)


class Reference:
    """The model of transformers, which keeps the state of one sequence."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        )
        self._model.generation_config.eos_token_id = None
        self._layer = AloneWithAverage(self._model.model.layers[1].mlp)
        self._model.model.layers[1].mlp = self._layer

    def case(self, prompt: list[int], max_tokens: int) -> Case | None:
        """Return the request with its answer; None where two tokens are as good as each other."""
        self._layer.state = torch.zeros_like(self._layer.state)
        expected = generate_alone(self._model, prompt, max_tokens)
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        return None if expected is None else Case(prompt, sampling, expected)


@pytest.fixture(scope="module")
def reference(directory: Path) -> Reference:
    return Reference(directory)


def chats(rng: random.Random, reference: Reference) -> list[Case]:
    """Requests that begin alike in one of several ways; some are the same as one before, and some go on from one."""
    systems = [[*random_tokens(rng, length), EOS] for length in (11, 30, 31)]
    cases: list[Case] = []
    while len(cases) < NUM_REQUESTS:
        begin = rng.choice([*systems, *systems, random_tokens(rng, 3)])
        prompt = [*begin, *random_tokens(rng, rng.randint(1, 20)), EOS]
        if cases and rng.random() < 0.4:
            earlier = rng.choice(cases)
            more = random_tokens(rng, 4) if rng.random() < 0.7 else []
            prompt = earlier.prompt + (earlier.expected + more if more else more)
        case = reference.case(prompt, rng.randint(1, 24)) if len(prompt) < 70 else None
        if case is not None:
            cases.append(case)
    return cases


@pytest.fixture(scope="module")
def cases(reference: Reference) -> list[Case]:
    return chats(random.Random(4), reference)


def core_with(executor: tuple[EngineInfo, ModelRunner], num_blocks: int, num_snapshots: int) -> EngineCore:
    info, runner = executor
    assert info.num_state_snapshots >= num_snapshots
    info = info_with_blocks(info, num_blocks, num_state_snapshots=num_snapshots)
    return EngineCore(info, runner)


@pytest.mark.parametrize(("num_blocks", "num_snapshots"), [(FEW_BLOCKS, 60), (90, 60), (90, 4)])
@pytest.mark.parametrize("way", ["in turn", "ahead", "replayed"])
def test_answers_are_those_of_generate_whatever_is_reused(
    way: str, num_blocks: int, num_snapshots: int, directory: Path, cases: list[Case]
) -> None:
    if way == "replayed" and load_library() is None:
        pytest.skip("the gathering backend looks at the host's lengths")
    info, runner = executor_of(directory, has_states=True)
    runner.runs_ahead = way == "ahead"
    if way == "replayed":
        runner.record_decodes(record, info.max_model_len)
    core = core_with((info, runner), num_blocks, num_snapshots)
    run = serve(core, cases, random.Random(1))
    assert [outcome.token_ids for outcome in run.outcomes] == [case.expected for case in cases]
    core.scheduler.check_integrity()
    # What the test is about must have happened.
    assert run.num_cached_tokens > 100
    assert run.max_running == NUM_SLOTS
    assert run.num_preemptions > 0 or num_blocks > FEW_BLOCKS
    assert max(len(case.prompt) for case in cases) > info.max_num_batched_tokens


def answer(core: EngineCore, name: str, prompt: list[int], max_tokens: int) -> tuple[list[int], int, int]:
    """Serve one request; returns its tokens, and how many were cached and computed."""
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    core.add_request(AddRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, arrival_time=0.0))
    token_ids: list[int] = []
    num_cached = num_computed = 0
    while core.has_work:
        step = core.step()
        num_computed += step.stats.num_prefill_tokens + step.stats.num_decode_tokens
        for delta in step.deltas:
            token_ids += delta.token_ids
            num_cached += delta.num_cached_tokens or 0
    return token_ids, num_cached, num_computed


def roomy_core(directory: Path) -> EngineCore:
    info, runner = executor_of(directory, has_states=True, max_model_len=1200, kv_cache_memory=2**25)
    return EngineCore(info, runner)


def test_a_conversation_of_ten_turns_computes_each_token_once(directory: Path) -> None:
    core, rng = roomy_core(directory), random.Random(5)
    conversation, num_all = [*random_tokens(rng, 50), EOS], 0
    for turn in range(10):
        conversation += [*random_tokens(rng, rng.randint(5, 30)), EOS]
        output, num_cached, num_computed = answer(core, f"{turn}", conversation, rng.randint(5, 40))
        assert num_cached + num_computed == len(conversation) + len(output) - 1
        conversation += output
        num_all += num_computed
    assert num_all <= len(conversation) + 10 * BLOCK_SIZE


def test_the_same_prompt_again_computes_at_most_one_block_and_answers_the_same(
    directory: Path, reference: Reference
) -> None:
    core, rng = roomy_core(directory), random.Random(6)
    case = None
    while case is None:
        case = reference.case(random_tokens(rng, 64), 10)
    for name, num_cached in (("first", 0), ("again", 60)):
        assert answer(core, name, case.prompt, 10) == (case.expected, num_cached, 73 - num_cached)


def test_the_third_request_behind_a_shared_beginning_finds_all_of_it(directory: Path, reference: Reference) -> None:
    core, rng = roomy_core(directory), random.Random(7)
    shared = random_tokens(rng, 1000)
    found: list[int] = []
    while len(found) < 3:
        case = reference.case(shared + random_tokens(rng, 20), 5)
        if case is not None:
            output, num_cached, _ = answer(core, f"{len(found)}", case.prompt, 5)
            assert output == case.expected
            found.append(num_cached)
    assert found == [0, 0, 1000]


@pytest.mark.parametrize("family", slow_but_for(FAMILIES, "qwen3_5", "lfm2"))
def test_hybrids_answer_from_snapshots_as_they_do_without(family: str, tmp_path: Path) -> None:
    """Turns of a conversation, one of them twice: to the last bit, where the engine says so of chunks of any length."""
    config = engine_config(build_model(family, tmp_path), max_model_len=200, block_size=BLOCK_SIZE)
    info, runner = build_executor(config)
    without = msgspec.structs.replace(info, num_state_snapshots=0, enable_prefix_caching=False)
    rng = random.Random(family)
    turns = [random_tokens(rng, 21)]
    for _ in range(4):
        turns.append([*turns[-1], *random_tokens(rng, 12)])
    turns.insert(3, turns[2])
    reused, computed = (logprobs_of(EngineCore(each, runner), turns) for each in (info, without))
    assert [num_cached for num_cached, _ in computed] == [0] * len(turns)
    assert [num_cached for num_cached, _ in reused][1:] == [20, 32, 44, 44, 56]
    tolerance = 0.0 if info.is_deterministic else 1e-3
    for (_, again), (_, anew) in zip(reused, computed, strict=True):
        assert [entry.token_id for entry in again] == [entry.token_id for entry in anew]
        assert [entry.logprob for entry in again] == pytest.approx(
            [entry.logprob for entry in anew], abs=tolerance, rel=0
        )


def logprobs_of(core: EngineCore, prompts: list[list[int]]) -> list[tuple[int, list[TokenLogprobs]]]:
    """Serve one prompt after the other; returns how many tokens of each were cached, and what became of its output."""
    answers = []
    for number, prompt in enumerate(prompts):
        sampling = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=0)
        core.add_request(AddRequest(f"{id(core)} {number}", prompt, sampling, arrival_time=0.0))
        entries: list[TokenLogprobs] = []
        num_cached = 0
        while core.has_work:
            for delta in core.step().deltas:
                assert delta.error is None
                entries += delta.logprobs or []
                num_cached += delta.num_cached_tokens or 0
        answers.append((num_cached, entries))
    return answers


def test_rows_are_copied_in_the_order_of_the_plans(directory: Path) -> None:
    """All loads of a step, then what the model makes of the states, then all saves."""
    info, runner = executor_of(directory, has_states=True)
    core = core_with((info, runner), 90, 1)
    pool = runner.states
    assert pool is not None
    events: list[str] = []
    save, restore, hidden_states = pool.save, pool.restore, runner._hidden_states

    def noted(name: str, function: Any) -> Any:
        def call(*args: Any) -> Any:
            events.append(name)
            return function(*args)

        return call

    pool.save, pool.restore = noted("save", save), noted("load", restore)  # type: ignore[method-assign]
    runner._hidden_states = noted("model", hidden_states)  # type: ignore[method-assign]
    rng = random.Random(8)
    prompt = random_tokens(rng, 9)
    for name in ("first", "second"):
        answer(core, name, prompt, 1)
    assert events == ["model", "save", "model", "load", "model"]
    assert msgspec.structs.asdict(core.stats())["num_snapshots_used"] == 1
