"""The `orcinus` command as a user runs it, on the demo model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ROOT, ServerProcess, StartServer

CHAT = "/v1/chat/completions"
TIMEOUT_S = 120


def _command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "orcinus.server.cli", *argv]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ORCINUS_")}


def _run(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*argv),
        cwd=ROOT,
        env=_environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def _wait_for_content(file: Path, process: subprocess.Popen[str]) -> None:
    """Until another process has written something, which nothing tells us of."""
    while not file.exists() or file.stat().st_size == 0:
        assert process.poll() is None, "it ended without having written anything"
        time.sleep(0.02)


def _lines(*bodies: dict[str, Any], url: str = CHAT) -> str:
    return "".join(
        json.dumps({"custom_id": f"r{number}", "method": "POST", "url": url, "body": body}) + "\n"
        for number, body in enumerate(bodies)
    )


def _question(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 32, **more}


def _answers(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def _texts(answers: Sequence[dict[str, Any]]) -> list[str]:
    return [answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_command_that_the_summary_prints_works_as_printed(server: ServerProcess) -> None:
    printed = re.search(r"^ {2}curl .*?'$", server.log, re.MULTILINE | re.DOTALL)
    assert printed is not None, server.log
    done = subprocess.run(["sh", "-c", f"{printed[0]} -s -S"], capture_output=True, text=True, check=True)
    assert "Paris" in json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_the_server_says_at_once_what_it_is_doing(server: ServerProcess) -> None:
    loading, ready = server.log.index(": loading orcinus-demo ..."), server.log.index("is ready.")
    assert loading < ready
    assert "WARNING" not in server.log[:ready]


def test_chat_answers_a_question_from_a_running_server(server: ServerProcess) -> None:
    done = _run("chat", "What is the capital of France?", "--temperature", "0", "--base-url", server.url)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_settings_of_the_file_reach_the_engine_and_flags_win(start_light_server: StartServer, tmp_path: Path) -> None:
    file = tmp_path / "orcinus.yaml"
    file.write_text("max_num_seqs: 3\nmax_model_len: 256\nserved_model_name: tiny\napi_key: sesame\n")
    server = start_light_server("--config", str(file), "--max-model-len", "512")
    assert server.get("/ready").status_code == 200
    assert re.search(r"Slots +3,", server.log)
    assert re.search(r"Context +512 tokens", server.log)
    assert '"model": "tiny"' in server.log
    assert "YOUR_API_KEY" in server.log
    assert "sesame" not in server.log
    assert server.get("/v1/models").status_code == 401


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["/no/such/model"], "there is no model at /no/such/model"),
        (["--max-model-len", "100000"], "max_model_len is 100000, but the model's own context has 2048 tokens"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_line_and_exit_code_1(argv: list[str], message: str) -> None:
    done = _run("serve", "--port", "0", *argv)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"orcinus serve: {message}")
    assert "ready" not in done.stdout


@pytest.mark.slow
def test_generate_answers_a_file_in_its_order_bad_lines_included(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(
        _lines(_question("What is the capital of France?"), _question("x", temperature=9), _question("Hello"))
        + "no json\n"
        + json.dumps({"custom_id": "c", "url": "/v1/completions", "body": {"prompt": ["a", "b"], "n": 2}})
    )
    done = _run("generate", str(prompts), "-o", str(out))
    assert done.returncode == 1, done.stderr
    answers = _answers(out.read_text())
    assert [answer["custom_id"] for answer in answers] == ["r0", "r1", "r2", None, "c"]
    first, refused, third, broken, last = answers
    assert "Paris" in _texts([first])[0]
    assert refused["response"]["status_code"] == 400
    assert third["response"]["status_code"] == 200
    assert broken["error"]["code"] == "invalid_json"
    assert len(last["response"]["body"]["choices"]) == 4
    assert "5 requests, 2 errors" in done.stderr
    assert "100%" in done.stderr
    assert "nanobind" not in done.stderr


@pytest.mark.slow
def test_generate_reads_a_byte_order_mark_and_ends_with_0_where_errors_do_not_matter(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(_lines(_question("Hello"), _question("x", temperature=9)), encoding="utf-8-sig")
    done = _run("generate", str(prompts), "--no-strict")
    assert done.returncode == 0, done.stderr
    assert [answer["response"]["status_code"] for answer in _answers(done.stdout)] == [200, 400]


@pytest.mark.slow
def test_generate_gives_the_same_answers_through_pipes() -> None:
    questions = _lines(*(_question(f"Count to {number}") for number in range(3, 6)))
    runs = [_run("generate", "-", "--max-num-seqs", slots, stdin=questions) for slots in ("1", "3")]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    one, three = (_texts(_answers(run.stdout)) for run in runs)
    assert one == three
    assert len(one) == 3


def _heed_interrupts() -> None:
    """Undo what a shell does to tests in the background: they, and what they start, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_an_interrupted_generate_leaves_a_valid_file(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    endless = {"prompt": "On and on", "max_tokens": 2000, "ignore_eos": True}
    prompts.write_text(_lines({"prompt": "x", "max_tokens": 1}, *[endless] * 40, url="/v1/completions"))
    command = _command("generate", str(prompts), "-o", str(out), "--max-num-seqs", "4")
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=_environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,  # noqa: PLW1509 (it takes no lock)
    ) as process:
        _wait_for_content(out, process)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, printed
    assert "requests, 0 errors" in printed
    assert "Traceback" not in printed
    answers = _answers(out.read_text())
    assert 1 <= len(answers) < 41
    assert answers[0]["custom_id"] == "r0"


@pytest.mark.slow
def test_bench_strategies_prints_its_table_on_a_real_model(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    load = ("--requests", "12", "--output-mean", "8", "--output-min", "2", "--max-num-seqs", "4", "--rounds", "1")
    done = _run("bench", "strategies", *load, "--no-plot", "--json", str(numbers))
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^\| (\w+) +\| +12 \|", done.stdout, re.MULTILINE) == [
        "continuous",
        "static",
        "interleaved",
        "sequential",
    ]
    [measured] = json.loads(numbers.read_text())["traffic"]
    continuous, static, *_ = measured["medians"]
    assert continuous["slots_full"] >= 0.97
    assert continuous["num_steps"] < static["num_steps"]
