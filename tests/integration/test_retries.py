"""What OpenAI's SDK does with errors by itself: how often it asks again where that would harm.

Anthropic's is in `tests.clients.test_retries`, for its package is in another environment.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from orcinus.engine.errors import RequestFailedError, RequestQuarantinedError, RequestTimeoutError
from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import Serving, listening, serving

ERRORS: dict[int, Callable[[], Exception]] = {
    408: lambda: RequestTimeoutError("too late"),
    500: lambda: RequestFailedError("it failed"),
}


async def num_asked(served: Serving) -> float:
    text = (await served.client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("orcinus_http_requests_total{") and "POST" in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def failing(served: Serving, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]) -> None:
    def submit(*_: Any) -> Any:
        raise error()

    monkeypatch.setattr(served.engine, "submit", submit)


@pytest.mark.parametrize("status", ERRORS)
async def test_openais_asks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello"))) as served, listening(served) as (_, port):
        failing(served, monkeypatch, ERRORS[status])
        async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
            for is_streamed in (False, True):
                with pytest.raises(openai.APIStatusError) as raised:
                    await client.chat.completions.create(
                        model="fake-model", messages=[{"role": "user", "content": "x"}], stream=is_streamed
                    )
                assert raised.value.status_code == status
        assert await num_asked(served) == 2


async def test_a_deadline_that_passed_and_a_convicted_request_say_so_in_the_header(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(served, monkeypatch, lambda: RequestQuarantinedError("again and again"))
    response = await served.post("/v1/completions", prompt="x")
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert response.json()["error"]["code"] == "request_quarantined"
    failing(served, monkeypatch, ZeroDivisionError)
    assert "x-should-retry" not in (await served.post("/v1/completions", prompt="x")).headers


@pytest.fixture
async def served(tmp_path: Path) -> Any:
    async with serving(tmp_path, FakeExecutor(says("Hello"))) as running:
        yield running
