"""The truth test with drafts: however good or bad they are, each request gets what it gets without them."""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.messages import EngineInfo, NewRequest, Proposal
from orcinus.engine.models.loader import multiplies_bfloat16
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor
from tests.integration.tiny_models import VOCAB_SIZE, build_model, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    Case,
    Run,
    core_with_few_blocks,
    greedy_cases,
    random_tokens,
    sampled_cases,
    serve,
)

Executor = tuple[EngineInfo, ModelRunner]


class KnowingDrafter:
    """Proposes up to six tokens of the texts that it was told will come, one in five of them a random one instead."""

    def __init__(self, texts: Mapping[str, list[int]], rng: random.Random) -> None:
        self._texts = texts
        self._rng = rng
        self._num_known: dict[str, int] = {}
        self.num_mistakes = 0

    def begin(self, new: NewRequest) -> None:
        self._num_known[new.request_id] = len(new.token_ids)

    def take_in(self, grown: Mapping[str, Sequence[int]]) -> None:
        for name, token_ids in grown.items():
            self._num_known[name] += len(token_ids)

    def release(self, request_id: str) -> None:
        pass

    def propose(self, request_ids: Sequence[str]) -> dict[str, Proposal]:
        following = {name: self._texts[name][self._num_known[name] :] for name in request_ids}
        return {
            name: Proposal(self._with_mistakes(tokens[: self._rng.randint(0, 6)]), "long match")
            for name, tokens in following.items()
        }

    def _with_mistakes(self, tokens: list[int]) -> list[int]:
        drafts = [token if self._rng.random() < 0.8 else self._rng.randrange(VOCAB_SIZE) for token in tokens]
        self.num_mistakes += drafts != tokens
        return drafts


def drafter_for(cases: Sequence[Case], outputs: Sequence[list[int]], name: str) -> KnowingDrafter:
    texts = {f"{name}{i}": case.prompt + output for i, (case, output) in enumerate(zip(cases, outputs, strict=True))}
    return KnowingDrafter(texts, random.Random(name))


def serve_with(drafter: KnowingDrafter, executor: Executor, cases: Sequence[Case], name: str) -> Run:
    """Serve with drafts, among few blocks, and see that what the test is about has happened."""
    runner = executor[1]
    runner.drafter = drafter
    try:
        run = serve(core_with_few_blocks(executor), [*cases], random.Random(1), name)
    finally:
        runner.drafter = None
    deltas = [delta for outcome in run.outcomes for delta in outcome.deltas]
    assert all(delta.error is None for delta in deltas)
    assert sum(len(delta.token_ids) - 1 for delta in deltas) > len(cases), "few drafts were accepted"
    assert drafter.num_mistakes > len(cases) // 2
    assert run.num_preemptions > 0
    assert run.max_running > 1
    return run


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: build_model(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="module")
def executor_of(model_of: Callable[[str], Path]) -> Callable[..., Executor]:
    def load(family: str, **config: Any) -> Executor:
        return build_executor(
            engine_config(model_of(family), max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE, **config)
        )

    return cache(load)


@pytest.mark.parametrize(
    ("family", "runs_ahead"), [("llama", False), ("llama", True), ("gemma2", False), ("qwen3_moe", False)]
)
def test_greedy_output_with_drafts_equals_generate_alone(
    family: str, runs_ahead: bool, model_of: Callable[[str], Path], executor_of: Callable[..., Executor]
) -> None:
    cases = greedy_cases(model_of(family), random.Random(family), 24, longest=32)
    executor = executor_of(family)
    executor[1].runs_ahead = runs_ahead
    drafter = drafter_for(cases, [case.expected for case in cases], "greedy")
    run = serve_with(drafter, executor, cases, "greedy")
    executor[1].runs_ahead = False
    assert [outcome.token_ids for outcome in run.outcomes] == [case.expected for case in cases]
    assert max(len(case.prompt) for case in cases) > (engine_config(Path()).max_num_batched_tokens or 0) > 0


@pytest.mark.parametrize(
    "config",
    [
        {"dtype": "float32"},
        # Only where a row's bits do not depend on the others can a run in another rhythm be the same in bfloat16.
        pytest.param(
            {"dtype": "bfloat16", "deterministic": True},
            marks=pytest.mark.skipif(not multiplies_bfloat16(), reason="this CPU does not multiply bfloat16"),
        ),
    ],
    ids=["float32", "bfloat16"],
)
def test_seeded_output_with_drafts_equals_that_without(
    config: dict[str, Any], executor_of: Callable[..., Executor]
) -> None:
    rng = random.Random(5)
    at_one = [
        Case(random_tokens(rng, rng.randint(3, 40)), SamplingParams(max_tokens=16, seed=i, ignore_eos=True), [])
        for i in range(16)
    ]
    cases = at_one + sampled_cases(rng, 14)
    executor = executor_of("llama", **config)
    plain = serve(core_with_few_blocks(executor), cases, random.Random(2), "plain")
    drafter = drafter_for(cases, [outcome.token_ids for outcome in plain.outcomes], "drafts")
    drafted = serve_with(drafter, executor, cases, "drafts")
    for case, without, outcome in zip(cases, plain.outcomes, drafted.outcomes, strict=True):
        assert outcome.token_ids == without.token_ids
        assert outcome.deltas[-1].finish_reason == without.deltas[-1].finish_reason
        if case.sampling.logprobs is not None:
            entries = [entry for delta in outcome.deltas for entry in delta.logprobs or []]
            assert [entry.token_id for entry in entries] == outcome.token_ids
