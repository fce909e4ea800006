"""The engine's own process: load the model, then take messages in, step, and send messages out, until told to end.

Started by `engine.supervision.transport` with one end of a socket; ends when the other end is closed, which also
covers a server that was killed. One thread works, without an event loop; another one gives signs of life. Knows nothing
of text, streams and HTTP.
"""

import contextlib
import gc
import logging
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn, Self

from orcinus.config.engine_config import EngineConfig
from orcinus.config.log_lines import configure_log_lines
from orcinus.engine.core import EngineCore, Executor
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.messages import (
    AbortRequests,
    AddRequest,
    Alive,
    EngineFailed,
    EngineInfo,
    FromEngine,
    StepStarted,
    ToEngine,
    WatchSlots,
)
from orcinus.engine.platform.child_process import die_with_parent, ignore_group_signals, inherited_descriptor
from orcinus.engine.platform.device import limit_spinning
from orcinus.engine.platform.shares import take_share
from orcinus.engine.supervision.wire import FrameReader, config_decoder, encode_frame, to_engine_decoder

logger = logging.getLogger(__name__)

BuildExecutor = Callable[[EngineConfig], tuple[EngineInfo, Executor]]

HEARTBEAT_S = 1.0
_LINGER_S = 2.0
_READ_BYTES = 1 << 20
_SWITCH_S = 0.0005  # a thread that compiles a grammar hands the interpreter to the engine loop after so long


class ServerGoneError(Exception):
    """The server has closed its end of the socket: there is nothing left to work for."""


class Channel:
    """The engine's end of the socket. Blocking. Any thread may send; one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._poll = select.poll()  # unlike `select` it takes descriptors of any number
        self._poll.register(sock, select.POLLIN)
        self._frames = FrameReader()
        self._sending = threading.Lock()

    def read_config(self) -> EngineConfig:
        while (payload := self._frames.next_payload()) is None:
            self._read()
        return config_decoder.decode(payload)

    def receive(self, timeout_s: float) -> list[ToEngine]:
        """Return all messages that have arrived, after up to `timeout_s` seconds if there are none."""
        while self._poll.poll(timeout_s * 1000):
            self._read()
            timeout_s = 0
        messages: list[ToEngine] = []
        while (payload := self._frames.next_payload()) is not None:
            messages += to_engine_decoder.decode(payload)
        return messages

    def send(self, message: FromEngine) -> None:
        frame = encode_frame(message)
        try:
            with self._sending:
                self._socket.sendall(frame)
        except OSError as error:
            raise ServerGoneError from error

    def shut_down(self) -> None:
        """Stop sending, even in the middle of what a thread is sending now. What was sent can still be read."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def linger(self, timeout_s: float) -> None:
        """Wait until the server closes its end: writing to a closed socket, it might lose what it has yet to read."""
        deadline = time.monotonic() + timeout_s
        try:
            while self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self._read()
        except ServerGoneError:
            return

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except ConnectionError as error:
            raise ServerGoneError from error
        if not data:
            raise ServerGoneError
        self._frames.feed(data)


class Heartbeat:
    """A thread that says once a second that the process lives, and since when its loop has not come round.

    A stall is counted in beats: while the process or the machine is stopped, it does not grow. `on_server_gone` is
    called in that thread when the server has ended: while it loads or is in a step, the loop cannot find out.
    """

    def __init__(self, channel: Channel, on_server_gone: Callable[[], None]) -> None:
        self.num_rounds = 0  # of the loop, which counts them; 0 until it runs
        self._channel = channel
        self._on_server_gone = on_server_gone
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._channel.shut_down()
        self._thread.join()

    def _beat(self) -> None:
        num_seen = num_stalled = 0
        while not self._stop.wait(HEARTBEAT_S):
            num_rounds = self.num_rounds
            num_stalled = num_stalled + 1 if num_rounds and num_rounds == num_seen else 0
            num_seen = num_rounds
            try:
                self._channel.send(Alive(stalled_s=num_stalled * HEARTBEAT_S))
            except ServerGoneError:
                if not self._stop.is_set():
                    self._on_server_gone()
                return


