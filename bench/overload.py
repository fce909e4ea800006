"""Overload: what becomes of a server that is offered more than it can do.

    python -m bench.overload [--factors 1,2,5,10] [--seconds 8] [--objectives ttft:2000] [--apart] [flags]

A server with few slots and a short queue is measured with as many requests under way as it has slots: that is its
capacity. Then requests come at a multiple of it, at random times whatever becomes of those before (a Poisson process),
and nobody who is refused comes again. Goodput is what the answered requests got, in the part of the time in which the
load was steady. Other flags go to `orcinus serve`, which gets no OMP_* or ORCINUS_* variable of the shell.

What the load generator computes it takes from the engine where they share cores. With `--apart` the engine has one core
and one thread, and the load generator and the server's HTTP have another core, as if the clients were elsewhere.
"""

import argparse
import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.peers.arms import serve
from bench.peers.machine import describe_machine, tree
from bench.peers.serving import RunningArm, free_port
from orcinus.server.load.answers import AnswerStream, LoadError, RequestFailedError, RequestRecord
from orcinus.server.load.arrivals import arrival_times
from orcinus.server.load.figures import meets, parse_objectives
from orcinus.server.load.http_client import HttpClient
from orcinus.server.load.lengths import parse_lengths
from orcinus.server.load.prompts import LoadItem, PromptShape, Writer, random_items
from orcinus.server.load.report import percentile
from orcinus.server.load.session import run_on_fast_loop
from orcinus.server.load.target import GREEDY, Target, choose_writer, first_model

_TIMEOUT_S = 120.0
_SAMPLE_S = 0.25
_RAMP = 0.2  # the share of the time until the load is steady
_MIB = 2**20
_MOST_REQUESTS = 5000  # to find the capacity
_SHAPE = PromptShape(prompt_tokens=parse_lengths("uniform:16..64"), output_tokens=parse_lengths("uniform:16..64"))

HEAD = (
    "| offered | requests/s | answered | refused | failed | goodput, tokens/s | of the best | within objectives"
    " | TTFT p50, ms | p99 | ITL p50, ms | p99 | Retry-After, s | server CPU, cores | client CPU, cores | memory, MiB |"
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is none: 429 with the seconds after which to come again, or something worse."""

    status: int
    retry_after: str


Outcome = RequestRecord | Refusal


@dataclass(frozen=True, slots=True)
class Sample:
    """A moment: resident bytes of all the server's processes, CPU seconds of the one that speaks HTTP, and of ours.

    What the client takes it takes from the engine, if both run on the same cores.
    """

    time_s: float
    num_bytes: int
    server_cpu_s: float
    client_cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Tells what became of requests offered from `started_s` on for `seconds`, on the clock of their times."""

    factor: float
    started_s: float
    seconds: float
    outcomes: list[Outcome]
    samples: list[Sample]

    @property
    def answered(self) -> list[RequestRecord]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, RequestRecord)]

    @property
    def refused(self) -> list[Refusal]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Refusal) and outcome.status == 429]

    @property
    def num_failed(self) -> int:
        return len(self.outcomes) - len(self.answered) - len(self.refused)

    def goodput(self, records: Sequence[RequestRecord]) -> float:
        """Tokens a second that these got while the load was steady; an answer's are spread evenly over its chunks."""
        start_s, end_s = self.started_s + _RAMP * self.seconds, self.started_s + self.seconds
        num_tokens = sum(
            record.output_tokens
            * sum(start_s <= time_s < end_s for time_s in record.chunk_times_s)
            / len(record.chunk_times_s)
            for record in records
        )
        return num_tokens / (end_s - start_s)


def table(loads: Sequence[Load], objectives_ms: dict[str, float]) -> str:
    best = max(load.goodput(load.answered) for load in loads)
    rule = "|".join(["---:"] * (HEAD.count("|") - 1))
    return "\n".join([HEAD, f"|{rule}|", *(_row(load, best, objectives_ms) for load in loads)])


def _row(load: Load, best: float, objectives_ms: dict[str, float]) -> str:
    answered = load.answered
    goodput = load.goodput(answered)
    within = load.goodput([record for record in answered if meets(record, objectives_ms)])
    ttft_s = [record.ttft_s for record in answered if record.ttft_s is not None]
    gaps_s = [gap_s for record in answered for gap_s in record.gaps_s]
    waits_s = [int(refusal.retry_after or 0) for refusal in load.refused]
    first, last = load.samples[0], load.samples[-1]
    cells = [
        f"{load.factor:g}x",
        f"{len(load.outcomes) / load.seconds:.1f}",
        f"{len(answered)}",
        f"{len(load.refused)}",
        f"{load.num_failed}",
        f"{goodput:.0f}",
        f"{goodput / best:.0%}",
        f"{within:.0f}",
        *(f"{1000 * _percentile(values, share):.0f}" for values in (ttft_s, gaps_s) for share in (50, 99)),
        f"{min(waits_s)} to {max(waits_s)}" if waits_s else "-",
        f"{(last.server_cpu_s - first.server_cpu_s) / (last.time_s - first.time_s):.2f}",
        f"{(last.client_cpu_s - first.client_cpu_s) / (last.time_s - first.time_s):.2f}",
        f"{_mib(first)} to {_mib(last)}",
    ]
    return f"| {' | '.join(cells)} |"


def _percentile(values: Sequence[float], share: int) -> float:
    return percentile(values, share) if values else 0.0


def _mib(sample: Sample) -> str:
    return f"{sample.num_bytes / _MIB:.0f}"


# --- the load ---------------------------------------------------------------------------------------------


