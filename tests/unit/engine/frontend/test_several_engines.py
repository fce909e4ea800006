"""AsyncEngine over two engines: requests are spread, and what happens to one of them leaves the other alone."""

import asyncio
import logging
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.errors import (
    EngineUnavailableError,
    ModelLoadError,
    QueueFullError,
    RequestFailedError,
    RequestTimeoutError,
)
from orcinus.engine.frontend.async_engine import AsyncEngine
from orcinus.engine.frontend.replica import EngineSpec
from orcinus.engine.messages import StepPlan, StepStats
from tests.unit.engine.fakes import fake_config, fake_settings, says, write_byte_tokenizer
from tests.unit.engine.frontend.test_async_engine import Gate, Recorder, request, texts, until
from tests.unit.engine.frontend.test_engine_ends import (
    ASKED,
    KilledInSteps,
    ScriptedEngines,
    ScriptedTransport,
    ends_engines,
    engine_on,
    whole,
)

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


async def test_requests_go_where_their_prompt_is_cached(model: Path) -> None:
    several = [ScriptedEngines(max_num_seqs=32) for _ in range(2)]
    turns = ["x" * 40, "y" * 40]
    async with engine_on(model, *several) as engine:
        streams = [engine.submit(request(turn, max_tokens=30)) for turn in turns]
        await asyncio.gather(*map(texts, streams))
        for scope, turn in ((None, turns[1]), (None, turns[1] + ALPHABET), (None, turns[0]), ("other", turns[1])):
            await texts(engine.submit(request(turn, max_tokens=1, cache_salt=scope)))
    assert prompts_of(several[0]) == [turns[0], turns[0], turns[1]]
    assert prompts_of(several[1]) == [turns[1], turns[1], turns[1] + ALPHABET]


async def test_what_an_engine_generated_is_cached_there(model: Path) -> None:
    several = [ScriptedEngines(max_num_seqs=32) for _ in range(2)]
    async with engine_on(model, *several) as engine:
        streams = [engine.submit(request(prompt, max_tokens=40)) for prompt in "xy"]
        await asyncio.gather(*map(texts, streams))
        await texts(engine.submit(request("y" + ALPHABET, max_tokens=1)))
    assert prompts_of(several[1]) == ["y", "y" + ALPHABET]


async def test_an_engine_that_ended_has_nothing_cached(model: Path) -> None:
    several = [ScriptedEngines(max_num_seqs=32, before_step=KilledInSteps(50)), ScriptedEngines(max_num_seqs=32)]
    async with engine_on(model, *several) as engine:
        await texts(engine.submit(request("x" * 40, max_tokens=49)))
        assert await texts(engine.submit(request("x" * 40, max_tokens=1))) == {0: "a"}
        await until(lambda: engine._replicas[0].state == "ready" and several[0].num_engines == 2)
        await texts(engine.submit(request("x" * 40, max_tokens=1)))
    assert [len(prompts_of(several[0])), len(prompts_of(several[1]))] == [2, 2]


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


async def test_choices_of_an_engine_that_ended_go_on_in_the_other_at_once(model: Path) -> None:
    """The engine in its place never comes up meanwhile."""
    recorder, first, second = Recorder(), ScriptedEngines(before_step=KilledInSteps(4)), ScriptedEngines()
    first.may_load.clear()
    async with engine_on(model, first, second, observer=recorder) as engine:
        streams = [engine.submit(request(prompt, max_tokens=20)) for prompt in ("in first", "in second")]
        for stream in streams:
            assert await texts(stream) == {0: ALPHABET[:20]}
        assert [replica.state for replica in engine._replicas] == ["restarting", "ready"]
        assert engine.num_running == engine.num_queued == 0
    assert second.num_engines == 1
    assert [prompts_of(first), prompts_of(second)] == [["in first"], ["in second", "in first"]]
    assert (recorder.restarts, recorder.resumed, recorder.quarantined) == (1, 1, 0)


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("fatal_step", [1, 2, 3, 6, 10])
async def test_an_answer_that_goes_on_in_the_other_engine_is_the_same(model: Path, name: str, fatal_step: int) -> None:
    reply, recorder = says("Grüße 🐋! ..."), Recorder()
    async with engine_on(model, ScriptedEngines(reply)) as engine:
        undisturbed = await whole(engine.submit(request("hello", **ASKED[name])))
    first, second = ScriptedEngines(reply, KilledInSteps(fatal_step)), ScriptedEngines(reply)
    first.may_load.clear()
    async with engine_on(model, first, second, observer=recorder) as engine:
        assert await whole(engine.submit(request("hello", **ASKED[name]))) == undisturbed
    num_tokens = sum(len(output.token_ids) for output in undisturbed.values())
    assert recorder.first_tokens + recorder.next_tokens == num_tokens
    assert sum(num_output for _, _, num_output in recorder.done) == num_tokens


