"""AsyncEngine over engines that end: what was in flight goes on in the next one as if nothing had happened.

The engines are threads with a fake model. They end by an exception that nobody catches, which to the server looks like
a kill: the socket closes, and what was not sent is lost.
"""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.core import EngineCore, Executor
from orcinus.engine.errors import (
    EngineKilledError,
    EngineUnavailableError,
    ModelLoadError,
    QueueFullError,
    RequestFailedError,
    RequestQuarantinedError,
    RequestTimeoutError,
)
from orcinus.engine.frontend.async_engine import AsyncEngine
from orcinus.engine.frontend.live_request import LiveChoice
from orcinus.engine.frontend.output_buffer import OutputBuffer
from orcinus.engine.frontend.output_processor import OutputProcessor
from orcinus.engine.frontend.replica import EngineReplica, EngineSpec
from orcinus.engine.messages import AddRequest, Alive, EngineInfo, FromEngine, NewRequest, RequestDelta, StepPlan
from orcinus.engine.outputs import RequestOutput
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.supervision.liveness import LivenessMonitor
from orcinus.engine.supervision.supervisor import EngineEnd
from orcinus.engine.supervision.transport import InProcessTransport
from orcinus.engine.text.tokenizer import Tokenizer
from tests.unit.engine.fakes import (
    FakeExecutor,
    NextToken,
    alphabet,
    fake_config,
    fake_info,
    fake_settings,
    says,
    write_byte_tokenizer,
)
from tests.unit.engine.frontend.test_async_engine import Recorder, request, texts, until
from tests.unit.engine.scheduler.test_ends import Finishing
from tests.unit.engine.supervision.test_transport import added

pytestmark = pytest.mark.usefixtures("quiet_log")


@pytest.fixture
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "orcinus.engine")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_byte_tokenizer(tmp_path / "model")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[EngineEnd]:
    """Return how each engine of the test ended."""
    ends: list[EngineEnd] = []
    on_engine_end = EngineReplica.on_engine_end

    def noted(replica: EngineReplica, end: EngineEnd) -> bool:
        ends.append(end)
        return on_engine_end(replica, end)

    monkeypatch.setattr(EngineReplica, "on_engine_end", noted)
    return ends


class Killed(BaseException):
    """Ends an engine as SIGKILL would, from outside."""


class Crashed(BaseException):
    """Ends an engine by a fault of its own."""


class ScriptedEngines:
    """The engines of one test, one after the other. `before_step` may raise `Killed` or `Crashed`."""

    def __init__(
        self,
        next_token: NextToken = alphabet,
        before_step: Callable[[StepPlan], None] = lambda plan: None,
        **info: Any,
    ) -> None:
        self.configs: list[EngineConfig] = []
        self.executors: list[FakeExecutor] = []
        self.later_info: dict[str, Any] = {}  # what engines after the first say of themselves
        self.later_failure: Exception | None = None
        self.start_failures: list[OSError] = []  # of the engines after the first
        self.may_load = threading.Event()
        self.may_load.set()
        self.killed = threading.Event()
        self._next_token = next_token
        self._before_step = before_step
        self._info = info

    def build(self, config: EngineConfig) -> tuple[EngineInfo, Executor]:
        self.configs.append(config)
        is_first = len(self.configs) == 1
        if not is_first:
            assert self.may_load.wait(30), "the test never let the engine load"
        if not is_first and self.later_failure is not None:
            raise self.later_failure
        self.executors.append(FakeExecutor(self._next_token, self._before_step))
        return fake_info(**self._info, **({} if is_first else self.later_info)), self.executors[-1]

    @property
    def num_engines(self) -> int:
        return len(self.configs)

    def introduced(self, engine: int) -> list[NewRequest]:
        """Return the requests that this engine was to run, in the order in which it began with them."""
        return [new for plan in self.executors[engine].plans for new in plan.new_requests]


