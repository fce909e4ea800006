"""AsyncEngine over two engines: requests are spread, and what happens to one of them leaves the other alone."""

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.errors import EngineUnavailableError, QueueFullError, RequestFailedError, RequestTimeoutError
from orcinus.engine.frontend.async_engine import AsyncEngine
from orcinus.engine.messages import StepPlan
from tests.unit.engine.fakes import write_byte_tokenizer
from tests.unit.engine.frontend.test_async_engine import Gate, Recorder, request, texts, until
from tests.unit.engine.frontend.test_engine_ends import KilledInSteps, ScriptedEngines, ends_engines, engine_on

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "orcinus.engine")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_byte_tokenizer(tmp_path / "model")


def prompts_of(scripted: ScriptedEngines, engine: int = 0) -> list[str]:
    return [bytes(new.token_ids[: new.num_prompt_tokens]).decode() for new in scripted.introduced(engine)]


def gated(**info: Any) -> tuple[ScriptedEngines, Gate]:
    gate = Gate()
    return ScriptedEngines(before_step=gate, **info), gate


async def in_slots(engine: AsyncEngine, *numbers: int) -> None:
    """Wait until each engine says that it runs so many."""
    await until(lambda: [replica.num_running for replica in engine._replicas] == [*numbers])


# --- where requests go ----------------------------------------------------------------------------------


async def test_requests_go_to_the_engine_with_the_least_load_as_a_whole(model: Path) -> None:
    (first, first_gate), (second, second_gate) = gated(), gated()
    async with engine_on(model, first, second) as engine:
        asked = [("three", 3), ("one", 1), ("two", 1), ("four", 1), ("five", 1)]
        streams = [engine.submit(request(prompt, n=n, max_tokens=2)) for prompt, n in asked]
        for gate in (first_gate, second_gate):
            gate.open()
        for stream, (_, n) in zip(streams, asked, strict=True):
            assert await texts(stream) == dict.fromkeys(range(n), "ab")
    assert prompts_of(first) == ["three"] * 3 + ["five"]
    assert prompts_of(second) == ["one", "two", "four"]


async def test_seeds_follow_the_order_of_arrival_and_not_the_engine(model: Path) -> None:
    seeds = []
    for number in (1, 2):
        several = [ScriptedEngines() for _ in range(number)]
        async with engine_on(model, *several) as engine:
            streams = [engine.submit(request(f"{i}", max_tokens=1)) for i in range(4)]
            await asyncio.gather(*map(texts, streams))
        introduced = [new for scripted in several for new in scripted.introduced(0)]
        seeds.append({bytes(new.token_ids): new.sampling.seed for new in introduced})
    assert len(seeds[0]) == 4
    assert seeds[0] == seeds[1]


async def test_slots_and_queue_are_those_of_both_engines(model: Path) -> None:
    several = [gated(max_num_seqs=2) for _ in range(2)]
    async with engine_on(model, *(scripted for scripted, _ in several), max_queue_len=3) as engine:
        streams = [engine.submit(request(max_tokens=1)) for _ in range(7)]
        with pytest.raises(QueueFullError):
            engine.submit(request(max_tokens=1))
        for _, gate in several:
            gate.open()
        assert [await texts(stream) for stream in streams] == [{0: "a"}] * 7


async def test_an_aborted_and_a_late_request_free_the_slots_of_their_own_engine(model: Path) -> None:
    several = [gated(), gated()]
    async with engine_on(model, *(scripted for scripted, _ in several)) as engine:
        streams = [engine.submit(request(max_tokens=200)) for _ in range(4)]
        late = engine.submit(request(max_tokens=200, timeout_s=0.01))
        for _, gate in several:
            await until(lambda gate=gate: gate.plans)  # type: ignore[misc]
        with pytest.raises(RequestTimeoutError):
            await texts(late)
        streams[1].abort()
        assert [replica.num_in_flight for replica in engine._replicas] == [2, 1]
        for _, gate in several:
            gate.open()
        assert await texts(streams[1]) == {}
        for stream in (streams[0], streams[2], streams[3]):
            assert await texts(stream) == {0: (ALPHABET * 8)[:200]}


