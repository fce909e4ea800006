"""How the server process reaches an engine core: in a process of its own, or in a thread of this one.

Both exchange the frames of `engine.supervision.wire` over a socket pair, and differ only in what is at its other end.
What the messages mean is unknown here.
"""

import asyncio
import contextlib
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.errors import EngineKilledError, EngineUnavailableError
from orcinus.engine.messages import FromEngine, ToEngine
from orcinus.engine.platform.child_process import group_signals_held, module_command, parent_arguments
from orcinus.engine.supervision.wire import FrameReader, encode_frame, from_engine_decoder

if TYPE_CHECKING:
    from orcinus.engine.supervision.engine_process import BuildExecutor

T = TypeVar("T")

_READ_BYTES = 1 << 18
_EXIT_GRACE_S = 2.0
_FAULTS = frozenset(  # the signals by which the kernel, or the process itself, ends one that went wrong
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP}
)


class Transport(Protocol):
    """One engine, from start to end. `start` needs no event loop; everything else runs on one."""

    def start(self, config: EngineConfig) -> None: ...

    def send(self, messages: list[ToEngine]) -> None:
        """Send without waiting. Messages to an engine that is gone are dropped: `receive` tells of its end."""

    async def receive(self) -> FromEngine:
        """Return the engine's next message.

        Raises `EngineUnavailableError` once the engine has ended, which says how, or `EngineKilledError` if it was
        ended from outside.
        """

    def kill(self) -> None:
        """End the engine now, whatever it is doing. `receive` must have been called before, and tells of the end."""

    async def aclose(self) -> None:
        """End the engine and wait until it has. Idempotent."""


class _Inbox(asyncio.Protocol):
    """The messages that have arrived: all that the engine sent before its end, whatever that looks like here.

    An engine that is killed with messages unread makes reading or writing fail here. asyncio's own reader then forgets
    what it holds, and leaves in the socket what it has not read.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._frames = FrameReader()
        self._is_over = False
        self._news = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)
        self._news.set()

    def connection_lost(self, error: Exception | None) -> None:
        with contextlib.suppress(OSError):
            while data := self._socket.recv(_READ_BYTES):
                self._frames.feed(data)
        self._is_over = True
        self._news.set()

    async def next_payload(self) -> bytes | None:
        """Return the next message's bytes, or None where nothing more will come."""
        while (payload := self._frames.next_payload()) is None:
            if self._is_over:
                return None
            self._news.clear()
            await self._news.wait()
        return payload


class _SocketTransport:
    """The server's end of the socket pair."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._connection: asyncio.Transport | None = None
        self._inbox: _Inbox | None = None
        self._is_closed = False
        self._unsent: list[bytes] = []  # written before the event loop had the socket

    def _open(self, config: EngineConfig) -> socket.socket:
        """Make the pair, write the config as its first frame, and return the engine's end."""
        assert self._socket is None, "a transport starts once"
        self._socket, engine_end = socket.socketpair()
        self._socket.sendall(encode_frame(config))
        self._socket.setblocking(False)
        return engine_end

    def send(self, messages: list[ToEngine]) -> None:
        frame = encode_frame(messages)
        if self._connection is None:
            self._unsent.append(frame)
        elif not self._connection.is_closing():
            self._connection.write(frame)

    async def receive(self) -> FromEngine:
        inbox = self._inbox or await self._connect()
        payload = await inbox.next_payload()
        if payload is None:
            raise await self._how_it_ended()
        return from_engine_decoder.decode(payload)

    def kill(self) -> None:
        assert self._connection is not None
        self._connection.abort()

    async def aclose(self) -> None:
        self._is_closed = True
        if self._connection is not None:
            self._connection.close()
        elif self._socket is not None:
            self._socket.close()
        await self._end()

    async def _connect(self) -> _Inbox:
        assert self._socket is not None, "it was not started"
        loop, inbox = asyncio.get_running_loop(), _Inbox(self._socket)
        self._connection, _ = await loop.create_unix_connection(lambda: inbox, sock=self._socket)
        self._inbox = inbox
        if self._is_closed:  # meanwhile
            self._connection.abort()
        self._connection.writelines(self._unsent)
        self._unsent.clear()
        return inbox

    async def _how_it_ended(self) -> EngineUnavailableError:
        raise NotImplementedError

    async def _end(self) -> None:
        raise NotImplementedError


class ProcessTransport(_SocketTransport):
    """The engine in a process of its own, which ends when this end of the socket is closed."""

    module = "orcinus.engine.supervision.engine_process"

    def __init__(self) -> None:
        super().__init__()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self, config: EngineConfig) -> None:
        """Spawn the process. It sees the modules that this one sees, and its standard output goes where errors go."""
        engine_end = self._open(config)
        with engine_end, group_signals_held():
            descriptor = engine_end.fileno()
            child = module_command(self.module, str(descriptor), *parent_arguments())
            self._process = subprocess.Popen(  # noqa: S603
                child.arguments,
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=child.environment,
            )

    def kill(self) -> None:
        """Kill the process, without waiting: one that the kernel does not let go of is left behind."""
        assert self._process is not None
        self._process.kill()
        super().kill()

    async def _how_it_ended(self) -> EngineUnavailableError:
        code = await self._wait()
        if code is None:
            return EngineUnavailableError("the engine process closed its connection")
        if code >= 0:
            return EngineUnavailableError(f"the engine process ended with exit code {code}")
        kind = EngineUnavailableError if -code in _FAULTS else EngineKilledError
        return kind(f"the engine process was killed by {_name_of(-code)}")

    async def _end(self) -> None:
        """Wait for the process, and kill it if it does not end by itself: it may be stuck in a step, or loading."""
        if self._process is not None and await self._wait() is None:
            self._process.kill()
            await self._wait()

    async def _wait(self) -> int | None:
        assert self._process is not None
        try:
            return await _in_own_thread(partial(self._process.wait, _EXIT_GRACE_S))
        except subprocess.TimeoutExpired:
            return None


def _name_of(number: int) -> str:
    """Return the name of a signal, or its number: real-time signals have no names."""
    return signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"


class InProcessTransport(_SocketTransport):
    """The engine in a thread of this process, with any executor: for tests, and for use without a server."""

    def __init__(self, build: "BuildExecutor") -> None:
        """`build` is called in the thread, with the config."""
        super().__init__()
        self._build = build
        self._thread: threading.Thread | None = None

    def start(self, config: EngineConfig) -> None:
        engine_end = self._open(config)
        self._thread = threading.Thread(target=self._run, args=(engine_end,), name="engine", daemon=True)
        self._thread.start()

    def _run(self, engine_end: socket.socket) -> None:
        from orcinus.engine.supervision.engine_process import run_engine

        with engine_end:
            run_engine(engine_end, self._build)

    async def _how_it_ended(self) -> EngineUnavailableError:
        return EngineUnavailableError("the engine thread ended")

    async def _end(self) -> None:
        if self._thread is not None:
            await _in_own_thread(self._thread.join)


async def _in_own_thread(wait: Callable[[], T]) -> T:
    """Return what `wait` returns, in a thread that nothing else has to be done with before."""
    thread = ThreadPoolExecutor(1, "engine end")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, wait)
    finally:
        thread.shutdown(wait=False)
