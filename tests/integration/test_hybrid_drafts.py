"""Drafts for models that keep states: one that is rejected leaves no trace, and no token is another one for them."""

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.messages import EngineInfo
from orcinus.engine.models.loader import multiplies_bfloat16
from orcinus.engine.recurrent import functions
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor
from tests.effort import slow_but_for
from tests.integration.test_speculation import num_drafts, repeating_cases
from tests.integration.test_step_context import record
from tests.integration.tiny_models import build_model, engine_config
from tests.integration.truth import MAX_MODEL_LEN, Case, Run, core_with_few_blocks, go_on_halfway, serve

Executor = tuple[EngineInfo, ModelRunner]
FAMILIES = ("qwen3_5", "bamba", "lfm2", "kimi_linear", "jamba")  # one of each kind of state
QUICK = ("qwen3_5", "bamba", "lfm2")


@pytest.fixture(scope="module")
def executor_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Executor]:
    model_of = cache(lambda family: build_model(family, tmp_path_factory.mktemp(family)))

    def load(family: str, **config: Any) -> Executor:
        settings = {"max_model_len": MAX_MODEL_LEN, "block_size": 16, "speculation": "ngram", "seed": 0} | config
        return build_executor(engine_config(model_of(family), **settings))

    return cache(load)


def long_cases(seed: str, count: int) -> list[Case]:
    """Requests that repeat themselves, for long enough to be in each other's way."""
    rng = random.Random(seed)
    return [
        Case(
            case.prompt,
            msgspec.structs.replace(case.sampling, max_tokens=rng.randint(16, 30), ignore_eos=True),
            [],
        )
        for case in repeating_cases(rng, count)
    ]


