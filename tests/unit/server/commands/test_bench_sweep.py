"""`orcinus bench sweep` on a server that a test makes as capable as it needs."""

import json
from pathlib import Path

import pytest

from orcinus.server.cli import main
from orcinus.server.load.figures import knee_of
from tests.unit.server.load.scripted import ScriptedServer, scripted_server

Captured = pytest.CaptureFixture[str]


def sweep(server: ScriptedServer, *argv: str) -> int:
    return main(["bench", "sweep", "--base-url", server.url, "--output-tokens", "uniform:2..5", *argv])


def test_every_batch_size_has_a_line_enough_requests_and_prompts_of_its_own(capsys: Captured) -> None:
    with scripted_server() as server:
        server.has_usage = False
        assert sweep(server, "--concurrency", "1,3", "--num-requests", "2") == 0
    *table, note = capsys.readouterr().out.split("\n\n")[1].splitlines()
    head, _, one, three = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert head[:5] == ["batch size", "requests", "failed", "output tok/s", "ratio"]
    assert (one[:3], one[4]) == (["1", "2", "0"], "1.00x")
    assert three[:3] == ["3", "3", "0"]
    assert float(three[4].rstrip("x")) == pytest.approx(float(three[3]) / float(one[3]), abs=0.02)
    assert one[5].endswith(" ms")
    assert note == "Note: the server counts no tokens: every chunk is taken for one"
    load = server.load()
    assert len({body["prompt"] for body in load}) == len(load) == 5
    assert {body["max_tokens"] for body in load[:2]} <= {body["max_tokens"] for body in load[2:]}


def test_numbers_of_all_batch_sizes_and_two_plots_are_written(tmp_path: Path, capsys: Captured) -> None:
    numbers, plot = tmp_path / "numbers.json", tmp_path / "sweep.svg"
    with scripted_server() as server:
        assert sweep(server, "--concurrency", "1,2", "--json", str(numbers), "--plot", str(plot)) == 0
    runs = json.loads(numbers.read_text())["runs"]
    assert [len(run["requests"]) for run in runs] == [8, 8]
    assert [run["summary"]["num_succeeded"] for run in runs] == [8, 8]
    assert {file.name for file in tmp_path.glob("*.svg")} == {"sweep-throughput.svg", "sweep-latency.svg"}
    assert "sweep-throughput.svg and" in capsys.readouterr().out


@pytest.mark.parametrize("sizes", ["", "1,", "0,2", "1,x"])
def test_what_are_no_batch_sizes_is_refused(sizes: str, capsys: Captured) -> None:
    assert main(["bench", "sweep", "--concurrency", sizes]) == 2
    assert "is no whole number from 1" in capsys.readouterr().err


def test_batch_sizes_beyond_the_slots_of_the_server_are_warned_of(capsys: Captured) -> None:
    with scripted_server() as server:
        server.metrics = "# TYPE orcinus_slots gauge\norcinus_slots 2.0\n"
        assert sweep(server, "--concurrency", "1,2,3,4", "--num-requests", "2") == 0
    assert "Warning: the server has 2 slots (--max-num-seqs); batch sizes above wait for one: [3, 4]" in (
        capsys.readouterr().out.splitlines()
    )


@pytest.mark.parametrize("metrics", [None, "orcinus_slots", "vllm:num_requests_running 3\n"])
def test_a_server_that_does_not_tell_its_slots_is_measured_without_a_warning(
    metrics: str | None, capsys: Captured
) -> None:
    with scripted_server() as server:
        server.metrics = metrics
        assert sweep(server, "--concurrency", "3", "--num-requests", "2") == 0
    assert "Warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("speeds", "knee"),
    [
        ([10.0, 19.0, 36.0, 60.0, 66.0, 68.0], 8),  # sizes 1 to 32
        ([10.0, 10.0, 10.0, 10.0, 10.0, 10.0], None),
        ([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], None),  # a line has no knee
    ],
)
def test_knee_is_where_a_larger_batch_brings_less_than_its_share(speeds: list[float], knee: int | None) -> None:
    assert knee_of([1, 2, 4, 8, 16, 32], speeds) == knee