class RunsOnceWith:
    """Holds the fake model before its first step, and before its second step with so many requests."""

    def __init__(self, num_requests: int) -> None:
        self.may_begin, self.may_go_on = threading.Event(), threading.Event()
        self._num_requests = num_requests
        self._num_steps = 0

    def __call__(self, plan: StepPlan) -> None:
        assert self.may_begin.wait(30), "the test never let it begin"
        self._num_steps += len(plan.scheduled) == self._num_requests
        if self._num_steps > 1:
            assert self.may_go_on.wait(30), "the test never let it go on"


async def test_numbers_are_those_of_both_engines(model: Path) -> None:
    gates = [RunsOnceWith(2), RunsOnceWith(1)]
    recorder, several = Recorder(), [ScriptedEngines(before_step=gate, num_kv_blocks=16) for gate in gates]
    async with engine_on(model, *several, observer=recorder) as engine:
        streams = [engine.submit(request(max_tokens=9)) for _ in range(3)]
        for gate in gates:
            gate.may_begin.set()
        await in_slots(engine, 2, 1)
        assert (engine.num_running, engine.num_queued) == (3, 0)
        assert (engine.stats.num_slots, engine.stats.num_running, engine.stats.num_kv_blocks) == (8, 3, 32)
        assert engine.stats.num_kv_blocks_used == 3
        for gate in gates:
            gate.may_go_on.set()
        for stream in streams:
            await texts(stream)
        await until(lambda: engine.stats.num_running == engine.stats.num_kv_blocks_used == 0)
    assert recorder.first_tokens + recorder.next_tokens == 27
    assert [outcome for outcome, *_ in recorder.done] == ["length"] * 3


# --- when one of them ends ------------------------------------------------------------------------------


async def test_choices_of_an_engine_that_ended_go_on_in_its_successor_and_the_other_is_not_disturbed(
    model: Path,
) -> None:
    recorder, first, second = Recorder(), ScriptedEngines(before_step=KilledInSteps(4)), ScriptedEngines()
    async with engine_on(model, first, second, observer=recorder) as engine:
        streams = [engine.submit(request(prompt, max_tokens=20)) for prompt in ("in first", "in second")]
        for stream in streams:
            assert await texts(stream) == {0: ALPHABET[:20]}
    assert (first.num_engines, second.num_engines) == (2, 1)
    assert [prompts_of(first, 0), prompts_of(first, 1), prompts_of(second)] == [["in first"]] * 2 + [["in second"]]
    assert (recorder.restarts, recorder.resumed, recorder.quarantined) == (1, 1, 0)


async def test_while_one_engine_is_replaced_the_other_serves_and_takes_all_new_requests(model: Path) -> None:
    first, second = ScriptedEngines(before_step=KilledInSteps(4)), ScriptedEngines()
    first.may_load.clear()
    async with engine_on(model, first, second) as engine:
        waiting = engine.submit(request("waits", max_tokens=9))
        await until(lambda: first.num_engines == 2)
        engine.check_ready()
        assert engine.state == "ready"
        for _ in range(3):
            assert await texts(engine.submit(request("new", max_tokens=3))) == {0: "abc"}
        assert prompts_of(second) == ["new"] * 3
        assert (engine.num_running, engine.num_queued) == (0, 1)
        assert engine.stats.num_waiting == 1
        first.may_load.set()
        assert await texts(waiting) == {0: ALPHABET[:9]}


async def test_while_both_are_replaced_requests_wait(model: Path) -> None:
    several = [ScriptedEngines(before_step=KilledInSteps(2)), ScriptedEngines(before_step=KilledInSteps(2))]
    for scripted in several:
        scripted.may_load.clear()
    async with engine_on(model, *several) as engine:
        streams = [engine.submit(request(max_tokens=5)) for _ in range(2)]
        await until(lambda: all(scripted.num_engines == 2 for scripted in several))
        assert engine.state == "restarting"
        with pytest.raises(EngineUnavailableError, match="restarting"):
            engine.check_ready()
        streams += [engine.submit(request(max_tokens=5)) for _ in range(2)]
        for scripted in several:
            scripted.may_load.set()
        assert [await texts(stream) for stream in streams] == [{0: "abcde"}] * 4
    assert [len(prompts_of(scripted, 1)) for scripted in several] == [2, 2]


