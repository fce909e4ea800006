"""`orcinus bench sweep` on a server that a test makes as capable as it needs."""

import json
from pathlib import Path

import pytest

from orcinus.server.cli import main
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
