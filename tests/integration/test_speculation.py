"""Output with drafts from texts, all tried or some chosen, equals that without them, token for token."""

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orcinus import LLM, SamplingParams
from orcinus.config.engine_config import Speculation
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, EngineInfo
from orcinus.engine.models.loader import multiplies_bfloat16
from orcinus.engine.outputs import RequestOutput
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.runner.past_answers import PastAnswers
from orcinus.engine.runner.text_drafter import OwnText
from orcinus.engine.sampling_params import Grammar, Opening, Openings, Thinking
from orcinus.engine.startup.build import build_executor, make_drafter
from tests.integration.tiny_models import build_model, build_tokenizer, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    Case,
    Run,
    core_with_few_blocks,
    go_on_halfway,
    random_tokens,
    serve,
)

Executor = tuple[EngineInfo, ModelRunner]

SPECULATIONS: tuple[Speculation, ...] = ("ngram", "suffix", "auto")

VARIANTS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 1.0},
    {"temperature": 1.0, "logprobs": 1},
    {"temperature": 0.7, "top_p": 0.8, "top_k": 3},
    {"temperature": 1.0, "presence_penalty": 0.8, "frequency_penalty": 0.5},
    {"temperature": 1.0, "bad_words_token_ids": ((10, 11),)},
    {"temperature": 1.0, "min_tokens": 8, "stop_token_ids": (10,)},
    {"temperature": 1.0, "stop_token_ids": (12,)},
    {"temperature": 0.0, "logit_bias": {11: 3.0}},
]


def repeating_cases(rng: random.Random, count: int) -> list[Case]:
    """Requests that write few different tokens each, so that they repeat themselves and their prompts."""
    cases = []
    for i in range(count):
        few = [10, 11, 12, *random_tokens(rng, rng.randint(1, 3))]
        prompt = [rng.choice(few) for _ in range(rng.randint(3, 50))]
        sampling = SamplingParams(
            max_tokens=rng.randint(VARIANTS[i % len(VARIANTS)].get("min_tokens", 1), 40),
            seed=i,
            ignore_eos=rng.random() < 0.5,
            allowed_token_ids=tuple(sorted({*few, 2})),
            **VARIANTS[i % len(VARIANTS)],
        )
        cases.append(Case(prompt, sampling, []))
    return cases


def grammar_cases(rng: random.Random, count: int) -> list[Case]:
    """Requests whose next token depends on those before it: grammars that force tokens, and budgets of thoughts."""
    options: list[dict[str, Any]] = [
        {"grammar": Grammar("regex", "[ab](all work and no play ){3}[cd]")},
        {"grammar": Grammar("choice", '["first of all of them", "first of the others"]'), "temperature": 1.0},
        {"thinking": Thinking(end=(40, 41), budget=7), "ignore_eos": True, "logit_bias": {10: 9.0}},
        {"grammar": Grammar("regex", "(no play)[ab]", Thinking(end=(40,), budget=5)), "temperature": 1.0},
    ]
    return [
        Case(random_tokens(rng, rng.randint(3, 20)), SamplingParams(max_tokens=30, seed=i, **options[i % 4]), [])
        for i in range(count)
    ]


def serve_with(executor: Executor, speculation: Speculation, cases: Sequence[Case]) -> Run:
    info, runner = executor
    core = core_with_few_blocks((msgspec.structs.replace(info, speculation=speculation), runner))
    runner.drafter = make_drafter(speculation, runner._model)
    try:
        run = serve(core, [*cases], random.Random(1), speculation)
    finally:
        runner.drafter = None
    assert run.num_preemptions > 0
    return run


def num_drafts(run: Run) -> tuple[int, int]:
    lasts = [outcome.deltas[-1] for outcome in run.outcomes]
    return sum(last.num_draft_tokens for last in lasts), sum(last.num_accepted_drafts for last in lasts)


@pytest.fixture(scope="module")
def executor_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Executor]:
    model_of = cache(lambda family: build_model(family, tmp_path_factory.mktemp(family)))

    def load(family: str, **config: Any) -> Executor:
        directory = build_tokenizer(model_of(family))
        return build_executor(engine_config(directory, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE, **config))

    return cache(load)


