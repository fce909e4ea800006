"""Modules that read the step context, served: adapters, and layers that keep a state for each sequence.

The reference is transformers' own `generate`, one request at a time, with modules of the same weights that know nothing
of steps.
"""

import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
import torch
from torch import Tensor, nn

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.attention.step_context import current_step
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.messages import EngineInfo
from orcinus.engine.models.loader import load_causal_lm
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup import build
from orcinus.engine.startup.build import build_executor
from orcinus.engine.supervision.supervisor import _with_sizes_of
from tests.integration.tiny_models import build_model, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    Case,
    core_with_few_blocks,
    generate_alone,
    prompts,
    serve,
)

CPU = torch.device("cpu")
WIDTH = 48
ADAPTERS = {"french": 1, "legal": 2}
DECAY = 0.8
NUM_SLOTS = 4


def deltas() -> Tensor:
    """(1 + adapters, width, width); row 0 changes nothing."""
    table = torch.randn(1 + len(ADAPTERS), WIDTH, WIDTH, generator=torch.Generator().manual_seed(5))
    table[0] = 0
    return table / math.sqrt(WIDTH)


class Adapters(nn.Module):
    """Adds to each token what its request's adapter makes of it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.table = deltas()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        rows = current_step().adapter_rows
        return out if rows is None else out + torch.bmm(out[0].unsqueeze(1), self.table[rows]).squeeze(1)


class MovingAverage(nn.Module):
    """Adds to each token the moving average of its sequence, of which a slot has what was computed so far."""

    bytes_per_slot = 4 * WIDTH

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def take_memory(self, memory: Tensor) -> None:
        self.states = memory.view(torch.float32).fill_(torch.nan)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)[0]
        step = current_step()
        slots = step.state_slots
        if slots is None:
            return (out + averages(out, torch.zeros(WIDTH))).unsqueeze(0)
        meta = step.metadata[0]
        num_computed = meta.seq_lens_tensor - meta.query_start_tensor.diff()
        before = torch.where(num_computed.unsqueeze(1) == 0, 0.0, self.states[slots])
        parts = [averages(out[a:b], state) for (a, b), state in zip(pairwise(meta.query_start), before, strict=True)]
        self.states[slots] = torch.stack([part[-1] for part in parts])
        return (out + torch.cat(parts)).unsqueeze(0)


def averages(rows: Tensor, state: Tensor) -> Tensor:
    """After each of the rows."""
    states = []
    for row in rows:
        state = DECAY * state + (1 - DECAY) * row
        states.append(state)
    return torch.stack(states)


class AloneWithAdapter(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.delta = deltas()[0]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out.add(out @ self.delta)


class AloneWithAverage(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.state = torch.zeros(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        after: Tensor = averages(out[0], self.state)
        self.state = after[-1]
        return out + after


def alone_cases(directory: Path, rng: random.Random, count: int, *, has_states: bool) -> list[Case]:
    """Requests, each with some adapter or none, and what the model makes of each alone; not those with a tie."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    layers = model.model.layers
    layers[0].mlp = with_adapter = AloneWithAdapter(layers[0].mlp)
    model.generation_config.eos_token_id = None
    if has_states:
        layers[1].mlp = AloneWithAverage(layers[1].mlp)
    cases: list[Case] = []
    for prompt in prompts(rng):
        adapter = rng.choice([None, *ADAPTERS])
        with_adapter.delta = deltas()[ADAPTERS.get(adapter or "", 0)]
        max_tokens = rng.randint(8, 24)
        if has_states:
            layers[1].mlp.state = torch.zeros(WIDTH)
        expected = generate_alone(model, prompt, max_tokens)
        if expected is not None:
            sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
            cases.append(Case(prompt, sampling, expected, adapter))
        if len(cases) == count:
            break
    return cases


def executor_of(directory: Path, *, has_states: bool, **settings: Any) -> tuple[EngineInfo, ModelRunner]:
    def load(config: EngineConfig, device: torch.device, kept: object) -> Any:
        causal_lm = load_causal_lm(config, device)
        layers = causal_lm.model.layers
        layers[1].mlp = MovingAverage(layers[1].mlp) if has_states else layers[1].mlp
        return causal_lm

    limits = {"max_model_len": MAX_MODEL_LEN, "block_size": BLOCK_SIZE, "max_num_seqs": NUM_SLOTS}
    with patch.object(build, "load_causal_lm", load):
        info, runner = build_executor(engine_config(directory, **limits | settings))
    layers = runner._model.causal_lm.model.layers
    layers[0].mlp = Adapters(layers[0].mlp)
    runner.adapters |= ADAPTERS
    return msgspec.structs.replace(info, adapters=[*ADAPTERS]), runner


