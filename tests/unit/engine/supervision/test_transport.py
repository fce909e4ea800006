"""The wire and the engine's loop behind it, with the engine in a thread."""

import asyncio
import fcntl
import logging
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.errors import EngineUnavailableError, ModelLoadError
from orcinus.engine.messages import (
    AbortRequests,
    AddRequest,
    Alive,
    EngineFailed,
    EngineInfo,
    FromEngine,
    RequestDelta,
    StepOutputs,
    StepPlan,
    StepStarted,
    StepStats,
    ToEngine,
)
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.supervision.engine_process import BuildExecutor, Channel, ServerGoneError, run_engine
from orcinus.engine.supervision.transport import InProcessTransport, ProcessTransport
from orcinus.engine.supervision.wire import (
    FrameReader,
    config_decoder,
    encode_frame,
    from_engine_decoder,
    to_engine_decoder,
)
from tests.unit.engine.fakes import FakeExecutor, builds, fake_config, fake_info, packed, says, token_logprobs


def added(request_id: str, **sampling: Any) -> AddRequest:
    return AddRequest(
        request_id=request_id,
        prompt_token_ids=[104, 105],
        sampling=SamplingParams(seed=2**64 - 1, stop=("x",), logit_bias={5: -1.5}, **sampling),
        arrival_time=time.monotonic(),
        cache_salt="salt",
        adapter="legal",
    )


# --- frames ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6), st.lists(st.integers(1, 30), max_size=20))
def test_frames_come_out_whole_however_the_bytes_arrive(sizes: list[int], chunk_sizes: list[int]) -> None:
    frames = [encode_frame([AbortRequests(request_ids=["x" * size])]) for size in sizes]
    data, reader, payloads = b"".join(frames), FrameReader(), []
    for size in [*chunk_sizes, len(data)]:
        reader.feed(data[:size])
        data = data[size:]
        while (payload := reader.next_payload()) is not None:
            payloads.append(payload)
    assert payloads == [frame[4:] for frame in frames]


def test_messages_survive_the_wire() -> None:
    messages: list[ToEngine] = [added("a", min_tokens=2, max_tokens=9), AbortRequests(request_ids=["a", "b"])]
    assert to_engine_decoder.decode(encode_frame(messages)[4:]) == messages
    config = fake_config("model", max_num_seqs=3)
    assert config_decoder.decode(encode_frame(config)[4:]) == config
    executor_output: list[FromEngine] = [
        *(fake_info(), EngineFailed(message="gone"), step_with_everything()),
        *(StepStarted(request_ids=["a", "b"]), Alive(), Alive(stalled_s=3.0)),
    ]
    for message in executor_output:
        assert from_engine_decoder.decode(encode_frame(message)[4:]) == message


def step_with_everything() -> StepOutputs:
    delta = RequestDelta(
        request_id="a",
        token_ids=[1, 2],
        logprobs=[token_logprobs(1, 2)],
        prompt_logprobs=packed([None, token_logprobs(3, 2)]),
        finish_reason="stop",
        stop_reason=7,
    )
    return StepOutputs(deltas=[delta], stats=StepStats(num_running=3))


# --- the engine's loop ----------------------------------------------------------------------------------


class Server:
    """The other end of the engine's socket, by hand."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._frames = FrameReader()

    def send(self, message: EngineConfig | list[ToEngine]) -> None:
        self._socket.sendall(encode_frame(message))

    def receive(self) -> FromEngine:
        """The next message that is more than a sign of life."""
        while isinstance(message := self.receive_any(), Alive):
            pass
        return message

    def receive_any(self) -> FromEngine:
        while (payload := self._frames.next_payload()) is None:
            data = self._socket.recv(1 << 16)
            assert data, "the engine is gone"
            self._frames.feed(data)
        return from_engine_decoder.decode(payload)

    def next_step(self) -> StepOutputs:
        """The next step that brought tokens or ends."""
        while True:
            message = self.receive()
            assert isinstance(message, (StepOutputs, StepStarted))
            if isinstance(message, StepOutputs) and message.deltas:
                return message

    def close(self) -> None:
        self._socket.close()


@contextmanager
def engine_loop(
    build: BuildExecutor, on_server_gone: Callable[[], None] = lambda: None
) -> Iterator[tuple[Server, Callable[[], int]]]:
    """A server's end, and a function that waits for the engine's exit code."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    codes: list[int] = []

    def run() -> None:
        with theirs:
            codes.append(run_engine(theirs, build, on_server_gone))

    thread = threading.Thread(target=run)
    thread.start()
    server = Server(ours)
    server.send(fake_config("model"))

    def exit_code() -> int:
        thread.join(10)
        assert not thread.is_alive(), "the engine goes on"
        return codes[0]

    try:
        yield server, exit_code
    finally:
        server.close()
        thread.join(10)


def test_engine_reports_itself_and_then_answers() -> None:
    with engine_loop(builds(FakeExecutor(says("ok")))) as (server, _):
        assert server.receive() == fake_info()
        server.send([added("a")])
        deltas = [server.next_step().deltas[0] for _ in range(3)]
        assert [delta.token_ids for delta in deltas] == [[111], [107], [256]]
        assert [delta.finish_reason for delta in deltas] == [None, None, "stop"]


