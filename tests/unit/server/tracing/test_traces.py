"""Spans of requests: what they say, whose trace they belong to, and how their times lie in each other."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import StatusCode

from orcinus.config.log_lines import JsonFormatter
from orcinus.config.settings import SettingsError, load_settings
from orcinus.engine.messages import Fault, StepPlan
from orcinus.server.tracing import request_trace
from orcinus.server.tracing.parents import trace_id_of
from orcinus.server.tracing.tracer import Tracing, open_tracing
from tests.unit.engine.fakes import FakeExecutor, alphabet, says
from tests.unit.server.http.test_connections import connect
from tests.unit.server.serving import Gate, listening, serving, until, user
from tests.unit.server.tracing.exported import Exported, attributes_of, end_of, start_of

ROOT = Path(__file__).parents[4]
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = (f"00-{TRACE_ID}-{PARENT_ID}-{flags}" for flags in ("01", "00"))


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_chat_has_the_span_of_the_conventions(tmp_path: Path, exported: Exported, is_streamed: bool) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello")), tracing=exported.tracing) as served:
        body = {
            "model": "fake-model",
            "messages": [user("hi")],
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "frequency_penalty": 0.25,
            "presence_penalty": 0,
            "max_completion_tokens": 50,
            "seed": 7,
            "stop": "\n\n\n",
            "response_format": {"type": "text"},
            "stream": is_streamed,
        }
        response = await served.post("/v1/chat/completions", **body)
        answer: Any = response.text if is_streamed else response.json()
    span = exported.server
    assert span.name == "chat fake-model"
    assert span.status.status_code == StatusCode.UNSET
    assert span.parent is None
    attributes = attributes_of(span)
    response_id = attributes.pop("gen_ai.response.id")
    assert response_id in answer if is_streamed else response_id == answer["id"]
    prompt_tokens = attributes.pop("gen_ai.usage.input_tokens")
    assert is_streamed or prompt_tokens == answer["usage"]["prompt_tokens"]
    assert attributes.pop("user_agent.original").startswith("python-httpx/")
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "orcinus",
        "gen_ai.request.model": "fake-model",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 40,
        "gen_ai.request.frequency_penalty": 0.25,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ("\n\n\n",),
        "gen_ai.output.type": "text",
        **({"gen_ai.request.stream": True} if is_streamed else {}),
        "gen_ai.response.model": "fake-model",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "test",
        "server.port": 80,
        "client.address": "127.0.0.1",
    }


CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/completions": ({"prompt": "ab"}, "text_completion"),
    "/v1/chat/completions": ({"messages": [user("ab")]}, "chat"),
    "/v1/responses": ({"input": "ab"}, "chat"),
    "/v1/messages": ({"messages": [user("ab")], "max_tokens": 9, "model": "fake-model"}, "chat"),
    "/v1/embeddings": ({"input": ["ab", "c"], "dimensions": 8, "encoding_format": "base64"}, "embeddings"),
}


@pytest.mark.parametrize("path", CALLS)
async def test_each_api_has_its_operation(tmp_path: Path, exported: Exported, path: str) -> None:
    body, operation = CALLS[path]
    async with serving(tmp_path, FakeExecutor(says("Hello")), tracing=exported.tracing) as served:
        assert (await served.post(path, **body)).status_code == 200
    attributes = attributes_of(exported.server)
    assert attributes["gen_ai.operation.name"] == operation
    assert attributes["gen_ai.response.model"] == "fake-model"
    assert attributes["gen_ai.usage.input_tokens"] > 0
    is_embedding = operation == "embeddings"
    assert ("gen_ai.response.finish_reasons" not in attributes) == is_embedding
    assert (attributes.get("gen_ai.embeddings.dimension.count") == 8) == is_embedding
    assert (attributes.get("gen_ai.request.encoding_formats") == ("base64",)) == is_embedding
    named = "model" in body
    assert exported.server.name == (f"{operation} fake-model" if named else operation)


async def test_an_end_is_told_in_the_words_of_its_api(tmp_path: Path, exported: Exported) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello")), tracing=exported.tracing) as served:
        await served.post("/v1/messages", messages=[user("ab")], max_tokens=2, model="fake-model")
    assert attributes_of(exported.server)["gen_ai.response.finish_reasons"] == ("max_tokens",)


async def test_times_inside_lie_one_behind_the_other(tmp_path: Path, exported: Exported) -> None:
    gate = Gate()
    executor = FakeExecutor(alphabet, before_step=gate)
    async with serving(tmp_path, executor, info={"max_num_seqs": 1}, tracing=exported.tracing) as served:
        first = asyncio.create_task(served.post("/v1/completions", prompt="a", max_tokens=3, n=2, seed=1))
        await until(lambda: served.engine.num_queued + served.engine.num_running == 2)
        gate.open()
        assert (await first).status_code == 200
    server = exported.server
    [prepare] = exported.inside("prepare")
    assert start_of(prepare) == start_of(server)
    for index in (0, 1):
        queue, prefill, decode = (
            next(span for span in exported.inside(name) if attributes_of(span)["orcinus.choice.index"] == index)
            for name in ("queue", "prefill", "decode")
        )
        assert end_of(prepare) == start_of(queue)
        assert end_of(queue) == start_of(prefill)
        assert end_of(prefill) == start_of(decode)
        assert start_of(decode) < end_of(decode) <= end_of(server)
        assert attributes_of(decode)["orcinus.output_tokens"] == 3
        assert attributes_of(prefill)["orcinus.prompt_tokens"] == 1
    ends, starts = [end_of(span) for span in exported.inside("decode")], exported.inside("prefill")
    assert start_of(starts[1]) >= min(ends) - 1, "there is one slot"
    assert not exported.inside("preemption") + exported.inside("restart")


async def test_a_preemption_is_a_span_until_there_is_a_slot_again(tmp_path: Path, exported: Exported) -> None:
    """Two requests of which one alone fits to its end."""
    info = {"num_kv_blocks": 10, "block_size": 4, "max_model_len": 32}
    async with serving(tmp_path, FakeExecutor(alphabet), info=info, tracing=exported.tracing) as served:
        answer = await served.post("/v1/completions", prompt="abcd", max_tokens=24, n=2, seed=1)
        assert answer.status_code == 200
        num_preemptions = await served.metric("orcinus_preemptions_total")
    spans = exported.inside("preemption")
    assert len(spans) == num_preemptions > 0
    for span in spans:
        index = attributes_of(span)["orcinus.choice.index"]
        [decode] = [each for each in exported.inside("decode") if attributes_of(each)["orcinus.choice.index"] == index]
        assert start_of(decode) <= start_of(span) < end_of(span) <= end_of(decode)


class EndsOnce(FakeExecutor):
    """Its engine ends in the step of this number, once."""

    def __init__(self, number: int) -> None:
        super().__init__(alphabet, before_step=self._look)
        self._left = number

    def _look(self, plan: StepPlan) -> None:
        self._left -= 1
        if self._left == 0:
            raise RuntimeError("the device is gone")

    def diagnose(self, error: Exception) -> Fault:
        return "engine"


@pytest.mark.parametrize("number", [1, 4])
async def test_a_restart_is_a_span_until_the_next_engine_goes_on(
    tmp_path: Path, exported: Exported, number: int
) -> None:
    async with serving(tmp_path, EndsOnce(number), tracing=exported.tracing) as served:
        answer = await served.post("/v1/completions", prompt="abcd", max_tokens=8)
        assert answer.json()["choices"][0]["text"] == "abcdefgh"
    [restart] = exported.inside("restart")
    [queue], [decode] = exported.inside("queue"), exported.inside("decode")
    outer = queue if number == 1 else decode
    assert start_of(outer) <= start_of(restart) < end_of(restart) <= end_of(outer)


async def test_a_request_that_is_refused_has_a_span_with_its_error(tmp_path: Path, exported: Exported) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello")), tracing=exported.tracing, api_key="k") as served:
        for headers, body, code, status in (
            ({}, {"prompt": "a"}, "invalid_api_key", 401),
            ({"x-api-key": "k"}, {"prompt": "a", "model": "evil" + "x" * 999}, "model_not_found", 404),
            ({"x-api-key": "k"}, {"prompt": "a", "seed": 10**40, "n": "2", "stop": 5}, "invalid_request_error", 400),
        ):
            exported.exporter.clear()
            content = json.dumps(body)
            response = await served.client.post(
                "/v1/completions", content=content, headers={**headers, "content-type": "application/json"}
            )
            assert response.status_code == status
            span = exported.server
            assert span.name == "text_completion", "names that are not served would be without end"
            assert span.status.status_code == StatusCode.UNSET, "it is the client's error"
            assert attributes_of(span)["error.type"] == code
            assert attributes_of(span)["http.response.status_code"] == status
            assert len(str(attributes_of(span).get("gen_ai.request.model", ""))) <= 256
            assert "gen_ai.request.seed" not in attributes_of(span)


@pytest.mark.parametrize("prefix", ["/llm", ""])
async def test_requests_are_traced_whether_a_proxy_takes_the_path_off_or_not(
    tmp_path: Path, exported: Exported, prefix: str
) -> None:
    async with serving(
        tmp_path, FakeExecutor(says("Hello")), tracing=exported.tracing, root_path="/llm", api_key="k"
    ) as served:
        for key, status in (("k", 200), ("other", 401)):
            exported.exporter.clear()
            response = await served.client.post(
                f"{prefix}/v1/completions", json={"prompt": "a"}, headers={"x-api-key": key}
            )
            assert response.status_code == status
            assert attributes_of(exported.server)["http.route"] == "/v1/completions"
            assert attributes_of(exported.server)["url.path"] == "/v1/completions"


class Fails(FakeExecutor):
    """Fails whatever it is asked, from the third step on."""

    def __init__(self) -> None:
        super().__init__(alphabet, before_step=self._look)
        self._num_steps = 0

    def _look(self, plan: StepPlan) -> None:
        self._num_steps += 1
        if self._num_steps > 2:
            raise ValueError("no")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_error_of_the_server_is_one_in_the_span(tmp_path: Path, exported: Exported, is_streamed: bool) -> None:
    async with serving(tmp_path, Fails(), tracing=exported.tracing) as served:
        response = await served.post("/v1/completions", prompt="a", max_tokens=9, stream=is_streamed)
        assert response.status_code == (200 if is_streamed else 500)
    span = exported.server
    assert span.status.status_code == StatusCode.ERROR
    assert span.status.description is None
    assert attributes_of(span)["error.type"] == "server_error"
    assert attributes_of(span)["gen_ai.response.finish_reasons"] == ("error",)
    assert exported.inside("decode")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_client_that_leaves_ends_the_span(tmp_path: Path, exported: Exported, is_streamed: bool) -> None:
    gate = Gate()
    executor = FakeExecutor(alphabet, before_step=gate)
    async with serving(tmp_path, executor, tracing=exported.tracing) as served, listening(served) as (_, port):
        async with connect(port) as leaver:
            await leaver.post("/v1/completions", prompt="a", max_tokens=200, stream=is_streamed)
            gate.let(3)
            await until(lambda: served.engine.stats.num_running == 1)
            leaver.leave()
            await until(exported.exporter.get_finished_spans)
        gate.open()
    attributes = attributes_of(exported.server)
    assert attributes["error.type"] == request_trace.CLIENT_LEFT
    assert attributes["gen_ai.response.finish_reasons"] == ("error",)
    assert exported.server.status.status_code == StatusCode.UNSET
    assert exported.inside("prefill")


async def test_a_deadline_is_the_error_of_its_span(tmp_path: Path, exported: Exported) -> None:
    gate = Gate()
    executor = FakeExecutor(alphabet, before_step=gate)
    async with serving(tmp_path, executor, tracing=exported.tracing) as served:
        response = await served.post("/v1/completions", prompt="a", max_tokens=9, timeout=0.05)
        assert response.status_code == 408
        gate.open()
    assert attributes_of(exported.server)["error.type"] == "timeout"
    assert len(exported.inside("queue")) == 1


# --- whose trace ----------------------------------------------------------------------------------------


async def test_a_request_belongs_to_the_trace_of_its_client(tmp_path: Path, exported: Exported) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello")), tracing=exported.tracing) as served:
        headers = {"traceparent": SAMPLED, "tracestate": "vendor=1"}
        response = await served.client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
        assert not {name for name in response.headers if name.startswith("trace")}
    span = exported.server
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert span.context.trace_state.to_header() == "vendor=1"


async def test_what_the_client_does_not_sample_is_not_exported(
    tmp_path: Path, exported: Exported, lines: list[dict[str, Any]]
) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello")), tracing=exported.tracing) as served:
        headers = {"traceparent": NOT_SAMPLED}
        assert (await served.client.post("/v1/completions", json={"prompt": "a"}, headers=headers)).status_code == 200
    assert not exported.exporter.get_finished_spans()
    [access] = [line for line in lines if line["logger"] == "orcinus.server.access"]
    assert (access["trace_id"], access.get("span_id")) == (TRACE_ID, None)


@pytest.mark.parametrize(
    "values",
    [
        [SAMPLED, SAMPLED],
        ["garbage"],
        [f"00-{'0' * 32}-{PARENT_ID}-01"],
        [f"00-{TRACE_ID}-{'0' * 16}-01"],
        [f"ff-{TRACE_ID}-{PARENT_ID}-01"],
        [f"00-{TRACE_ID.upper()}-{PARENT_ID}-01"],
        [f"{SAMPLED}-more"],
    ],
)
async def test_a_parent_that_is_none_begins_a_trace(tmp_path: Path, exported: Exported, values: Sequence[str]) -> None:
    headers = [("traceparent", value) for value in values]
    async with serving(tmp_path, FakeExecutor(says("Hello")), tracing=exported.tracing) as served:
        assert (await served.client.post("/v1/completions", json={"prompt": "a"}, headers=headers)).status_code == 200
    assert exported.server.parent is None
    assert trace_id_of({"headers": [(name.encode(), value.encode()) for name, value in headers]}) is None


def test_a_later_version_of_the_header_may_have_more() -> None:
    value = f"01-{TRACE_ID}-{PARENT_ID}-01-more".encode()
    assert trace_id_of({"headers": [(b"traceparent", value)]}) == TRACE_ID


class Looks(Sampler):
    """Notes what it decides by, and samples nothing."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        self.seen = {"name": args[2], **(kwargs.get("attributes") or args[4])}
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return "looks"


