"""A real server whose engine process is killed, stopped, stuck and crashing: what clients see of it is nothing.

Answers are compared with those of the same server before anything happened to it. In float32, so that how a batch is
made up does not show; or, where it does not matter what the tokens are made of, by an engine without a model.
"""

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.effort import scaled
from tests.integration.culprits import FATAL_SEED, HANGING_SEED
from tests.integration.step_gate import StepGate
from tests.server_process import GATED, LIGHT, PATIENCE_S, ServerProcess, StartServer, is_alive, until

ENDLESS = {"prompt": "On and on", "max_tokens": 2000, "ignore_eos": True, "temperature": 0}
LENGTH = 160
HALFWAY = 80  # tokens of a prompt and its answer, after which each next one takes
SLOW_STEP_S = 3.0
TOKENS = "orcinus_generation_tokens_total"
ABORTED = 'orcinus_requests_total{outcome="abort"}'
SCHEMA = {
    "type": "object",
    "properties": {"names": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 40}},
    "required": ["names"],
    "additionalProperties": False,
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "names", "schema": SCHEMA, "strict": True}}
# Three seconds without a sign of life, where ten are usual, and no limit while an engine loads.
HURRIED: dict[str, float | str] = {
    "orcinus.engine.supervision.supervisor.TICK_S": 0.3,
    "orcinus.engine.supervision.liveness.LOADING_SILENCE_S": 10_000.0,
}
LONG = {"max_tokens": LENGTH, "ignore_eos": True}
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy stream": {"prompt": "Once", "temperature": 0, "stream": True, **LONG},
    "greedy": {"prompt": "Twice upon", "temperature": 0, **LONG},
    "seeded stream": {"prompt": "The whale", "seed": 7, "temperature": 0.9, "stream": True, **LONG},
    "several samples": {"prompt": "The sea", "seed": 8, "n": 3, "frequency_penalty": 0.5, **LONG},
    "log-probabilities": {"prompt": "A boat", "temperature": 0, "logprobs": 2, "stream": True, **LONG},
    "echo": {"prompt": "An island", "seed": 9, "logprobs": 1, "echo": True, **LONG},
    "a schema": {"prompt": "Names:", "seed": 10, "max_tokens": LENGTH, "response_format": JSON_SCHEMA, "stream": True},
    "a stop string": {"prompt": "Stop", "temperature": 0, "stop": ["a string that does not come", "qqqq"], **LONG},
}

PLAIN_REQUESTS = {name: body for name, body in REQUESTS.items() if "response_format" not in body}
Twins = dict[str, dict[int, dict[str, Any]]]


