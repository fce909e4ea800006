"""A real server with two engines: how the machine is divided, and what becomes of the streams of one that is killed."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orcinus.engine.platform.device import available_cores
from tests.integration.step_gate import StepGate
from tests.integration.test_engine_restarts import Asking, is_ready, tokens_counted
from tests.server_process import GATED, LIGHT, PATIENCE_S, ServerProcess, StartServer, is_alive, until

NUM_STREAMS = 32
LENGTH = 160
HALFWAY = 80  # tokens of a prompt and its answer, after which each next one takes
SLOW_STEP_S = 3.0
needs_two_cores = pytest.mark.skipif(available_cores() < 2, reason="two engines need two cores")


def bodies() -> list[dict[str, Any]]:
    """Half of them greedy, half with a seed of their own; prompts of several lengths, of which none is another's."""
    shared = {"max_tokens": LENGTH, "ignore_eos": True, "logprobs": 1, "stream": True}
    return [
        {
            "prompt": f"{index} " + "and the whale " * (index % 7),
            **({"temperature": 0} if index % 2 else {"temperature": 0.9, "seed": index}),
            **shared,
        }
        for index in range(NUM_STREAMS)
    ]


def both_are_up(server: ServerProcess) -> bool:
    return all(server.metric(f'orcinus_engine_up{{engine="{i}"}}') for i in (0, 1))


def slots_by_engine(server: ServerProcess) -> list[float]:
    return server.metrics(*(f'orcinus_engine_slots_in_use{{engine="{index}"}}' for index in (0, 1)))


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> StepGate:
    return StepGate(tmp_path_factory.mktemp("replicas") / "gate")


@pytest.fixture(scope="module")
def server(gate: StepGate) -> Iterator[ServerProcess]:
    running = ServerProcess(
        *("--replicas", "2", "--dtype", "bfloat16", "--deterministic"),
        *("--max-num-seqs", str(NUM_STREAMS), "--kv-cache-memory", "128MiB"),
        module=GATED,
        constants=gate.constants,
    )
    try:
        until(lambda: both_are_up(running), "the engines did not start")
        yield running
    finally:
        running.close()


@needs_two_cores
@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine that is busy
def test_streams_of_an_engine_that_is_killed_go_on_in_the_other_and_end_as_their_undisturbed_twins(
    server: ServerProcess, gate: StepGate
) -> None:
    twins = [request.answer() for request in [Asking(server, body) for body in bodies()]]
    restarts, resumed = server.metrics("orcinus_engine_restarts_total", "orcinus_requests_resumed_total")
    for victim in (0, 1):
        until(lambda: both_are_up(server), "no engine came in its place")
        gate.hold(HALFWAY, step_s=SLOW_STEP_S)  # none of them ends before the engine does
        with tokens_counted(server) as answers:
            asking = [Asking(server, body) for body in bodies()]
            until(lambda: sum(slots_by_engine(server)) == NUM_STREAMS, "they did not all run")
            by_engine = slots_by_engine(server)
            engine_number(server, victim).kill()
            gate.open()
            answers += [request.answer() for request in asking]
        assert answers == twins  # text, tokens, log-probabilities to the last bit, usage
        assert sum(by_engine) == NUM_STREAMS
        assert min(by_engine) > 0
        resumed += by_engine[victim]
        assert is_ready(server)
    assert server.metric("orcinus_engine_restarts_total") == restarts + 2
    assert server.metric("orcinus_requests_resumed_total") >= resumed
    assert server.metric("orcinus_requests_quarantined_total") == 0


def engine_number(server: ServerProcess, index: int) -> psutil.Process:
    """The process of an engine, known by the core that it is bound to."""
    match = re.search(r"Engines .*on core(?:s)? .*", server.log)
    assert match is not None
    cores = [ranges_in(text) for text in re.findall(r"on cores? ([\d, -]+)", match[0])]
    (engine,) = [engine for engine in server.engines() if {*engine.cpu_affinity()} == cores[index]]
    return engine


def ranges_in(text: str) -> set[int]:
    """The numbers of `0-3, 8`."""
    runs = [[int(number) for number in run.split("-")] for run in text.split(",")]
    return {number for run in runs for number in range(run[0], run[-1] + 1)}


@needs_two_cores
@pytest.mark.slow
def test_cores_and_memory_are_divided_and_the_summary_says_how(server: ServerProcess) -> None:
    until(lambda: both_are_up(server), "the engines did not start")  # each binds itself to its cores as it starts
    engines = server.engines()
    cores = [{*engine.cpu_affinity()} for engine in engines]
    assert not cores[0] & cores[1]
    assert cores[0] | cores[1] == {*psutil.Process().cpu_affinity()}
    assert {*ranges_in_summary(server)} == {frozenset(each) for each in cores}
    assert server.metric("orcinus_slots") == 2 * NUM_STREAMS
    match = re.search(r"KV cache +.*, (\d+(?:\.\d+)?) MiB, .*in each engine", server.log)
    assert match is not None
    assert float(match[1]) <= 64


def ranges_in_summary(server: ServerProcess) -> list[frozenset[int]]:
    match = re.search(r"Engines +2: (.*)\. The first one is up", server.log)
    assert match is not None
    return [frozenset(ranges_in(part.partition("core")[2].lstrip("s "))) for part in match[1].split(";")]


@pytest.mark.slow
def test_more_replicas_than_cores_are_refused_with_both_numbers(start_server: StartServer) -> None:
    num_cores = available_cores()
    refused = start_server("--device", "cpu", "--replicas", str(num_cores + 1))
    assert refused.wait(PATIENCE_S) == 2
    assert f"replicas is {num_cores + 1}, but cores that this process may use are {num_cores}" in refused.log


@needs_two_cores
@pytest.mark.slow
def test_a_server_serves_while_one_engine_is_replaced_and_drains_both(
    start_server: StartServer, tmp_path: Path
) -> None:
    gate = StepGate(tmp_path / "gate")
    server = start_server("--replicas", "2", "--drain-timeout-s", "600", module=LIGHT, constants=gate.constants)
    until(lambda: both_are_up(server), "the engines did not start")
    killed, kept = server.engines()
    killed.kill()
    until(lambda: len({*server.engines()} - {killed}) == 2, "no engine was started in its place")
    assert is_ready(server)
    assert Asking(server, {"prompt": "x", "max_tokens": 3, "ignore_eos": True}).answer()[-1]["completion_tokens"] == 3
    until(lambda: both_are_up(server), "it did not come up")
    gate.hold()
    asking = [Asking(server, {"prompt": f"{i}", "max_tokens": 300, "ignore_eos": True}) for i in range(8)]
    until(lambda: server.metric("orcinus_slots_in_use") == 8, "they did not all run")
    engines = server.engines()
    server.process.send_signal(signal.SIGTERM)
    gate.open()
    assert [request.answer()[-1]["completion_tokens"] for request in asking] == [300] * 8
    assert server.wait(PATIENCE_S) == 0
    assert not any(map(is_alive, [*engines, kept]))
