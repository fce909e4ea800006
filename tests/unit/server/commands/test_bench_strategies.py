"""`orcinus bench strategies` on an executor that computes nothing."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import get_args

import pytest

from orcinus.config.settings import load_settings
from orcinus.engine.messages import EngineInfo, StepPlan, StepResult
from orcinus.engine.sampling_params import SamplingParams
from orcinus.server.cli import main
from orcinus.server.commands import bench_strategies
from orcinus.server.commands.strategies.instances import Instances
from orcinus.server.commands.strategies.load import Arrival, Arrivals, Item, LoadShape, Traffic, make_load
from orcinus.server.commands.strategies.padded import PaddedGroups
from orcinus.server.commands.strategies.runs import (
    ENGINE_STRATEGIES,
    InOneEngine,
    RunResult,
    Timeline,
    run_strategy,
)
from orcinus.server.commands.strategies.table import format_table, price_per_million, summarize
from tests.unit.engine.fakes import Synchronous
from tests.unit.server.process.test_summary import INFO

in_one_engine = pytest.mark.parametrize("strategy", get_args(InOneEngine))

SHAPE = LoadShape(num_requests=40, prompt_min=4, prompt_max=16, output_mean=8, output_min=2, output_max=32, seed=3)


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
def load(info: EngineInfo) -> list[Item]:
    return make_load(SHAPE, info.vocab_size)


def run_of(
    info: EngineInfo, load: list[Item], strategy: InOneEngine, traffic: Traffic | None = None
) -> tuple[RunResult, Timeline]:
    return run_strategy(info, Instant(), strategy, load, batch_wait_ms=0, traffic=traffic)


def test_a_load_is_the_same_for_the_same_seed_and_within_its_bounds(load: list[Item]) -> None:
    assert load == make_load(SHAPE, 4096)
    assert load != make_load(dataclasses.replace(SHAPE, seed=4), 4096)
    assert len(load) == 40
    assert all(4 <= len(item.prompt_token_ids) <= 16 and 2 <= item.num_output_tokens <= 32 for item in load)
    assert len({item.num_output_tokens for item in load}) > 5


@in_one_engine
def test_every_strategy_generates_all_tokens_of_the_load(
    strategy: InOneEngine, info: EngineInfo, load: list[Item]
) -> None:
    run = run_of(info, load, strategy)[0]
    assert run.num_requests == 40
    total = sum(item.num_output_tokens for item in load)
    assert run.output_tokens_per_s * run.elapsed_s == pytest.approx(total)
    assert 0 < run.mean_ttft_s <= run.mean_e2e_s <= run.elapsed_s
    assert run.mean_ttft_s <= run.p99_ttft_s


def test_continuous_batching_keeps_its_slots_full_and_static_does_not(info: EngineInfo, load: list[Item]) -> None:
    continuous, static = run_of(info, load, "continuous")[0], run_of(info, load, "static")[0]
    assert continuous.slots_full == 1.0
    assert static.slots_full is not None
    assert static.slots_full < 0.8
    assert continuous.num_steps is not None
    assert static.num_steps is not None
    assert continuous.num_steps < static.num_steps


def test_sequential_has_one_slot_and_interleaved_computes_in_one(info: EngineInfo, load: list[Item]) -> None:
    assert run_of(info, load, "sequential")[0].num_slots == 1
    interleaved = run_of(info, load, "interleaved")[1]
    assert set(interleaved.busy_slots) == {1}


def test_medians_are_over_rounds_and_ratios_inside_a_round(info: EngineInfo, load: list[Item]) -> None:
    base = run_of(info, load, "static")[0]
    rounds = [
        [
            dataclasses.replace(base, strategy="continuous", output_tokens_per_s=speed * ratio),
            dataclasses.replace(base, output_tokens_per_s=speed),
        ]
        for speed, ratio in ((100.0, 2.0), (10.0, 3.0), (50.0, 2.5))
    ]
    continuous, static = summarize(rounds)
    assert (continuous.run.strategy, static.run.strategy) == ("continuous", "static")
    assert static.run.output_tokens_per_s == 50.0
    assert continuous.versus == {"static": pytest.approx(2.5)}
    assert static.versus == {"static": pytest.approx(1.0)}


def test_the_command_prints_a_table_and_writes_numbers_and_a_plot(
    info: EngineInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_strategies, "_load_model", lambda settings: (info, Instant()))
    plot, numbers = tmp_path / "plot.svg", tmp_path / "numbers.json"
    argv = ["bench", "strategies", "--requests", "12", "--rounds", "2", "--output-max", "12"]
    assert main([*argv, "--plot", str(plot), "--json", str(numbers)]) == 0
    captured = capsys.readouterr()
    table = [line for line in captured.out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == ["strategy", table[1].split("|")[1], *ENGINE_STRATEGIES]
    assert len({len(line) for line in table}) == 1
    assert "round 2" in captured.err
    report = json.loads(numbers.read_text())
    [measured] = report["traffic"]
    assert measured["name"] == "all at once"
    assert len(measured["rounds"]) == 2
    assert [run["strategy"] for run in measured["medians"]] == list(ENGINE_STRATEGIES)
    assert report["load"]["num_requests"] == 12
    assert plot.read_text().lstrip().startswith("<?xml")


def test_a_load_that_does_not_fit_the_context_is_refused(
    info: EngineInfo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_strategies, "_load_model", lambda settings: (info, Instant()))
    assert main(["bench", "strategies", "--no-plot", "--output-max", "2000"]) == 2
    assert "may have 128 + 2000 tokens, but the model's context is 2048" in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(bench_strategies, "find_spec", lambda name: None)
    assert main(["bench", "strategies", "--plot", "x.png"]) == 1
    assert "pip install 'orcinus[bench]'" in capsys.readouterr().err


# --- traffic --------------------------------------------------------------------------------------------


def test_users_send_the_next_request_when_one_is_answered(load: list[Item]) -> None:
    arrivals = Arrivals(load, Traffic(users=3), seed=0)
    assert [arrival.index for arrival in arrivals.take(0.0, 0, is_idle=True)] == [0, 1, 2]
    assert arrivals.take(9.0, 0, is_idle=True) == []
    assert arrivals.wait_s(9.0) is None
    (fourth,) = arrivals.take(9.5, 1, is_idle=False)
    assert (fourth.index, fourth.arrived_s) == (3, 9.5)


def test_requests_at_a_rate_come_when_they_are_due_whatever_is_answered(load: list[Item]) -> None:
    arrivals = Arrivals(load, Traffic(rate=10.0), seed=0)
    taken: list[Arrival] = arrivals.take(0.0, 0, is_idle=True)
    elapsed_s = 0.0
    while (wait_s := arrivals.wait_s(elapsed_s)) is not None:
        elapsed_s += wait_s + 0.5  # noticed late
        taken += arrivals.take(elapsed_s, 0, is_idle=True)
    assert [arrival.index for arrival in taken] == list(range(40))
    assert not arrivals.has_more
    times_s = [arrival.arrived_s for arrival in taken]
    assert times_s == sorted(times_s)
    assert 2.0 < times_s[-1] < 6.0


@in_one_engine
@pytest.mark.parametrize("traffic", [Traffic(users=3), Traffic(rate=2000.0)], ids=lambda traffic: str(traffic.name))
def test_every_strategy_serves_every_traffic(
    strategy: InOneEngine, traffic: Traffic, info: EngineInfo, load: list[Item]
) -> None:
    run, timeline = run_of(info, load, strategy, traffic)
    assert run.num_requests == 40
    assert run.output_tokens_per_s * run.elapsed_s == pytest.approx(sum(item.num_output_tokens for item in load))
    assert max(timeline.busy_slots) <= min(traffic.users or 8, run.num_slots)


# --- baselines ------------------------------------------------------------------------------------------


def test_a_padded_group_computes_the_longest_prompt_and_answer_for_every_row() -> None:
    load = [Item([1, 2, 3], 5), Item([4], 9), Item([5, 6], 2)]
    groups = PaddedGroups(Arrivals(load, Traffic(), 0), num_slots=2, batch_wait_s=9.0, sorts_by_length=False)
    first, second = groups.take(0.0, 0, is_idle=True)
    assert (first.prompt_token_ids, first.num_tokens, first.num_counted) == ([1, 2, 3], 9, 5)
    assert (second.prompt_token_ids, second.num_tokens, second.num_counted) == ([4, 4, 4], 9, 9)
    assert groups.take(0.1, 1, is_idle=False) == []
    (third,) = groups.take(0.2, 2, is_idle=True)
    assert (third.prompt_token_ids, third.num_tokens) == ([5, 6], 2)
    assert not groups.has_more


def test_a_sorted_group_has_the_shortest_of_the_prompts_that_wait() -> None:
    load = [Item([1, 2, 3], 5), Item([4], 9), Item([5, 6], 2)]
    groups = PaddedGroups(Arrivals(load, Traffic(), 0), num_slots=2, batch_wait_s=9.0, sorts_by_length=True)
    assert [arrival.index for arrival in groups.take(0.0, 0, is_idle=True)] == [1, 2]


def test_a_group_that_is_not_full_starts_when_it_has_waited() -> None:
    load = [Item([1], 5)] * 4
    groups = PaddedGroups(Arrivals(load, Traffic(users=1), 0), num_slots=2, batch_wait_s=3.0, sorts_by_length=False)
    assert groups.take(1.0, 0, is_idle=True) == []
    assert groups.wait_s(1.5) == pytest.approx(2.5)
    assert len(groups.take(4.0, 0, is_idle=True)) == 1


def test_padding_takes_steps_and_is_counted_as_nothing(info: EngineInfo, load: list[Item]) -> None:
    static, padded = run_of(info, load, "static")[0], run_of(info, load, "padded")[0]
    assert static.num_steps is not None
    assert padded.num_steps is not None
    assert padded.num_steps >= static.num_steps
    total = sum(item.num_output_tokens for item in load)
    assert padded.output_tokens_per_s * padded.elapsed_s == pytest.approx(total)


@pytest.mark.slow
def test_instances_run_one_request_each_and_all_of_the_load() -> None:
    config = load_settings(max_model_len=64).engine_config()
    load = [Item([1, 2, 3 + i], 2 + i) for i in range(5)]
    with Instances(config, 2) as instances:
        run, timeline = instances.run(load, Traffic(users=2), seed=0)
    assert (run.strategy, run.num_requests, run.num_slots, run.num_steps) == ("instances", 5, 2, None)
    assert run.output_tokens_per_s * run.elapsed_s == pytest.approx(2 + 3 + 4 + 5 + 6)
    assert 1 <= max(timeline.busy_slots) <= 2


def test_a_saving_is_what_the_baseline_costs_more(info: EngineInfo, load: list[Item]) -> None:
    base = run_of(info, load, "sequential")[0]
    slow = dataclasses.replace(base, output_tokens_per_s=100.0)
    fast = dataclasses.replace(base, strategy="continuous", output_tokens_per_s=500.0)
    assert price_per_million(fast, 3.6) == pytest.approx(2.0)
    table = format_table(summarize([[fast, slow]]), price_per_hour=3.6).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    row = dict(zip(cells[0], cells[2], strict=True))
    assert (row["vs sequential"], row["per 1M tokens"], row["saved"]) == ("5.00x", "2.000", "80%")
    assert "per 1M tokens" not in format_table(summarize([[fast, slow]]))


def test_two_kinds_of_traffic_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "strategies", "--users", "1,4", "--request-rate", "3"]) == 2
    assert "--users and --request-rate" in capsys.readouterr().err