async def test_while_one_engine_is_replaced_the_other_serves_and_takes_all_new_requests(model: Path) -> None:
    first, second = ScriptedEngines(before_step=KilledInSteps(4)), ScriptedEngines()
    first.may_load.clear()
    async with engine_on(model, first, second) as engine:
        assert await texts(engine.submit(request("ends in second", max_tokens=9))) == {0: ALPHABET[:9]}
        await until(lambda: first.num_engines == 2)
        engine.check_ready()
        assert engine.state == "ready"
        for _ in range(3):
            assert await texts(engine.submit(request("new", max_tokens=3))) == {0: "abc"}
        assert prompts_of(second) == ["ends in second", "new", "new", "new"]
        first.may_load.set()
        await until(lambda: engine._replicas[0].state == "ready")
        assert await texts(engine.submit(request("newer", max_tokens=3))) == {0: "abc"}
    assert prompts_of(first, 1) == ["newer"]


async def test_what_may_be_why_an_engine_ended_stays_with_it_and_the_rest_goes_on(model: Path) -> None:
    """Of four slots, three have brought tokens when the fourth's first step ends the engine."""
    gates, crash = [RunsOnceWith(3), RunsOnceWith(3)], ends_engines(b"poison")

    def held_or_crashed(plan: StepPlan) -> None:
        gates[0](plan)
        crash(plan)

    first, second = ScriptedEngines(before_step=held_or_crashed), ScriptedEngines(before_step=gates[1])
    first.may_load.clear()
    async with engine_on(model, first, second) as engine:
        prompts = ["a", "-", "b", "-", "c", "-"]
        streams = [engine.submit(request(prompt, max_tokens=150)) for prompt in prompts]
        for gate in gates:
            gate.may_begin.set()
        await in_slots(engine, 3, 3)
        await until(lambda: all(choice.processor.token_ids for choice in engine._replicas[0]._choices.values()))
        poison = engine.submit(request("poison", max_tokens=20))
        for gate in gates:
            gate.may_go_on.set()
        for stream in streams:
            assert await texts(stream) == {0: (ALPHABET * 6)[:150]}
        assert (engine.num_running, engine.num_queued) == (0, 1)
        first.may_load.set()
        with pytest.raises(RequestFailedError, match="ended again while it ran this request"):
            await texts(poison)
    assert second.num_engines == 1
    assert prompts_of(first, 1) == ["poison"]


async def test_samples_of_one_request_may_go_on_in_several_engines_and_end_together(model: Path) -> None:
    gates = [Gate(), Gate()]
    first, others = ScriptedEngines(before_step=KilledInSteps(4)), [ScriptedEngines(before_step=gate) for gate in gates]
    first.may_load.clear()
    async with engine_on(model, first, *others) as engine:
        stream = engine.submit(request(max_tokens=200, n=4))
        await until(lambda: [replica.num_in_flight for replica in engine._replicas] == [0, 2, 2])
        stream.abort()
        assert await texts(stream) == {}
        assert [replica.num_in_flight for replica in engine._replicas] == [0, 0, 0]
        for gate in gates:
            gate.open()
        await in_slots(engine, 0, 0, 0)
        assert await engine.drained(1)


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
    assert recorder.quarantined == 1
    assert recorder.restarts in (2, 3)  # where "b" began with it, both are suspects
    assert second.num_engines == 1


async def test_an_engine_that_is_lost_takes_only_what_may_be_why_with_it_and_the_other_goes_on(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "orcinus.engine.frontend")
    recorder, first, second = (
        Recorder(),
        ScriptedEngines(before_step=ends_engines(b"poison")),
        ScriptedEngines(before_step=KilledInSteps(60)),
    )
    async with engine_on(model, first, second, observer=recorder, max_engine_restarts=0) as engine:
        lost, kept = [engine.submit(request(prompt, max_tokens=20)) for prompt in ("poison", "fine")]
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
    assert recorder.restarts == 0
    assert "engine 0 is lost for good, and 1 go on" in caplog.text


