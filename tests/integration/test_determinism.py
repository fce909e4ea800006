"""Deterministic mode: the same tokens and log-probabilities, to the last bit, whatever shares a request's steps.

Every request is served alone first, whole, with nothing cached; then among others that come and go, in chunks of other
sizes, preempted, with blocks of others' prompts. The same comparison without the mode finds differences: it can fail.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from orcinus.config.settings import demo_model_path
from orcinus.engine.attention import choice
from orcinus.engine.core import EngineCore
from orcinus.engine.cpu.decoder_layers import NativeDecoder
from orcinus.engine.cpu.native_linear import can_multiply
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.messages import EngineInfo, RequestDelta, StepPlan
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import Pooling, SamplingParams
from orcinus.engine.startup import build as executor_builder
from orcinus.engine.startup import cpu_layout
from orcinus.engine.startup.build import build_executor
from tests.effort import slow_but_for
from tests.integration.tiny_models import FAMILIES, build_model, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    Case,
    Run,
    info_with_blocks,
    prompts,
    random_tokens,
    sampled_cases,
    serve,
)

LIBRARY = load_library()
# Shapes that our kernels take whole layers of.
NATIVE_SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
NATIVE_SHAPES: dict[str, dict[str, Any]] = {"qwen3_5": NATIVE_SHAPE | {"head_dim": 128}}

Executor = tuple[EngineInfo, ModelRunner]
Answer = list[RequestDelta]


def has(kind: Any) -> bool:
    return LIBRARY is not None and can_multiply(LIBRARY, kind)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return cache(
        lambda family, is_native: build_model(
            family, tmp_path_factory.mktemp(family), **(NATIVE_SHAPES.get(family, NATIVE_SHAPE) if is_native else {})
        )
    )


@pytest.fixture(autouse=True)
def own_number_of_threads() -> Any:
    """Where layers do not run natively the mode leaves torch one thread, which is for the process that it runs in."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def executor_of(model_of: Callable[..., Path]) -> Callable[..., Executor]:
    """Loaded once each."""

    def load(family: str, *, is_native: bool = False, **settings: Any) -> Executor:
        return executor_for(model_of(family, is_native), **settings)

    return cache(load)


def executor_for(model: Path, **settings: Any) -> Executor:
    limits = {"max_model_len": MAX_MODEL_LEN, "block_size": BLOCK_SIZE, "max_num_batched_tokens": 64}
    return build_executor(engine_config(model, **{"deterministic": True} | limits | settings))


def core_of(executor: Executor, *, is_cramped: bool = False, **changes: Any) -> EngineCore:
    """With blocks for one sequence of the greatest length, or with all."""
    info, runner = executor
    runner.execute(StepPlan(scheduled=[], released=[*runner._requests]))  # of a core that was dropped
    num_blocks = MAX_MODEL_LEN // info.block_size if is_cramped else info.num_kv_blocks
    return EngineCore(info_with_blocks(info, num_blocks, **changes), runner)


