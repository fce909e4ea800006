"""The targets, without a model: times between tokens, shares, what holds, and streams of a server that is none."""

import argparse
import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.peers.drivers import run_orcinus
from bench.peers.roofline import ModelBytes
from bench.targets import interference
from bench.targets.__main__ import latency_rows, parse_parts, prefix_pairs, roofline_rows
from bench.targets.figures import Row, Window, latency_within, lengths_within
from bench.targets.interference import Interference, decode_beside_prompts
from bench.targets.report import as_data, format_targets
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import StepPlan
from orcinus.server.load.answers import LoadError, RequestFailedError, RequestRecord
from orcinus.server.load.prompts import LoadItem
from tests.unit.engine.fakes import FakeExecutor, fake_info, says
from tests.unit.server.load.scripted import ScriptedServer, scripted_server

ENDLESS = 10**7


def row(value: float, unit: str = "ms", *, foreign_cores: float = 0.0, **target: object) -> Row:
    return Row(name="figure", value=value, unit=unit, foreign_cores=foreign_cores, **target)  # type: ignore[arg-type]


def item(max_tokens: int) -> LoadItem:
    return LoadItem(prompt=[1, 2, 3], max_tokens=max_tokens, prompt_tokens=3)


def test_times_between_tokens_are_those_of_each_stream() -> None:
    streams = [[1.0, 1.1, 1.3], [1.05, 1.25]]
    latency = latency_within(streams, Window(1.0, 2.0))
    assert latency.p50_ms == pytest.approx(200)
    assert latency.max_ms == pytest.approx(200)


def test_a_gap_belongs_to_the_window_in_which_it_ends() -> None:
    streams = [[0.9, 1.0, 1.5, 1.6]]
    assert latency_within(streams, Window(0.0, 1.0)).max_ms == pytest.approx(100)
    assert latency_within(streams, Window(1.0, 1.5)).max_ms == pytest.approx(500)
    assert latency_within(streams, Window(1.5, 2.0)).max_ms == pytest.approx(100)


def test_one_stall_in_a_hundred_shows_in_the_p99_and_not_in_the_median() -> None:
    times_s = [float(i) for i in range(100)]
    latency = latency_within([[*times_s, 109.0]], Window(0.0, 200.0))
    assert (latency.p50_ms, latency.max_ms) == (1000.0, 10_000.0)
    assert 1000 < latency.p99_ms < 10_000


def test_a_window_without_a_token_is_no_latency() -> None:
    with pytest.raises(ValueError, match=r"no stream has a token from 5\.0 to 6\.0 s"):
        latency_within([[1.0, 2.0]], Window(5.0, 6.0))


@given(st.lists(st.lists(st.floats(0.0, 9.0), max_size=30).map(sorted), max_size=4), st.floats(0.0, 9.0))
def test_every_token_is_before_a_window_or_in_it_or_after_it(streams: list[list[float]], start_s: float) -> None:
    window = Window(start_s, 9.0)
    lengths = lengths_within(streams, 5, window)
    assert sum(before - 5 + inside for before, inside in lengths) == sum(map(len, streams))


def test_the_context_of_a_stream_is_its_prompt_and_what_came_before_the_window() -> None:
    assert lengths_within([[1.0, 2.0, 3.0, 4.0]], 32, Window(2.0, 3.5)) == [(34, 1)]


@pytest.mark.parametrize(
    ("value", "bound", "holds"),
    [(1.9, "at most", True), (2.0, "at most", True), (2.1, "at most", False), (2.1, "at least", True)],
)
def test_a_target_holds_up_to_its_limit(value: float, bound: str, holds: bool) -> None:
    assert row(value, "x", limit=2.0, bound=bound).holds is holds


def test_the_table_tells_what_holds_what_does_not_and_what_has_no_target() -> None:
    rows = [
        row(71.0),
        row(2.34, "x", limit=2.0),
        row(0.051, "%", limit=0.1),
        row(0.96, "%", limit=0.95, bound="at least"),
    ]
    report = format_targets("Targets", ["a machine"], rows)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if "figure" in line]
    assert [line[1:4] for line in cells] == [
        ["71.0 ms", "–", "–"],
        ["2.34x", "at most 2.00x", "**no**"],
        ["5.1 %", "at most 10.0 %", "yes"],
        ["96.0 %", "at least 95.0 %", "yes"],
    ]
    assert "not quiet" not in report


def test_the_table_says_when_others_were_busy() -> None:
    report = format_targets("Targets", [], [row(1.0), row(1.0, foreign_cores=0.75)])
    assert "others took more than 0.1 cores beside 1 of 2 figures, 0.75 at most" in report


def test_the_data_are_the_rows_and_whether_they_hold() -> None:
    data = as_data("Targets", ["a machine"], [row(2.34, "x", limit=2.0)])
    assert json.loads(json.dumps(data)) == data
    assert (data["rows"][0]["value"], data["rows"][0]["limit"], data["rows"][0]["holds"]) == (2.34, 2.0, False)


def seen() -> Interference:
    """Two streams with a token every 0.1 s alone; beside one prompt every 0.2 s, once after 1 s."""
    times_s = [0.1 * i for i in range(11)] + [1.0 + 0.2 * i for i in range(1, 11)] + [4.0]
    prompt = RequestRecord(sent_s=1.0, ended_s=2.0, asked_prompt_tokens=9, asked_output_tokens=1, chunk_times_s=[1.5])
    return Interference(
        streams=[times_s, times_s], alone=Window(0.05, 1.05), with_prompts=Window(1.05, 4.0), prompts=[prompt]
    )