def check_same(executor: Executor, cases: Sequence[Case]) -> None:
    plain = serve_with(executor, "off", cases)
    assert num_drafts(plain) == (0, 0)
    for speculation in SPECULATIONS:
        drafted = serve_with(executor, speculation, cases)
        num_tried, num_accepted = num_drafts(drafted)
        if speculation != "auto":
            assert num_accepted > len(cases) // 4
            assert num_tried - num_accepted > len(cases) // 4
        for case, without, outcome in zip(cases, plain.outcomes, drafted.outcomes, strict=True):
            assert outcome.token_ids == without.token_ids
            last, expected = outcome.deltas[-1], without.deltas[-1]
            assert (last.finish_reason, last.stop_reason) == (expected.finish_reason, expected.stop_reason)
            if case.sampling.looks_back:
                assert last.num_draft_tokens == 0
            if case.sampling.logprobs is not None:
                entries = [entry for delta in outcome.deltas for entry in delta.logprobs or []]
                assert [entry.token_id for entry in entries] == outcome.token_ids


DETERMINISTIC = pytest.param(
    "llama",
    {"dtype": "bfloat16", "deterministic": True},
    marks=pytest.mark.skipif(not multiplies_bfloat16(), reason="this CPU does not multiply bfloat16"),
)


@pytest.mark.parametrize(("family", "config"), [("llama", {}), DETERMINISTIC, ("gemma2", {})])
def test_mixed_requests_get_the_same_tokens_with_drafts_as_without(
    family: str, config: dict[str, Any], executor_of: Callable[..., Executor]
) -> None:
    check_same(executor_of(family, **config), repeating_cases(random.Random(30), 30))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "config"), [("llama", {}), DETERMINISTIC])
def test_many_mixed_requests_get_the_same_tokens_with_drafts_as_without(
    family: str, config: dict[str, Any], executor_of: Callable[..., Executor]
) -> None:
    check_same(executor_of(family, **config), repeating_cases(random.Random(200), 200))


@pytest.mark.parametrize(("family", "config"), [("llama", {}), DETERMINISTIC])
def test_requests_beside_grammars_and_budgets_get_the_same_tokens_with_drafts_as_without(
    family: str, config: dict[str, Any], executor_of: Callable[..., Executor]
) -> None:
    rng = random.Random(7)
    cases = repeating_cases(rng, 28) + grammar_cases(rng, 20)
    rng.shuffle(cases)
    check_same(executor_of(family, **config), cases)


def test_a_request_that_another_engine_goes_on_with_gets_the_same_tokens(executor_of: Callable[..., Executor]) -> None:
    info, runner = executor_of("llama")
    cases = [case for case in repeating_cases(random.Random(3), 20) if case.sampling.max_tokens != 1]
    plain = serve_with((info, runner), "off", cases)
    core = core_with_few_blocks((msgspec.structs.replace(info, speculation="ngram"), runner))
    runner.drafter = make_drafter("ngram", runner._model)
    try:
        assert go_on_halfway(core, cases, plain.outcomes) > 0
    finally:
        runner.drafter = None


@pytest.mark.parametrize(("salt", "sees"), [("one", True), ("another", False), (None, False)])
def test_the_second_of_two_alike_requests_gets_its_answer_from_the_first_if_they_have_the_same_salt(
    salt: str | None, sees: bool, executor_of: Callable[..., Executor]
) -> None:
    info, runner = executor_of("llama")
    prompt = random_tokens(random.Random(11), 20)
    sampling = SamplingParams(max_tokens=40, seed=5, temperature=1.0, ignore_eos=True)
    core = core_with_few_blocks((msgspec.structs.replace(info, speculation="suffix"), runner))
    runner.drafter = make_drafter("suffix", runner._model)
    texts, nums_accepted = [], []
    for name, own_salt in (("first", "one"), ("second", salt)):
        core.add_request(AddRequest(name, prompt, sampling, arrival_time=0.0, cache_salt=own_salt))
        deltas = []
        while core.has_work:
            deltas += core.step().deltas
        texts.append([token_id for delta in deltas for token_id in delta.token_ids])
        nums_accepted.append(deltas[-1].num_accepted_drafts)
    runner.drafter = None
    assert texts[0] == texts[1]
    assert nums_accepted[0] < 10
    assert (nums_accepted[1] > 30) == sees