def serve_with(executor: Executor, cases: Sequence[Case], *, has_drafts: bool, num_tokens: int = MAX_MODEL_LEN) -> Run:
    """Serve in blocks for so many tokens."""
    info, runner = executor
    drafter = runner.drafter
    runner.drafter = drafter if has_drafts else None
    core = core_with_few_blocks(executor, num_tokens // info.block_size)
    try:
        run = serve(core, [*cases], random.Random(1), f"{has_drafts} ")
    finally:
        runner.drafter = drafter
    core.scheduler.check_integrity()
    return run


def check_same(executor: Executor, cases: Sequence[Case]) -> Run:
    plain, drafted = (serve_with(executor, cases, has_drafts=has_drafts) for has_drafts in (False, True))
    for case, without, outcome in zip(cases, plain.outcomes, drafted.outcomes, strict=True):
        assert outcome.error is None
        assert outcome.token_ids == without.token_ids
        assert outcome.deltas[-1].finish_reason == without.deltas[-1].finish_reason
        if case.sampling.looks_back:
            assert outcome.deltas[-1].num_draft_tokens == 0
    num_tried, num_accepted = num_drafts(drafted)
    assert num_accepted > len(cases) // 2
    assert num_tried - num_accepted > len(cases) // 2
    assert num_drafts(plain) == (0, 0)
    return drafted


@pytest.mark.parametrize("family", slow_but_for(FAMILIES, *QUICK))
def test_mixed_requests_get_the_same_tokens_with_drafts_as_without(
    family: str, executor_of: Callable[..., Executor]
) -> None:
    run = check_same(executor_of(family), long_cases(f"{family} mixed", 8))
    assert run.max_running > 1


@pytest.mark.parametrize("family", slow_but_for(FAMILIES, "qwen3_5"))
def test_preempted_requests_get_the_same_tokens(family: str, executor_of: Callable[..., Executor]) -> None:
    executor = executor_of(family, block_size=4, max_num_seqs=6)
    run = check_same(executor, long_cases(f"{family} preempted", 10))
    assert run.num_preemptions > 0


@pytest.mark.parametrize("family", slow_but_for(FAMILIES, "lfm2"))
def test_by_torch_tokens_are_the_same(
    family: str, executor_of: Callable[..., Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, and where there are no kernels."""
    monkeypatch.setattr(functions, "_native", lambda _: None)
    check_same(executor_of(family), long_cases(f"{family} torch", 6))


@pytest.mark.parametrize("family", slow_but_for(FAMILIES, "qwen3_5"))
@pytest.mark.skipif(not multiplies_bfloat16(), reason="this CPU does not multiply bfloat16")
def test_in_bfloat16_tokens_are_the_same(family: str, executor_of: Callable[..., Executor]) -> None:
    executor = executor_of(family, dtype="bfloat16", deterministic=True)
    check_same(executor, long_cases(f"{family} bfloat16", 6))


@pytest.mark.parametrize("way", ["ahead", pytest.param("replayed", marks=pytest.mark.slow)])
def test_steps_launched_ahead_or_replayed_give_the_same(way: str, executor_of: Callable[..., Executor]) -> None:
    info, runner = executor_of("lfm2")
    runner.runs_ahead = way == "ahead"
    if way == "replayed":
        runner.record_decodes(record, info.max_model_len)
    try:
        check_same((info, runner), long_cases(f"{way} lfm2", 8))
    finally:
        runner.runs_ahead, runner.graphs = False, None


def test_a_request_that_another_engine_goes_on_with_gets_the_same_tokens(executor_of: Callable[..., Executor]) -> None:
    info, runner = executor_of("lfm2")
    cases = [case for case in repeating_cases(random.Random(5), 10) if case.sampling.max_tokens != 1]
    plain = serve_with((info, runner), cases, has_drafts=False)
    core = core_with_few_blocks((info, runner), info.num_kv_blocks)
    assert go_on_halfway(core, cases, plain.outcomes) > 0


def test_an_answer_with_drafts_can_be_gone_on_from(executor_of: Callable[..., Executor]) -> None:
    """The next turn begins with a snapshot that was made between drafts."""
    info, runner = executor_of("qwen3_5")
    sampling = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, allowed_token_ids=(10, 11, 12))
    first = Case([10, 11, 12] * 5, sampling, [])
    core = core_with_few_blocks((info, runner), info.num_kv_blocks)
    outcome = serve(core, [first], random.Random(1), "first").outcomes[0]
    assert outcome.deltas[-1].num_accepted_drafts > 20
    after = Case(first.prompt + outcome.token_ids, sampling, [])
    again = serve(core, [after], random.Random(1), "reused")
    assert again.num_cached_tokens == 48
    alone = serve_with((info, runner), [after], has_drafts=False)
    assert again.outcomes[0].token_ids == alone.outcomes[0].token_ids


# --- start-up -----------------------------------------------------------------------------------------------


def test_two_states_of_each_request_are_on_the_account(tmp_path: Path) -> None:
    directory = build_model("lfm2", tmp_path)
    sizes: dict[str, Any] = {"max_model_len": MAX_MODEL_LEN, "block_size": 16, "kv_cache_memory": None}
    rows, bytes_of = {}, {}
    for speculation in ("off", "ngram"):
        info, runner = build_executor(engine_config(directory, speculation=speculation, **sizes))
        assert (info.speculation, runner.drafter is None) == (speculation, speculation == "off")
        assert runner.states is not None
        rows[speculation] = len(runner.states.slots)
        bytes_of[speculation] = info.kv_cache_bytes
    assert rows == {"off": info.max_num_seqs + 1, "ngram": 2 * info.max_num_seqs + 1}
    assert bytes_of["ngram"] - bytes_of["off"] == info.max_num_seqs * info.state_bytes
    memory = (info.max_num_seqs + 2) * info.state_bytes
    message = rf"the states of {info.max_num_seqs} sequences \(max_num_seqs\), two of each .*speculation=ngram"
    with pytest.raises(ModelLoadError, match=message):
        build_executor(engine_config(directory, speculation="ngram", **sizes | {"kv_cache_memory": memory}))