class ScriptedTransport(InProcessTransport):
    def __init__(self, scripted: ScriptedEngines) -> None:
        super().__init__(scripted.build)
        self._scripted = scripted
        self._was_killed = False

    def start(self, config: EngineConfig) -> None:
        if self._scripted.configs and self._scripted.start_failures:
            raise self._scripted.start_failures.pop()
        super().start(config)

    def kill(self) -> None:
        self._scripted.killed.set()
        super().kill()

    def _run(self, engine_end: socket.socket) -> None:
        try:
            super()._run(engine_end)
        except Killed:
            self._was_killed = True
        except Crashed:
            return

    async def _how_it_ended(self) -> EngineUnavailableError:
        await self._end()
        end = await super()._how_it_ended()
        return EngineKilledError(str(end)) if self._was_killed else end


class KilledInSteps:
    """Kills whichever engine comes to these steps, which are counted over all engines."""

    def __init__(self, *steps: int) -> None:
        self._steps = steps
        self.num_steps = 0

    def __call__(self, plan: StepPlan) -> None:
        self.num_steps += 1
        if self.num_steps in self._steps:
            raise Killed


def ends_engines(*killers: bytes) -> Callable[[StepPlan], None]:
    """Crashes an engine in the first step of a prompt that is one of these."""

    def check(plan: StepPlan) -> None:
        if any(bytes(new.token_ids[: new.num_prompt_tokens]) in killers for new in plan.new_requests):
            raise Crashed

    return check


@asynccontextmanager
async def engine_on(
    model: Path,
    *scripted: ScriptedEngines,
    observer: Any = None,
    **settings: Any,
) -> AsyncIterator[AsyncEngine]:
    """An engine for each of `scripted`, all of them up."""
    engine = AsyncEngine(
        fake_settings(model, **{"max_queue_len": 30, **settings}),
        engines=[EngineSpec(fake_config(model), partial(ScriptedTransport, each)) for each in scripted],
        observer=observer,
    )
    engine.start()
    run = asyncio.create_task(engine.run())
    try:
        await engine.wait_ready()
        await until(lambda: all(replica.state != "loading" for replica in engine._replicas))
        yield engine
    finally:
        for each in scripted:
            each.may_load.set()
        await engine.aclose()
        await run


async def whole(stream: AsyncIterator[RequestOutput]) -> dict[int, RequestOutput]:
    """All outputs of each choice as one, without what depends on the clock."""
    buffers: dict[int, OutputBuffer] = {}
    async for output in stream:
        is_first = output.index not in buffers
        assert (output.num_cached_tokens is not None) == (output.queue_time_s is not None) == is_first
        if is_first:
            buffers[output.index] = OutputBuffer(output)
        else:
            buffers[output.index].add(output)
    return {
        index: msgspec.structs.replace(buffer.merged(), queue_time_s=None, timing=None)
        for index, buffer in buffers.items()
    }


# --- going on -------------------------------------------------------------------------------------------

ASKED: dict[str, dict[str, Any]] = {
    "code points of several bytes": {"max_tokens": 50},
    "log-probabilities, and those of the prompt": {"max_tokens": 50, "logprobs": 2, "prompt_logprobs": 1},
    "a stop string that is cut": {"max_tokens": 50, "stop": ("e 🐋!",)},
    "a stop string that never comes": {"max_tokens": 50, "stop": ("ße 🐋?", "xyz")},
    "a stop string that counts only later": {"max_tokens": 50, "stop": ("ü", "ße"), "min_tokens": 6},
    "several samples": {"max_tokens": 50, "n": 3, "seed": 5},
    "an end by length": {"max_tokens": 9},
}


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("fatal_steps", [(1,), (2,), (3, 5), (6,), (7, 9), (10,), (14,)])
async def test_an_answer_is_the_same_however_its_engine_was_killed(
    model: Path, name: str, fatal_steps: tuple[int, ...]
) -> None:
    reply = says("Grüße 🐋! ...")
    async with engine_on(model, ScriptedEngines(reply)) as engine:
        undisturbed = await whole(engine.submit(request("hello", **ASKED[name])))
    recorder, scripted = Recorder(), ScriptedEngines(reply, KilledInSteps(*fatal_steps))
    async with engine_on(model, scripted, observer=recorder) as engine:
        assert await whole(engine.submit(request("hello", **ASKED[name]))) == undisturbed
    num_tokens = sum(len(output.token_ids) for output in undisturbed.values())
    assert recorder.first_tokens == len(undisturbed)
    assert recorder.first_tokens + recorder.next_tokens == num_tokens
    assert sum(num_output for _, _, num_output in recorder.done) == num_tokens