def mixed_cases(count: int) -> list[Case]:
    """Greedy and random, all with log-probabilities; some share how they begin, some are one token."""
    rng = random.Random(5)
    lines = prompts(rng)
    greedy = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    cases = [Case(next(lines), greedy, []) for _ in range(count)] + sampled_cases(rng, count // 2)
    return [replace(case, sampling=with_logprobs(case.sampling)) for case in cases]


def embedding_cases(pooling: Pooling) -> list[Case]:
    rng = random.Random(6)
    sampling = SamplingParams(max_tokens=0, pooling=pooling)
    long = [random_tokens(rng, length) for length in (64, 65, 90)]
    return [Case(prompt, sampling, []) for prompt in [*long, *islice(prompts(rng), 3)]]


def with_logprobs(sampling: SamplingParams) -> SamplingParams:
    return msgspec.structs.replace(sampling, logprobs=3)


def answers(run: Run) -> list[Any]:
    """Return what a client could tell apart: each token with its log-probability as a float, and those of the best."""
    for outcome in run.outcomes:
        assert outcome.error is None
    return [
        (
            outcome.token_ids,
            [entry for delta in outcome.deltas for entry in delta.logprobs or []],
            outcome.deltas[-1].embedding,
        )
        for outcome in run.outcomes
    ]


def answers_alone(executor: Executor, cases: list[Case]) -> list[Any]:
    """Each on its own, its prompt in one piece, with nothing to share."""
    found = []
    for i, case in enumerate(cases):
        core = core_of(executor, enable_prefix_caching=False)
        found += answers(serve(core, [case], random.Random(0), f"alone{i}-"))
    return found


CROWDS: list[dict[str, Any]] = [
    {"max_num_batched_tokens": 5, "is_cramped": True},
    {"max_num_batched_tokens": 40},
]


def answers_in_crowds(executor: Executor, cases: list[Case]) -> list[tuple[int, Any]]:
    """Each among others, by its number: in chunks of several sizes, in other slots, preempted, in part cached.

    Chunks follow the measured time of steps, and with them preemptions: crowds come until there was one.
    """
    found: list[tuple[int, Any]] = []
    num_preemptions = num_cached = 0
    for i, crowd in enumerate(CROWDS * 6):
        if i >= len(CROWDS) and (num_preemptions > 0 or executor[0].block_size > BLOCK_SIZE):
            break
        order = random.Random(i).sample([*range(len(cases))] * 2, 2 * len(cases))
        run = serve(core_of(executor, **crowd), [cases[j] for j in order], random.Random(i), f"crowd{i}-")
        found += zip(order, answers(run), strict=True)
        num_preemptions += run.num_preemptions
        num_cached += run.num_cached_tokens
        assert run.max_running > 2
    assert num_cached > 0 or not executor[0].enable_prefix_caching
    assert num_preemptions > 0 or executor[0].block_size > BLOCK_SIZE
    return found


def check(executor: Executor) -> None:
    cases = mixed_cases(4)
    alone = answers_alone(executor, cases)
    for number, answer in answers_in_crowds(executor, cases):
        assert answer == alone[number]


def check_embeddings(executor: Executor, pooling: Pooling) -> None:
    cases = embedding_cases(pooling)
    alone = answers_alone(executor, cases)
    for number, answer in answers_in_crowds(executor, [*cases, *mixed_cases(8)]):
        assert number >= len(cases) or answer == alone[number]


@pytest.mark.parametrize("family", slow_but_for(FAMILIES, "llama"))
def test_in_float32_every_family_answers_alike_alone_and_in_any_crowd(
    family: str, executor_of: Callable[..., Executor]
) -> None:
    check(executor_of(family))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_in_bfloat16_families_that_keep_their_layers_answer_alike(
    family: str, executor_of: Callable[..., Executor]
) -> None:
    check(executor_of(family, dtype="bfloat16"))


@pytest.mark.skipif(not has("bfloat16"), reason="our kernels do not multiply bfloat16 on this CPU")
@pytest.mark.parametrize("family", slow_but_for(["llama", "qwen3", "mistral", "qwen3_moe"], "llama"))
def test_in_bfloat16_native_layers_answer_alike(family: str, executor_of: Callable[..., Executor]) -> None:
    executor = executor_of(family, is_native=True, dtype="bfloat16")
    assert NativeDecoder in {type(module) for module in executor[1]._model.causal_lm.modules()}
    check(executor)


@pytest.mark.parametrize(
    "case",
    slow_but_for(
        ["llama", "qwen3", "qwen3_5", "lfm2", "mistral in 8 bits", "qwen2 in 8 bits", "qwen3_5 in 8 bits"],
        *("llama", "qwen3_5", "mistral in 8 bits"),
    ),
)
def test_where_all_layers_run_natively_requests_answer_alike_by_default(
    case: str, model_of: Callable[..., Path]
) -> None:
    family, quantization = case.partition(" ")[0], "int8" if "8 bits" in case else None
    if not has(quantization or "bfloat16"):
        pytest.skip("our kernels do not multiply this on this CPU")
    torch.set_num_threads(2)
    settings = {"dtype": "bfloat16", "quantization": quantization, "deterministic": None, "block_size": 16}
    info, runner = executor_for(model_of(family, True), **settings)
    assert info.is_deterministic
    assert torch.get_num_threads() == 2
    check((info, runner))


@pytest.mark.skipif(not has("bfloat16"), reason="our kernels do not multiply bfloat16 on this CPU")
@pytest.mark.parametrize("pooling", slow_but_for(["mean", "last"], "mean"))
def test_where_all_layers_run_natively_embeddings_have_the_same_bits_by_default(
    pooling: Pooling, model_of: Callable[..., Path]
) -> None:
    check_embeddings(executor_for(model_of("llama", True), dtype="bfloat16", deterministic=None), pooling)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda hidden: hidden + hidden[:, :1] * 0.01, "its code mixes the rows of a step"),
        (lambda hidden: hidden + hidden.mean(1, keepdim=True) * 0.01, "its code uses aten.mean.dim"),
        (torch.nn.functional.silu, "its code uses aten.silu.default"),
    ],
)
def test_other_code_between_native_layers_and_the_head_is_not_trusted(
    change: Callable[[torch.Tensor], torch.Tensor],
    reason: str,
    model_of: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from transformers.models.llama.modeling_llama import LlamaModel

    if not has("bfloat16"):
        pytest.skip("our kernels do not multiply bfloat16 on this CPU")
    own_forward: Any = LlamaModel.forward

    def forward(model: Any, *args: Any, **kwargs: Any) -> Any:
        output = own_forward(model, *args, **kwargs)
        output.last_hidden_state = change(output.last_hidden_state)
        return output

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with caplog.at_level("INFO", "orcinus.engine.startup.build"):
        info, _ = executor_for(model_of("llama", True), dtype="bfloat16", deterministic=None)
    assert not info.is_deterministic
    assert reason in caplog.text


def test_where_layers_do_not_run_natively_the_mode_is_off_by_default(
    model_of: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "orcinus.engine.startup.build"):
        info, _ = executor_for(model_of("llama", False), deterministic=None)
    assert not info.is_deterministic
    assert "3 of 3 layers do not run natively" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_in_8_bits_requests_answer_alike(family: str, executor_of: Callable[..., Executor]) -> None:
    is_native = family == "llama"
    check(executor_of(family, is_native=is_native, dtype="bfloat16", quantization="int8"))


@pytest.mark.slow
def test_without_native_kernels_requests_answer_alike(
    model_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (choice, cpu_layout, executor_builder):
        monkeypatch.setattr(module, "load_library", lambda: None)
    executor = executor_for(model_of("llama", False))
    assert executor[0].attention_backend == "torch-by-token"
    check(executor)


@pytest.mark.slow
def test_the_demo_model_answers_alike() -> None:
    check(executor_for(demo_model_path(), dtype="auto"))


def test_without_the_mode_the_same_comparison_finds_differences(executor_of: Callable[..., Executor]) -> None:
    executor, cases = executor_of("llama", deterministic=False), mixed_cases(6)
    alone = answers_alone(executor, cases)
    assert any(answer != alone[number] for number, answer in answers_in_crowds(executor, cases))


def test_prompts_are_scored_alike_in_chunks_of_any_size(executor_of: Callable[..., Executor]) -> None:
    executor = executor_of("llama")
    sampling = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, prompt_logprobs=2)
    cases = [replace(case, sampling=sampling) for case in mixed_cases(8)]
    scores = []
    for i, budget in enumerate((5, 64)):
        run = serve(core_of(executor, max_num_batched_tokens=budget), cases, random.Random(i), f"scored{i}-")
        scores.append([delta.prompt_logprobs for outcome in run.outcomes for delta in outcome.deltas])
    assert scores[0] == scores[1]


@pytest.mark.parametrize("pooling", slow_but_for(["mean", "last"], "mean"))
def test_embeddings_have_the_same_bits_alone_and_in_any_crowd(
    pooling: Pooling, executor_of: Callable[..., Executor]
) -> None:
    check_embeddings(executor_of("llama"), pooling)


@pytest.mark.slow
def test_without_the_mode_embeddings_differ(executor_of: Callable[..., Executor]) -> None:
    executor, cases = executor_of("llama", deterministic=False), embedding_cases("mean")
    alone = answers_alone(executor, cases)
    crowds = answers_in_crowds(executor, [*cases, *mixed_cases(8)])
    assert any(answer != alone[number] for number, answer in crowds if number < len(cases))


def test_the_engine_says_that_it_is_deterministic(executor_of: Callable[..., Executor]) -> None:
    info, _ = executor_of("llama")
    assert info.is_deterministic
    assert LIBRARY is None or info.attention_backend.startswith("native-")


def test_torch_has_one_thread_and_our_kernels_have_all(model_of: Callable[..., Path]) -> None:
    torch.set_num_threads(2)
    executor_for(model_of("llama", False))
    assert torch.get_num_threads() == 1
    assert LIBRARY is None or LIBRARY.team.num_threads == 2


def test_a_model_whose_code_mixes_rows_is_refused(
    model_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    own_forward: Any = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda mlp, x: own_forward(mlp, x) + 1e-6 * x.mean())
    with pytest.raises(ModelLoadError, match=r"cannot be served deterministically: .* position 0 depends"):
        executor_for(model_of("llama", False))


def test_angles_that_depend_on_the_longest_sequence_are_refused(tmp_path: Path) -> None:
    rope: dict[str, Any] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = build_model("llama", tmp_path, rope_parameters=rope)
    with pytest.raises(ModelLoadError, match=r"rotary positions \(dynamic\) depend on the longest sequence"):
        executor_for(model)


def test_angles_that_are_fixed_for_a_longer_context_are_served(tmp_path: Path) -> None:
    rope: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0}
    rope |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}
    executor_for(build_model("llama", tmp_path, rope_parameters=rope))