async def test_what_waited_for_an_engine_that_is_lost_goes_on_in_one_that_is_being_replaced(model: Path) -> None:
    several = [ScriptedEngines(before_step=KilledInSteps(3)) for _ in range(2)]
    for scripted in several:
        scripted.may_load.clear()
    several[0].later_failure = ModelLoadError("no memory")
    async with engine_on(model, *several, max_engine_restarts=1) as engine:
        streams = [engine.submit(request(max_tokens=9)) for _ in range(2)]
        await until(lambda: all(scripted.num_engines == 2 for scripted in several))
        waiting = [replica.num_in_flight for replica in engine._replicas]
        assert sum(waiting) == 2
        several[0].may_load.set()
        await until(lambda: engine._replicas[0].state == "dead")
        assert engine._replicas[1].num_in_flight == 2
        several[1].may_load.set()
        assert [await texts(stream) for stream in streams] == [{0: ALPHABET[:9]}] * 2


async def test_an_engine_that_is_not_like_the_other_is_not_used(model: Path) -> None:
    first, second = ScriptedEngines(), ScriptedEngines(max_model_len=99)
    async with engine_on(model, first, second) as engine:
        for _ in range(3):
            assert await texts(engine.submit(request(max_tokens=2))) == {0: "ab"}
        assert sorted(replica.state for replica in engine._replicas) == ["dead", "ready"]


# --- the start ------------------------------------------------------------------------------------------


async def test_the_first_engine_decides_the_sizes_and_the_others_load_after_it(model: Path) -> None:
    several = [ScriptedEngines(max_num_seqs=7, kv_cache_bytes=12345, max_model_len=99) for _ in range(3)]
    async with engine_on(model, *several) as engine:
        assert engine.info.max_num_seqs == 7
    (config,), *others = [scripted.configs for scripted in several]
    assert (config.max_num_seqs, config.kv_cache_memory, config.max_model_len) == (None, None, None)
    for (other,) in others:
        assert (other.max_num_seqs, other.kv_cache_memory, other.max_model_len) == (7, 12345, 99)


async def test_where_the_first_engine_cannot_be_loaded_no_other_is(model: Path) -> None:
    def fail(config: EngineConfig) -> Any:
        raise ModelLoadError("no such model")

    first, second = ScriptedEngines(), ScriptedEngines()
    first.build = fail  # type: ignore[method-assign]
    with pytest.raises(ModelLoadError, match="no such model"):
        async with engine_on(model, first, second):
            pass
    assert second.num_engines == 0


async def test_one_engine_is_enough_to_be_ready(model: Path) -> None:
    first, second = ScriptedEngines(), ScriptedEngines()
    may_load = threading.Event()
    build = second.build

    def build_later(config: EngineConfig) -> Any:
        assert may_load.wait(30)
        return build(config)

    second.build = build_later  # type: ignore[method-assign]
    engine = AsyncEngine(
        fake_settings(model),
        engines=[EngineSpec(fake_config(model), partial(ScriptedTransport, each)) for each in (first, second)],
    )
    engine.start()
    run = asyncio.create_task(engine.run())
    await engine.wait_ready()
    engine.check_ready()
    assert await texts(engine.submit(request(max_tokens=3))) == {0: "abc"}
    assert [replica.state for replica in engine._replicas] == ["ready", "loading"]
    may_load.set()
    await until(lambda: engine.stats.num_slots == 8)
    await engine.aclose()
    await run


# --- what each does -------------------------------------------------------------------------------------


class EngineRecorder(Recorder):
    """Each engine's tokens and latest gauges, and whether it was up, each time that this changed."""

    def __init__(self) -> None:
        super().__init__()
        self.num_tokens: Counter[int] = Counter()
        self.gauges: dict[int, tuple[int, int]] = {}
        self.was_up: dict[int, list[bool]] = {}

    def on_engine(self, index: int, *, is_up: bool, stats: StepStats) -> None:
        self.num_tokens[index] += stats.num_sampled_tokens
        self.gauges[index] = (stats.num_running, stats.num_slots)
        self.was_up.setdefault(index, [is_up])
        if self.was_up[index][-1] != is_up:
            self.was_up[index].append(is_up)


async def test_each_engine_is_observed_with_its_own_numbers(model: Path) -> None:
    recorder, first, second = EngineRecorder(), ScriptedEngines(before_step=KilledInSteps(4)), ScriptedEngines()
    async with engine_on(model, first, second, observer=recorder) as engine:
        assert recorder.gauges == {0: (0, 4), 1: (0, 4)}
        for stream in [engine.submit(request(max_tokens=9)) for _ in range(2)]:
            await texts(stream)
        await until(lambda: engine._replicas[0].state == "ready" and engine.stats.num_running == 0)
        assert recorder.num_tokens == {0: 3, 1: 15}
        assert recorder.gauges == {0: (0, 4), 1: (0, 4)}
    assert recorder.was_up == {0: [False, True, False, True, False], 1: [False, True, False]}


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
