"""Several instances of the model, each with one request at a time: a baseline for the strategies.

Each is a process of its own with cores of its own, as somebody deploys who starts the model N times behind a balancer
that gives a request to whichever is free. They speak JSON, a line a message, over pipes.
"""

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import IO, Any, Self

import msgspec

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.errors import OrcinusError
from orcinus.server.commands.strategies.load import Arrival, Arrivals, Item, Traffic
from orcinus.server.commands.strategies.runs import RunResult, Served, Timeline, numbers_of, serve_alone


class Times(msgspec.Struct):
    """Tells when an answer's first and last token came, on the clock of all processes, and how many there were."""

    first: float
    last: float
    num_tokens: int


class Task(msgspec.Struct):
    """One request for an instance."""

    prompt_token_ids: list[int]
    num_tokens: int


class Instance:
    """One process. Used by the one that started it."""

    def __init__(self, config: EngineConfig, cores: set[int]) -> None:
        command = [sys.executable, "-m", "orcinus.server.commands.strategies.instances"]
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # a child inherits it, and counts its cores by it
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        finally:
            os.sched_setaffinity(0, own)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self.answers: IO[bytes] = self._process.stdout
        self.served: Served | None = None
        self._send(config)

    def begin(self, arrival: Arrival) -> None:
        self.served = Served(arrival.arrived_s, arrival.num_counted)
        self._send(Task(arrival.prompt_token_ids, arrival.num_tokens))

    def end(self, started: float) -> Served:
        """Take in the answer that has come. Raises `OrcinusError` if the process ended."""
        times = msgspec.json.decode(self.read(), type=Times)
        served, self.served = self.served, None
        assert served is not None
        served.first_s, served.last_s, served.num_tokens = times.first - started, times.last - started, times.num_tokens
        return served

    def read(self) -> bytes:
        line = self.answers.readline()
        if not line:
            raise OrcinusError(f"an instance of the model ended, with exit code {self._process.wait()}")
        return line

    def close(self) -> None:
        self._requests.close()
        self._process.wait(timeout=60)
        self.answers.close()

    def _send(self, message: Any) -> None:
        self._requests.write(msgspec.json.encode(message) + b"\n")
        self._requests.flush()


class Instances:
    """So many processes with one model each, ready when made. A context manager."""

    def __init__(self, config: EngineConfig, count: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        one = replace(config, max_num_seqs=1, batching="continuous")
        self._instances = []
        with ExitStack() as starting:
            for i in range(count):
                instance = Instance(one, _share(cores, i, count))
                starting.callback(instance.close)
                self._instances.append(instance)
            for instance in self._instances:
                instance.read()
            self._stack = starting.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def run(self, load: Sequence[Item], traffic: Traffic, seed: int) -> tuple[RunResult, Timeline]:
        """Run the whole load. Raises `OrcinusError` if an instance ends."""
        arrivals = Arrivals(load, traffic, seed)
        waiting: list[Arrival] = []
        done: list[Served] = []
        started = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for instance in self._instances:
                selector.register(instance.answers, selectors.EVENT_READ, instance)
            while len(done) < len(load):
                elapsed_s = time.monotonic() - started
                waiting += arrivals.take(elapsed_s, len(done), is_idle=False)
                for instance in self._instances:
                    if waiting and instance.served is None:
                        instance.begin(waiting.pop(0))
                for key, _ in selector.select(arrivals.wait_s(elapsed_s)):
                    done.append(key.data.end(started))
        return _result(done, len(self._instances)), _timeline(done)


def _share(cores: Sequence[int], index: int, count: int) -> set[int]:
    """Split the cores among the instances; where there are fewer, several instances share one."""
    return set(cores[index::count]) or {cores[index % len(cores)]}


def _result(done: Sequence[Served], num_slots: int) -> RunResult:
    numbers = numbers_of(done)
    busy_s = sum(one.last_s - one.first_s for one in done)
    return RunResult(
        strategy="instances",
        num_slots=num_slots,
        num_steps=None,
        slots_full=None,
        idle=1 - busy_s / (num_slots * numbers["elapsed_s"]),
        **numbers,
    )


def _timeline(done: Sequence[Served]) -> Timeline:
    changes = sorted([(one.first_s, 1) for one in done] + [(one.last_s, -1) for one in done])
    busy, times_s, busy_slots = 0, [], []
    for time_s, change in changes:
        busy += change
        times_s.append(time_s)
        busy_slots.append(busy)
    return Timeline(times_s, busy_slots, changes[-1][0])


def main() -> None:
    """Serve one request after the other, as lines on standard input, until that ends."""
    from orcinus.engine.platform.device import limit_spinning

    limit_spinning()
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineConfig)
    from orcinus.engine.startup.build import build_executor

    info, executor = build_executor(config)
    answers = sys.stdout.buffer
    serve_alone(info, executor, [1, 2, 3], 2)  # warm
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        task = msgspec.json.decode(line, type=Task)
        first, last, num_tokens = serve_alone(info, executor, task.prompt_token_ids, task.num_tokens)
        answers.write(msgspec.json.encode(Times(first, last, num_tokens)) + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