async def test_the_next_engine_is_given_what_was_asked_and_every_token_so_far(model: Path) -> None:
    scripted = ScriptedEngines(before_step=KilledInSteps(4), adapters=["legal"])
    async with engine_on(model, scripted) as engine:
        asked = request("hi", max_tokens=6, seed=3, cache_salt="pepper", adapter="legal", stop=("bcdef",))
        assert await texts(engine.submit(asked)) == {0: "a"}
    (first,), (again,) = scripted.introduced(0), scripted.introduced(1)
    assert first.adapter == "legal"
    assert again == msgspec.structs.replace(first, token_ids=[*b"hiabc"])


async def test_a_request_that_ended_by_a_stop_string_is_not_taken_up_again(model: Path) -> None:
    """The engine ends in a step that the abort came too late for, or does not, where it came in time."""
    scripted = ScriptedEngines(before_step=KilledInSteps(9))
    async with engine_on(model, scripted) as engine:
        assert await texts(engine.submit(request("hi", max_tokens=200, stop=("fgh",)))) == {0: "abcde"}
        await until(lambda: scripted.num_engines == 2 or engine.stats.num_running == 0)
        assert await texts(engine.submit(request("next", max_tokens=3))) == {0: "abc"}
    prompts = [
        bytes(new.token_ids) for executor in scripted.executors for plan in executor.plans for new in plan.new_requests
    ]
    assert prompts.count(b"hi") == 1
    assert b"hi" not in prompts[1:]


async def test_an_embedding_is_computed_anew(model: Path) -> None:
    scripted = ScriptedEngines(before_step=KilledInSteps(1))
    async with engine_on(model, scripted) as engine:
        (output,) = [o async for o in engine.submit(request("hi", max_tokens=0, pooling="mean"))]
    assert output.embedding is not None
    assert output.finish_reason == "stop"


async def test_restarts_and_resumptions_are_counted(model: Path) -> None:
    recorder, scripted = Recorder(), ScriptedEngines(before_step=KilledInSteps(3))
    async with engine_on(model, scripted, observer=recorder) as engine:
        streams = [engine.submit(request(max_tokens=10)) for _ in range(3)]
        for stream in streams:
            assert await texts(stream) == {0: "abcdefghij"}
    assert (recorder.restarts, recorder.resumed, recorder.quarantined) == (1, 3, 0)
    assert scripted.num_engines == 2


async def test_many_requests_survive_many_kills(model: Path) -> None:
    scripted = ScriptedEngines(before_step=KilledInSteps(*range(9, 300, 29)), max_num_seqs=3)
    recorder = Recorder()
    async with engine_on(model, scripted, observer=recorder) as engine:
        streams = [engine.submit(request("x" * n, max_tokens=n, n=1 + n % 2)) for n in range(1, 21)]
        results = await asyncio.gather(*(texts(stream) for stream in streams))
    alphabets = "abcdefghijklmnopqrstuvwxyz"
    assert results == [dict.fromkeys(range(1 + n % 2), alphabets[:n]) for n in range(1, 21)]
    assert recorder.quarantined == 0
    assert recorder.restarts > 3


def test_preemptions_are_counted_over_all_engines(model: Path) -> None:
    processor = OutputProcessor(Tokenizer.load(str(model)), 0, [1], SamplingParams())
    processor.process(RequestDelta("a", [97], num_preemptions=2))
    processor.resume()
    assert processor.process(RequestDelta("a", [98], num_preemptions=1)).num_preemptions == 3


