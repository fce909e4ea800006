"""Drafts of a model's own head: it computes what was published, and no token is another one for its drafts."""

import json
import logging
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from orcinus.config.engine_config import Speculation
from orcinus.engine.attention.interface import batch_metadata
from orcinus.engine.attention.step_context import StepContext, step_context
from orcinus.engine.core import EngineCore
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.messages import EngineInfo, HeadUse, Proposal, StepResult
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.runner.mtp_drafter import MtpDrafter, StepStates
from orcinus.engine.runner.text_drafter import TextDrafter
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.scheduler.draft_policy import DraftPolicy
from orcinus.engine.scheduler.head_policy import HeadPolicy
from orcinus.engine.startup.build import build_executor, make_drafter
from tests.effort import slow_but_for
from tests.integration.mtp_models import QWENS, build_mtp_model, build_multimodal_mtp_model, load, reference_logits
from tests.integration.quantized_files import Kind, is_quantized, write_quantized
from tests.integration.tiny_models import build_model, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    TIE,
    Case,
    Run,
    core_with_few_blocks,
    go_on_halfway,
    greedy_cases,
    random_tokens,
    sampled_cases,
    serve,
)

Executor = tuple[EngineInfo, ModelRunner]
FAMILIES = ("deepseek_v3", "glm4_moe", "glm4_moe_lite", *QWENS)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Tiny models whose heads are random, or good."""

    def build(family: str, *, is_good: bool = False) -> Path:
        return build_mtp_model(family, tmp_path_factory.mktemp(family), is_good=is_good)

    return cache(build)


@pytest.fixture(scope="module")
def executor_of(model_of: Callable[..., Path]) -> Callable[..., Executor]:
    def load(family: str, *, is_good: bool = False, **config: Any) -> Executor:
        return load_executor(model_of(family, is_good=is_good), **config)

    return cache(load)


def load_executor(directory: Path, speculation: Speculation = "mtp", **config: Any) -> Executor:
    sizes = {"max_model_len": MAX_MODEL_LEN, "block_size": BLOCK_SIZE}
    return build_executor(engine_config(directory, speculation=speculation, **sizes | config))


def serve_with(
    executor: Executor, speculation: Speculation, cases: Sequence[Case], *, drafter: MtpDrafter | None = None
) -> Run:
    """Serve among few blocks, and see that the requests were in each other's way."""
    info, runner = executor
    before, runner.drafter = runner.drafter, drafter or make_drafter(speculation, runner._model)
    core = core_with_few_blocks((msgspec.structs.replace(info, speculation=speculation), runner))
    try:
        run = serve(core, [*cases], random.Random(1), f"{speculation} ")
    finally:
        runner.drafter = before
    assert all(outcome.error is None for outcome in run.outcomes)
    assert run.num_preemptions > 0
    assert run.max_running > 1
    return run


def num_drafts(run: Run) -> tuple[int, int]:
    lasts = [outcome.deltas[-1] for outcome in run.outcomes]
    return sum(last.num_draft_tokens for last in lasts), sum(last.num_accepted_drafts for last in lasts)


def mixed_cases(rng: random.Random, count: int) -> list[Case]:
    """Greedy and seeded requests of all kinds, of which some begin alike."""
    cases = sampled_cases(rng, count)
    prefixes = [random_tokens(rng, length) for length in (9, 22)]
    for i, case in enumerate(cases):
        changes: dict[str, Any] = {"temperature": 0.0} if i % 3 == 0 else {}
        sampling = msgspec.structs.replace(case.sampling, max_tokens=rng.randint(6, 30), **changes)
        prompt = rng.choice(prefixes) + case.prompt if i % 2 else case.prompt
        cases[i] = Case(prompt, sampling, [])
    return cases