def test_aborted_request_is_not_heard_of_again() -> None:
    with engine_loop(builds(FakeExecutor())) as (server, _):
        server.receive()
        server.send([added("a", max_tokens=200), AbortRequests(request_ids=["a", "unknown"]), added("b", max_tokens=1)])
        step = server.next_step()
        assert [delta.request_id for delta in step.deltas] == ["b"]


def test_idle_engine_gives_signs_of_life() -> None:
    with engine_loop(builds(FakeExecutor())) as (server, _):
        server.receive()
        for _ in range(2):
            heartbeat = server.receive()
            assert isinstance(heartbeat, StepOutputs)
            assert heartbeat.deltas == []
            assert heartbeat.stats.num_slots == 4


def test_requests_are_announced_before_the_step_that_may_be_their_last() -> None:
    def fail(plan: StepPlan) -> None:
        raise MemoryError

    with engine_loop(builds(FakeExecutor(before_step=fail))) as (server, _):
        server.receive()
        server.send([added("a"), added("b")])
        assert server.receive() == StepStarted(request_ids=["a", "b"])


def test_engine_gives_signs_of_life_while_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orcinus.engine.supervision.engine_process.HEARTBEAT_S", 0.01)
    may_load = threading.Event()

    def build(config: EngineConfig) -> Any:
        assert may_load.wait(10)
        return fake_info(), FakeExecutor()

    with engine_loop(build) as (server, _):
        for _ in range(3):
            assert server.receive_any() == Alive()
        may_load.set()
        assert server.receive() == fake_info()


def test_a_step_that_does_not_end_shows_in_the_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orcinus.engine.supervision.engine_process.HEARTBEAT_S", 0.01)
    may_end = threading.Event()

    def hold(plan: StepPlan) -> None:
        assert may_end.wait(10)

    with engine_loop(builds(FakeExecutor(before_step=hold))) as (server, _):
        server.receive()
        server.send([added("a", max_tokens=1)])
        while not isinstance(message := server.receive_any(), Alive) or message.stalled_s < 0.05:
            pass
        may_end.set()
        assert server.next_step().deltas[0].request_id == "a"
        while not isinstance(message := server.receive_any(), Alive) or message.stalled_s > 0.02:
            pass


def test_a_server_that_leaves_while_the_engine_loads_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orcinus.engine.supervision.engine_process.HEARTBEAT_S", 0.01)
    missed = threading.Event()

    def build(config: EngineConfig) -> Any:
        assert missed.wait(10)
        return fake_info(), FakeExecutor()

    with engine_loop(build, missed.set) as (server, exit_code):
        server.close()
        assert exit_code() == 0
    assert missed.is_set()


def test_abort_shows_in_the_state_without_waiting_for_the_next_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orcinus.engine.supervision.engine_process.HEARTBEAT_S", 60.0)
    with engine_loop(builds(FakeExecutor(), max_model_len=2000)) as (server, _):
        server.receive()
        server.send([added("a", max_tokens=1900)])
        server.next_step()
        server.send([AbortRequests(request_ids=["a"])])
        while (message := server.receive()) and isinstance(message, StepOutputs) and message.deltas:
            assert message.deltas[0].finish_reason is None
        assert isinstance(message, StepOutputs)
        assert message.stats.num_running == 0


def test_waiting_batch_starts_when_its_time_has_come() -> None:
    with engine_loop(builds(FakeExecutor(), batching="static")) as (server, _):
        server.receive()
        started = time.monotonic()
        server.send([added("a", max_tokens=1)])
        assert server.next_step().deltas[0].request_id == "a"
        assert time.monotonic() - started > 0.04


def test_engine_ends_when_the_server_is_gone() -> None:
    with engine_loop(builds(FakeExecutor())) as (server, exit_code):
        server.receive()
        server.close()
        assert exit_code() == 0


def test_engine_ends_when_the_server_is_gone_in_the_middle_of_work() -> None:
    with engine_loop(builds(FakeExecutor())) as (server, exit_code):
        server.receive()
        server.send([added("a", max_tokens=200)])
        server.next_step()
        server.close()
        assert exit_code() == 0


def test_model_that_cannot_be_loaded_is_said_and_ends_the_engine() -> None:
    def build(config: EngineConfig) -> Any:
        raise ModelLoadError("needs 9 GiB")

    with engine_loop(build) as (server, exit_code):
        assert server.receive() == EngineFailed(message="needs 9 GiB", during_start=True)
        assert exit_code() == 1


def test_failing_loop_is_said_and_ends_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    def build(config: EngineConfig) -> Any:
        return fake_info(), None

    with caplog.at_level(logging.CRITICAL), engine_loop(build) as (server, exit_code):
        server.receive()
        server.send([added("a"), added("a")])  # twice the same id: a bug of the server
        message = server.receive()
        assert isinstance(message, EngineFailed)
        assert not message.during_start
        server.close()
        assert exit_code() == 1


