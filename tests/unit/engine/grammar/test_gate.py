"""The process that tries grammars out: what it refuses, what is remembered, and that losing it costs nobody else."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from orcinus.engine.errors import EngineUnavailableError, InvalidRequestError, UnenforceableSchemaError
from orcinus.engine.frontend.turns import FairSemaphore
from orcinus.engine.grammar.gate import GrammarGate, ServedVocabulary, Trial
from orcinus.engine.grammar.trial_process import find_fault, load_compiler
from orcinus.engine.platform.priority import LOW_PRIORITY
from orcinus.engine.sampling_params import Grammar, GrammarKind
from tests.unit.engine.frontend.test_async_engine import until
from tests.unit.engine.grammar.grammars import DEMO_ENDS, DEMO_MODEL, DEMO_VOCAB_SIZE, demo_compiler

DEMO = ServedVocabulary(str(DEMO_MODEL), False, DEMO_VOCAB_SIZE, list(DEMO_ENDS))
FINE = Grammar("regex", "[a-z]+")
BOMB = Grammar("regex", "(a{1000}){1000}")


@asynccontextmanager
async def gate_with(timeout_s: float = 30.0) -> AsyncIterator[GrammarGate]:
    gate = GrammarGate(DEMO, FairSemaphore(2, num_reserved=1).turn, timeout_s=timeout_s)
    try:
        yield gate
    finally:
        await gate.aclose()


def pid_of(gate: GrammarGate) -> int:
    process = process_of(gate)
    assert process is not None
    return process.pid


def process_of(gate: GrammarGate) -> Process | None:
    """The only process that the gate has, if it has one."""
    processes = [trials._process for trials in gate._processes]
    assert len(processes) <= 1
    return processes[0] if processes else None


async def refusal(gate: GrammarGate, grammar: Grammar) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        await gate.check(grammar, "response_format")
    assert caught.value.param == "response_format"
    return str(caught.value)


async def test_what_is_wrong_is_said_by_name_and_the_process_stays() -> None:
    async with gate_with() as gate:
        await gate.check(FINE, "response_format")
        pid = pid_of(gate)
        assert "uniqueItems" in await refusal(gate, Grammar("json_schema", '{"uniqueItems": true}'))
        assert "too complex" in await refusal(gate, BOMB)
        await gate.check(Grammar("json_schema", "true"), "response_format")
        assert pid_of(gate) == pid


async def test_a_verdict_as_long_as_its_schema_is_read_and_so_is_the_next() -> None:
    long: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"const": "ab " * 30_000}, "b": {"uniqueItems": True}},
    }
    async with gate_with() as gate:
        with pytest.raises(UnenforceableSchemaError, match="uniqueItems") as caught:
            await gate.check(Grammar("json_schema", json.dumps(long)), "response_format")
        assert json.loads(caught.value.rest)["properties"]["a"] == long["properties"]["a"]
        pid = pid_of(gate)
        await gate.check(FINE, "response_format")
        assert pid_of(gate) == pid


async def test_a_process_that_was_started_before_takes_the_first_grammar() -> None:
    async with gate_with() as gate:
        gate.warm_up()
        gate.warm_up()
        await until(lambda: process_of(gate) is not None)
        pid = pid_of(gate)
        await gate.check(FINE, "response_format")
        assert pid_of(gate) == pid


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the priority stays")
async def test_trials_leave_the_processor_to_steps() -> None:
    async with gate_with() as gate:
        await gate.check(FINE, "a")
        assert os.getpriority(os.PRIO_PROCESS, pid_of(gate)) == LOW_PRIORITY


async def test_a_json_object_is_fine_without_a_trial() -> None:
    async with gate_with() as gate:
        await gate.check(Grammar("json_object"), "response_format")
        assert process_of(gate) is None


async def test_a_verdict_is_remembered_and_shared_by_all_who_ask_at_once() -> None:
    async with gate_with() as gate:
        await asyncio.gather(*(gate.check(FINE, "a") for _ in range(20)))
        os.kill(pid_of(gate), signal.SIGSTOP)  # nobody can be asked any more
        await gate.check(FINE, "b")
        assert len(gate._verdicts) == 1


async def test_a_trial_that_takes_too_long_ends_its_process_and_the_next_has_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orcinus.engine.grammar.gate._DOUBTFUL_S", 0.0)
    async with gate_with() as gate:
        await gate.check(FINE, "a")
        pid = pid_of(gate)
        os.kill(pid, signal.SIGSTOP)
        gate._timeout_s = 0.05
        assert "took longer than 0.05 s" in await refusal(gate, Grammar("regex", "b"))
        gate._timeout_s = 30.0
        await gate.check(Grammar("regex", "c"), "a")
        assert pid_of(gate) != pid
        await gate.check(Grammar("regex", "b"), "a")  # the machine may have been busy


async def test_a_process_that_is_kept_from_running_has_the_time_that_it_needs() -> None:
    async with gate_with(timeout_s=2.0) as gate:
        await gate.check(FINE, "a")
        pid = pid_of(gate)
        os.kill(pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(3.0, os.kill, pid, signal.SIGCONT)
        await gate.check(Grammar("regex", "b"), "a")
        assert pid_of(gate) == pid


async def test_a_trial_that_ends_its_process_is_refused_and_the_next_has_a_new_one() -> None:
    async with gate_with() as gate:
        await gate.check(FINE, "a")
        os.kill(pid_of(gate), signal.SIGSTOP)
        asked = asyncio.create_task(refusal(gate, Grammar("regex", "b")))
        await asyncio.sleep(0)
        os.kill(pid_of(gate), signal.SIGKILL)
        assert "too much memory" in await asked
        await gate.check(Grammar("regex", "c"), "a")


async def test_a_process_that_ended_between_trials_is_replaced() -> None:
    async with gate_with() as gate:
        await gate.check(FINE, "a")
        process = process_of(gate)
        assert process is not None
        process.kill()
        await process.wait()
        await gate.check(Grammar("regex", "c"), "a")


async def test_who_leaves_does_not_end_the_trial_for_the_others() -> None:
    async with gate_with() as gate:
        first = asyncio.create_task(gate.check(FINE, "a"))
        await asyncio.sleep(0)
        second = asyncio.create_task(gate.check(FINE, "a"))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert first.cancelled()


async def test_a_trial_that_takes_long_holds_up_its_own_client_alone() -> None:
    async with gate_with() as gate:
        await gate.check(FINE, "a", "one")
        pid = pid_of(gate)
        os.kill(pid, signal.SIGSTOP)
        held = [asyncio.create_task(gate.check(Grammar("regex", f"b{{{i}}}"), "a", "one")) for i in range(3)]
        await asyncio.sleep(0)
        await gate.check(Grammar("regex", "c"), "a", "another")
        assert not any(task.done() for task in held)
        os.kill(pid, signal.SIGCONT)
        await asyncio.gather(*held)
        assert len(gate._processes) == 2


async def test_a_trial_that_has_not_begun_is_dropped_when_its_client_leaves() -> None:
    async with gate_with() as gate:
        await gate.check(FINE, "a")
        pid = pid_of(gate)
        os.kill(pid, signal.SIGSTOP)
        first = asyncio.create_task(gate.check(Grammar("regex", "b"), "a"))
        second = asyncio.create_task(gate.check(Grammar("regex", "c"), "a"))
        await until(lambda: len(gate._pending) == 2)
        for task in (first, second):
            task.cancel()
        await asyncio.wait([first, second])
        again = asyncio.create_task(gate.check(Grammar("regex", "c"), "a"))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGCONT)
        await again
        assert [trial.source for trial in gate._verdicts] == [FINE.source, "b", "c"]


async def test_a_trial_that_all_have_left_is_not_begun() -> None:
    async with gate_with() as gate:
        await gate.check(FINE, "a")
        os.kill(pid_of(gate), signal.SIGSTOP)
        first = asyncio.create_task(gate.check(Grammar("regex", "b"), "a"))
        gone = asyncio.create_task(gate.check(Grammar("regex", "c"), "a"))
        await until(lambda: len(gate._pending) == 2)
        gone.cancel()
        await asyncio.wait([gone])
        assert [trial.source for _, trial in gate._pending] == ["b"]
        os.kill(pid_of(gate), signal.SIGCONT)
        await first
        assert [trial.source for trial in gate._verdicts] == [FINE.source, "b"]


async def test_closing_ends_what_is_under_way_and_says_so() -> None:
    async with gate_with() as gate:
        await gate.check(FINE, "a")
        os.kill(pid_of(gate), signal.SIGSTOP)
        asked = asyncio.create_task(gate.check(Grammar("regex", "b"), "a"))
        await asyncio.sleep(0)
        await gate.aclose()
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            await asked


async def test_the_oldest_verdicts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orcinus.engine.grammar.gate._MAX_VERDICTS", 2)
    async with gate_with() as gate:
        for pattern in ("a", "b", "a", "c"):
            await gate.check(Grammar("regex", pattern), "a")
        assert [trial.source for trial in gate._verdicts] == ["a", "c"]


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("regex", "(a{1000}){1000}", "a single step takes too long"),
        ("json_schema", '{"type": "string", "pattern": "^b(a{1000}){1000}$"}', "a single step takes too long"),
        ("json_schema", '{"$ref": "#"}', "no text matches"),
        ("json_schema", json.dumps({"type": "object", "properties": {f"p{i}": {} for i in range(900)}}), "max is 2000"),
        (
            "json_schema",
            json.dumps({"allOf": [{"anyOf": [{"minimum": i}, {"maximum": -i}]} for i in range(20)]}),
            "too large",
        ),
        ("regex", "(" * 5000 + "a" + ")" * 5000, "regular expression"),
        ("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "nested"),
    ],
)
def test_bombs_are_refused_with_a_reason(kind: GrammarKind, source: str, words: str) -> None:
    assert words in (find_fault(demo_compiler(), Trial(kind, source)) or "")


def fan_out(levels: int) -> dict[str, Any]:
    """Each definition names the next one twice: 2 ** levels if it is written out."""
    named = {
        f"d{i}": {"type": "object", "properties": {name: {"$ref": f"#/$defs/d{i + 1}"} for name in "ab"}}
        for i in range(levels)
    }
    return {"$defs": {**named, f"d{levels}": {"type": "null"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "(.*a){30}"),
        ("regex", "(a|b)*a(a|b){5000}"),
        ("regex", "(x+x+)+y"),
        ("grammar", 'start: s\ns: s s | "a" | s s s\n'),
        ("grammar", 'start: s\ns: s s | "" | "a"\n'),
        ("grammar", 'start: s\ns: s "a" | "a"\n'),
        ("json_schema", json.dumps(fan_out(30))),
        ("json_schema", '{"type": "string", "maxLength": 1000000}'),
        ("json_schema", json.dumps({"enum": [f"value {i}" for i in range(10_000)]})),
    ],
)
def test_what_only_looks_like_a_bomb_is_served(kind: GrammarKind, source: str) -> None:
    assert find_fault(load_compiler(DEMO), Trial(kind, source)) is None
