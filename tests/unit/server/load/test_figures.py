"""What records add up to: on handmade times."""

import argparse
import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.server.load.answers import LoadError, RequestRecord
from orcinus.server.load.figures import (
    meets,
    parse_objectives,
    peak_concurrency,
    spread,
    summarize,
    tokens_over_time,
)
from orcinus.server.load.report import markdown_table, percentile
from orcinus.server.load.run import LoadRun
from orcinus.server.load.summary_table import format_summary


def record(sent_s: float, *chunk_times_s: float, **more: Any) -> RequestRecord:
    """Four tokens in each chunk, unless said otherwise."""
    counts = {"prompt_tokens": 10, "cached_tokens": 5, "completion_tokens": 4 * len(chunk_times_s)}
    made = RequestRecord(
        sent_s=sent_s,
        ended_s=chunk_times_s[-1],
        asked_prompt_tokens=9,
        asked_output_tokens=16,
        chunk_times_s=list(chunk_times_s),
        finish_reason="length",
    )
    return dataclasses.replace(made, **(counts | more))


def failed(sent_s: float, ended_s: float, reason: str) -> RequestRecord:
    return dataclasses.replace(record(sent_s, ended_s), chunk_times_s=[], failure=reason, error=f"{reason}: because")


RUN = LoadRun(
    [record(0.0, 1.0, 2.0), failed(0.0, 0.5, "HTTP 429"), record(0.5, 1.0, 1.5, 4.0), failed(3.0, 3.5, "HTTP 429")],
    duration_s=4.0,
    client_cpu=0.25,
)


def test_a_load_is_summed_over_what_succeeded() -> None:
    summary = summarize(RUN, {})
    assert (summary.num_succeeded, summary.num_failed, summary.failures) == (2, 2, {"HTTP 429": 2})
    assert (summary.asked_prompt_tokens, summary.prompt_tokens, summary.cached_tokens) == (18, 20, 10)
    assert (summary.asked_output_tokens, summary.output_tokens) == (32, 20)
    assert (summary.requests_per_s, summary.output_tokens_per_s, summary.total_tokens_per_s) == (0.5, 5.0, 10.0)
    assert summary.tokens_per_chunk == 4.0
    assert summary.peak_concurrency == 2
    assert summary.goodput is None


def test_latencies_are_in_milliseconds_and_per_what_they_are_of() -> None:
    summary = summarize(RUN, {})
    assert summary.ttft_ms is not None
    assert summary.itl_ms is not None
    assert summary.tpot_ms is not None
    assert summary.e2el_ms is not None
    assert (summary.ttft_ms.mean, summary.ttft_ms.std) == (750.0, 250.0)
    assert summary.itl_ms.mean == pytest.approx((1000 + 500 + 2500) / 3)
    assert summary.tpot_ms.mean == pytest.approx((1000 / 7 + 3000 / 11) / 2)
    assert summary.e2el_ms.mean == 2750.0


def test_counts_that_one_answer_lacks_are_unknown_for_all() -> None:
    run = LoadRun([record(0.0, 1.0), record(0.0, 1.0, prompt_tokens=None, completion_tokens=None)], 1.0, 0.0)
    summary = summarize(run, {})
    assert (summary.prompt_tokens, summary.total_tokens_per_s) == (None, None)
    assert summary.output_tokens == 4 + 1
    assert not summary.are_tokens_counted


def test_nothing_succeeded_is_an_error_with_the_reasons_counted() -> None:
    run = LoadRun([failed(0.0, 1.0, "HTTP 500"), *[failed(0.0, 1.0, "HTTP 429")] * 2], 1.0, 0.0)
    with pytest.raises(LoadError, match=r"2 x HTTP 429, 1 x HTTP 500; the first error: HTTP 500: because"):
        summarize(run, {})


@pytest.mark.parametrize(
    ("objectives", "is_met"),
    [
        ({"ttft": 500}, True),
        ({"ttft": 499}, False),
        ({"tpot": 273}, True),
        ({"tpot": 272}, False),
        ({"e2el": 3500}, True),
        ({"e2el": 3499}, False),
        ({"ttft": 500, "tpot": 272, "e2el": 3500}, False),
    ],
)
def test_a_request_is_good_within_every_objective(objectives: dict[str, float], is_met: bool) -> None:
    assert meets(RUN.records[2], objectives) is is_met