def test_a_request_that_was_steered_stays_so_in_the_next_engine(model: Path) -> None:
    processor = OutputProcessor(Tokenizer.load(str(model)), 0, [1], SamplingParams())
    choice = LiveChoice(added("a"), None, None, processor, 1)  # type: ignore[arg-type]  # these have no say in it
    assert choice.submission() == added_as(choice)
    processor.process(RequestDelta("a", [97], is_steered=True))
    assert choice.submission() == added_as(choice, output_token_ids=[97], is_steered=True)


def test_a_steered_request_says_so_and_ends_by_length_in_the_next_engine_too() -> None:
    deltas = deltas_of(Finishing(4, 66, steered_at=3), added("a", max_tokens=9))
    assert [delta.is_steered for delta in deltas] == [False, True, True]
    assert deltas[-1].finish_reason == "length"
    resumed = msgspec.structs.replace(added("a", max_tokens=9), output_token_ids=[65, 65], is_steered=True)
    (delta,) = deltas_of(Finishing(4, 66), resumed)
    assert (delta.is_steered, delta.finish_reason) == (True, "length")


def deltas_of(executor: FakeExecutor, request: AddRequest) -> list[RequestDelta]:
    core = EngineCore(fake_info(), executor)
    core.add_request(request)
    deltas = []
    while core.has_work:
        deltas += core.step().deltas
    return deltas


def added_as(choice: LiveChoice, **changes: Any) -> Any:
    return msgspec.structs.replace(choice.added, **changes)


# --- while there is no engine ---------------------------------------------------------------------------


@asynccontextmanager
async def engine_being_replaced(
    model: Path, *, num_running: int = 1, num_slots: int = 2, observer: Any = None, **options: Any
) -> AsyncIterator[tuple[AsyncEngine, ScriptedEngines, list[Any]]]:
    """An engine whose successor has yet to load, and the streams that were in flight when it ended."""
    scripted = ScriptedEngines(before_step=KilledInSteps(4), max_num_seqs=num_slots)
    scripted.may_load.clear()
    async with engine_on(model, scripted, observer=observer, **options) as engine:
        streams = [engine.submit(request("hi", max_tokens=10, timeout_s=30)) for _ in range(num_running)]
        await until(lambda: engine.state == "restarting" and scripted.num_engines == 2)
        yield engine, scripted, streams


async def test_requests_are_admitted_meanwhile_and_answered_after_those_that_ran(model: Path) -> None:
    async with engine_being_replaced(model) as (engine, scripted, (stream,)):
        assert engine.info.max_num_seqs == 2
        assert await engine.wait_ready() == engine.info
        assert engine.num_running == 0
        late = engine.submit(request("late", max_tokens=2))
        assert engine.num_queued == 2
        scripted.may_load.set()
        assert await texts(stream) == {0: "abcdefghij"}
        assert await texts(late) == {0: "ab"}
        assert engine.state == "ready"
    assert [len(new.token_ids) for new in scripted.introduced(1)] == [5, 4]


async def test_after_a_kill_all_that_ran_go_on_together_and_new_ones_with_them(model: Path) -> None:
    async with engine_being_replaced(model, num_running=3, num_slots=8) as (engine, scripted, streams):
        late = engine.submit(request("late", max_tokens=2))
        scripted.may_load.set()
        assert await texts(late) == {0: "ab"}
        for stream in streams:
            assert await texts(stream) == {0: "abcdefghij"}
    assert len(scripted.executors[1].plans[0].new_requests) == 4


async def test_the_queue_is_bounded_meanwhile(model: Path) -> None:
    async with engine_being_replaced(model, max_queue_len=2) as (engine, scripted, (stream,)):
        late = engine.submit(request(max_tokens=1, n=3))
        with pytest.raises(QueueFullError):
            engine.submit(request(max_tokens=1))
        scripted.may_load.set()
        assert await texts(late) == {0: "a", 1: "a", 2: "a"}
        assert await texts(stream) == {0: "abcdefghij"}


async def test_prompts_that_were_running_wait_again_meanwhile(model: Path) -> None:
    async with engine_being_replaced(model, max_queue_len=5, max_queue_tokens=2) as (engine, scripted, (stream,)):
        with pytest.raises(QueueFullError, match="2 tokens of prompts wait"):
            engine.submit(request("x"))
        scripted.may_load.set()
        assert await texts(stream) == {0: "abcdefghij"}
        assert await texts(engine.submit(request("x", max_tokens=1))) == {0: "a"}