async def test_a_request_that_ends_its_engine_is_given_up_and_costs_the_other_nothing(model: Path) -> None:
    recorder, first, second = Recorder(), ScriptedEngines(before_step=ends_engines(b"poison")), ScriptedEngines()
    async with engine_on(model, first, second, observer=recorder) as engine:
        prompts = ["poison", "a", "b", "c"]
        poison, *others = [engine.submit(request(prompt, max_tokens=20)) for prompt in prompts]
        with pytest.raises(RequestFailedError, match="the engine ended again while it ran this request"):
            await texts(poison)
        for stream in others:
            assert await texts(stream) == {0: ALPHABET[:20]}
    assert (recorder.quarantined, recorder.restarts) == (1, 3)
    assert (first.num_engines, second.num_engines) == (4, 1)
    assert prompts_of(second) == ["a", "c"]


async def test_an_engine_that_is_lost_takes_what_it_had_with_it_and_the_other_goes_on(model: Path) -> None:
    recorder, first, second = (
        Recorder(),
        ScriptedEngines(before_step=KilledInSteps(3)),
        ScriptedEngines(before_step=KilledInSteps(40)),
    )
    async with engine_on(model, first, second, observer=recorder, max_engine_restarts=0) as engine:
        lost, kept = [engine.submit(request(max_tokens=20)) for _ in range(2)]
        with pytest.raises(EngineUnavailableError, match="the engine thread ended"):
            await texts(lost)
        assert await texts(kept) == {0: ALPHABET[:20]}
        assert engine.is_admitting
        assert await texts(engine.submit(request(max_tokens=4))) == {0: "abcd"}
        with pytest.raises(EngineUnavailableError):
            await texts(engine.submit(request(max_tokens=200)))
        assert engine.state == "dead"
        with pytest.raises(EngineUnavailableError, match="not running"):
            engine.submit(request())
        assert await engine.drained(1)
    assert sorted(outcome for outcome, *_ in recorder.done) == ["error", "error", "length", "length"]


async def test_an_engine_that_is_not_like_the_other_is_not_used(model: Path) -> None:
    first, second = ScriptedEngines(), ScriptedEngines(max_model_len=99)
    async with engine_on(model, first, second) as engine:
        for _ in range(3):
            assert await texts(engine.submit(request(max_tokens=2))) == {0: "ab"}
        assert sorted(replica.state for replica in engine._replicas) == ["dead", "ready"]


# --- the end --------------------------------------------------------------------------------------------


async def test_a_drain_waits_for_what_both_have(model: Path) -> None:
    several = [gated(), gated()]
    async with engine_on(model, *(scripted for scripted, _ in several)) as engine:
        streams = [engine.submit(request(max_tokens=2)) for _ in range(2)]
        engine.start_draining()
        for _, gate in several:
            assert not await engine.drained(0)
            gate.open()
        assert await engine.drained(10)
        assert [await texts(stream) for stream in streams] == [{0: "ab"}] * 2


async def test_closing_ends_both_engines_and_all_that_they_had(model: Path) -> None:
    several = [gated(), gated()]
    async with engine_on(model, *(scripted for scripted, _ in several)) as engine:
        assert engine_threads() == 2
        streams = [engine.submit(request()) for _ in range(2)]
        closing = asyncio.create_task(engine.aclose())
        for stream in streams:
            with pytest.raises(EngineUnavailableError, match="shutting down"):
                await texts(stream)
        for _, gate in several:
            gate.open()
        await closing
        assert engine_threads() == 0


def engine_threads() -> int:
    return sum(thread.name == "engine" for thread in threading.enumerate())