def record(function: Callable[[], None]) -> Callable[[], None]:
    """Run it once, as a recording does, and again at each replay."""
    function()
    return function


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def cases(directory: Path) -> list[Case]:
    return alone_cases(directory, random.Random(11), 18, has_states=True)


@pytest.mark.parametrize("way", ["in turn", "ahead", "replayed"])
def test_states_and_adapters_belong_to_their_requests_whatever_shares_the_steps(
    way: str, directory: Path, cases: list[Case]
) -> None:
    if way == "replayed" and load_library() is None:
        pytest.skip("the gathering backend looks at the host's lengths")
    info, runner = executor_of(directory, has_states=True)
    runner.runs_ahead = way == "ahead"
    if way == "replayed":
        runner.record_decodes(record, info.max_model_len)
    run = serve(core_with_few_blocks((info, runner)), cases, random.Random(1))
    assert [outcome.token_ids for outcome in run.outcomes] == [case.expected for case in cases]
    # What the test is about must have happened.
    assert run.num_preemptions > 0
    assert run.max_running == NUM_SLOTS < len(cases)
    assert max(len(case.prompt) for case in cases) > info.max_num_batched_tokens


def test_start_up_counts_what_modules_keep_for_each_slot_and_the_snapshots(directory: Path) -> None:
    memory = 100 * 3072
    sizes: dict[str, Any] = {"kv_cache_memory": memory, "max_model_len": None}
    without, _ = executor_of(directory, has_states=False, **sizes)
    per_block = without.kv_cache_bytes // without.num_kv_blocks
    assert (without.num_kv_blocks, without.state_bytes) == (memory // per_block, 0)
    row_bytes = MovingAverage.bytes_per_slot
    for wanted, num_snapshots in ((0, 0), (11 * row_bytes - 1, 10)):
        settings = {"state_cache_memory": wanted}
        info, runner = executor_of(directory, has_states=True, **settings, **sizes)
        assert (info.state_bytes, info.num_state_snapshots) == (row_bytes, num_snapshots)
        assert info.enable_prefix_caching == (num_snapshots > 0)
        assert runner.states is not None
        assert runner.states.slots.shape == (NUM_SLOTS + 1, row_bytes)
        assert runner.states.snapshots.shape == (num_snapshots, row_bytes)
        state_bytes = (NUM_SLOTS + 1 + num_snapshots) * row_bytes
        assert info.num_kv_blocks == (memory - state_bytes) // per_block < without.num_kv_blocks
        assert info.kv_cache_bytes == info.num_kv_blocks * per_block + state_bytes


def test_an_engine_that_is_given_the_sizes_of_another_has_the_same(directory: Path) -> None:
    """Where each block could have a snapshot, there are as many."""
    info, _ = executor_of(directory, has_states=True, kv_cache_memory=100 * 3072, max_model_len=None)
    assert info.num_state_snapshots == info.num_kv_blocks
    config = _with_sizes_of(info, engine_config(directory))
    sizes = ("kv_cache_memory", "state_cache_memory", "max_model_len")
    again, _ = executor_of(directory, has_states=True, **{name: getattr(config, name) for name in sizes})
    assert msgspec.structs.replace(again, load_time_s=info.load_time_s) == info


def test_a_module_that_keeps_states_and_does_not_say_so_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.MovingAverage", AloneWithAverage)  # one state for all that come by
    with pytest.raises(ModelLoadError, match="state outside attention"):
        executor_of(directory, has_states=True)


def test_a_prefix_is_reused_only_under_the_same_adapter(directory: Path) -> None:
    rng = random.Random(12)
    cases = alone_cases(directory, rng, 18, has_states=False)
    info, runner = executor_of(directory, has_states=False)
    run = serve(core_with_few_blocks((info, runner), info.num_kv_blocks), cases, rng)
    assert [outcome.token_ids for outcome in run.outcomes] == [case.expected for case in cases]
    assert run.num_cached_tokens > 0