async def test_an_aborted_request_is_not_taken_up_again(model: Path) -> None:
    recorder = Recorder()
    async with engine_being_replaced(model, num_running=2, observer=recorder) as (_, scripted, (gone, kept)):
        gone.abort()
        scripted.may_load.set()
        assert await texts(kept) == {0: "abcdefghij"}
        assert await texts(gone) == {}
    assert len(scripted.introduced(1)) == 1
    assert sorted(outcome for outcome, *_ in recorder.done) == ["abort", "length"]
    assert recorder.resumed == 1


async def test_requests_that_come_and_go_meanwhile_are_counted_as_waiting(model: Path) -> None:
    async with engine_being_replaced(model, num_running=2) as (engine, _, (gone, _kept)):
        assert engine.stats.num_waiting == 2
        late = engine.submit(request(max_tokens=1, n=3))
        assert engine.stats.num_waiting == 5
        for stream in (gone, late):
            stream.abort()
        assert (engine.stats.num_waiting, engine.stats.num_slots) == (1, 2)


async def test_a_deadline_passes_meanwhile(model: Path) -> None:
    async with engine_being_replaced(model) as (engine, scripted, (stream,)):
        hasty = engine.submit(request(timeout_s=0.01))
        with pytest.raises(RequestTimeoutError):
            await texts(hasty)
        scripted.may_load.set()
        assert await texts(stream) == {0: "abcdefghij"}
    assert len(scripted.introduced(1)) == 1


async def test_a_drain_waits_for_the_next_engine(model: Path) -> None:
    async with engine_being_replaced(model) as (engine, scripted, (stream,)):
        engine.start_draining()
        assert engine.state == "draining"
        with pytest.raises(EngineUnavailableError, match="takes no new requests"):
            engine.submit(request())
        assert not await engine.drained(0)
        scripted.may_load.set()
        assert await engine.drained(10)
        assert await texts(stream) == {0: "abcdefghij"}


async def test_closing_does_not_wait_for_the_next_engine(model: Path) -> None:
    async with engine_being_replaced(model) as (engine, scripted, (stream,)):
        closing = asyncio.create_task(engine.aclose())
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            await texts(stream)
        scripted.may_load.set()
        await closing
    assert scripted.num_engines == 2


async def test_closing_while_waiting_to_restart_starts_nothing(model: Path) -> None:
    scripted = ScriptedEngines(before_step=KilledInSteps(3))
    scripted.later_failure = ModelLoadError("no memory")
    async with engine_on(model, scripted, max_engine_restarts=100) as engine:
        stream = engine.submit(request(max_tokens=10))
        await until(lambda: scripted.num_engines == 3)  # the next one comes a second later
        await engine.aclose()
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            await texts(stream)
    assert scripted.num_engines == 3


# --- requests that end engines --------------------------------------------------------------------------


async def test_a_request_that_ends_engines_is_given_up_and_no_other_is(model: Path) -> None:
    recorder, scripted = Recorder(), ScriptedEngines(before_step=ends_engines(b"poison"), max_num_seqs=8)
    async with engine_on(model, scripted, observer=recorder) as engine:
        prompts = ["a", "b", "poison", "c", "d", "e"]
        streams = {prompt: engine.submit(request(prompt, max_tokens=20)) for prompt in prompts}
        with pytest.raises(RequestFailedError, match="the engine ended again while it ran this request"):
            await texts(streams.pop("poison"))
        for stream in streams.values():
            assert await texts(stream) == {0: "abcdefghijklmnopqrst"}
        assert await texts(engine.submit(request(max_tokens=3))) == {0: "abc"}
        with pytest.raises(RequestQuarantinedError, match=r"ended again and again .* refused for \d+ s more"):
            engine.submit(request("poison", max_tokens=20))
    assert (recorder.quarantined, recorder.restarts) == (1, 3)
    assert [outcome for outcome, *_ in recorder.done].count("error") == 1


