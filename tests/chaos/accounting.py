"""Whether the accounts come out even: of each request what its client saw, and of each round what the server counted.

Pure, so that tests can hand it losses and doublets made up for it. Knows no sockets and no processes.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.chaos.answers import TOLERANCE, Answer, ChoiceAnswer, differences
from tests.chaos.bad_input import BAD_INPUTS
from tests.chaos.bodies import MESSAGES, Ask
from tests.chaos.plan import Request

MAX_ERROR_BYTES = 32 * 1024
OUTCOMES = {  # what the server counts, by what each API calls it
    **dict.fromkeys(("stop", "tool_calls", "completed", "end_turn", "stop_sequence", "tool_use"), "stop"),
    **dict.fromkeys(("length", "incomplete", "max_tokens"), "length"),
}
_MIN_READINGS = 8  # of memory, before anything can be said of them
_GROWTH_RATIO = 1.05
_GROWTH_BYTES = 16 << 20

ALL_ENDED = "sequences that ended"
PROMPT_TOKENS = "orcinus_prompt_tokens_total"
GENERATION_TOKENS = "orcinus_generation_tokens_total"
_TOKEN_COUNTERS = (PROMPT_TOKENS, GENERATION_TOKENS)
_REJECTED = 'orcinus_requests_total{outcome="rejected"}'
_OUTCOMES = ("stop", "length", "abort", "timeout", "error", "rejected")
RESTARTS = "orcinus_engine_restarts_total"
QUARANTINED = "orcinus_requests_quarantined_total"
PREEMPTIONS = "orcinus_preemptions_total"
RESUMED = "orcinus_requests_resumed_total"
_POSTED = re.compile(r'^orcinus_http_requests_total\{(?=.*method="POST").*status="(\d+)"')
_SURE_STATUSES = ("200", "404", "429", "500", "503")  # not those that garbage may get
# What must be there again when nothing runs; of HTTP requests, the one that asks.
AT_REST = {
    "orcinus_slots_in_use": 0,
    "orcinus_queue_depth": 0,
    "orcinus_kv_blocks_in_use": 0,
    "orcinus_http_requests_in_progress": 1,
}

_OPENAI_ERROR = {"message", "type", "param", "code"}
_ANTHROPIC_ERROR = {"message", "type"}

VerdictKind = Literal["complete", "refused", "late", "left", "bad", "wrong"]
Samples = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Tells what became of a request as its client saw it. `answer` is as far as it was read.

    `status` is None if no response began. `error` is the error object, of a response or inside of a stream.
    `trouble` is what no client should see: a connection that broke, an answer that cannot be read.
    """

    request: Request
    status: int | None = None
    answer: Answer = field(default_factory=Answer)
    is_complete: bool = False
    error: dict[str, Any] | None = None
    error_bytes: int = 0
    retry_after: str | None = None
    has_left: bool = False
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The one thing that an outcome is. `problems` are empty unless it is wrong."""

    kind: VerdictKind
    outcome: Outcome
    problems: tuple[str, ...] = ()


class Judge:
    """Compares outcomes with the twins of the catalogue's requests."""

    def __init__(self, catalogue: Sequence[Ask], twins: Sequence[Answer], tolerance: float = TOLERANCE) -> None:
        self.catalogue = catalogue
        self.twins = twins
        self._tolerance = tolerance

    def judge(self, outcome: Outcome, *, is_draining: bool = False) -> Verdict:
        """`is_draining` is of the moment when it was asked: then alone may it be refused with 503."""
        if outcome.trouble is not None:
            return Verdict("wrong", outcome, (outcome.trouble,))
        if outcome.request.manner == "garbage":
            return _settle("bad", outcome, _garbage_problems(outcome))
        if outcome.request.manner == "bad" and outcome.status != 429:
            return _settle("bad", outcome, _bad_problems(outcome))
        if outcome.status in (429, 503):
            return _settle("refused", outcome, _refusal_problems(outcome, self._path(outcome.request), is_draining))
        if outcome.has_left:
            return _settle("left", outcome, self._problems(outcome))
        if outcome.error is not None:
            return _settle("late", outcome, [*self._lateness_problems(outcome), *self._problems(outcome)])
        return _settle("complete", outcome, self._problems(outcome))

    def _path(self, request: Request) -> str:
        return BAD_INPUTS[request.target].path if request.manner == "bad" else self.catalogue[request.target].path

    def _problems(self, outcome: Outcome) -> Iterator[str]:
        if outcome.status not in (None, 200, 408):
            yield f"status {outcome.status}: {outcome.error}"
        twin = self.twins[outcome.request.target]
        if not (outcome.is_complete or outcome.has_left or outcome.error):
            yield "the answer has no end"
        yield from differences(outcome.answer, twin, is_complete=outcome.is_complete, tolerance=self._tolerance)

    def _lateness_problems(self, outcome: Outcome) -> Iterator[str]:
        assert outcome.error is not None
        path = self._path(outcome.request)
        is_timeout = outcome.error.get("type") == ("timeout_error" if path == MESSAGES else "timeout")
        if not is_timeout or outcome.request.manner not in ("deadline", "deadline header"):
            yield f"an error that nothing was to cause: status {outcome.status}, {outcome.error}"
        yield from _error_problems(outcome, path)