class Watcher:
    """Looks at the server's processes now and then, while it is entered."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.samples: list[Sample] = []

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        self._look()
        task = asyncio.create_task(self._look_now_and_then())
        try:
            yield
        finally:
            task.cancel()
            self._look()

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_S)
            self._look()

    def _look(self) -> None:
        num_bytes = sum(member.memory_info().rss for member in tree(self._process))
        server_cpu_s = sum(self._process.cpu_times()[:2])
        self.samples.append(Sample(time.monotonic(), num_bytes, server_cpu_s, time.process_time()))


async def _ask(target: Target, item: LoadItem, body: bytes) -> Outcome:
    answer = AnswerStream()
    sent_s = target.client.clock()
    try:
        response = await target.client.post("/v1/completions", body, answer.feed)
        if response.status == 200:
            return answer.record(sent_s, item.prompt_tokens, item.max_tokens)
    except RequestFailedError as error:
        return Refusal(0, error.reason)
    return Refusal(response.status, response.retry_after)


async def _measure_capacity(target: Target, writer: Writer, num_slots: int, seconds: float) -> float:
    """Requests a second with as many under way as there are slots, after a while in which everything warms up."""
    items = iter(random_items(_SHAPE, writer, _MOST_REQUESTS, "capacity"))
    ended_s: list[float] = []
    until_s = target.client.clock() + 1.5 * seconds

    async def go_on() -> None:
        while target.client.clock() < until_s and (item := next(items, None)) is not None:
            outcome = await _ask(target, item, target.body(item))
            if not isinstance(outcome, RequestRecord):
                raise LoadError(f"a request within the capacity was answered by {outcome.status} {outcome.retry_after}")
            ended_s.append(outcome.ended_s)

    await asyncio.gather(*(go_on() for _ in range(num_slots)))
    measured_s = [time_s for time_s in ended_s if time_s >= until_s - seconds]
    return len(measured_s) / (max(measured_s) - (until_s - seconds))


async def _offer(
    target: Target, items: Sequence[LoadItem], process: psutil.Process, *, factor: float, rate: float
) -> Load:
    """Send each when it is due, whatever became of the others."""
    due_s = arrival_times(len(items), rate, 1.0, random.Random(f"arrivals {factor}"))
    bodies = [target.body(item) for item in items]
    watcher = Watcher(process)
    started_s = target.client.clock()
    async with watcher.watching(), asyncio.TaskGroup() as group:
        tasks = []
        for item, body, after_s in zip(items, bodies, due_s, strict=True):
            if (wait_s := started_s + after_s - target.client.clock()) > 0:
                await asyncio.sleep(wait_s)
            tasks.append(group.create_task(_ask(target, item, body)))
        seconds = target.client.clock() - started_s
    outcomes = [task.result() for task in tasks]
    return Load(factor=factor, started_s=started_s, seconds=seconds, outcomes=outcomes, samples=watcher.samples)


async def _measure(port: int, process: psutil.Process, args: argparse.Namespace) -> list[Load]:
    async with HttpClient(f"http://127.0.0.1:{port}", None, _TIMEOUT_S) as client:
        target = Target(client, await first_model(client), "completions", GREEDY, ignore_eos=True)
        writer = await choose_writer(target, "auto", None)
        capacity = await _measure_capacity(target, writer, args.slots, args.seconds)
        print(f"capacity: {capacity:.1f} requests/s with {args.slots} under way\n")
        loads = []
        for factor in args.factors:
            rate = factor * capacity
            items = random_items(_SHAPE, writer, max(2, round(rate * args.seconds)), "load", f"{factor}")
            loads.append(await _offer(target, items, process, factor=factor, rate=rate))
    return loads


def main() -> None:
    args, flags = _parser().parse_known_args()
    port, log = free_port(), Path(tempfile.gettempdir()) / f"orcinus-overload-{os.getpid()}.log"
    flags = ["--max-num-seqs", str(args.slots), "--max-queue-len", str(args.queue), *flags]
    print(f"{describe_machine()}, {time.strftime('%Y-%m-%d')}, orcinus serve {' '.join(flags)}")
    launch = serve(flags, port, {"OMP_NUM_THREADS": "1"} if args.apart else None)
    with RunningArm(launch, port, log) as running:
        if args.apart:
            _set_apart(running.process)
        loads = run_on_fast_loop(_measure(port, running.process, args))
    log.unlink()
    print(table(loads, args.objectives))
    print("\nmemory over time, MiB:")
    for load in loads:
        print(
            f"  {load.factor:g}x:", ", ".join(_mib(sample) for sample in load.samples[:: len(load.samples) // 12 + 1])
        )


def _set_apart(server: psutil.Process) -> None:
    """The engine, which the server has started, on the first core; the server and this process on the second."""
    engine_core, other_core = sorted(os.sched_getaffinity(0))[:2]
    for process in (server, psutil.Process()):
        _pin(process, other_core)
    for child in server.children(recursive=True):
        _pin(child, engine_core)


def _pin(process: psutil.Process, core: int) -> None:
    for thread in process.threads():
        os.sched_setaffinity(thread.id, {core})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.overload", description=__doc__)
    parser.add_argument("--factors", type=_numbers, default=[1.0, 2.0, 5.0, 10.0], help="multiples of the capacity")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each is offered [default: 8]")
    parser.add_argument("--slots", type=int, default=8, help="--max-num-seqs of the server [default: 8]")
    parser.add_argument("--queue", type=int, default=8, help="--max-queue-len of the server [default: 8]")
    parser.add_argument("--apart", action="store_true", help="the engine on one core, everything else on another")
    parser.add_argument(
        "--objectives", type=parse_objectives, default={"ttft": 2000.0}, metavar="LIST", help="as ttft:2000,tpot:100"
    )
    return parser


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