async def test_a_sampler_knows_what_the_conventions_want_it_to_know(tmp_path: Path) -> None:
    sampler = Looks()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    async with serving(tmp_path, FakeExecutor(says("Hello")), tracing=Tracing(provider)) as served:
        await served.post("/v1/completions", prompt="a", model="fake-model")
    assert sampler.seen["name"] == "text_completion fake-model"
    for name in ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "server.address"):
        assert name in sampler.seen


async def test_polling_and_listing_make_no_spans(tmp_path: Path, exported: Exported) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello")), tracing=exported.tracing) as served:
        for path in ("/metrics", "/ready", "/v1/models", "/v1/chat/completions"):
            await served.client.get(path)
        await served.post("/tokenize", prompt="a")
    assert not exported.exporter.get_finished_spans()


async def test_a_request_of_many_choices_has_spans_of_some(
    tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_trace, "MAX_CHOICES", 2)
    async with serving(tmp_path, FakeExecutor(says("Hello")), tracing=exported.tracing) as served:
        await served.post("/v1/completions", prompt=["a", "b", "c"], n=2, seed=1)
    assert len(exported.inside("decode")) == 2
    attributes = attributes_of(exported.server)
    assert attributes["orcinus.choices_without_spans"] == 4
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",) * 6
    assert attributes["gen_ai.request.choice.count"] == 2