# --- what the head computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_heads_logits_are_those_of_the_published_formula(
    family: str, model_of: Callable[..., Path], executor_of: Callable[..., Executor]
) -> None:
    token_ids = random_tokens(random.Random(family), 40)
    expected = reference_logits(model_of(family), token_ids)
    _, runner = executor_of(family)
    ids, positions = torch.tensor(token_ids), torch.arange(39)
    table = np.arange(10, dtype=np.int32).reshape(1, -1)
    chunks = [(0, 13), (13, 14), (14, 39)]
    logits = []
    with torch.inference_mode():
        for first, end in chunks:
            metadata = batch_metadata([(first, end)], table, BLOCK_SIZE, torch.device("cpu"))
            here = slice(first, end)
            with step_context(StepContext(runner._attention, (metadata,), state_slots=torch.tensor([0]))):
                hidden = runner._model.hidden_states(ids[here], positions[here])
                states = runner._model.mtp_states(ids[first + 1 : end + 1], hidden, positions[here])
            logits.append(runner._model.logits(states))
    torch.testing.assert_close(torch.cat(logits), expected, rtol=1e-4, atol=1e-4)


class NotingDrafter(MtpDrafter):
    """Notes what it proposes, by request and by how many tokens come before."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.proposed: dict[str, dict[int, int]] = {}

    def propose(self, request_ids: Sequence[str]) -> dict[str, Proposal]:
        proposals = super().propose(request_ids)
        for request_id, proposal in proposals.items():
            (self.proposed.setdefault(request_id, {})[self._lengths[request_id]],) = proposal.token_ids
        return proposals


@pytest.mark.parametrize("runs_ahead", [False, True])
@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_guesses_in_chunks_batches_and_after_rejected_drafts_are_those_over_the_whole_text(
    family: str, runs_ahead: bool, model_of: Callable[..., Path], executor_of: Callable[..., Executor]
) -> None:
    info, runner = executor_of(family)
    executor = (msgspec.structs.replace(info, enable_prefix_caching=False), runner)
    cases = [case for case in mixed_cases(random.Random(family), 20) if not case.sampling.looks_back]
    drafter = NotingDrafter(runner._model)
    runner.runs_ahead = runs_ahead
    try:
        run = serve_with(executor, "mtp", cases, drafter=drafter)
    finally:
        runner.runs_ahead = False
    tried, accepted = num_drafts(run)
    assert accepted < tried // 4, "drafts were to be rejected"
    for i, (case, outcome) in enumerate(zip(cases, run.outcomes, strict=True)):
        best = reference_logits(model_of(family), case.prompt + outcome.token_ids).topk(2)
        proposed = drafter.proposed[f"mtp {i}"]
        assert len(proposed) >= len(outcome.token_ids) - 1 - outcome.deltas[-1].num_accepted_drafts
        for length, draft in proposed.items():
            if length >= len(best.values) + 2:
                continue  # behind the last token
            values, tokens = best.values[length - 2].tolist(), best.indices[length - 2].tolist()
            assert draft == tokens[0] or values[0] - values[1] < TIE


# --- the same tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_good", [False, True])
@pytest.mark.parametrize("family", slow_but_for(FAMILIES, "deepseek_v3", "qwen3_5"))
def test_greedy_output_equals_generate_alone(
    family: str, is_good: bool, model_of: Callable[..., Path], executor_of: Callable[..., Executor]
) -> None:
    cases = greedy_cases(model_of(family, is_good=is_good), random.Random(family), 20, longest=24)
    run = serve_with(executor_of(family, is_good=is_good), "mtp", cases)
    assert [outcome.token_ids for outcome in run.outcomes] == [case.expected for case in cases]
    assert run.num_cached_tokens > 0 or family in QWENS
    tried, accepted = num_drafts(run)
    assert tried > 0
    assert (accepted > tried // 2) == is_good


@pytest.mark.parametrize(
    ("runs_ahead", "is_good", "speculation"),
    [
        (False, True, "mtp"),
        (True, True, "mtp"),
        (False, False, "auto"),
        pytest.param(False, False, "mtp", marks=pytest.mark.slow),
        pytest.param(True, False, "mtp", marks=pytest.mark.slow),
        pytest.param(True, True, "auto", marks=pytest.mark.slow),
    ],
)
def test_mixed_requests_get_the_same_tokens_with_drafts_as_without(
    runs_ahead: bool, is_good: bool, speculation: Speculation, executor_of: Callable[..., Executor]
) -> None:
    executor = executor_of("deepseek_v3", is_good=is_good)
    cases = mixed_cases(random.Random(5), 21)
    plain = serve_with(executor, "off", cases)
    executor[1].runs_ahead = runs_ahead
    try:
        drafted = serve_with(executor, speculation, cases)
    finally:
        executor[1].runs_ahead = False
    assert drafted.num_cached_tokens > 0
    assert num_drafts(plain) == (0, 0)
    if speculation == "mtp":
        tried, accepted = num_drafts(drafted)
        assert (accepted > 0) == is_good
        assert accepted < tried
    for case, without, outcome in zip(cases, plain.outcomes, drafted.outcomes, strict=True):
        assert outcome.token_ids == without.token_ids
        assert outcome.deltas[-1].finish_reason == without.deltas[-1].finish_reason
        if case.sampling.looks_back:
            assert outcome.deltas[-1].num_draft_tokens == 0


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_a_head_that_rests_now_and_then_changes_no_token(
    runs_ahead: bool, executor_of: Callable[..., Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, heads = random.Random(9), []
    executor = executor_of("deepseek_v3", is_good=True)
    cases = mixed_cases(random.Random(5), 21)
    plain = serve_with(executor, "off", cases)
    launch, with_guesses = MtpDrafter.launch, ModelRunner._with_guesses
    num_launched = 0

    def count(self: MtpDrafter, step: StepStates, *, wants_guesses: bool) -> Callable[[], None]:
        nonlocal num_launched
        num_launched += 1
        return launch(self, step, wants_guesses=wants_guesses)

    def note(self: ModelRunner, batch: Any, hidden: Any, sampled: Any, head: HeadUse) -> Callable[[], StepResult]:
        heads.append(head)
        return with_guesses(self, batch, hidden, sampled, head)

    monkeypatch.setattr(MtpDrafter, "launch", count)
    monkeypatch.setattr(ModelRunner, "_with_guesses", note)
    monkeypatch.setattr(HeadPolicy, "runs_beside", lambda self, num_decodes: rng.random() < 0.5)
    monkeypatch.setattr(
        DraftPolicy,
        "choose",
        lambda self, proposals, num_decodes: {name: each.token_ids for name, each in proposals.items()},
    )
    monkeypatch.setattr(executor[1], "runs_ahead", runs_ahead)
    drafted = serve_with(executor, "auto", cases)
    assert [outcome.token_ids for outcome in drafted.outcomes] == [outcome.token_ids for outcome in plain.outcomes]
    tried, accepted = num_drafts(drafted)
    assert 0 < accepted < tried
    assert {*heads} == {"rests", "caches", "guesses"}
    assert num_launched == len(heads) - heads.count("rests")


@pytest.mark.parametrize("deterministic", [None, pytest.param(True, marks=pytest.mark.slow)])
def test_a_model_in_bfloat16_gets_the_same_tokens(
    deterministic: bool | None, executor_of: Callable[..., Executor]
) -> None:
    options = {"dtype": "bfloat16", "deterministic": deterministic}
    executor = executor_of("glm4_moe", is_good=True, **options)
    cases = mixed_cases(random.Random(6), 14 if deterministic else 8)
    if not deterministic:  # what shares a step may then change a token that is as good as another
        cases = [Case(case.prompt, SamplingParams(temperature=0, max_tokens=20), []) for case in cases]
    plain, drafted = serve_with(executor, "off", cases), serve_with(executor, "mtp", cases)
    assert [outcome.token_ids for outcome in drafted.outcomes] == [outcome.token_ids for outcome in plain.outcomes]
    tried, accepted = num_drafts(drafted)
    assert accepted > tried // 2


def test_a_request_that_another_engine_goes_on_with_gets_the_same_tokens(executor_of: Callable[..., Executor]) -> None:
    info, runner = executor_of("glm4_moe", is_good=True)
    cases = mixed_cases(random.Random(3), 16)
    plain = serve_with((info, runner), "off", cases)
    core = core_with_few_blocks((info, runner))
    assert go_on_halfway(core, cases, plain.outcomes) > len(cases)


def test_replayed_steps_leave_their_hidden_states_to_the_head(model_of: Callable[..., Path]) -> None:
    def record(function: Callable[[], None]) -> Callable[[], None]:
        function()
        return function

    info, runner = load_executor(model_of("glm4_moe", is_good=True))
    runner.runs_ahead = True
    cases = mixed_cases(random.Random(8), 14)
    plain = serve_with((info, runner), "off", cases)
    runner.record_decodes(record, info.max_model_len)
    assert runner.graphs is not None
    assert runner.graphs.sizes
    drafted = serve_with((info, runner), "mtp", cases)
    assert [outcome.token_ids for outcome in drafted.outcomes] == [outcome.token_ids for outcome in plain.outcomes]
    tried, accepted = num_drafts(drafted)
    assert accepted > tried // 3


@pytest.mark.parametrize("options", [{"quantization": "int8"}, {"kv_cache_dtype": "int8"}])
def test_a_head_of_a_quantized_model_is_good(options: dict[str, Any], executor_of: Callable[..., Executor]) -> None:
    info, runner = executor_of("glm4_moe", is_good=True, dtype="bfloat16", **{"block_size": 16} | options)
    sampling = SamplingParams(temperature=0, max_tokens=20)
    cases = [Case(random_tokens(random.Random(i), 30), sampling, []) for i in range(8)]
    tried, accepted = num_drafts(serve(EngineCore(info, runner), cases, random.Random(1)))
    assert accepted > tried // 2 > 0


GPTQ = Kind("gptq", group=-1, symmetric=True)


def write_quantized_beside(directory: Path, to: Path, *, is_plain: bool) -> Path:
    """Write a model with 4 bits a weight, and the head of `directory`'s, as it is or in 4 bits, too."""
    packed, _ = write_quantized(load(directory), to, GPTQ)
    own, weights = load_file(packed / "model.safetensors"), load_file(directory / "model.safetensors")
    prefix = "mtp." if "mtp.fc.weight" in weights else "model.layers.3."
    for name, weight in weights.items():
        if not name.startswith(prefix):
            continue
        if is_plain or not is_quantized(name, weight):
            own[name] = weight.half()
        else:
            parts = GPTQ.tensors(GPTQ.rounded(weight, 0))
            own |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
    save_file(own, packed / "model.safetensors", {"format": "pt"})
    return packed


