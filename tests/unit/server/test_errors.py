"""One table, two shapes: what each error becomes, inside routes and outside."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from orcinus.engine.admission.request_checks import check_context
from orcinus.engine.errors import (
    ContextLengthError,
    DrainingError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelLoadError,
    QueueFullError,
    RequestFailedError,
    RequestTimeoutError,
)
from orcinus.engine.messages import StepPlan
from orcinus.server.apis.completions.answer import start_completion
from orcinus.server.errors import (
    AuthenticationError,
    BodyTooLargeError,
    ModelNotFoundError,
    UnsupportedMediaTypeError,
    anthropic_error_body,
    error_body,
    kind_of,
    speaks_anthropic,
    to_response,
)
from tests.unit.engine.fakes import FakeExecutor, alphabet
from tests.unit.server.serving import Gate, Serving, error_of, events_of, generation_request, serving, until, user


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidRequestError("x", "n"), 400, "invalid_request_error", None),
        (ContextLengthError("x"), 400, "invalid_request_error", "context_length_exceeded"),
        (ModelNotFoundError("x", "model"), 404, "invalid_request_error", "model_not_found"),
        (RequestTimeoutError("x"), 408, "timeout", None),
        (QueueFullError("x", 3.2), 429, "rate_limit_error", "queue_full"),
        (RequestFailedError("x"), 500, "server_error", None),
        (EngineUnavailableError("x"), 503, "server_error", "engine_unavailable"),
        (DrainingError("x"), 503, "server_error", "draining"),
        (ModelLoadError("x"), 500, "server_error", None),
        (HTTPException(408), 408, "timeout", None),
        (HTTPException(429), 429, "rate_limit_error", None),
        (ZeroDivisionError("secret"), 500, "server_error", None),
    ],
)
def test_each_error_has_its_status_type_and_code(error: Exception, status: int, kind: str, code: str) -> None:
    assert (kind_of(error).status, kind_of(error).type, kind_of(error).code) == (status, kind, code)
    assert set(error_body(error)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequestError("x", "n"), "invalid_request_error"),
        (AuthenticationError("x"), "authentication_error"),
        (ModelNotFoundError("x", "model"), "not_found_error"),
        (RequestTimeoutError("x"), "timeout_error"),
        (BodyTooLargeError("x"), "request_too_large"),
        (UnsupportedMediaTypeError("x"), "invalid_request_error"),
        (QueueFullError("x", 3.2), "rate_limit_error"),
        (RequestFailedError("x"), "api_error"),
        (EngineUnavailableError("x"), "overloaded_error"),
        (DrainingError("x"), "overloaded_error"),
        (ZeroDivisionError("secret"), "api_error"),
        (HTTPException(404), "not_found_error"),
        (HTTPException(405), "invalid_request_error"),
    ],
)
def test_on_paths_of_anthropics_api_the_same_errors_have_its_shape(error: Exception, kind: str) -> None:
    answer, other = to_response(error, "/v1/messages", "id"), to_response(error, "/v1/completions", "id")
    message = json.loads(other.body)["error"]["message"]
    assert json.loads(answer.body) == {"type": "error", "error": {"type": kind, "message": message}, "request_id": "id"}
    for response in (answer, other):
        assert response.headers.pop("content-length") == str(len(response.body))
    assert (answer.status, answer.headers) == (other.status, other.headers)


@pytest.mark.parametrize(
    ("path", "is_anthropic"),
    [
        ("/v1/messages", True),
        ("/v1/messages/count_tokens", True),
        ("/v1/messages/", True),
        ("/v1/messagesx", False),
        ("/v1/chat/completions", False),
        ("/x/v1/messages", False),
    ],
)
def test_the_path_tells_whose_api_it_is(path: str, is_anthropic: bool) -> None:
    assert speaks_anthropic(path) == is_anthropic


def test_nothing_of_an_unexpected_error_gets_out() -> None:
    assert b"secret" not in to_response(ZeroDivisionError("secret /etc/passwd")).body


@pytest.mark.parametrize(("retry_after_s", "header"), [(3.2, "4"), (0.0, "1"), (5000.0, "120")])
def test_retry_after_is_whole_seconds_from_1_to_120(retry_after_s: float, header: str) -> None:
    assert to_response(QueueFullError("x", retry_after_s)).headers["retry-after"] == header
    assert to_response(EngineUnavailableError("x", retry_after_s)).headers["retry-after"] == header


async def test_unknown_route_and_wrong_method_have_the_shape(served: Serving) -> None:
    assert error_of(await served.client.get("/v1/nothing"), 404)["type"] == "invalid_request_error"
    response = await served.client.get("/v1/completions")
    assert error_of(response, 405)["type"] == "invalid_request_error"
    assert response.headers["allow"] == "POST"


async def test_unknown_model_is_not_found(served: Serving) -> None:
    error = error_of(await served.post("/v1/completions", prompt="x", model="gpt-5"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "gpt-5" in error["message"]


async def test_a_fault_of_ours_is_a_500_without_its_inside(
    served: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(served.engine, "submit", fail)
    response = await served.post("/v1/completions", prompt="x")
    assert error_of(response, 500)["type"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in caplog.text


async def test_a_fault_of_the_model_before_the_first_token_is_a_500_even_for_a_stream(tmp_path: Path) -> None:
    def fail(plan: StepPlan) -> None:
        raise RuntimeError("secret")

    async with serving(tmp_path, FakeExecutor(before_step=fail)) as served:
        for is_streamed in (False, True):
            response = await served.post("/v1/completions", prompt="x", stream=is_streamed)
            assert error_of(response, 500)["type"] == "server_error"
            assert "secret" not in response.text


async def test_a_fault_in_a_stream_is_an_error_event_and_done(tmp_path: Path) -> None:
    num_steps = 0

    def fail_later(plan: StepPlan) -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps > 3:
            raise RuntimeError("secret")

    async with serving(tmp_path, FakeExecutor(before_step=fail_later)) as served:
        response = await served.post("/v1/chat/completions", messages=[user("x")], stream=True)
        *chunks, last = events_of(response.text)
        assert chunks
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
        assert last["error"]["type"] == "server_error"
        assert "secret" not in response.text


async def test_an_answer_that_was_cut_short_is_an_error_and_never_a_short_answer(tmp_path: Path) -> None:
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(before_step=gate)) as served:
        generation = await start_completion(served.app.state.context, {"prompt": "x"})
        gate.let(3)
        await anext(generation.stream)
        generation.stream.abort()
        with pytest.raises(RequestFailedError, match="before it was complete"):
            await generation.whole()
        gate.open()


async def test_a_deadline_that_passes_is_a_408_and_never_a_short_answer(tmp_path: Path) -> None:
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(before_step=gate)) as served:
        response = await served.post("/v1/completions", prompt="x", timeout=0.05)
        assert error_of(response, 408)["type"] == "timeout"
        gate.open()
        await until(lambda: served.engine.num_running == 0)


async def test_a_full_queue_is_a_429_that_says_when_to_come_back(tmp_path: Path) -> None:
    gate = Gate()
    executor = FakeExecutor(alphabet, before_step=gate)
    async with serving(tmp_path, executor, info={"max_num_seqs": 1}, max_queue_len=2) as served:
        stream = served.engine.submit(generation_request("first", 3))
        response = await served.post("/v1/completions", prompt="x", n=2)
        assert error_of(response, 429)["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 120
        stream.abort()
        gate.open()
        assert (await served.complete("x"))["choices"]


async def test_more_choices_than_the_queue_holds_can_never_be_served(tmp_path: Path) -> None:
    async with serving(tmp_path, info={"max_num_seqs": 1}, max_queue_len=2) as served:
        assert error_of(await served.post("/v1/completions", prompt="x", n=4), 400)["param"] == "n"


async def test_while_the_model_loads_work_is_a_503_and_live_is_green(tmp_path: Path) -> None:
    async with serving(tmp_path, is_ready=False) as served:
        response = await served.post("/v1/completions", prompt="x")
        assert error_of(response, 503)["code"] == "engine_unavailable"
        assert int(response.headers["retry-after"]) >= 1
        error_of(await served.client.get("/ready"), 503)
        error_of(await served.client.get("/health"), 503)
        assert (await served.client.get("/live")).status_code == 200
        assert (await served.client.get("/metrics")).status_code == 200
        assert (await served.client.get("/v1/models")).json()["data"][0]["max_model_len"] is None
        await served.engine.wait_ready()
        assert (await served.client.get("/ready")).status_code == 200


async def test_while_draining_work_is_refused_and_ready_is_red(served: Serving) -> None:
    served.app.state.context.intake.close()
    assert error_of(await served.post("/v1/completions", prompt="x"), 503)["code"] == "draining"
    assert error_of(await served.client.get("/ready"), 503)["code"] == "draining"
    assert (await served.client.get("/live")).status_code == 200


@pytest.mark.parametrize(
    ("num_prompt", "num_wanted", "told"),
    [
        (90, 20, "input length and `max_tokens` exceed context limit: 90 + 20 > 100"),
        (100, 1, "prompt is too long: 100 tokens > 99 maximum"),
        (120, 20, "prompt is too long: 120 tokens > 99 maximum"),
    ],
)
def test_anthropics_api_says_of_a_short_context_what_its_clients_read(
    num_prompt: int, num_wanted: int, told: str
) -> None:
    """Claude Code finds the numbers in these words: it compacts the conversation, or asks again for fewer tokens."""
    with pytest.raises(ContextLengthError) as raised:
        check_context(num_prompt, num_wanted, 100)
    assert anthropic_error_body(raised.value)["error"] == {"type": "invalid_request_error", "message": told}
    assert "maximum context length is 100 tokens" in error_body(raised.value)["error"]["message"]
    far_too_long = anthropic_error_body(ContextLengthError("texts of up to 5 characters are read, got 9", "prompt"))
    assert far_too_long["error"]["message"] == "prompt is too long: texts of up to 5 characters are read, got 9"