async def test_all_choices_of_a_request_that_ends_engines_are_given_up(model: Path) -> None:
    recorder, scripted = Recorder(), ScriptedEngines(before_step=ends_engines(b"poison"))
    async with engine_on(model, scripted, observer=recorder) as engine:
        poison = engine.submit(request("poison", n=3))
        other = engine.submit(request(max_tokens=3))
        with pytest.raises(RequestFailedError, match="ended again"):
            await texts(poison)
        assert await texts(other) == {0: "abc"}
    assert recorder.quarantined == 1
    assert recorder.restarts == 3


async def test_several_that_end_engines_are_all_found(model: Path) -> None:
    """Each conviction is of use, and so is each new suspicion: the one restart in vain that is allowed is enough."""
    recorder, scripted = Recorder(), ScriptedEngines(before_step=ends_engines(b"p1", b"p2", b"p3"))
    async with engine_on(model, scripted, observer=recorder, max_engine_restarts=1) as engine:
        streams = [engine.submit(request(prompt, max_tokens=4)) for prompt in ("p1", "p2", "x", "y", "p3", "z")]
        results = await asyncio.gather(*(texts(stream) for stream in streams), return_exceptions=True)
    assert [type(result) for result in results] == [
        *(RequestQuarantinedError, RequestQuarantinedError, dict),
        *(dict, RequestQuarantinedError, dict),
    ]
    assert recorder.quarantined == 3


async def test_an_engine_that_keeps_ending_fails_every_waiter(model: Path) -> None:
    scripted = ScriptedEngines(before_step=KilledInSteps(3))
    scripted.later_failure = ModelLoadError("no memory")
    async with engine_on(model, scripted, max_engine_restarts=1) as engine:
        stream = engine.submit(request(max_tokens=10))
        with pytest.raises(EngineUnavailableError, match=r"2 times in a row .*max_engine_restarts is 1.*no memory"):
            await texts(stream)
        assert engine.state == "dead"
        with pytest.raises(EngineUnavailableError, match="no memory"):
            await engine.wait_ready()
        with pytest.raises(EngineUnavailableError, match="not running"):
            engine.submit(request())
        assert await engine.drained(1)


async def test_an_engine_that_cannot_be_started_just_now_is_started_later(model: Path) -> None:
    recorder, scripted = Recorder(), ScriptedEngines(before_step=KilledInSteps(3))
    scripted.start_failures = [OSError(12, "Cannot allocate memory")]
    async with engine_on(model, scripted, observer=recorder) as engine:
        assert await texts(engine.submit(request(max_tokens=10))) == {0: "abcdefghij"}
    assert (recorder.restarts, scripted.num_engines) == (2, 2)


async def test_without_restarts_the_first_end_is_the_last(model: Path) -> None:
    scripted = ScriptedEngines(before_step=KilledInSteps(3))
    recorder = Recorder()
    async with engine_on(model, scripted, observer=recorder, max_engine_restarts=0) as engine:
        with pytest.raises(EngineUnavailableError, match="the engine thread ended"):
            await texts(engine.submit(request(max_tokens=10)))
        assert engine.state == "dead"
    assert (recorder.restarts, scripted.num_engines) == (0, 1)


# --- the sizes ------------------------------------------------------------------------------------------


async def test_the_next_engine_is_told_the_sizes_of_the_first(model: Path) -> None:
    sizes: dict[str, Any] = {"max_model_len": 100, "max_num_seqs": 3, "max_num_batched_tokens": 50, "block_size": 4}
    states: dict[str, Any] = {"state_bytes": 50, "num_state_snapshots": 3}
    scripted = ScriptedEngines(before_step=KilledInSteps(2), kv_cache_bytes=12345, num_kv_blocks=77, **sizes, **states)
    async with engine_on(model, scripted) as engine:
        await texts(engine.submit(request(max_tokens=3)))
    first, second = scripted.configs
    assert (first.max_num_seqs, first.kv_cache_memory) == (None, None)
    assert {name: getattr(second, name) for name in sizes} == sizes
    assert (second.kv_cache_memory, second.state_cache_memory) == (12345, 150)