def test_one_token_is_never_too_slow_and_a_failure_never_good() -> None:
    assert meets(record(0.0, 1.0, completion_tokens=1), {"tpot": 1})
    assert not meets(failed(0.0, 0.001, "HTTP 429"), {"e2el": 1000})


def test_goodput_is_a_second_and_of_all_that_were_sent() -> None:
    goodput = summarize(RUN, {"ttft": 600}).goodput
    assert goodput is not None
    assert (goodput.requests_per_s, goodput.share) == (1 / 4, 1 / 4)


def test_objectives_are_read_from_their_list() -> None:
    assert parse_objectives("ttft:500,e2el:1.5") == {"ttft": 500.0, "e2el": 1.5}


@pytest.mark.parametrize("text", ["", "ttft", "ttft:", "tfft:3", "ttft:x", "ttft:-1", "ttft:1,"])
def test_what_is_no_objective_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no objective"):
        parse_objectives(text)


def test_one_request_after_the_other_is_one_at_a_time() -> None:
    assert peak_concurrency([record(0.0, 1.0), record(1.0, 2.0), record(2.0, 3.0)]) == 1
    assert peak_concurrency([record(0.0, 3.0), record(1.0, 2.0), record(1.5, 3.0)]) == 3


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.001, 100)), min_size=1))
def test_the_peak_is_what_counting_at_every_start_gives(times: list[tuple[float, float]]) -> None:
    records = [record(sent_s, sent_s + lasts_s) for sent_s, lasts_s in times]
    counted = max(sum(other.sent_s <= one.sent_s < other.ended_s for other in records) for one in records)
    assert peak_concurrency(records) == counted


def test_tokens_over_time_are_all_tokens_where_their_chunks_came() -> None:
    records = [record(0.0, 0.2, 1.2, completion_tokens=3), record(0.0, 2.9)]
    assert tokens_over_time(records, 1.0) == [1.5, 1.5, 4.0]


def test_the_peak_throughput_is_at_least_the_mean_one() -> None:
    assert summarize(RUN, {}).peak_output_tokens_per_s == 12.0
    assert summarize(LoadRun([record(0.0, 0.25)], 0.25, 0.0), {}).peak_output_tokens_per_s == 16.0


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.sampled_from([50, 90, 99]))
def test_percentiles_are_those_of_numpy(values: list[float], percent: int) -> None:
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), abs=1e-6)


def test_no_values_have_no_spread() -> None:
    assert spread([]) is None
    assert summarize(LoadRun([record(0.0, 1.0, completion_tokens=1)], 1.0, 0.0), {}).itl_ms is None


def test_the_table_has_one_line_for_each_number() -> None:
    table = format_summary(summarize(RUN, {"ttft": 600}), {"ttft": 600})
    rows = dict(line.rsplit(None, 1) for line in table.splitlines() if line[:1] not in "-=")
    assert rows["Successful requests:"] == "2"
    assert rows["  HTTP 429"] == "2"
    assert rows["Prompt tokens, counted by the server:"] == "20"
    assert rows["  of them from its cache:"] == "10"
    assert rows["Mean TTFT (ms):"] == "750.00"
    assert rows["P99 ITL (ms):"] == "2470.00"
    assert rows["Within ttft 600 ms:"] == "25.0%"
    assert rows["Client CPU (share of one core):"] == "25.0%"


@pytest.mark.parametrize(
    ("more", "note"),
    [
        ({}, None),
        ({"client_cpu": 0.81}, "this client was short of CPU"),
        ({"cached_tokens": 1}, "another --seed"),
        ({"are_tokens_counted": False}, "every chunk is taken for one"),
        ({"tokens_per_chunk": 2.0}, "a chunk holds 2.00 tokens"),
    ],
)
def test_what_makes_the_numbers_doubtful_is_noted(more: dict[str, Any], note: str | None) -> None:
    plain = dataclasses.replace(summarize(RUN, {}), cached_tokens=0, tokens_per_chunk=1.0)
    notes = [line for line in format_summary(dataclasses.replace(plain, **more), {}).splitlines() if "Note" in line]
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


def test_tables_are_aligned_in_columns() -> None:
    assert markdown_table([["a", "bcd"], ["efg", "1"]]) == (
        "| a   | bcd |\n"  # the head
        "|-----|----:|\n"
        "| efg |   1 |"
    )
