"""One run: the twins, then round after round of clients and faults on one server, and its drain at the end.

Puts the plan, the clients, the server and the accounts together, and owns none of what they know.
"""

import asyncio
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx
import psutil

from tests.chaos.accounting import (
    GENERATION_TOKENS,
    PREEMPTIONS,
    RESUMED,
    Expectation,
    Judge,
    Outcome,
    Samples,
    Verdict,
    VerdictKind,
    count_kinds,
    fault_problems,
    growth_problem,
    http_problems,
)
from tests.chaos.answers import TOLERANCE, Answer
from tests.chaos.bodies import LONG_KINDS
from tests.chaos.client import Clients, describe
from tests.chaos.plan import Fault, Plan, Request, Round, places_of
from tests.chaos.subject import KEYS, ROOMY, SMALL, Memory, Subject
from tests.server_process import until

_NUM_TWIN_CLIENTS = 8
_NUM_DRAINED = 12  # streams that run or wait when the server is told to end
_NUM_LATE = 3  # requests that come after that
_PROBE_S = 0.1
_EXIT_TIMEOUT_S = 120.0
_BROKEN = (TimeoutError, httpx.HTTPError, psutil.Error, subprocess.TimeoutExpired)  # the server is not what it was
DRAIN = ("--drain-timeout-s", "120")


@dataclass(frozen=True, slots=True)
class Terms:
    """So many rounds, or as many as begin within so many minutes; `probe_limit_s` is what /health may take.

    In deterministic mode, which serves in bfloat16, log-probabilities must be equal to the last bit, and not nearly.
    """

    num_rounds: int | None
    minutes: float
    probe_limit_s: float
    is_deterministic: bool = False


@dataclass(frozen=True, slots=True)
class RoundReport:
    """A round in numbers. `is_exact`: no client left, so that every counter had one right value.

    `complete` are the kinds of what was asked and answered. What was answered is not kept: a run may be long.
    """

    number: int
    kinds: Counter[VerdictKind]
    complete: Counter[str]
    is_exact: bool
    deaths: int
    grown: Samples
    memory: Memory
    seconds: float