def ask(server: ServerProcess, body: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return what was answered, by choice; a stream's events are joined. Raises where it was not 200."""
    if not body.get("stream"):
        response = server.http.post("/v1/completions", json=body, timeout=PATIENCE_S)
        response.raise_for_status()
        whole = response.json()
        return {-1: whole["usage"], **{choice["index"]: choice for choice in whole["choices"]}}
    asked = {**body, "stream_options": {"include_usage": True}}
    joined: dict[int, dict[str, Any]] = {}
    with server.http.stream("POST", "/v1/completions", json=asked, timeout=PATIENCE_S) as response:
        response.raise_for_status()
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    for event in map(json.loads, events):
        assert "error" not in event, event
        if event["usage"] is not None:
            joined[-1] = event["usage"]
        for choice in event["choices"]:
            join(joined.setdefault(choice["index"], {"text": ""}), choice)
    return joined


def join(earlier: dict[str, Any], choice: dict[str, Any]) -> None:
    earlier["text"] += choice["text"]
    earlier["finish_reason"] = choice["finish_reason"]
    for name, values in (choice["logprobs"] or {}).items():
        earlier.setdefault("logprobs", {}).setdefault(name, []).extend(values)


def assert_same(answer: Any, twin: Any) -> None:
    """Numbers that are computed may differ by what a batch of another size makes of the last bits."""
    if isinstance(twin, float):
        assert answer == pytest.approx(twin, abs=1e-3)
    elif isinstance(twin, dict):
        assert answer.keys() == twin.keys()
        for key, value in twin.items():
            assert_same(answer[key], value)
    elif isinstance(twin, list):
        assert len(answer) == len(twin)
        for mine, other in zip(answer, twin, strict=True):
            assert_same(mine, other)
    else:
        assert answer == twin


class Asking(threading.Thread):
    """A request in a thread of its own."""

    def __init__(self, server: ServerProcess, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._body = body
        self._answer: dict[int, dict[str, Any]] | Exception = TimeoutError("it was not answered")
        self.start()

    def run(self) -> None:
        try:
            self._answer = ask(self._server, self._body)
        except (httpx.HTTPError, AssertionError) as error:
            self._answer = error

    def answer(self) -> dict[int, dict[str, Any]]:
        self.join(PATIENCE_S)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def engine_of(server: ServerProcess) -> psutil.Process:
    return until(server.engine, "there was no engine")


def is_ready(server: ServerProcess) -> bool:
    return server.get("/ready").status_code == 200


def is_draining(server: ServerProcess) -> bool:
    return bool(server.get("/ready").json().get("error", {}).get("code") == "draining")


@contextmanager
def streaming(server: ServerProcess, body: dict[str, Any]) -> Iterator[httpx.Response]:
    """A stream of which the first event has come."""
    asked = {**body, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=asked, timeout=PATIENCE_S) as response:
        lines = response.iter_lines()  # who drops them leaves
        assert next(lines).startswith("data: {")
        yield response


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StepGate]:
    """One for each server of the module."""
    folder = tmp_path_factory.mktemp("gates")
    return {name: StepGate(folder / name) for name in (GATED, LIGHT)}


@pytest.fixture(scope="module")
def float_server(gates: dict[str, StepGate]) -> Iterator[ServerProcess]:
    flags = ("--dtype", "float32", "--max-num-seqs", "16", "--kv-cache-memory", "128MiB")
    running = ServerProcess(*flags, module=GATED, constants=gates[GATED].constants)
    try:
        until(lambda: is_ready(running), "it did not start")
        yield running
    finally:
        running.close()


def twins_of(server: ServerProcess, requests: Mapping[str, dict[str, Any]]) -> Twins:
    asking = {name: Asking(server, body) for name, body in requests.items()}
    return {name: request.answer() for name, request in asking.items()}


@pytest.fixture(scope="module")
def twins(float_server: ServerProcess) -> Twins:
    return twins_of(float_server, REQUESTS)


@pytest.fixture(scope="module")
def light_server(gates: dict[str, StepGate]) -> Iterator[ServerProcess]:
    """It takes an engine for dead soon."""
    running = ServerProcess(module=LIGHT, constants={**HURRIED, **gates[LIGHT].constants})
    try:
        until(lambda: is_ready(running), "it did not start")
        yield running
    finally:
        running.close()


@pytest.fixture
def gate(gates: dict[str, StepGate]) -> Iterator[StepGate]:
    """That of the server with a model."""
    yield gates[GATED]
    gates[GATED].open()


@pytest.fixture
def light_gate(gates: dict[str, StepGate]) -> Iterator[StepGate]:
    yield gates[LIGHT]
    gates[LIGHT].open()


@pytest.fixture(scope="module")
def light_twins(light_server: ServerProcess) -> Twins:
    return twins_of(light_server, PLAIN_REQUESTS)


@contextmanager
def tokens_counted(server: ServerProcess) -> Iterator[list[dict[int, dict[str, Any]]]]:
    """Check that what goes into the list, and only that, was generated meanwhile."""
    before = server.metric(TOKENS)
    answers: list[dict[int, dict[str, Any]]] = []
    yield answers
    num_tokens = server.metric(TOKENS) - before
    assert num_tokens == sum(answer[-1]["completion_tokens"] for answer in answers)


def assert_undisturbed(server: ServerProcess, twins: Twins, gate: StepGate, disturb: Callable[[], None]) -> None:
    """Check answers that are under way, none of which ends, when `disturb` is called."""
    gate.hold(HALFWAY, step_s=SLOW_STEP_S)
    with tokens_counted(server) as answers:
        num_tokens = server.metric(TOKENS)
        asking = {name: Asking(server, REQUESTS[name]) for name in twins}
        until(lambda: server.metric(TOKENS) > num_tokens + 60, "no tokens came")
        disturb()
        gate.open()
        for name, request in asking.items():
            answers.append(request.answer())
            assert_same(answers[-1], twins[name])


@pytest.mark.scaled
@pytest.mark.timeout(900)  # on a machine that is busy
def test_an_engine_killed_again_and_again_makes_no_difference_to_any_answer(
    float_server: ServerProcess, twins: Twins, gate: StepGate
) -> None:
    server, num_kills = float_server, scaled(3)
    restarts, resumed = server.metrics("orcinus_engine_restarts_total", "orcinus_requests_resumed_total")

    def kill() -> None:
        for number in range(num_kills):
            until(lambda: is_ready(server), "no engine came up")
            num_tokens = server.metric(TOKENS)
            gate.hold(HALFWAY + 20 * number, step_s=SLOW_STEP_S)
            until(lambda num_tokens=num_tokens: server.metric(TOKENS) > num_tokens, "no tokens came")  # type: ignore[misc]
            engine_of(server).kill()
            until(lambda: not is_ready(server), "/ready stayed green")
            assert server.get("/live").status_code == 200
            assert 1 <= int(server.get("/health").headers["retry-after"]) <= 120

    assert_undisturbed(server, twins, gate, kill)
    assert server.metric("orcinus_engine_restarts_total") >= restarts + num_kills
    assert server.metric("orcinus_requests_resumed_total") >= resumed + num_kills
    assert server.metric("orcinus_requests_quarantined_total") == 0
    assert server.metric("orcinus_slots_in_use") == server.metric("orcinus_queue_depth") == 0


def test_a_killed_engine_is_missed_at_once_and_requests_wait_for_the_next(light_server: ServerProcess) -> None:
    server = light_server
    until(lambda: is_ready(server), "no engine came up")
    engine, log = engine_of(server), server.log
    engine.kill()
    until(lambda: not is_ready(server), "/ready stayed green")
    said = until(lambda: re.search(r"the engine is gone, (.*);", server.log.removeprefix(log)), "no word of it")
    assert said[1] == "the engine process was killed by SIGKILL"  # its end was seen, and not its silence
    refused = server.get("/ready")
    waiting = Asking(server, {"prompt": "x", "max_tokens": 3, "ignore_eos": True})
    assert refused.json()["error"]["code"] == "engine_unavailable"
    assert waiting.answer()[-1]["completion_tokens"] == 3
    assert engine_of(server).pid != engine.pid


@pytest.mark.slow
def test_an_engine_that_is_stopped_is_replaced(
    light_server: ServerProcess, light_twins: Twins, light_gate: StepGate
) -> None:
    server = light_server
    until(lambda: is_ready(server), "no engine came up")
    engine = engine_of(server)
    assert_undisturbed(server, light_twins, light_gate, lambda: engine.send_signal(signal.SIGSTOP))
    assert not is_alive(engine)
    assert "no sign of life" in server.log


def test_an_engine_that_is_killed_while_it_loads_is_replaced_by_a_third(
    light_server: ServerProcess, light_twins: Twins, light_gate: StepGate
) -> None:
    server = light_server
    until(lambda: is_ready(server), "no engine came up")
    before = server.metric("orcinus_engine_restarts_total")

    def kill_two() -> None:
        first = engine_of(server)
        first.kill()
        until(lambda: other_than(first, server.engine()), "no second engine was started").kill()

    assert_undisturbed(server, light_twins, light_gate, kill_two)
    assert server.metric("orcinus_engine_restarts_total") >= before + 2  # more where the machine holds one up for long
    assert server.metric("orcinus_requests_quarantined_total") == 0


def test_clients_that_leave_in_the_moment_of_a_kill_are_gone(
    light_server: ServerProcess, light_twins: Twins, light_gate: StepGate
) -> None:
    """One before it, of which the engine never hears; one when it is killed; one before the server knows of it."""
    server = light_server
    until(lambda: is_ready(server), "no engine came up")
    before = server.metric(ABORTED)
    light_gate.hold(HALFWAY, step_s=SLOW_STEP_S)
    asking = {name: Asking(server, body) for name, body in PLAIN_REQUESTS.items()}
    with streaming(server, ENDLESS) as early, streaming(server, ENDLESS) as prompt, streaming(server, ENDLESS) as late:
        engine = engine_of(server)
        engine.send_signal(signal.SIGSTOP)
        early.close()
        until(lambda: server.metric(ABORTED) == before + 1, "nobody left")
        prompt.close()
        engine.kill()
        late.close()
    light_gate.open()
    for name, request in asking.items():
        assert_same(request.answer(), light_twins[name])
    assert server.metric(ABORTED) == before + 3
    assert server.metric("orcinus_slots_in_use") == server.metric("orcinus_queue_depth") == 0


@pytest.mark.slow
def test_an_engine_that_is_killed_while_sequences_wait_to_resume_makes_no_difference(
    float_server: ServerProcess, start_server: StartServer, tmp_path: Path
) -> None:
    cramped = ("--max-num-seqs", "4", "--max-model-len", "384", "--block-size", "16", "--kv-cache-memory", "1920KiB")
    gate = StepGate(tmp_path / "gate")
    server = start_server("--dtype", "float32", *cramped, module=GATED, constants=gate.constants)
    until(lambda: is_ready(server), "it did not start")
    long = {"max_tokens": 320, "ignore_eos": True, "logprobs": 1, "stream": True}
    bodies = [{"prompt": "The whale", "seed": seed, "temperature": 0.9, **long} for seed in range(4)]
    twins = [request.answer() for request in [Asking(float_server, body) for body in bodies]]
    gate.hold(250, step_s=SLOW_STEP_S)  # where they have no room together
    asking = [Asking(server, body) for body in bodies]
    until(lambda: all(server.metrics("orcinus_preemptions_total", "orcinus_queue_depth")), "nobody was preempted")
    engine_of(server).kill()
    gate.open()
    for request, twin in zip(asking, twins, strict=True):
        assert_same(request.answer(), twin)
    assert server.metric("orcinus_requests_resumed_total") == len(bodies)
    assert server.metric(TOKENS) == sum(twin[-1]["completion_tokens"] for twin in twins)
    assert server.metric("orcinus_kv_blocks_in_use") == server.metric("orcinus_queue_depth") == 0


@pytest.mark.timeout(900)  # on a machine that is busy
@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [("--deterministic", "--dtype", "float32"), ("--deterministic", "--dtype", "bfloat16"), ("--quantization", "int8")],
    ids=lambda mode: mode[-1],
)
def test_in_deterministic_mode_kills_cost_no_bit_while_serving_and_while_draining(
    mode: tuple[str, ...], start_server: StartServer, tmp_path: Path
) -> None:
    """In 8 bits the mode is on by itself, where our kernels multiply them."""
    gate = StepGate(tmp_path / "gate")
    server = start_server(*mode, "--drain-timeout-s", "300", module=GATED, constants=gate.constants)
    scored = {name: {"logprobs": 1, **body} for name, body in REQUESTS.items()}
    twins = {name: request.answer() for name, request in {n: Asking(server, b) for n, b in scored.items()}.items()}
    num_tokens = server.metric(TOKENS)
    gate.hold(HALFWAY, step_s=SLOW_STEP_S)
    asking = {name: Asking(server, body) for name, body in scored.items()}
    until(lambda: server.metric(TOKENS) > num_tokens + 60, "no tokens came")
    engine_of(server).kill()
    until(lambda: not is_ready(server), "/ready stayed green")
    until(lambda: is_ready(server), "no engine came up")
    until(lambda: server.metric("orcinus_http_requests_in_progress") == 1 + len(asking), "they did not all come in")
    server.terminate()
    until(lambda: is_draining(server), "the server did not drain")
    engine_of(server).kill()
    gate.open()
    for name, request in asking.items():
        assert request.answer() == twins[name]
    assert server.wait(PATIENCE_S) == 0


