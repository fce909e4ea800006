"""Requests with known answers, and a way to serve them at random moments: what the truth tests share."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, EngineInfo, RequestDelta, StepPlan
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.scheduler.cache_groups import Concurrency, GroupCost, groups_of
from tests.integration.tiny_models import VOCAB_SIZE

NUM_REQUESTS = 40
MAX_MODEL_LEN = 96
BLOCK_SIZE = 4
# Two logits closer than this are a tie: which one wins says nothing about what was computed.
TIE = 1e-3

FIRST_TOKEN = 4  # smaller ids are special


@dataclass(frozen=True)
class Case:
    prompt: list[int]
    sampling: SamplingParams
    expected: list[int]
    adapter: str | None = None


@dataclass
class Outcome:
    token_ids: list[int]
    deltas: list[RequestDelta]

    @property
    def error(self) -> str | None:
        return self.deltas[-1].error


@dataclass(frozen=True)
class Run:
    outcomes: list[Outcome]
    num_preemptions: int
    num_cached_tokens: int
    max_running: int


def core_with_few_blocks(
    executor: tuple[EngineInfo, ModelRunner], num_blocks: int = MAX_MODEL_LEN // BLOCK_SIZE
) -> EngineCore:
    info, runner = executor
    runner.execute(StepPlan(scheduled=[], released=[*runner._requests]))  # of a core that was dropped
    return EngineCore(info_with_blocks(info, num_blocks), runner)


def info_with_blocks(info: EngineInfo, num_blocks: int, **changes: Any) -> EngineInfo:
    """Tell of so many blocks that keep everything, and of as many of each window as start-up would have given then."""
    info = msgspec.structs.replace(info, num_kv_blocks=num_blocks, **changes)
    at_once = Concurrency(info.max_num_seqs, 2 * info.max_num_batched_tokens, info.block_size)
    costs = [GroupCost(group.num_layers, 0, group.window) for group in info.cache_groups]
    groups = groups_of(num_blocks, costs, at_once)
    assert all(group.num_blocks <= there.num_blocks for group, there in zip(groups, info.cache_groups, strict=True))
    return msgspec.structs.replace(info, cache_groups=groups)


def prompts(rng: random.Random) -> Iterator[list[int]]:
    """Of 1 to 60 tokens; every third begins like some other."""
    prefixes = [random_tokens(rng, length) for length in (16, 33)]
    while True:
        yield random_tokens(rng, rng.randint(1, 60))
        yield random_tokens(rng, rng.randint(1, 20))
        yield rng.choice(prefixes) + random_tokens(rng, rng.randint(1, 20))


def random_tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(FIRST_TOKEN, VOCAB_SIZE) for _ in range(count)]


def greedy_cases(directory: Path, rng: random.Random, count: int, longest: int = 16) -> list[Case]:
    """Requests with what `generate` makes of them; those in which it met a tie are left out.

    For the same model and the same numbers they are made once.
    """
    asked = (directory, rng.getstate(), count, longest)
    if asked not in _GREEDY:
        _GREEDY[asked] = (_greedy_cases(directory, rng, count, longest), rng.getstate())
    cases, state = _GREEDY[asked]
    rng.setstate(state)
    return [*cases]


_GREEDY: dict[Any, tuple[list[Case], Any]] = {}


def _greedy_cases(directory: Path, rng: random.Random, count: int, longest: int) -> list[Case]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    cases: list[Case] = []
    for prompt in prompts(rng):
        max_tokens = rng.randint(1, longest)
        expected = generate_alone(model, prompt, max_tokens)
        if expected is not None:
            sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
            cases.append(Case(prompt, sampling, expected))
        if len(cases) == count:
            break
    return cases


def generate_alone(model: Any, prompt: list[int], max_tokens: int, tie: float = TIE) -> list[int] | None:
    """Return what the model's own `generate` makes of the prompt; None where it met a tie."""
    with torch.inference_mode():
        result = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
    best = torch.cat(result.scores).topk(2, dim=-1).values
    if bool((best[:, 0] - best[:, 1] < tie).any()):
        return None
    return list(result.sequences[0, len(prompt) :].tolist())


def serve(core: EngineCore, cases: list[Case], rng: random.Random, name: str = "") -> Run:
    """Run the requests, which arrive at random moments while others are running."""
    waiting = [(f"{name}{i}", case) for i, case in enumerate(cases)]
    outcomes = {request_id: Outcome([], []) for request_id, _ in waiting}
    num_preemptions = num_cached = max_running = 0
    while waiting or core.has_work:
        for _ in range(min(len(waiting), rng.choice([0, 0, 1, 2]))):
            request_id, case = waiting.pop(0)
            core.add_request(
                AddRequest(
                    request_id=request_id,
                    prompt_token_ids=case.prompt,
                    sampling=case.sampling,
                    arrival_time=0.0,
                    adapter=case.adapter,
                )
            )
        step = core.step()
        num_preemptions += step.stats.num_preemptions
        num_cached += step.stats.prefix_cache_hits
        max_running = max(max_running, step.stats.num_running)
        for delta in step.deltas:
            outcomes[delta.request_id].token_ids += delta.token_ids
            outcomes[delta.request_id].deltas.append(delta)
    return Run(list(outcomes.values()), num_preemptions, num_cached, max_running)


def serve_together_and_alone(executor: tuple[EngineInfo, ModelRunner], cases: list[Case], rng: random.Random) -> Run:
    """Return how the requests ran beside each other, each with the tokens that it gets alone."""
    together = serve(core_with_few_blocks(executor), cases, rng, "together")
    assert together.max_running > 1
    for i, (case, outcome) in enumerate(zip(cases, together.outcomes, strict=True)):
        assert outcome.error is None
        alone = serve(core_with_few_blocks(executor), [case], rng, f"alone{i} ")
        assert outcome.token_ids == alone.outcomes[0].token_ids
    return together


def sampled_cases(rng: random.Random, count: int) -> list[Case]:
    """Every kind of sampling, mixed."""
    variants: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.8},
        {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
        {"temperature": 0.9, "presence_penalty": 0.8, "frequency_penalty": 0.5, "logprobs": 2},
        {"temperature": 1.0, "repetition_penalty": 1.4, "logit_bias": {40: 5.0}},
        {"temperature": 0.0},
        {"temperature": 1.0, "min_tokens": 6, "stop_token_ids": tuple(range(4, 200))},
    ]
    lengths = [rng.randint(3, 40) for _ in range(count)]
    return [
        Case(
            random_tokens(rng, length),
            SamplingParams(max_tokens=12, seed=1000 + i, ignore_eos=True, **variants[i % len(variants)]),
            [],
        )
        for i, length in enumerate(lengths)
    ]


def go_on_halfway(core: EngineCore, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> int:
    """Have a core take requests over in the middle of these outcomes: the other halves must be the same.

    Returns how many drafts were accepted.
    """
    expected = {}
    for i, (case, outcome) in enumerate(zip(cases, outcomes, strict=True)):
        half = outcome.token_ids[: len(outcome.token_ids) // 2]
        expected[f"r{i}"] = outcome.token_ids[len(half) :]
        core.add_request(AddRequest(f"r{i}", case.prompt, case.sampling, arrival_time=0.0, output_token_ids=half))
    tokens: dict[str, list[int]] = {name: [] for name in expected}
    num_accepted = 0
    while core.has_work:
        outputs = core.step()
        num_accepted += outputs.stats.num_accepted_drafts
        for delta in outputs.deltas:
            tokens[delta.request_id] += delta.token_ids
    assert tokens == expected
    return num_accepted
