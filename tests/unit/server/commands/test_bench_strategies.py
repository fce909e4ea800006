"""`orcinus bench strategies` on an executor that computes nothing."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.messages import EngineInfo, StepPlan, StepResult
from orcinus.engine.sampling_params import SamplingParams
from orcinus.server.cli import main
from orcinus.server.commands import bench_strategies as bench
from tests.unit.engine.fakes import Synchronous
from tests.unit.server.process.test_summary import INFO

SHAPE = bench.LoadShape(
    num_requests=40, prompt_min=4, prompt_max=16, output_mean=8, output_min=2, output_max=32, seed=3
)


class Instant(Synchronous):
    """An executor whose steps take no time: every row that samples gets token 5."""

    def prepare(self, sampling: SamplingParams) -> None:
        """Nothing takes time here either."""

    def execute(self, plan: StepPlan) -> StepResult:
        return StepResult(sampled_token_ids={row.request_id: [5] for row in plan.scheduled if row.num_samples})


@pytest.fixture
def info() -> EngineInfo:
    import msgspec

    return msgspec.structs.replace(INFO, max_num_seqs=8)


@pytest.fixture
def load(info: EngineInfo) -> list[bench.Item]:
    return bench.make_load(SHAPE, info.vocab_size)


def _run(info: EngineInfo, load: list[bench.Item], strategy: Any) -> bench.RunResult:
    return bench.run_strategy(info, Instant(), strategy, load, batch_wait_ms=0)[0]


def test_a_load_is_the_same_for_the_same_seed_and_within_its_bounds(load: list[bench.Item]) -> None:
    assert load == bench.make_load(SHAPE, 4096)
    assert load != bench.make_load(dataclasses.replace(SHAPE, seed=4), 4096)
    assert len(load) == 40
    assert all(4 <= len(item.prompt_token_ids) <= 16 and 2 <= item.num_output_tokens <= 32 for item in load)
    assert len({item.num_output_tokens for item in load}) > 5


@pytest.mark.parametrize("strategy", bench.STRATEGIES)
def test_every_strategy_generates_all_tokens_of_the_load(
    strategy: Any, info: EngineInfo, load: list[bench.Item]
) -> None:
    run = _run(info, load, strategy)
    assert run.num_requests == 40
    total = sum(item.num_output_tokens for item in load)
    assert run.output_tokens_per_s * run.elapsed_s == pytest.approx(total)
    assert 0 < run.mean_ttft_s <= run.mean_e2e_s <= run.elapsed_s
    assert run.mean_ttft_s <= run.p99_ttft_s


def test_continuous_batching_keeps_its_slots_full_and_static_does_not(info: EngineInfo, load: list[bench.Item]) -> None:
    continuous, static = _run(info, load, "continuous"), _run(info, load, "static")
    assert continuous.slots_full == 1.0
    assert static.slots_full is not None
    assert static.slots_full < 0.8
    assert continuous.num_steps < static.num_steps


def test_sequential_has_one_slot_and_interleaved_computes_in_one(info: EngineInfo, load: list[bench.Item]) -> None:
    assert _run(info, load, "sequential").num_slots == 1
    interleaved = bench.run_strategy(info, Instant(), "interleaved", load, 0)[1]
    assert set(interleaved.busy_slots) == {1}


def test_medians_are_over_rounds_and_ratios_inside_a_round(info: EngineInfo, load: list[bench.Item]) -> None:
    base = _run(info, load, "static")
    rounds = [
        [
            dataclasses.replace(base, strategy="continuous", output_tokens_per_s=speed * ratio),
            dataclasses.replace(base, output_tokens_per_s=speed),
        ]
        for speed, ratio in ((100.0, 2.0), (10.0, 3.0), (50.0, 2.5))
    ]
    continuous, static = bench.summarize(rounds)
    assert (continuous.strategy, static.strategy) == ("continuous", "static")
    assert static.output_tokens_per_s == 50.0
    assert continuous.vs_static == pytest.approx(2.5)
    assert static.vs_static == pytest.approx(1.0)


def test_the_command_prints_a_table_and_writes_numbers_and_a_plot(
    info: EngineInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_load_model", lambda settings: (info, Instant()))
    plot, numbers = tmp_path / "plot.svg", tmp_path / "numbers.json"
    argv = ["bench", "strategies", "--requests", "12", "--rounds", "2", "--output-max", "12"]
    assert main([*argv, "--plot", str(plot), "--json", str(numbers)]) == 0
    captured = capsys.readouterr()
    table = [line for line in captured.out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == ["strategy", table[1].split("|")[1], *bench.STRATEGIES]
    assert len({len(line) for line in table}) == 1
    assert "round 2" in captured.err
    report = json.loads(numbers.read_text())
    assert len(report["rounds"]) == 2
    assert [run["strategy"] for run in report["medians"]] == list(bench.STRATEGIES)
    assert report["load"]["num_requests"] == 12
    assert plot.read_text().lstrip().startswith("<?xml")


def test_a_load_that_does_not_fit_the_context_is_refused(
    info: EngineInfo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_load_model", lambda settings: (info, Instant()))
    assert main(["bench", "strategies", "--no-plot", "--output-max", "2000"]) == 2
    assert "may have 128 + 2000 tokens, but the model's context is 2048" in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert main(["bench", "strategies", "--plot", "x.png"]) == 1
    assert "pip install 'orcinus[bench]'" in capsys.readouterr().err