def run_engine(sock: socket.socket, build: BuildExecutor, on_server_gone: Callable[[], None] = lambda: None) -> int:
    """Serve one server over `sock` until it is gone, and return the process's exit code."""
    channel = Channel(sock)
    with Heartbeat(channel, on_server_gone) as heartbeat:
        try:
            core = _start(channel, build)
            return 1 if core is None else _run(channel, core, heartbeat)
        except ServerGoneError:
            return 0


def _start(channel: Channel, build: BuildExecutor) -> EngineCore | None:
    config = channel.read_config()
    try:
        info, executor = build(config)
    except ModelLoadError as error:
        channel.send(EngineFailed(message=str(error), during_start=True))
        return None
    except Exception as error:
        logger.exception("loading %s failed", config.model)
        message = f"loading {config.model} failed: {type(error).__name__}: {error}"
        channel.send(EngineFailed(message=message, during_start=True))
        return None
    core = EngineCore(
        info,
        executor,
        batch_wait_ms=config.batch_wait_ms,
        target_itl_ms=config.target_itl_ms,
        target_ttft_ms=config.target_ttft_ms,
        on_first_step=lambda request_ids: channel.send(StepStarted(request_ids=request_ids)),
    )
    channel.send(info)
    return core


def _run(channel: Channel, core: EngineCore, heartbeat: Heartbeat) -> int:
    try:
        _loop(channel, core, heartbeat)
    except ServerGoneError:
        return 0
    except Exception as error:
        logger.exception("the engine loop failed")
        channel.send(EngineFailed(message=f"the engine failed: {type(error).__name__}"))
        channel.linger(_LINGER_S)
        return 1


def _loop(channel: Channel, core: EngineCore, heartbeat: Heartbeat) -> NoReturn:
    """Work until the server is gone: one message a step, and the state once a second where there is nothing to run."""
    last_sent = time.monotonic()
    while True:
        heartbeat.num_rounds += 1
        delay_s = core.wait_time_s() if core.has_work else HEARTBEAT_S
        idle_s = min(delay_s or 0.0, last_sent + HEARTBEAT_S - time.monotonic())
        messages = channel.receive(max(0.0, idle_s))
        for message in messages:
            _handle(core, message)
        if core.has_work and core.wait_time_s() is None:
            channel.send(core.step())
        elif messages or time.monotonic() >= last_sent + HEARTBEAT_S:
            channel.send(core.news())
            if not (messages or core.has_work):
                core.warm_up()
        else:
            continue
        last_sent = time.monotonic()


def _handle(core: EngineCore, message: ToEngine) -> None:
    match message:
        case AddRequest():
            core.add_request(message)
        case AbortRequests():
            core.abort_requests(message.request_ids)
        case WatchSlots():
            core.watch_slots(is_on=message.is_on)


def main() -> None:
    """Run the process. Its arguments are the socket's file descriptor, and the process to end with, if any."""
    ignore_group_signals()
    sys.setswitchinterval(_SWITCH_S)
    gc.disable()  # imports and loading make millions of objects that stay
    descriptor, *parent = sys.argv[1:]
    die_with_parent(parent)  # while a model loads nobody reads from the socket
    sock = socket.socket(fileno=inherited_descriptor(descriptor))
    sys.exit(run_engine(sock, _build_executor, on_server_gone=lambda: os._exit(0)))


def _build_executor(config: EngineConfig) -> tuple[EngineInfo, Executor]:
    name = "engine" if config.share is None else f"engine {config.share.index}"
    configure_log_lines(config.log_level, config.log_format, f"%(asctime)s %(levelname)s {name}: %(message)s")
    limit_spinning()
    if config.share is not None:
        take_share(config.share)
    from orcinus.engine.platform.lean_imports import import_transformers

    import_transformers()
    from orcinus.engine.startup.build import build_executor

    built = build_executor(config)
    gc.freeze()
    gc.enable()
    return built


if __name__ == "__main__":
    main()