@dataclass(slots=True)
class RunReport:
    """Tells what a run found. `problems` must be empty."""

    rounds: list[RoundReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    worst_probe_s: float = 0.0
    log: str = ""
    exit_code: int | None = None

    @property
    def kinds(self) -> Counter[VerdictKind]:
        return sum((done.kinds for done in self.rounds), Counter())

    @property
    def complete(self) -> Counter[str]:
        return sum((done.complete for done in self.rounds), Counter())


def run_plan(plan: Plan, terms: Terms, tell: Callable[[RoundReport], None]) -> RunReport:
    """Run the plan's rounds, and drain the server. `tell` hears of each round."""
    mode = ("--deterministic", "--dtype", "bfloat16") if terms.is_deterministic else ()
    judge = Judge(plan.catalogue, make_twins(plan, mode), 0.0 if terms.is_deterministic else TOLERANCE)
    report = RunReport()
    subject = Subject(*SMALL, *DRAIN, *mode)
    try:
        with Probe(subject.url) as probe:
            for planned in due_rounds(plan, terms):
                report.rounds.append(run_round(subject, judge, planned, report.problems))
                tell(report.rounds[-1])
        report.worst_probe_s = probe.worst_s
        report.problems += drain(subject, judge, plan)
    except _BROKEN as error:
        report.problems.append(f"the run broke off: {type(error).__name__}: {error}")
    finally:
        subject.process.close()
    report.log, report.exit_code = subject.process.log, subject.process.process.returncode
    report.problems += final_problems(report, terms.probe_limit_s)
    return report


def due_rounds(plan: Plan, terms: Terms) -> Iterator[Round]:
    deadline = time.monotonic() + terms.minutes * 60
    for planned in plan.rounds():
        if planned.number == terms.num_rounds or (terms.num_rounds is None and time.monotonic() > deadline):
            return
        yield planned


def make_twins(plan: Plan, mode: Sequence[str]) -> list[Answer]:
    """The right answers, from a server that nobody disturbs."""
    subject = Subject(*ROOMY, *mode)
    try:
        return asyncio.run(_ask_twins(subject.url, plan))
    finally:
        subject.process.close()


async def _ask_twins(url: str, plan: Plan) -> list[Answer]:
    limit = asyncio.Semaphore(_NUM_TWIN_CLIENTS)
    async with Clients(url, KEYS, plan.catalogue) as clients:

        async def ask(place: int) -> Answer:
            async with limit:
                return await clients.ask_twin(plan.catalogue[place])

        return list(await asyncio.gather(*map(ask, range(len(plan.catalogue)))))


def run_round(subject: Subject, judge: Judge, planned: Round, problems: list[str]) -> RoundReport:
    """Run a round, and add what is wrong to `problems`."""
    before, _ = subject.rest()
    started = time.monotonic()
    verdicts, deaths = asyncio.run(_RoundRun(subject, judge, planned).run())
    after, unrested = subject.rest()
    expectation = Expectation(judge, verdicts)
    found = [_explain(verdict, judge) for verdict in verdicts if verdict.kind == "wrong"]
    found += [*unrested, *expectation.problems(before, after), *fault_problems(before, after, deaths)]
    if expectation.is_exact:
        found += http_problems(before, after, verdicts)
    problems += [f"round {planned.number}: {problem}" for problem in found]
    return RoundReport(
        planned.number,
        count_kinds(verdicts),
        Counter(judge.catalogue[v.outcome.request.target].kind for v in verdicts if v.kind == "complete"),
        expectation.is_exact,
        deaths,
        {name: after.get(name, 0) - before.get(name, 0) for name in (GENERATION_TOKENS, PREEMPTIONS, RESUMED)},
        subject.memory(),
        time.monotonic() - started,
    )


class _RoundRun:
    """The clients, bursts and faults of one round, which wait for one another by what has ended."""

    def __init__(self, subject: Subject, judge: Judge, planned: Round) -> None:
        self._subject = subject
        self._judge = judge
        self._planned = planned
        self._verdicts: list[Verdict] = []
        self._news = asyncio.Condition()

    async def run(self) -> tuple[list[Verdict], int]:
        """Return what became of all requests, and how many engines died."""
        async with Clients(self._subject.url, KEYS, self._judge.catalogue) as clients:
            faults = asyncio.create_task(self._do_faults(self._planned.faults))
            asked = [self._ask_in_turn(clients, requests) for requests in self._planned.clients]
            bursts = [self._ask_at_once(clients, burst.after, burst.requests) for burst in self._planned.bursts]
            await asyncio.gather(*asked, *bursts)
            return self._verdicts, await faults

    async def _ask_in_turn(self, clients: Clients, requests: Sequence[Request]) -> None:
        for request in requests:
            await self._ask(clients, request)

    async def _ask_at_once(self, clients: Clients, after: int, requests: Sequence[Request]) -> None:
        await self._have_ended(after)
        await asyncio.gather(*(self._ask(clients, request) for request in requests))

    async def _ask(self, clients: Clients, request: Request) -> None:
        verdict = self._judge.judge(await clients.perform(request))
        async with self._news:
            self._verdicts.append(verdict)
            self._news.notify_all()

    async def _do_faults(self, faults: Sequence[Fault]) -> int:
        num_deaths = 0
        for fault in faults:
            await self._have_ended(fault.after)
            await asyncio.sleep(fault.delay_s)
            num_deaths += await asyncio.to_thread(self._subject.hit, fault.kind)
        return num_deaths

    async def _have_ended(self, number: int) -> None:
        async with self._news:
            await self._news.wait_for(lambda: len(self._verdicts) >= number)


def drain(subject: Subject, judge: Judge, plan: Plan) -> list[str]:
    """SIGTERM while streams run and wait; the engine is killed once more; nothing is lost, and nothing is left."""
    running, late = _stop_under_load(subject, judge, plan)
    problems = [_explain(verdict, judge) for verdict in running if verdict.kind != "complete"]
    problems += [f"not refused: {_explain(verdict, judge)}" for verdict in late if verdict.kind != "refused"]
    code = subject.process.wait(_EXIT_TIMEOUT_S)
    problems += [] if code == 0 else [f"exit code {code}, not 0"]
    problems += [f"process {orphan} was left behind" for orphan in subject.orphans()]
    return [f"drain: {problem}" for problem in [*problems, *subject.log_problems()]]


def _stop_under_load(subject: Subject, judge: Judge, plan: Plan) -> tuple[list[Verdict], list[Verdict]]:
    """Return what became of requests that were there before the signal, and of those that came after it."""
    long = places_of(LONG_KINDS, plan.catalogue)
    running = [Request(number, "stream", long[number % len(long)]) for number in range(_NUM_DRAINED)]
    late = [Request(_NUM_DRAINED + number, "whole", long[number % len(long)]) for number in range(_NUM_LATE)]
    with ThreadPoolExecutor() as threads:
        streams = threads.submit(lambda: asyncio.run(_perform_all(subject.url, judge, running)))
        until(lambda: subject.samples()["orcinus_slots_in_use"] > 0, "no stream began")
        subject.process.terminate()
        until(lambda: subject.process.get("/ready").status_code == 503, "/ready stayed green after SIGTERM")
        refused = asyncio.run(_perform_all(subject.url, judge, late))
        if plan.has_faults and (engine := subject.engine()) is not None:
            engine.kill()
        answered = streams.result()
    return (
        [judge.judge(outcome) for outcome in answered],
        [judge.judge(outcome, is_draining=True) for outcome in refused],
    )


async def _perform_all(url: str, judge: Judge, requests: Sequence[Request]) -> list[Outcome]:
    async with Clients(url, KEYS, judge.catalogue) as clients:
        return list(await asyncio.gather(*map(clients.perform, requests)))


def final_problems(report: RunReport, probe_limit_s: float) -> list[str]:
    """Return what is wrong with a run as a whole."""
    problems = []
    if report.worst_probe_s > probe_limit_s:
        problems.append(f"/health once took {report.worst_probe_s:.2f} s, and at most {probe_limit_s:g} s is allowed")
    readings = [done.memory for done in report.rounds]
    for name, series in (("the server", [m.server for m in readings]), ("the engine", [m.engine for m in readings])):
        if (growth := growth_problem(name, series)) is not None:
            problems.append(growth)
    if not report.kinds["complete"]:
        problems.append("no request was answered")
    return problems


class Probe:
    """While in it, asks /health again and again from a thread of its own. `worst_s` is the slowest answer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.worst_s = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="probe", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            while not self._is_over.wait(_PROBE_S):
                started = time.monotonic()
                try:
                    response = client.get("/health")
                except httpx.HTTPError:
                    self.worst_s = float("inf")
                    return
                self.worst_s = max(self.worst_s, time.monotonic() - started)
                if response.status_code not in (200, 503):  # red while an engine is replaced
                    self.worst_s = float("inf")


def _explain(verdict: Verdict, judge: Judge) -> str:
    what = describe(verdict.outcome.request, judge.catalogue)
    return "\n    ".join([what, *(verdict.problems or [verdict.kind])])
