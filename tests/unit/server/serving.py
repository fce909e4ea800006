"""The app on a real `AsyncEngine` whose model is a function: what the tests of the HTTP layer talk to."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from orcinus.config.settings import Settings, load_settings
from orcinus.engine.frontend.async_engine import AsyncEngine
from orcinus.engine.frontend.replica import EngineSpec
from orcinus.engine.messages import StepPlan
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.supervision.transport import InProcessTransport
from orcinus.server.app import create_app
from orcinus.server.operations import OPERATIONS, OperationTable
from orcinus.server.process.listening import listen, listen_on_file
from orcinus.server.process.server import DrainingServer
from orcinus.server.tracing.tracer import Tracing
from tests.unit.engine.fakes import CHAT_TEMPLATE, FakeExecutor, builds, fake_config, write_byte_tokenizer

in_one_loop = pytest.mark.asyncio(loop_scope="module")  # that of the fixture `lasting`


class Gate:
    """Lets steps through when told to: `FakeExecutor(before_step=gate)`. Open it before the engine is closed."""

    def __init__(self) -> None:
        self._steps = threading.Semaphore(0)
        self._is_open = False

    def __call__(self, plan: StepPlan) -> None:
        if not self._is_open:
            self._steps.acquire()

    def let(self, num_steps: int) -> None:
        self._steps.release(num_steps)

    def open(self) -> None:
        self._is_open = True
        self._steps.release()


class Serving:
    """A running app, and a client that calls it without a network."""

    def __init__(self, app: FastAPI, engine: AsyncEngine, settings: Settings, client: httpx.AsyncClient) -> None:
        self.app = app
        self.engine = engine
        self.settings = settings
        self.client = client

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)

    async def complete(self, prompt: Any = "ab", **body: Any) -> dict[str, Any]:
        return answer_of(await self.post("/v1/completions", prompt=prompt, **body))

    async def chat(self, text: str = "hi", **body: Any) -> dict[str, Any]:
        return answer_of(await self.post("/v1/chat/completions", messages=[user(text)], **body))

    async def metric(self, name: str, **labels: str) -> float:
        """The value of one sample; 0 if there is none."""
        text = (await self.client.get("/metrics")).text
        wanted = name + ("{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else "")
        values = [line.rpartition(" ")[2] for line in text.splitlines() if line.rpartition(" ")[0] == wanted]
        return float(values[0]) if values else 0.0


def generation_request(request_id: str, n: int) -> GenerationRequest:
    """For what goes past HTTP, straight to the engine."""
    return GenerationRequest(request_id=request_id, prompts=[[97]], sampling=SamplingParams(n=n))


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, whose shape and status are checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert len(response.content) < 32 * 1024
    error: dict[str, Any] = body["error"]
    return error


def events_of(text: str) -> Iterator[dict[str, Any]]:
    """The JSON of a stream's events, whose framing and end are checked."""
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    for event in events:
        assert event.startswith("data: {")
        yield json.loads(event.removeprefix("data: "))


@contextlib.asynccontextmanager
async def serving(
    directory: Path,
    executor: FakeExecutor | None = None,
    *,
    info: dict[str, Any] | None = None,
    is_ready: bool = True,
    template: str | None = CHAT_TEMPLATE,
    response_template: Any = None,
    operations: OperationTable = OPERATIONS,
    tracing: Tracing | None = None,
    **settings: Any,
) -> AsyncIterator[Serving]:
    """`directory` is where the tokenizer goes, `info` what the engine says of itself."""
    model = write_byte_tokenizer(directory / "fake-model", template, response_template)
    chosen = load_settings(model=str(model), **settings)
    build = builds(executor or FakeExecutor(), **(info or {}))
    spec = EngineSpec(fake_config(chosen.model_path), lambda: InProcessTransport(build))
    engine = AsyncEngine(chosen, engines=[spec])
    engine.start()
    app = create_app(engine, chosen, operations, tracing=tracing)
    async with app.router.lifespan_context(app):
        if is_ready:
            await engine.wait_ready()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
            yield Serving(app, engine, chosen, client)


@contextlib.asynccontextmanager
async def listening(served: Serving, **settings: Any) -> AsyncIterator[tuple[DrainingServer, int]]:
    """The app of `served` behind a real socket, whose port is given; the lifespan is run by `served`.

    The metrics' port is a free one, too: see `metrics_port_of`.
    """
    chosen = load_settings(**settings)
    own = [] if chosen.metrics_port is None else listen("127.0.0.1", 0)
    server = DrainingServer(served.app, served.engine, chosen, metrics_listeners=own)
    server.config.lifespan = "off"
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    [listener] = listen("127.0.0.1", 0) if chosen.uds is None else [listen_on_file(chosen.uds)]
    with listener:
        port = listener.getsockname()[1] if chosen.uds is None else 0
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield server, port
        finally:
            server.should_exit = True
            await task


def metrics_port_of(server: DrainingServer) -> int:
    port: int = server._metrics_listener._listeners[0].getsockname()[1]
    return port


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    """Wait for a condition that some other task or thread makes true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (nobody sets an event for it)
            await asyncio.sleep(0.005)