@pytest.mark.timeout(900)  # on a machine that is busy
@pytest.mark.slow
def test_a_request_that_ends_or_holds_up_its_engine_is_given_up_alone(
    start_light_server: StartServer, tmp_path: Path
) -> None:
    """One ends it at once, and one after a while: then all of the crowd is under suspicion."""
    gate = StepGate(tmp_path / "gate")
    server = start_light_server("--step-timeout-s", "5", constants=gate.constants)
    crowd = [{**LONG, "prompt": f"Number {i}", "seed": i} for i in range(6)]
    twins = [request.answer() for request in [Asking(server, body) for body in crowd]]
    gate.hold()
    others = [Asking(server, body) for body in crowd]
    until(lambda: server.metric("orcinus_slots_in_use") == len(crowd), "they did not all run")
    culprits = [Asking(server, {**LONG, "prompt": "x", "seed": seed}) for seed in (FATAL_SEED, HANGING_SEED)]
    until(lambda: server.metric("orcinus_engine_restarts_total") >= 1, "nothing happened to the engine")
    gate.open()
    for culprit in culprits:
        with pytest.raises(httpx.HTTPStatusError, match="500"):
            culprit.answer()
    for other, twin in zip(others, twins, strict=True):
        assert_same(other.answer(), twin)
    assert server.metric("orcinus_requests_quarantined_total") == 2
    assert server.metric("orcinus_engine_restarts_total") <= 6
    assert "killed by SIGSEGV" in server.log
    assert "step_timeout_s" in server.log


