"""`orcinus generate`: lines in, lines out, whatever the lines are."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orcinus.engine.errors import EngineUnavailableError, InvalidRequestError
from orcinus.server import cli
from orcinus.server.commands import generate
from orcinus.server.commands.generate import BatchRunner, Totals, write_answers
from orcinus.server.requests.left_out import leave_out

CHAT = "/v1/chat/completions"


def _line(custom_id: Any = "a", **changes: Any) -> bytes:
    """A line of the file; a value of `...` leaves the key out."""
    entry = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {"prompt": f"{custom_id}"}, **changes}
    return msgspec.json.encode({key: value for key, value in entry.items() if value is not ...}) + b"\n"


class Engine:
    """Answers with the prompt; holds its answers back until `release` if told to, and counts who waits."""

    def __init__(self, *, held: bool = False) -> None:
        self.released = asyncio.Event()
        self.begun: list[str] = []
        if not held:
            self.released.set()

    async def answer(self, body: dict[str, Any]) -> msgspec.Raw:
        self.begun.append(body["prompt"])
        await self.released.wait()
        if "raise" in body:
            raise body["raise"]
        usage = {"prompt_tokens": 2, "completion_tokens": 3}
        return msgspec.Raw(msgspec.json.encode({"text": body["prompt"], "usage": usage}))


async def _run(*lines: bytes, engine: Engine | None = None, look_ahead: int = 4) -> list[dict[str, Any]]:
    runner = BatchRunner({CHAT: (engine or Engine()).answer})
    return [line async for line in runner.run(iter(lines), look_ahead)]


async def test_an_answer_has_the_shape_of_a_batch_file() -> None:
    (line,) = await _run(_line("a"))
    assert set(line) == {"id", "custom_id", "response", "error"}
    assert line["id"].startswith("batch_req_")
    assert line["custom_id"] == "a"
    assert line["error"] is None
    assert line["response"]["status_code"] == 200
    assert line["response"]["request_id"].startswith("req_")
    assert json.loads(bytes(line["response"]["body"]))["text"] == "a"


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (b"{\n", "invalid_json", "line 1 is not JSON"),
        (b"\xff\xfe\n", "invalid_json", "line 1 is not JSON"),
        (b"[" * 100_000, "invalid_json", "line 1 is not JSON"),
        (b'{"custom_id": NaN}', "invalid_json", "line 1 is not JSON"),
        (b"[]\n", "invalid_json", "line 1 must be a JSON object"),
        (_line(custom_id=...), "missing_custom_id", "custom_id must be a string that is not empty"),
        (_line(custom_id=7), "missing_custom_id", "custom_id must be a string that is not empty"),
        (_line(method="GET"), "invalid_method", "method must be POST, got 'GET'"),
        (_line(url="/v1/embeddings"), "invalid_url", f"url must be one of {CHAT}, got '/v1/embeddings'"),
        (_line(url=["x"]), "invalid_url", "url must be one of"),
        (_line(body="hi"), "invalid_body", "body must be an object"),
        (_line(body=...), "invalid_body", "body must be an object"),
    ],
)
async def test_a_bad_line_becomes_an_error_line_and_the_next_is_answered(line: bytes, code: str, message: str) -> None:
    bad, good = await _run(line, _line("good"))
    assert bad["response"] is None
    assert bad["error"]["code"] == code
    assert message in bad["error"]["message"]
    assert good["custom_id"] == "good"
    assert good["response"]["status_code"] == 200


async def test_a_repeated_custom_id_is_answered_once() -> None:
    first, second = await _run(_line("a"), _line("a"))
    assert first["error"] is None
    assert second["custom_id"] == "a"
    assert second["error"]["code"] == "duplicate_custom_id"
    assert "line 2" in second["error"]["message"]


async def test_a_refused_request_has_the_response_that_http_would_have_given() -> None:
    engine = Engine()

    async def refuse(body: dict[str, Any]) -> msgspec.Raw:
        raise InvalidRequestError("temperature must be at most 2, got 3", "temperature")

    runner = BatchRunner({CHAT: refuse, "/v1/completions": engine.answer})
    lines = [line async for line in runner.run(iter([_line("a"), _line("b", url="/v1/completions")]), 4)]
    response = lines[0]["response"]
    assert response["status_code"] == 400
    assert response["body"]["error"]["param"] == "temperature"
    assert lines[0]["error"] is None
    assert lines[1]["response"]["status_code"] == 200


async def test_what_is_left_out_of_a_body_is_listed_in_its_response() -> None:
    engine = Engine()

    async def pass_over(body: dict[str, Any]) -> msgspec.Raw:
        if body["prompt"] == "a":
            leave_out("tools[0]=web_search")
        return await engine.answer(body)

    runner = BatchRunner({CHAT: pass_over})
    first, second = [line async for line in runner.run(iter([_line("a"), _line("b")]), 4)]
    assert first["response"]["left_out"] == ["tools[0]=web_search"]
    assert "left_out" not in second["response"]


async def test_an_unexpected_failure_is_a_500_that_tells_nothing() -> None:
    async def fail(body: dict[str, Any]) -> msgspec.Raw:
        raise ZeroDivisionError("a secret")

    runner = BatchRunner({CHAT: fail})
    (line,) = [line async for line in runner.run(iter([_line("a")]), 4)]
    assert line["response"]["status_code"] == 500
    assert "secret" not in json.dumps(line)


async def test_streaming_is_refused() -> None:
    (line,) = await _run(_line("a", body={"prompt": "a", "stream": True}))
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"]["param"] == "stream"


async def test_a_dead_engine_ends_the_run() -> None:
    async def gone(body: dict[str, Any]) -> msgspec.Raw:
        raise EngineUnavailableError("the engine died")

    runner = BatchRunner({CHAT: gone})
    with pytest.raises(EngineUnavailableError):
        async for _ in runner.run(iter([_line("a"), _line("b")]), 4):
            pass


async def test_order_is_kept_although_later_lines_are_done_first() -> None:
    gate = asyncio.Event()

    async def answer(body: dict[str, Any]) -> msgspec.Raw:
        if body["prompt"] == "slow":
            await gate.wait()
        else:
            gate.set()
        return msgspec.Raw(b"{}")

    runner = BatchRunner({CHAT: answer})
    lines = [_line("slow"), _line("fast"), b"not json\n"]
    answers = [line async for line in runner.run(iter(lines), 4)]
    assert [line["custom_id"] for line in answers] == ["slow", "fast", None]


async def test_lines_are_read_only_as_far_as_the_look_ahead() -> None:
    read = 0

    def lines() -> Iterator[bytes]:
        nonlocal read
        for number in range(100):
            read += 1
            yield _line(str(number))

    runner = BatchRunner({CHAT: Engine().answer})
    answers = runner.run(lines(), look_ahead=5)
    for done in range(1, 11):
        await anext(answers)
        assert read <= done + 5
    await answers.aclose()
    assert read <= 15


async def test_empty_lines_are_no_requests_but_count_as_lines() -> None:
    answers = await _run(b"\n", b"  \n", _line("a"), b"{\n")
    assert len(answers) == 2
    assert "line 4" in answers[1]["error"]["message"]


async def test_an_interrupted_run_leaves_whole_lines_and_no_task() -> None:
    engine = Engine()
    runner = BatchRunner({CHAT: engine.answer})
    output, totals = io.BytesIO(), Totals()

    class Progress:
        def update(self, n: float = 1) -> None:
            if totals.num_requests == 2:
                raise KeyboardInterrupt

        def set_postfix_str(self, s: str, refresh: bool) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        await write_answers(runner.run(iter([_line(str(n)) for n in range(9)]), 4), output, totals, Progress())
    written = output.getvalue().splitlines(keepends=True)
    assert [json.loads(line)["custom_id"] for line in written] == ["0", "1"]
    assert all(line.endswith(b"\n") for line in written)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_totals_count_requests_errors_and_tokens() -> None:
    totals = Totals()
    for line in await _run(_line("a"), b"{\n", _line("b"), _line("c", body={"prompt": "c", "stream": True})):
        totals.count(line)
    assert (totals.num_requests, totals.num_errors) == (4, 2)
    assert (totals.num_prompt_tokens, totals.num_output_tokens) == (4, 6)
    assert "4 requests, 2 errors" in str(totals)


async def test_a_byte_order_mark_before_the_first_line_is_no_part_of_it() -> None:
    first, second = await _run(b"\xef\xbb\xbf" + _line("a"), b"\xef\xbb\xbf" + _line("b"))
    assert first["custom_id"] == "a"
    assert first["response"]["status_code"] == 200
    assert second["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_in_another_encoding_is_one_line(
    encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(_line("a").decode(), encoding=encoding)
    assert cli.main(["generate", str(file)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith(f"orcinus generate: cannot read {file}: it is not UTF-8 text but UTF-")
    assert error[1:] == ["See 'orcinus generate --help'."]


def _answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have lines answered without an engine, a model or settings of the environment."""

    @contextlib.asynccontextmanager
    async def answers(settings: Any) -> AsyncIterator[Any]:
        yield {CHAT: Engine().answer}, 4

    monkeypatch.setattr(generate, "_engine_answers", answers)


@pytest.mark.parametrize(
    ("flags", "lines", "code"),
    [([], [_line("a")], 0), ([], [_line("a"), b"{\n"], 1), (["--strict"], [b"{\n"], 1), (["--no-strict"], [b"{\n"], 0)],
)
def test_the_exit_code_says_whether_lines_had_errors(
    flags: list[str], lines: list[bytes], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answering(monkeypatch)
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    file.write_bytes(b"".join(lines))
    assert cli.main(["generate", str(file), "-o", str(out), *flags]) == code
    assert len(out.read_text().splitlines()) == len(lines)
