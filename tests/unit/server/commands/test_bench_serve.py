"""`orcinus bench serve` on a server that a test makes as capable as it needs."""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orcinus.server.cli import main
from orcinus.server.load import options
from orcinus.server.load.arrivals import arrival_times
from tests.unit.server.load.scripted import ScriptedServer, as_llama_cpp, as_vllm, scripted_server

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


def bench(server: ScriptedServer, *argv: str, requests: int = 6) -> int:
    return main(["bench", "serve", "--base-url", server.url, "--num-requests", f"{requests}", *argv])


def rows_of(printed: str) -> dict[str, str]:
    return dict(line.rsplit(None, 1) for line in printed.splitlines() if ":  " in line or line.startswith("  "))


def test_a_load_is_sent_counted_and_printed(server: ScriptedServer, capsys: Captured) -> None:
    argv = ["--prompt-tokens", "12", "--output-tokens", "5", "--max-concurrency", "2", "--goodput", "ttft:60000"]
    assert bench(server, *argv) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["Successful requests:"] == "6"
    assert rows["Generated tokens:"] == "30"
    assert rows["Prompt tokens, asked for:"] == rows["Prompt tokens, counted by the server:"] == "72"
    assert 1 <= int(rows["Peak concurrent requests:"]) <= 2
    assert rows["Within ttft 60000 ms:"] == "100.0%"
    assert float(rows["Mean TTFT (ms):"]) > 0
    assert rows["Client CPU (share of one core):"].endswith("%")


def test_only_fields_of_openais_api_are_sent(server: ScriptedServer) -> None:
    assert bench(server, "--output-tokens", "5", "--api-key", "sesame") == 0
    assert {frozenset(body) for body in server.bodies} == {
        frozenset({"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"})
    }
    body = server.load()[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("scripted", 5, 0.0)
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert set(server.keys) == {"Bearer sesame"}


def test_ends_of_answers_are_ignored_only_if_asked(server: ScriptedServer) -> None:
    assert bench(server, "--output-tokens", "5", "--ignore-eos", "--model", "other", "--temperature", "0.7") == 0
    body = server.load()[0]
    assert body["ignore_eos"] is True
    assert "min_tokens" not in body  # it makes some servers mask tokens in every step
    assert (body["model"], body["temperature"]) == ("other", 0.7)


def test_sampling_is_what_was_asked_for_and_is_told(server: ScriptedServer, capsys: Captured) -> None:
    assert bench(server, "--temperature", "0.7", "--top-p", "0.8", "--top-k", "20") == 0
    body = server.load()[0]
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.7, 0.8, 20)
    assert "temperature 0.7, top_p 0.8, top_k 20, seed 0" in capsys.readouterr().out


@pytest.mark.parametrize(("tokenize", "first_id"), [(as_vllm, 100), (as_llama_cpp, 200)])
def test_token_ids_are_those_of_common_words_where_the_server_tells_them(
    tokenize: Any, first_id: int, server: ScriptedServer, capsys: Captured
) -> None:
    server.tokenize = tokenize
    assert bench(server) == 0
    assert "random token ids" in capsys.readouterr().out
    for body in server.load():
        assert len(body["prompt"]) == 128
        assert set(body["prompt"]) <= set(range(first_id, first_id + 50))


def test_token_ids_may_be_any_of_a_vocabulary_that_is_named(server: ScriptedServer) -> None:
    assert bench(server, "--vocab-size", "7", "--prompt-form", "tokens") == 0
    assert {token_id for body in server.load() for token_id in body["prompt"]} == set(range(7))


def test_a_server_that_takes_no_token_ids_gets_text(server: ScriptedServer, capsys: Captured) -> None:
    server.tokenize, server.takes_token_ids, server.tokens_per_word = as_vllm, False, 2
    assert bench(server, "--prompt-tokens", "1003") == 0
    printed = capsys.readouterr().out
    assert "random words" in printed
    assert {len(body["prompt"].split()) for body in server.load()} == {500}
    assert rows_of(printed)["Prompt tokens, counted by the server:"] == f"{6 * 1003}"


def test_token_ids_that_must_be_and_cannot_are_an_error(server: ScriptedServer, capsys: Captured) -> None:
    assert bench(server, "--prompt-form", "tokens") == 1
    assert "the server gives no token ids (/tokenize); say how many it has with --vocab-size" in capsys.readouterr().err
    server.takes_token_ids = False
    assert bench(server, "--prompt-form", "tokens", "--vocab-size", "9") == 1
    assert "HTTP 400: a prompt is a string" in capsys.readouterr().err