def _settle(kind: VerdictKind, outcome: Outcome, problems: Iterator[str] | Sequence[str]) -> Verdict:
    found = tuple(problems)
    return Verdict("wrong" if found else kind, outcome, found)


def _garbage_problems(outcome: Outcome) -> Iterator[str]:
    if outcome.status is not None and not 400 <= outcome.status < 500:
        yield f"garbage was answered with {outcome.status}"


def _bad_problems(outcome: Outcome) -> Iterator[str]:
    bad = BAD_INPUTS[outcome.request.target]
    if outcome.status not in bad.statuses:
        yield f"{bad.name}: status {outcome.status}, not {sorted(bad.statuses)}: {outcome.error}"
    else:
        yield from _error_problems(outcome, bad.path)


def _refusal_problems(outcome: Outcome, path: str, is_draining: bool) -> Iterator[str]:
    if outcome.status == 503 and not is_draining:
        yield f"503 while not draining: {outcome.error}"
    if not (outcome.retry_after or "").isdecimal() or not 1 <= int(outcome.retry_after or 0) <= 120:
        yield f"status {outcome.status} with Retry-After {outcome.retry_after!r}"
    yield from _error_problems(outcome, path)


def _error_problems(outcome: Outcome, path: str) -> Iterator[str]:
    error = outcome.error
    if error is None or error.keys() != (_ANTHROPIC_ERROR if path == MESSAGES else _OPENAI_ERROR):
        yield f"status {outcome.status} with an error of another form: {str(error)[:200]}"
    elif not error["message"] or any(sign in error["message"] for sign in ("Traceback", "/engine/", "site-packages")):
        yield f"an error that shows its inside: {error['message'][:200]}"
    if outcome.error_bytes > MAX_ERROR_BYTES:
        yield f"an error of {outcome.error_bytes} bytes"


@dataclass(slots=True)
class Bounds:
    """Says what a counter may have grown by: one number, unless clients left before they saw an end."""

    low: int = 0
    high: int = 0

    def add(self, low: int, high: int | None = None) -> None:
        self.low += low
        self.high += low if high is None else high

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"