# --- the whole engine, with the demo model ------------------------------------------------------------------

LINES = "apples, pears and plums\nplums, apples and pears\n"
JSON = Grammar("json_schema", '{"type": "array", "items": {"enum": ["apples", "pears"]}, "maxItems": 3}')
CALL = Grammar("regex", " [a-z]{1,6} is called;", openings=Openings((Opening(("and",), ()),)))  # as strict calls are
THOUGHT = Thinking(end=(40, 41), budget=9)
MIXED: list[tuple[str, SamplingParams]] = [
    (LINES * 3, SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)),
    (LINES * 3, SamplingParams(temperature=0, max_tokens=60, stop=("and",))),
    (LINES * 3, SamplingParams(temperature=0.5, seed=1, n=3, max_tokens=40, min_tokens=30, stop=("plums", "s\n"))),
    (LINES * 2, SamplingParams(temperature=0.3, seed=2, max_tokens=33, logprobs=3)),
    ("List: ", SamplingParams(temperature=0.7, seed=3, max_tokens=60, grammar=JSON)),
    (LINES, SamplingParams(temperature=0.2, seed=4, max_tokens=50, repetition_penalty=1.2)),
    (LINES * 2, SamplingParams(temperature=0.3, seed=5, n=2, max_tokens=60, grammar=CALL)),
    (LINES, SamplingParams(temperature=0, max_tokens=40, thinking=THOUGHT)),
]


@pytest.fixture(scope="module")
def outputs_of() -> Callable[[Speculation], list[RequestOutput]]:
    def run(speculation: Speculation) -> list[RequestOutput]:
        llm = LLM(device="cpu", dtype="float32", max_num_seqs=4, kv_cache_memory="32MiB", speculation=speculation)
        few = tuple(sorted({*llm.tokenizer.encode(LINES)}))  # so that texts repeat themselves
        prompts = [prompt for prompt, _ in MIXED]
        params = [
            sampling if sampling.grammar else msgspec.structs.replace(sampling, allowed_token_ids=few)
            for _, sampling in MIXED
        ]
        return [output for result in llm.generate(prompts, params) for output in result.outputs]

    return cache(run)


@pytest.mark.parametrize("speculation", SPECULATIONS)
def test_texts_stop_strings_and_samples_are_the_same_with_drafts(
    speculation: Speculation, outputs_of: Callable[[Speculation], list[RequestOutput]]
) -> None:
    plain, drafted = outputs_of("off"), outputs_of(speculation)
    for without, output in zip(plain, drafted, strict=True):
        assert (output.text, output.token_ids) == (without.text, without.token_ids)
        assert (output.finish_reason, output.stop_reason) == (without.finish_reason, without.stop_reason)
        assert 0 <= output.num_accepted_drafts <= min(output.num_draft_tokens, len(output.token_ids))
        assert without.num_draft_tokens == 0
    if speculation == "ngram":
        assert sum(output.num_accepted_drafts for output in drafted) > 20
    assert all(output.num_draft_tokens == 0 for output in drafted[-4:]), "what looks back tries none"
    assert any("and" in output.text and "is called;" in output.text for output in drafted[-3:-1])


def test_the_setting_says_what_proposes_and_whether_it_is_weighed(tmp_path: Path) -> None:
    model = build_model("llama", tmp_path)
    sources = {"off": None, "ngram": [OwnText], "suffix": [PastAnswers], "auto": [OwnText, PastAnswers]}
    for speculation, expected in sources.items():
        info, runner = build_executor(engine_config(model, speculation=speculation))
        assert (runner.drafter and [type(source) for source in runner.drafter._sources]) == expected  # type: ignore[attr-defined]
        assert EngineCore(info, runner).scheduler.limits.weighs_drafts is (speculation == "auto")