def test_the_same_seed_sends_the_same_load_and_warm_up_another(server: ScriptedServer) -> None:
    loads = []
    for argv in (["--seed", "1"], ["--seed", "1", "--warmup", "2"], ["--seed", "2"]):
        assert bench(server, *argv, "--output-tokens", "uniform:2..9", "--max-concurrency", "1") == 0
        loads.append([(body["prompt"], body["max_tokens"]) for body in server.load()])
        server.bodies.clear()
    first, warm, other = loads
    assert warm[2:] == first
    assert not {prompt for prompt, _ in warm[:2]} & {prompt for prompt, _ in first}
    assert not {prompt for prompt, _ in other} & {prompt for prompt, _ in first}


def test_a_chat_is_asked_in_messages(server: ScriptedServer, capsys: Captured) -> None:
    assert bench(server, "--endpoint", "chat", "--prompt-tokens", "20", "--shared-prefix-tokens", "5") == 0
    contents = [body["messages"][0]["content"].split() for body in server.load()]
    assert {len(words) for words in contents} == {5 + 17}
    assert len({tuple(words[:5]) for words in contents}) == 1
    assert len({tuple(words[5:]) for words in contents}) == 6
    assert "prompts 5 shared + 20 tokens" in capsys.readouterr().out


def test_a_dataset_is_sent_line_by_line(server: ScriptedServer, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "questions.jsonl"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi there"}]
    file.write_text(json.dumps({"messages": messages, "max_tokens": 3}) + "\n" + json.dumps({"prompt": "hello"}))
    argv = ["bench", "serve", "--base-url", server.url, "--dataset", str(file), "--output-tokens", "4"]
    assert main([*argv, "--endpoint", "chat", "--max-concurrency", "1"]) == 0
    assert [(body["messages"], body["max_tokens"]) for body in server.load()] == [
        (messages, 3),
        ([{"role": "user", "content": "hello"}], 4),
    ]
    printed = capsys.readouterr().out
    assert "prompts of questions.jsonl" in printed
    assert rows_of(printed)["Prompt tokens, asked for:"] == "unknown"
    assert main(argv) == 2
    assert "messages need --endpoint chat" in capsys.readouterr().err


def test_several_tokens_in_a_chunk_are_counted_and_told(server: ScriptedServer, capsys: Captured) -> None:
    server.tokens_per_chunk = 4
    assert bench(server, "--output-tokens", "8") == 0
    printed = capsys.readouterr().out
    assert rows_of(printed)["Generated tokens:"] == "48"
    assert "a chunk holds 4.00 tokens" in printed


def test_a_server_without_usage_has_its_chunks_counted(server: ScriptedServer, capsys: Captured) -> None:
    server.has_usage = False
    assert bench(server, "--output-tokens", "8") == 0
    printed = capsys.readouterr().out
    assert rows_of(printed)["Generated tokens:"] == "48"
    assert rows_of(printed)["Prompt tokens, counted by the server:"] == "unknown"
    assert "every chunk is taken for one" in printed


def test_failures_are_counted_by_their_reason_and_the_first_is_told(server: ScriptedServer, capsys: Captured) -> None:
    server.refuses = lambda body: "it is full" if len(server.load()) in (2, 4) else None
    assert bench(server, "--max-concurrency", "1") == 0
    captured = capsys.readouterr()
    rows = rows_of(captured.out)
    assert (rows["Successful requests:"], rows["Failed requests:"], rows["  HTTP 400"]) == ("4", "2", "2")
    assert "The first error: HTTP 400: it is full" in captured.err


def test_no_success_is_exit_code_1_with_the_reason(server: ScriptedServer, capsys: Captured) -> None:
    server.is_cut = True
    assert bench(server) == 1
    reason = "the connection was closed before the end of the answer"
    assert f"no request succeeded: 6 x {reason}; the first error: {reason}" in capsys.readouterr().err


def test_a_server_that_does_not_stream_is_refused(server: ScriptedServer, capsys: Captured) -> None:
    server.streams = False
    assert bench(server) == 1
    assert "the answer is not streamed: its type is application/json" in capsys.readouterr().err


def test_what_the_server_says_of_the_model_is_told_before_the_load(server: ScriptedServer, capsys: Captured) -> None:
    server.refuses = lambda body: None if body["model"] == "scripted" else f"no model {body['model']}"
    assert bench(server, "--model", "nope") == 1
    assert capsys.readouterr().err == "orcinus bench: HTTP 400: no model nope\n"
    server.models = []
    assert bench(server) == 1
    assert "lists no model; name one with --model" in capsys.readouterr().err


def test_no_server_is_one_line_and_exit_code_1(server: ScriptedServer, capsys: Captured) -> None:
    assert main(["bench", "serve", "--base-url", "http://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == "orcinus bench: cannot connect to 127.0.0.1 port 1: Connection refused\n"


def test_no_request_is_sent_before_it_is_due(server: ScriptedServer, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    assert bench(server, "--request-rate", "100", "--burstiness", "2", "--seed", "3", "--json", str(numbers)) == 0
    due = arrival_times(6, 100.0, 2.0, random.Random("arrivals 3"))
    sent = [request["sent_s"] for request in json.loads(numbers.read_text())["runs"][0]["requests"]]
    assert all(sent_s > due_s - 0.002 for sent_s, due_s in zip(sent, due, strict=True))  # timers tick in milliseconds


def test_all_numbers_and_a_plot_are_written_without_the_key(server: ScriptedServer, tmp_path: Path) -> None:
    numbers, plot = tmp_path / "numbers.json", tmp_path / "plot.svg"
    argv = ["--json", str(numbers), "--plot", str(plot), "--api-key", "sesame", "--request-rate", "400"]
    assert bench(server, *argv, "--output-tokens", "3") == 0
    assert "sesame" not in numbers.read_text()
    report = json.loads(numbers.read_text())
    assert report["arguments"]["request_rate"] == 400
    [run] = report["runs"]
    assert run["summary"]["output_tokens"] == 18
    assert [len(request["chunk_times_s"]) for request in run["requests"]] == [3] * 6
    assert run["requests"][0]["ttft_s"] > 0
    assert plot.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prompt-tokens", "many"], "'many' is no length"),
        (["--num-requests", "0"], "'0' is no whole number from 1"),
        (["--request-rate", "nan"], "'nan' is no number above 0"),
        (["--burstiness", "x"], "'x' is no number above 0"),
        (["--burstiness", "inf"], "'inf' is no number above 0"),
        (["--goodput", "ttft:fast"], "'ttft:fast' is no objective"),
        (["--endpoint", "chat", "--vocab-size", "9"], "the chat endpoint takes no token ids"),
        (["--dataset", "x.jsonl", "--vocab-size", "9"], "a dataset has its own prompts"),
        (["--num-prefixes", "2"], "--num-prefixes needs --shared-prefix-tokens"),
        (["--burstiness", "2"], "--burstiness needs --request-rate"),
        (["--json", "/no/dir/x.json"], "there is no directory /no/dir to write /no/dir/x.json in"),
        (["--base-url", "localhost:8000"], "is no URL of a server"),
        (["--base-url", "unix:orcinus.sock"], "a Unix socket is written unix:/path/of/the.sock"),
        (["--base-url", "https://localhost", "--cacert", "/no/file"], "--cacert /no/file: No such file"),
        (["--rate", "4"], "unknown flag: --rate"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_sent(argv: list[str], message: str, capsys: Captured) -> None:
    assert main(["bench", "serve", *argv]) == 2
    assert message in capsys.readouterr().err


def test_a_plot_without_matplotlib_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    assert main(["bench", "serve", "--plot", "x.png"]) == 1
    assert "pip install 'orcinus[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["serve", "sweep"])
def test_the_help_has_every_flag_with_a_text(name: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["bench", name, "--help"])
    printed = capsys.readouterr().out
    assert f"usage: orcinus bench {name} [OPTIONS]" in printed
    assert "examples:" in printed
    assert all(flag in printed for flag in ("--base-url URL", "--prompt-tokens LENGTH", "--json FILE"))


def test_a_load_needs_neither_the_model_code_nor_the_server_itself() -> None:
    import subprocess

    code = (
        "import sys; from orcinus.server.commands import bench_serve, bench_sweep;"
        "print(sorted({'torch', 'transformers', 'fastapi', 'matplotlib', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