class Expectation:
    """Says what the server's counters must have grown by after a round, from its verdicts alone."""

    def __init__(self, judge: Judge, verdicts: Sequence[Verdict]) -> None:
        self._judge = judge
        self.bounds = {name: Bounds() for name in (*map(_outcome_name, _OUTCOMES), *_TOKEN_COUNTERS, ALL_ENDED)}
        for verdict in verdicts:
            self._add(verdict)

    @property
    def is_exact(self) -> bool:
        """Whether every counter of what was admitted has one right value."""
        return all(bounds.low == bounds.high for name, bounds in self.bounds.items() if name != _REJECTED)

    def problems(self, before: Samples, after: Samples) -> Iterator[str]:
        grown = {name: after.get(name, 0) - before.get(name, 0) for name in self.bounds if name != ALL_ENDED}
        grown[ALL_ENDED] = sum(grown[_outcome_name(outcome)] for outcome in _OUTCOMES if outcome != "rejected")
        for name, bounds in self.bounds.items():
            if not bounds.low <= grown[name] <= bounds.high:
                yield f"{name} grew by {grown[name]:g}, and clients saw {bounds}"

    def _add(self, verdict: Verdict) -> None:
        request = verdict.outcome.request
        if verdict.kind == "refused":
            self._add_refused(verdict.outcome)
        elif request.manner == "bad":
            self.bounds[_REJECTED].add(BAD_INPUTS[request.target].num_refused)
        elif verdict.outcome.is_complete:
            self._add_complete(self._judge.catalogue[request.target], verdict.outcome.answer)
        elif verdict.kind in ("late", "left"):
            self._add_unfinished(verdict)

    def _add_refused(self, outcome: Outcome) -> None:
        """Before its body was read, a request counts as one sequence."""
        is_read = outcome.request.manner != "bad"
        num_sequences = self._judge.catalogue[outcome.request.target].num_sequences if is_read else 1
        if outcome.status == 429:
            self.bounds[_REJECTED].add(1, num_sequences)

    def _add_complete(self, ask: Ask, answer: Answer) -> None:
        """Sequences that `best_of` keeps to itself are all as long as they may be."""
        for choice in answer.choices.values():
            self.bounds[_counted_as(choice)].add(1)
        self.bounds[_outcome_name("length")].add(ask.num_sequences - len(answer.choices))
        self.bounds[ALL_ENDED].add(ask.num_sequences)
        self.bounds[PROMPT_TOKENS].add(answer.prompt_tokens or 0)
        self.bounds[GENERATION_TOKENS].add(answer.completion_tokens or 0)

    def _add_unfinished(self, verdict: Verdict) -> None:
        """Of one choice: it ended as its client wished, or had just ended by itself, or had never begun."""
        outcome, twin = verdict.outcome, self._judge.twins[verdict.outcome.request.target]
        [choice] = twin.choices.values()
        is_late = verdict.kind == "late"
        was_admitted = is_late or outcome.status == 200
        self.bounds[ALL_ENDED].add(int(was_admitted), 1)
        self.bounds[_outcome_name("timeout" if is_late else "abort")].add(int(is_late), 1)
        if not is_late:
            self.bounds[_counted_as(choice)].add(0, 1)
        if not was_admitted:
            self.bounds[_REJECTED].add(0, 1)
        prompt_tokens, num_tokens = twin.prompt_tokens or 0, twin.completion_tokens or 0
        self.bounds[PROMPT_TOKENS].add(prompt_tokens if was_admitted else 0, prompt_tokens)
        self.bounds[GENERATION_TOKENS].add(outcome.answer.num_tokens, num_tokens)


def rest_problems(samples: Samples) -> list[str]:
    """Slots, blocks and places in the queue that did not come back."""
    return [
        f"{name} is {samples.get(name)} at rest, not {wanted}"
        for name, wanted in AT_REST.items()
        if samples.get(name) != wanted
    ]


def fault_problems(before: Samples, after: Samples, num_deaths: int) -> Iterator[str]:
    """One restart for each engine that was killed or frozen, and nobody blamed for it."""
    num_restarts = after.get(RESTARTS, 0) - before.get(RESTARTS, 0)
    if num_restarts != num_deaths:
        yield f"{RESTARTS} grew by {num_restarts:g}, and {num_deaths} engines were killed or frozen"
    if after.get(QUARANTINED, 0) != before.get(QUARANTINED, 0):
        yield f"{QUARANTINED} grew, and no request kills"


def http_problems(before: Samples, after: Samples, verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Compare, where no client left, the answers that the server says it gave with those that came."""
    said = _answers_by_status(after)
    said.subtract(_answers_by_status(before))
    seen = Counter(str(verdict.outcome.status) for verdict in verdicts if verdict.outcome.request.manner != "garbage")
    for status in _SURE_STATUSES:
        if said[status] != seen[status]:
            yield f"the server counted {said[status]} answers with status {status}, and clients saw {seen[status]}"


def _counted_as(choice: ChoiceAnswer) -> str:
    """An answer of which nobody can tell how it ended counts as none of those that were right."""
    return _outcome_name(OUTCOMES.get(choice.finish_reason or "", "error"))


def _outcome_name(outcome: str) -> str:
    return f'orcinus_requests_total{{outcome="{outcome}"}}'


def _answers_by_status(samples: Samples) -> Counter[str]:
    """To POST requests alone: probes and scrapes come in between."""
    found = Counter[str]()
    for name, value in samples.items():
        if (label := _POSTED.search(name)) is not None:
            found[label[1]] += int(value)
    return found


def growth_problem(name: str, readings: Sequence[int]) -> str | None:
    """Memory that the second half of a run took and the first had not needed."""
    if len(readings) < _MIN_READINGS:
        return None
    middle = len(readings) // 2
    early, late = max(readings[:middle]), max(readings[middle:])
    if late <= early * _GROWTH_RATIO + _GROWTH_BYTES:
        return None
    return f"memory of {name} went from {early >> 20} to {late >> 20} MiB between the halves of the run"


def count_kinds(verdicts: Sequence[Verdict]) -> Counter[VerdictKind]:
    return Counter(verdict.kind for verdict in verdicts)
