"""Tokens that a grammar leaves no choice of, which cost no step: each text is the one that is made token by token."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import msgspec
import pytest

from orcinus import LLM
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, EngineInfo, RequestDelta
from orcinus.engine.models.loader import multiplies_bfloat16
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling.row import SamplingRow
from orcinus.engine.sampling_params import Grammar, SamplingParams, Thinking
from orcinus.engine.startup.build import build_executor
from tests.integration.tiny_models import VOCAB_SIZE, build_model, build_tokenizer, engine_config
from tests.integration.truth import Case, Outcome, Run, core_with_few_blocks, info_with_blocks, random_tokens, serve

Executor = tuple[EngineInfo, ModelRunner]

MAX_MODEL_LEN = 256
BLOCK_SIZE = 4
PERSON = {
    "type": "object",
    "properties": {
        "first_name_of_the_person": {"type": "string", "maxLength": 6},
        "is_member": {"type": "boolean"},
        "kind_of_membership": {"enum": ["honorary member", "honest broker"]},
        "terms": {"const": 'They agree to "all" terms: ünïcode, too.'},
    },
    "required": ["first_name_of_the_person", "is_member", "kind_of_membership", "terms"],
    "additionalProperties": False,
}
JSON = Grammar("json_schema", json.dumps(PERSON))
CHOICE = Grammar("choice", '["first of all of them", "first of the others", "nothing"]')
LONG = Grammar("regex", "[ab](all work and no play ){9}[cd]")

# What lets tokens be sampled one by one, and changes none of them.
CHANGES: list[dict[str, Any]] = [
    {},
    {"logprobs": 2},
    {"allowed_token_ids": tuple(range(VOCAB_SIZE))},
    {"bad_words_token_ids": ((5,) * 9,)},
]

in_bfloat16 = pytest.mark.skipif(not multiplies_bfloat16(), reason="this CPU does not multiply bfloat16")


@pytest.fixture(scope="module")
def executor_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Executor]:
    def load(family: str, dtype: str = "float32", **config: Any) -> Executor:
        directory = build_model(family, tmp_path_factory.mktemp(family))
        build_tokenizer(directory)
        config = {"max_model_len": MAX_MODEL_LEN, "block_size": BLOCK_SIZE, "dtype": dtype} | config
        return build_executor(engine_config(directory, **config))

    return cache(load)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Sample each token, also those that a grammar leaves no choice of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamplingRow, "takes_forced", False)
        yield


def cases(rng: random.Random, count: int, **params: Any) -> list[Case]:
    """Requests with grammars, and a third of them without."""
    options: list[dict[str, Any]] = [
        {"grammar": JSON, "max_tokens": 200},
        {"grammar": CHOICE, "max_tokens": 40},
        {"max_tokens": 30, "ignore_eos": True},
        {"grammar": JSON, "max_tokens": 110, "temperature": 1.0},
        {"grammar": Grammar("json_object"), "max_tokens": 40},
        {"max_tokens": 30, "temperature": 1.0, "presence_penalty": 0.5, "ignore_eos": True},
        {"grammar": JSON, "max_tokens": 200, "temperature": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.3},
        {"grammar": CHOICE, "max_tokens": 9, "temperature": 1.0},
    ]
    return [
        Case(
            random_tokens(rng, rng.randint(1, 40)),
            SamplingParams(**({"temperature": 0, "seed": i} | options[i % len(options)] | params)),
            [],
        )
        for i in range(count)
    ]


def serve_both(core: Callable[[], EngineCore], requests: list[Case]) -> tuple[Run, Run]:
    """Return what becomes of the requests, and of their twins that are made token by token."""
    fast = serve(core(), requests, random.Random(1), "fast")
    with one_by_one():
        return fast, serve(core(), requests, random.Random(2), "fast")


def ends(run: Run) -> list[tuple[list[int], Any, Any]]:
    return [(each.token_ids, each.deltas[-1].finish_reason, each.deltas[-1].stop_reason) for each in run.outcomes]


def most_at_once(outcome: Outcome) -> int:
    return max(len(delta.token_ids) for delta in outcome.deltas)


@pytest.mark.parametrize(
    ("family", "dtype", "num_blocks"),
    [
        pytest.param("llama", "float32", 256, marks=pytest.mark.slow),
        ("llama", "float32", 70),
        pytest.param("llama", "bfloat16", 70, marks=in_bfloat16),
        pytest.param("gemma2", "float32", 200, marks=pytest.mark.slow),
        ("qwen3_5", "float32", 70),
        pytest.param("lfm2", "float32", 70, marks=pytest.mark.slow),
    ],
)
def test_texts_are_those_made_token_by_token(
    family: str, dtype: str, num_blocks: int, executor_of: Callable[..., Executor]
) -> None:
    """Beside others without a grammar, with chunks of prompts, and with few blocks, so that some are preempted."""
    executor = executor_of(family, dtype)
    requests = cases(random.Random(family), 10)
    fast, slow = serve_both(lambda: core_with_few_blocks(executor, num_blocks), requests)
    assert ends(fast) == ends(slow)
    assert all(outcome.error is None for outcome in fast.outcomes)
    assert fast.max_running > 2
    assert fast.num_preemptions > 0 or num_blocks >= 200
    for case, outcome, twin in zip(requests, fast.outcomes, slow.outcomes, strict=True):
        assert most_at_once(twin) == 1
        assert (most_at_once(outcome) > 3) == (case.sampling.grammar in (JSON, CHOICE))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=[in_bfloat16, pytest.mark.slow])])
def test_a_request_has_the_same_tokens_alone_and_with_log_probabilities(
    dtype: str, executor_of: Callable[..., Executor]
) -> None:
    executor = executor_of("llama", dtype)
    requests = cases(random.Random(5), 8)
    together = serve(core_with_few_blocks(executor, 256), requests, random.Random(1))
    for i, (case, outcome) in enumerate(zip(requests, together.outcomes, strict=True)):
        for params in (CHANGES[0], CHANGES[1 + i % (len(CHANGES) - 1)]):
            alone = Case(case.prompt, msgspec.structs.replace(case.sampling, **params), [])
            (found,) = serve(core_with_few_blocks(executor, 256), [alone], random.Random(2)).outcomes
            assert found.token_ids == outcome.token_ids
            assert found.deltas[-1].finish_reason == outcome.deltas[-1].finish_reason
            assert most_at_once(found) == (1 if params else most_at_once(outcome))
            entries = [entry.token_id for delta in found.deltas for entry in delta.logprobs or []]
            assert entries == (outcome.token_ids if "logprobs" in params else [])


def test_a_limit_may_lie_anywhere(executor_of: Callable[..., Executor]) -> None:
    """The limit of a request, near which a text is brought to its end, and that of the context, which cuts it off."""
    executor = executor_of("llama")
    prompt = random_tokens(random.Random(3), 12)
    limits: list[dict[str, Any]] = [{"max_tokens": count} for count in range(1, 130, 9)]
    by_limit = [Case(prompt, SamplingParams(temperature=0, grammar=JSON, **limit), []) for limit in limits]
    by_limit += [Case(prompt, SamplingParams(temperature=0, grammar=LONG, max_tokens=count), []) for count in (3, 90)]
    free = SamplingParams(temperature=0, grammar=JSON, max_tokens=None)
    by_context = [Case(random_tokens(random.Random(4), MAX_MODEL_LEN - left), free, []) for left in range(2, 60, 9)]
    fast, slow = serve_both(lambda: core_with_few_blocks(executor, 256), by_limit + by_context)
    assert ends(fast) == ends(slow)
    cut = fast.outcomes[len(by_limit) :]
    assert {outcome.deltas[-1].finish_reason for outcome in cut} == {"length"}
    assert [len(outcome.token_ids) for outcome in cut] == [*range(2, 60, 9)]


def test_a_token_may_stop_a_text_within_what_is_forced(executor_of: Callable[..., Executor]) -> None:
    executor = executor_of("llama")
    prompt = random_tokens(random.Random(3), 12)
    whole = Case(prompt, SamplingParams(temperature=0, grammar=CHOICE, max_tokens=60), [])
    (outcome,) = serve(core_with_few_blocks(executor, 256), [whole], random.Random(1)).outcomes
    assert most_at_once(outcome) > 3
    for min_tokens in (0, 4):
        stops = [
            Case(prompt, msgspec.structs.replace(whole.sampling, stop_token_ids=(token,), min_tokens=min_tokens), [])
            for token in outcome.token_ids[:-1]
        ]
        fast, slow = serve_both(lambda: core_with_few_blocks(executor, 256), stops)
        assert ends(fast) == ends(slow)
        assert {delta.deltas[-1].finish_reason for delta in fast.outcomes} == {"stop"}


def test_many_forced_tokens_hold_nobody_up(executor_of: Callable[..., Executor]) -> None:
    """A step has few tokens, which a request that decodes shares with those beside it: each gets its one."""
    info, runner = executor_of("llama")
    requests = {
        "long": AddRequest("long", [5, 6, 7], SamplingParams(temperature=0, grammar=LONG, max_tokens=None), 0.0),
        "plain": AddRequest("plain", [8, 9], SamplingParams(temperature=0, max_tokens=60, ignore_eos=True), 0.0),
    }
    with one_by_one():
        twins = tokens_of(EngineCore(info_with_blocks(info, 256), runner), requests)
    core = EngineCore(info_with_blocks(info, 256), runner)
    deltas = run(core, requests)
    assert {name: [t for d in own for t in d.token_ids] for name, own in deltas.items()} == twins
    assert len(twins["long"]) > 150
    assert max(len(delta.token_ids) for delta in deltas["long"]) > 150
    assert len(deltas["plain"]) == 60
    assert info.max_num_batched_tokens < 150


def test_a_text_goes_on_wherever_its_engine_ended(executor_of: Callable[..., Executor]) -> None:
    info, runner = executor_of("llama")
    for grammar in (JSON, CHOICE):
        whole = AddRequest("whole", [5, 6], SamplingParams(max_tokens=150, seed=8, grammar=grammar), 0.0)
        core = EngineCore(info_with_blocks(info, 256), runner)
        deltas = run(core, {"whole": whole})["whole"]
        steered = [delta.is_steered for delta in deltas for _ in delta.token_ids]
        tokens = [token_id for delta in deltas for token_id in delta.token_ids]
        begun = {
            str(i): msgspec.structs.replace(
                whole, request_id=str(i), output_token_ids=tokens[:i], is_steered=i > 0 and steered[i - 1]
            )
            for i in range(0, len(tokens), 3)
        }
        found = run(core, begun)
        for name, own in found.items():
            assert tokens[: int(name)] + [token_id for delta in own for token_id in delta.token_ids] == tokens
            assert own[-1].finish_reason == deltas[-1].finish_reason


def test_what_follows_thinking_is_forced_and_thinking_is_not(executor_of: Callable[..., Executor]) -> None:
    """Every second prompt has opened the thinking; of the others the output might, and does not."""
    executor = executor_of("llama")
    requests = []
    for i in range(6):
        thought = Thinking(end=(40,), start=None if i % 2 else 41)
        grammar = Grammar("regex", "(all work and no play)[ab]", thinking=thought)
        params = SamplingParams(seed=1, grammar=grammar, max_tokens=90, logit_bias={40: 6.0, 41: -90.0})
        requests.append(Case(random_tokens(random.Random(i), 5), params, []))
    fast, slow = serve_both(lambda: core_with_few_blocks(executor, 256), requests)
    assert ends(fast) == ends(slow)
    for i, outcome in enumerate(fast.outcomes):
        assert most_at_once(outcome) > 3
        assert (40 in outcome.token_ids) == (i % 2 == 1)


def test_forced_tokens_take_no_steps_and_are_counted(executor_of: Callable[..., Executor]) -> None:
    info, runner = executor_of("llama")
    core = EngineCore(info_with_blocks(info, 256), runner)
    core.add_request(AddRequest("a", [5, 6], SamplingParams(temperature=0, grammar=JSON, max_tokens=200), 0.0))
    num_forced = num_tokens = num_samples = 0
    while core.has_work:
        step = core.step()
        num_forced += step.stats.num_forced_tokens
        num_tokens += sum(len(delta.token_ids) for delta in step.deltas)
        num_samples += len(step.deltas)
    assert num_forced == num_tokens - num_samples
    assert num_forced > num_tokens / 2


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(device="cpu", dtype="float32", max_num_seqs=8, kv_cache_memory="32MiB")


@pytest.mark.parametrize("stop", ["agree", "s: ünï", '"is_member'])
def test_a_stop_string_within_what_is_forced_ends_the_text_there(llm: LLM, stop: str) -> None:
    params = SamplingParams(temperature=0, grammar=JSON, max_tokens=400, stop=(stop,))
    found = llm.generate("A person: ", params)[0].outputs[0]
    with one_by_one():
        twin = llm.generate("A person: ", params)[0].outputs[0]
    assert (found.text, found.token_ids, found.finish_reason) == (twin.text, twin.token_ids, "stop")
    assert stop not in found.text


def run(core: EngineCore, requests: dict[str, AddRequest]) -> dict[str, list[RequestDelta]]:
    deltas: dict[str, list[RequestDelta]] = {name: [] for name in requests}
    for request in requests.values():
        core.add_request(request)
    while core.has_work:
        for delta in core.step().deltas:
            deltas[delta.request_id].append(delta)
    return deltas


def tokens_of(core: EngineCore, requests: dict[str, AddRequest]) -> dict[str, list[int]]:
    return {name: [t for delta in own for t in delta.token_ids] for name, own in run(core, requests).items()}