def test_the_target_is_about_the_median_while_prompts_arrive_and_the_other_is_told_too() -> None:
    rows = {row.name: row for row in latency_rows(seen(), 0.0)}
    with_target = rows["p99 while prompts arrive over the median while they do"]
    assert [row for row in rows.values() if row.limit is not None] == [with_target]
    assert rows["inter-token latency of 2 streams alone, median"].value == pytest.approx(100)
    assert rows["inter-token latency of the same while prompts arrive, median"].value == pytest.approx(200)
    assert with_target.value == pytest.approx(5)
    assert with_target.holds is False
    assert rows["the same p99 over the median without prompts"].value == pytest.approx(10)
    assert rows["time to first token of those prompts, median"].value == pytest.approx(500)


def test_the_share_of_the_roofline_is_that_of_decoding_alone() -> None:
    speed, share = roofline_rows(seen(), 32, ModelBytes(10**9, 0), 40.0, 0.0)
    assert speed.value == pytest.approx(20)
    assert share.value == pytest.approx(20 / 80)


def test_parts_are_asked_for_by_name() -> None:
    assert parse_parts("ready,http") == ["ready", "http"]
    with pytest.raises(argparse.ArgumentTypeError, match="'speed' is no part"):
        parse_parts("ready,speed")


def test_of_two_prompts_the_second_shares_the_first_ones_prefix_and_nothing_else() -> None:
    items = prefix_pairs(1000, prefix_tokens=64, num_pairs=3)
    prompts = [item.prompt for item in items]
    assert [len(prompt) for prompt in prompts] == [80] * 6
    for cold, shared in zip(prompts[0::2], prompts[1::2], strict=True):
        assert cold[:64] == shared[:64]
        assert cold[64:] != shared[64:]
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 3


def test_the_loop_alone_answers_in_full_with_no_more_under_way_than_allowed() -> None:
    executor = FakeExecutor(says("ends early"))
    core = EngineCore(fake_info(max_num_seqs=8), executor)
    answers = run_orcinus.run(core, [([65, 66], 20), ([67], 3), ([68], 5)], 2, {"temperature": 0.0})
    assert [(answer.prompt_tokens, answer.completion_tokens) for answer in answers] == [(2, 20), (1, 3), (1, 5)]
    assert [len(answer.chunk_times_s) for answer in answers] == [20, 3, 5]
    assert max(len(plan.scheduled) for plan in executor.plans) == 2
    assert all(answer.error is None for answer in answers)


def test_the_loop_alone_tells_of_a_step_that_failed() -> None:
    def fail(plan: StepPlan) -> None:
        raise RuntimeError("out of memory")

    core = EngineCore(fake_info(), FakeExecutor(says("never"), before_step=fail))
    [answer] = run_orcinus.run(core, [([65], 4)], 1, {"temperature": 0.7, "top_p": 0.8, "top_k": 20.0})
    assert (answer.completion_tokens, answer.error) == (0, "the step failed")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


async def test_streams_go_on_while_prompts_are_answered(server: ScriptedServer) -> None:
    seen = await decode_beside_prompts(server.url, [item(ENDLESS)] * 2, [item(4)] * 3, alone_s=0.01, every_s=0.0)
    assert [len(record.chunk_times_s) for record in seen.prompts] == [4, 4, 4]
    assert seen.alone.end_s == seen.with_prompts.start_s
    assert all(seen.alone.start_s <= record.sent_s <= seen.with_prompts.end_s for record in seen.prompts)
    assert len(seen.streams) == 2
    assert {body["ignore_eos"] for body in server.bodies} == {True}


async def test_streams_that_end_too_early_are_no_measurement(server: ScriptedServer) -> None:
    with pytest.raises(LoadError, match="a stream came to its end before the prompts did"):
        await decode_beside_prompts(server.url, [item(9)], [item(4)], alone_s=0.01, every_s=0.0)


async def test_a_stream_that_ends_beside_the_prompts_is_no_measurement_either(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt is asked when the stream has come to its end, whatever the machine does meanwhile."""
    has_ended, read, ask = asyncio.Event(), interference._read, interference._ask_later

    async def read_to_the_end(*args: Any) -> None:
        await read(*args)
        has_ended.set()

    async def ask_after_the_end(*args: Any) -> RequestRecord:
        await has_ended.wait()
        return await ask(*args)

    monkeypatch.setattr(interference, "_SETTLED_TOKENS", 0)
    monkeypatch.setattr(interference, "_read", read_to_the_end)
    monkeypatch.setattr(interference, "_ask_later", ask_after_the_end)
    with pytest.raises(LoadError, match="a stream came to its end before the prompts did"):
        await decode_beside_prompts(server.url, [item(1)], [item(4)], alone_s=0.0, every_s=0.0)


async def test_streams_that_are_refused_say_why(server: ScriptedServer) -> None:
    server.refuses = lambda body: "no such model"
    with pytest.raises(RequestFailedError, match="no such model"):
        await decode_beside_prompts(server.url, [item(9)], [item(4)], alone_s=0.01, every_s=0.0)