def test_an_engine_that_always_crashes_ends_the_server(start_light_server: StartServer, tmp_path: Path) -> None:
    gate = StepGate(tmp_path / "gate")
    gate.hold()
    server = start_light_server("--max-engine-restarts", "1", constants=gate.constants)
    with server.http.stream(
        "POST", "/v1/completions", json={**ENDLESS, "stream": True}, timeout=PATIENCE_S
    ) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: {")
        crashing = threading.Thread(target=kill_engines, args=[server], daemon=True)
        crashing.start()
        *_, error, done = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert json.loads(error)["error"]["type"] == "server_error"
    assert "in a row" in json.loads(error)["error"]["message"]
    assert done == "[DONE]"
    assert server.wait(PATIENCE_S) == 1
    assert "orcinus serve: the engine ended 2 times in a row" in server.log
    crashing.join(PATIENCE_S)


def kill_engines(server: ServerProcess) -> None:
    """Each as soon as it is there, until the server has had enough."""
    while server.process.poll() is None:
        if (engine := server.engine()) is not None and is_alive(engine):
            engine.kill()
        time.sleep(0.02)


def test_a_server_that_is_killed_while_its_engine_restarts_leaves_no_process(start_light_server: StartServer) -> None:
    server = start_light_server()
    until(lambda: is_ready(server), "it did not start")
    first = engine_of(server)
    first.kill()
    second = until(lambda: other_than(first, server.engine()), "no second engine was started")
    server.process.kill()
    until(lambda: not is_alive(second), "the engine went on")


def other_than(first: psutil.Process, engine: psutil.Process | None) -> psutil.Process | None:
    return None if engine is None or engine.pid == first.pid else engine