@pytest.mark.parametrize("family", ["glm4_moe", "qwen3_5"])
def test_a_head_may_be_plain_where_the_model_is_quantized(
    family: str, model_of: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_quantized_beside(model_of(family, is_good=True), tmp_path, is_plain=True)
    cases = mixed_cases(random.Random(10), 8)
    plain, drafted = (
        serve(core_with_few_blocks(load_executor(directory, speculation, dtype="bfloat16")), cases, random.Random(1))
        for speculation in ("off", "mtp")
    )
    assert "names are not the model's own" not in caplog.text
    assert [outcome.token_ids for outcome in drafted.outcomes] == [outcome.token_ids for outcome in plain.outcomes]
    tried, accepted = num_drafts(drafted)
    assert accepted > tried // 3


@pytest.mark.parametrize("family", ["glm4_moe", "qwen3_5"])
def test_a_head_that_is_quantized_itself_is_not_used(
    family: str, model_of: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_quantized_beside(model_of(family), tmp_path, is_plain=False)
    with pytest.raises(ModelLoadError, match=r"it is quantized: it has (eh_proj|layer\.mlp\..*)\.qweight"):
        load_executor(directory, "mtp", dtype="bfloat16")
    assert isinstance(load_executor(directory, "auto", dtype="bfloat16")[1].drafter, TextDrafter)
    assert "names are not the model's own" not in caplog.text


# --- start-up -----------------------------------------------------------------------------------------------


def test_the_head_is_in_the_accounts_of_memory(
    model_of: Callable[..., Path], executor_of: Callable[..., Executor]
) -> None:
    directory = model_of("deepseek_v3")
    with_head, _ = executor_of("deepseek_v3")
    without, runner = load_executor(directory, "off")
    assert runner._model.mtp_head is None
    assert (without.cache_groups[0].num_layers, with_head.cache_groups[0].num_layers) == (3, 4)
    assert with_head.kv_cache_bytes * 3 == without.kv_cache_bytes * 4
    own = {
        name: w for name, w in load_file(directory / "model.safetensors").items() if name.startswith("model.layers.3.")
    }
    shared = own["model.layers.3.embed_tokens.weight"].numel() * 2
    num_own = sum(weight.numel() for weight in own.values()) - shared
    assert with_head.weight_bytes - without.weight_bytes == 4 * num_own


def test_the_setting_says_whether_the_head_is_used(
    model_of: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    directory = model_of("glm4_moe")
    caplog.set_level(logging.INFO, logger="orcinus")
    info, runner = load_executor(directory, "auto")
    assert isinstance(runner.drafter, MtpDrafter)
    assert isinstance(runner.drafter._texts, TextDrafter)
    assert EngineCore(info, runner).scheduler.limits.weighs_drafts
    assert "proposes drafts" in caplog.text
    caplog.clear()
    for speculation in ("off", "ngram"):
        info, runner = load_executor(directory, speculation)
        assert not isinstance(runner.drafter, MtpDrafter)
        assert "--speculation mtp or auto would use" in caplog.text


def test_a_multimodal_checkpoint_has_its_head_beside_the_language_model(tmp_path: Path) -> None:
    directory = build_multimodal_mtp_model(tmp_path)
    cases = mixed_cases(random.Random(9), 6)
    plain, drafted = (
        serve(core_with_few_blocks(load_executor(directory, speculation)), cases, random.Random(1))
        for speculation in ("off", "mtp")
    )
    assert [outcome.token_ids for outcome in drafted.outcomes] == [outcome.token_ids for outcome in plain.outcomes]
    tried, accepted = num_drafts(drafted)
    assert tried > accepted


@pytest.mark.parametrize("family", ["llama", "mamba", "deepseek_v3"])
def test_a_model_without_a_head_has_none_to_draft_with(family: str, tmp_path: Path) -> None:
    directory = build_model(family, tmp_path)
    with pytest.raises(ModelLoadError, match=r"speculation=mtp: the checkpoint has no MTP head .*layers\.3\.eh_proj"):
        load_executor(directory, "mtp")
    assert not isinstance(load_executor(directory, "auto")[1].drafter, MtpDrafter)


DAMAGES = {
    "lacks": ("mlp.experts.2.up_proj.weight", None, "the checkpoint lacks layer.mlp.experts.2.up_proj.weight"),
    "is of another shape": ("eh_proj.weight", (48, 48), r"eh_proj.weight has the shape \(48, 48\) and not \(48, 96\)"),
    "is unknown": (
        "self_attn.extra.weight",
        (3,),
        "not those of one of the model's own layers, first layer.self_attn.extra",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_head_that_is_not_whole_is_refused_by_name(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, shape, message = DAMAGES[damage]
    directory = build_mtp_model("glm4_moe", tmp_path)
    weights = load_file(directory / "model.safetensors")
    weights.pop(f"model.layers.3.{name}", None)
    if shape is not None:
        weights[f"model.layers.3.{name}"] = torch.zeros(shape)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match=message):
        load_executor(directory, "mtp")
    assert isinstance(load_executor(directory, "auto")[1].drafter, TextDrafter)
    assert "the checkpoint's MTP head is not used" in caplog.text


def test_a_head_whose_numbers_are_none_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = build_mtp_model("glm4_moe", tmp_path)
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.3.hnorm.weight"][0] = torch.nan
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    info, runner = load_executor(directory, "auto")
    assert isinstance(runner.drafter, TextDrafter)
    assert info.cache_groups[0].num_layers == 3
    assert "first run failed: what it computes is not finite" in caplog.text
    with pytest.raises(ModelLoadError, match="cannot be used: see the log"):
        load_executor(directory, "mtp")


def test_the_last_hidden_layer_may_be_in_a_file_of_its_own(tmp_path: Path) -> None:
    directory = build_mtp_model("glm4_moe", tmp_path)
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    parts = {name: "b" if ".layers.3." in name else "a" for name in weights}
    for part in "ab":
        own = {name: weight for name, weight in weights.items() if parts[name] == part}
        save_file(own, directory / f"{part}.safetensors", {"format": "pt"})
    files = {name: f"{part}.safetensors" for name, part in parts.items()}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert isinstance(load_executor(directory)[1].drafter, MtpDrafter)
