"""`orcinus bench serve` and `orcinus bench sweep` against a real server on the demo model."""

import json
from pathlib import Path

import pytest

from orcinus.server.cli import main
from tests.server_process import ServerProcess

LOAD = ("--prompt-tokens", "uniform:8..32", "--output-tokens", "uniform:4..12", "--ignore-eos")


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_a_few_requests_are_measured_as_the_server_counts_them(
    endpoint: str, server: ServerProcess, tmp_path: Path
) -> None:
    numbers = tmp_path / "numbers.json"
    argv = ["--base-url", server.url, "--num-requests", "6", "--max-concurrency", "3", "--endpoint", endpoint]
    before = server.metric("orcinus_generation_tokens_total")
    assert main(["bench", "serve", *argv, *LOAD, "--json", str(numbers)]) == 0
    [run] = json.loads(numbers.read_text())["runs"]
    summary, requests = run["summary"], run["requests"]
    assert (summary["num_succeeded"], summary["failures"]) == (6, {})
    assert summary["output_tokens"] == summary["asked_output_tokens"]
    probes = 1 if endpoint == "completions" else 2
    assert server.metric("orcinus_generation_tokens_total") - before == summary["output_tokens"] + probes
    for request in requests:
        assert 0 < request["ttft_s"] <= request["e2e_s"]
        assert request["finish_reason"] == "length"


def test_random_token_ids_are_as_many_as_were_asked_for(
    server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", "--base-url", server.url, "--num-requests", "4", *LOAD]) == 0
    printed = capsys.readouterr().out
    assert "(random token ids)" in printed
    rows = dict(line.rsplit(None, 1) for line in printed.splitlines() if ":  " in line)
    assert rows["Prompt tokens, asked for:"] == rows["Prompt tokens, counted by the server:"]


def test_a_sweep_has_a_line_for_each_batch_size(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--base-url", server.url, "--concurrency", "1,4", "--num-requests", "4"]
    assert main(["bench", "sweep", *argv, *LOAD]) == 0
    table = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert table[2:] == ["1", "4"]


def test_an_unknown_model_is_one_line_and_exit_code_1(
    server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", "--base-url", server.url, "--model", "nope"]) == 1
    assert capsys.readouterr().err.startswith("orcinus bench: HTTP 404: ")