async def test_how_long_it_took_to_load_makes_no_difference(model: Path) -> None:
    scripted = ScriptedEngines(before_step=KilledInSteps(2))
    scripted.later_info = {"load_time_s": 99.0}
    async with engine_on(model, scripted) as engine:
        assert await texts(engine.submit(request(max_tokens=3))) == {0: "abc"}


async def test_an_engine_that_is_not_like_the_first_ends_everything(model: Path) -> None:
    scripted = ScriptedEngines(before_step=KilledInSteps(2))
    scripted.later_info = {"dtype": "bfloat16"}
    async with engine_on(model, scripted) as engine:
        with pytest.raises(EngineUnavailableError, match="dtype is 'bfloat16' instead of 'float32'"):
            await texts(engine.submit(request(max_tokens=3)))
        with pytest.raises(ModelLoadError, match="dtype"):
            await engine.wait_ready()


# --- engines that are stuck -----------------------------------------------------------------------------


@pytest.fixture
def fast_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that happens once a second happens a hundred times a second."""
    monkeypatch.setattr("orcinus.engine.supervision.supervisor.TICK_S", 0.01)
    monkeypatch.setattr("orcinus.engine.supervision.liveness.TICK_S", 0.01)
    monkeypatch.setattr("orcinus.engine.supervision.engine_process.HEARTBEAT_S", 0.01)


class HangsOnce:
    """The step of this number does not end before its engine is killed."""

    def __init__(self, step: int) -> None:
        self.scripted: ScriptedEngines | None = None
        self._num_left = step

    def __call__(self, plan: StepPlan) -> None:
        self._num_left -= 1
        if self._num_left == 0:
            assert self.scripted is not None
            assert self.scripted.killed.wait(30), "nobody noticed"
            raise Killed


@pytest.mark.usefixtures("fast_clocks")
async def test_an_engine_whose_step_does_not_end_is_replaced_and_that_is_its_own_fault(
    model: Path, ends: list[EngineEnd]
) -> None:
    hangs = HangsOnce(3)
    hangs.scripted = scripted = ScriptedEngines(before_step=hangs)
    async with engine_on(model, scripted, step_timeout_s=1.0) as engine:
        assert await texts(engine.submit(request(max_tokens=6))) == {0: "abcdef"}
    assert scripted.killed.is_set()
    assert scripted.num_engines == 2
    assert [end.was_killed for end in ends] == [False]


@pytest.mark.usefixtures("fast_clocks")
async def test_an_engine_without_signs_of_life_is_replaced_and_may_have_been_stopped_from_outside(
    model: Path, monkeypatch: pytest.MonkeyPatch, ends: list[EngineEnd]
) -> None:
    monkeypatch.setattr("orcinus.engine.supervision.engine_process.HEARTBEAT_S", 60.0)
    monkeypatch.setattr("orcinus.engine.supervision.liveness.SILENCE_S", 0.3)
    hangs = HangsOnce(3)
    hangs.scripted = scripted = ScriptedEngines(before_step=hangs)
    async with engine_on(model, scripted, step_timeout_s=0) as engine:
        assert await texts(engine.submit(request(max_tokens=6))) == {0: "abcdef"}
    assert scripted.num_engines == 2
    assert [end.was_killed for end in ends] == [True]


@pytest.mark.usefixtures("fast_clocks")
async def test_an_idle_engine_says_again_and_again_that_it_lives_and_is_in_no_step(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalls: list[float] = []
    on_message = LivenessMonitor.on_message

    def noted(monitor: LivenessMonitor, message: FromEngine) -> None:
        on_message(monitor, message)
        if isinstance(message, Alive):
            stalls.append(message.stalled_s)

    monkeypatch.setattr(LivenessMonitor, "on_message", noted)
    scripted, recorder = ScriptedEngines(), Recorder()
    async with engine_on(model, scripted, step_timeout_s=0, observer=recorder):
        await until(lambda: recorder.steps > 100 and len(stalls) > 100)
    assert stalls.count(0) > 10
    assert scripted.num_engines == 1