# --- logs, and without traces ---------------------------------------------------------------------------


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.found: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(json.loads(self.format(record)))


@pytest.fixture
def lines() -> Any:
    handler = Lines()
    logger = logging.getLogger("orcinus")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield handler.found
    logger.removeHandler(handler)
    logger.setLevel(level)


async def test_lines_have_the_ids_of_request_and_trace(
    tmp_path: Path, exported: Exported, lines: list[dict[str, Any]]
) -> None:
    gate = Gate()
    executor = FakeExecutor(alphabet, before_step=gate)
    async with serving(tmp_path, executor, tracing=exported.tracing) as served:
        headers = {"x-request-id": "my-id", "traceparent": SAMPLED}
        body = {"prompt": "a", "max_tokens": 9, "timeout": 0.05}
        await served.client.post("/v1/completions", json=body, headers=headers)
        gate.open()
    [expiry] = [line for line in lines if "timed out" in line["message"]]
    [access] = [line for line in lines if line["logger"] == "orcinus.server.access"]
    for line in (expiry, access):
        assert line["request_id"] == "my-id"
        assert line["trace_id"] == TRACE_ID
        assert line["span_id"] == f"{exported.server.context.span_id:016x}"
    assert {name: access[name] for name in ("method", "path", "status", "client", "level")} == {
        "method": "POST",
        "path": "/v1/completions",
        "status": 408,
        "client": "127.0.0.1",
        "level": "info",
    }