def test_an_engine_reads_from_a_descriptor_of_any_number() -> None:
    ours, theirs = socket.socketpair()
    with files_allowed(1100), ours, theirs, socket.socket(fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD, 1024)) as high:
        channel = Channel(high)
        assert channel.receive(0.0) == []
        ours.sendall(encode_frame([AbortRequests(request_ids=["a"])]))
        assert channel.receive(10.0) == [AbortRequests(request_ids=["a"])]
        channel.linger(0.0)
        ours.close()
        channel.linger(60.0)
        with pytest.raises(ServerGoneError):
            channel.receive(10.0)


@contextmanager
def files_allowed(count: int) -> Iterator[None]:
    """Let this process have so many files open meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- the transport --------------------------------------------------------------------------------------


async def test_transport_starts_before_there_is_an_event_loop_and_sends_at_once() -> None:
    transport = InProcessTransport(builds(FakeExecutor(says("k"))))
    await asyncio.to_thread(transport.start, fake_config("model"))
    transport.send([added("a")])
    try:
        assert isinstance(await transport.receive(), EngineInfo)
        while not isinstance(message := await transport.receive(), StepOutputs) or not message.deltas:
            pass
        assert message.deltas[0].token_ids == [107]
    finally:
        await transport.aclose()


async def test_closed_transport_says_that_the_engine_is_gone() -> None:
    transport = InProcessTransport(builds(FakeExecutor()))
    transport.start(fake_config("model"))
    await transport.receive()
    await transport.aclose()
    await transport.aclose()
    transport.send([added("a")])
    with pytest.raises(EngineUnavailableError, match="ended"):
        await read_to_the_end(transport)


async def test_an_engine_that_is_killed_is_gone_for_its_reader() -> None:
    transport = InProcessTransport(builds(FakeExecutor()))
    transport.start(fake_config("model"))
    await transport.receive()
    transport.kill()
    with pytest.raises(EngineUnavailableError, match="ended"):
        await read_to_the_end(transport)
    transport.send([added("a")])
    await transport.aclose()


class ByHand(InProcessTransport):
    """The engine's end of the socket is the test's."""

    engine_end: socket.socket

    def start(self, config: EngineConfig) -> None:
        self.engine_end = self._open(config)


async def test_what_an_engine_said_before_it_was_killed_is_heard_although_writing_to_it_failed() -> None:
    transport = ByHand(builds(FakeExecutor()))
    transport.start(fake_config("model"))
    transport.engine_end.sendall(encode_frame(fake_info()))
    assert isinstance(await transport.receive(), EngineInfo)
    transport.engine_end.sendall(encode_frame(StepStarted(request_ids=["a"])))
    transport.engine_end.close()  # with the config unread
    transport.send([added("b")])
    assert await transport.receive() == StepStarted(request_ids=["a"])
    with pytest.raises(EngineUnavailableError):
        await transport.receive()
    await transport.aclose()


async def test_a_transport_that_is_closed_while_it_connects_is_closed() -> None:
    transport = InProcessTransport(builds(FakeExecutor()))
    transport.start(fake_config("model"))
    receiving = asyncio.create_task(read_to_the_end(transport))
    await asyncio.sleep(0)
    await transport.aclose()
    with pytest.raises(EngineUnavailableError, match="ended"):
        await asyncio.wait_for(receiving, 10)


async def read_to_the_end(transport: InProcessTransport) -> None:
    while True:
        await transport.receive()


async def test_engine_ends_when_a_transport_is_closed_before_anything_was_read() -> None:
    stepped = threading.Event()
    transport = InProcessTransport(builds(FakeExecutor(before_step=lambda plan: stepped.set())))
    transport.start(fake_config("model"))
    await transport.aclose()
    assert not stepped.is_set()


async def test_each_step_is_one_message_and_all_arrive() -> None:
    plans: list[StepPlan] = []
    transport = InProcessTransport(builds(FakeExecutor(before_step=plans.append), max_model_len=2000))
    transport.start(fake_config("model"))
    try:
        transport.send([added("a", max_tokens=300), added("b", max_tokens=300)])
        steps: list[StepOutputs] = []
        while sum(len(delta.token_ids) for step in steps for delta in step.deltas) < 600:
            message = await transport.receive()
            if isinstance(message, StepOutputs) and message.deltas:
                steps.append(message)
        assert len(steps) == len(plans)
    finally:
        await transport.aclose()


async def test_the_end_of_an_engine_is_known_however_much_other_work_waits_for_threads() -> None:
    transport, may_end = InProcessTransport(builds(FakeExecutor())), threading.Event()
    transport.start(fake_config("model"))
    await transport.receive()
    default = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(default)
    others = [asyncio.create_task(asyncio.to_thread(may_end.wait, 60)) for _ in range(2)]
    try:
        await asyncio.wait_for(transport.aclose(), 30)
    finally:
        may_end.set()
        assert await asyncio.gather(*others) == [True, True], "they went on all the time"
        default.shutdown()


async def test_an_engine_is_started_while_signals_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[set[Any]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: held.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    transport = ProcessTransport()
    transport.start(fake_config("model"))
    await transport.aclose()
    assert {signal.SIGINT, signal.SIGTERM} <= held[0]