async def test_without_traces_lines_have_the_client_s_trace(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello"))) as served:
        await served.client.post("/v1/completions", json={"prompt": "a"}, headers={"traceparent": SAMPLED})
        await served.client.post("/v1/completions", json={"prompt": "a"})
    first, second = [line for line in lines if line["logger"] == "orcinus.server.access"]
    assert (first["trace_id"], first.get("span_id")) == (TRACE_ID, None)
    assert "trace_id" not in second
    assert second["request_id"] != first["request_id"]


async def test_an_sdk_that_is_disabled_traces_nothing(
    tmp_path: Path, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = Tracing(TracerProvider(shutdown_on_exit=False))
    async with serving(tmp_path, FakeExecutor(says("Hello")), tracing=tracing) as served:
        assert (await served.post("/v1/completions", prompt="a")).status_code == 200
    [access] = [line for line in lines if line["logger"] == "orcinus.server.access"]
    assert "trace_id" not in access


def test_without_traces_the_sdk_is_not_imported() -> None:
    script = (
        "import sys; from orcinus.server import app; from orcinus.config.settings import load_settings;"
        "from orcinus.server.tracing.tracer import open_tracing; assert open_tracing(load_settings()) is None;"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_traces_without_the_extra_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(SettingsError, match=r"pip install 'orcinus\[otel\]'"):
        open_tracing(load_settings(otlp_traces_endpoint="http://localhost:4318/v1/traces"))


@pytest.mark.parametrize("url", ["localhost:4318", "grpc://collector:4317", "http://"])
def test_an_endpoint_is_a_url_of_http(url: str) -> None:
    with pytest.raises(SettingsError, match="must be a URL such as http://localhost:4318/v1/traces"):
        load_settings(otlp_traces_endpoint=url)


async def test_the_framework_makes_no_spans_beside_ours(tmp_path: Path) -> None:
    """FastAPI would, for a provider that the whole process has."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with serving(tmp_path, FakeExecutor(says("Hello")), tracing=Tracing(provider)) as served:
        telemetry = served.app._telemetry  # type: ignore[attr-defined, unused-ignore]
        assert not telemetry["tracing"]
        assert not telemetry["metrics"]
        response = await served.post("/v1/completions", prompt="a")
        assert isinstance(response, httpx.Response)
