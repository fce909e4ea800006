"""AsyncEngine over a fake model: the real core, transport and text side around a function that makes tokens."""

import asyncio
import gc
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest

from orcinus.engine.core import EngineCore
from orcinus.engine.errors import (
    ContextLengthError,
    DrainingError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelLoadError,
    QueueFullError,
    RequestFailedError,
    RequestTimeoutError,
)
from orcinus.engine.frontend.async_engine import AsyncEngine
from orcinus.engine.frontend.observer import EngineObserver
from orcinus.engine.frontend.output_buffer import FULL_LOGPROBS
from orcinus.engine.frontend.replica import EngineSpec
from orcinus.engine.messages import StepPlan, StepStats
from orcinus.engine.outputs import GenerationRequest, Outcome, RequestOutput
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.supervision.engine_process import BuildExecutor
from orcinus.engine.supervision.transport import InProcessTransport
from tests.unit.engine.fakes import (
    FakeExecutor,
    NextToken,
    alphabet,
    builds,
    fake_config,
    fake_settings,
    says,
    write_byte_tokenizer,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_byte_tokenizer(tmp_path / "model")


@asynccontextmanager
async def engine_with(
    model: Path,
    build: BuildExecutor,
    *,
    max_queue_len: int = 8,
    max_engine_restarts: int = 5,
    observer: Any = None,
    **config: Any,
) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(
        fake_settings(model, max_queue_len=max_queue_len, max_engine_restarts=max_engine_restarts),
        engines=[EngineSpec(fake_config(model, **config), lambda: InProcessTransport(build))],
        observer=observer,
    )
    engine.start()
    running = asyncio.create_task(engine.run())
    try:
        await engine.wait_ready()
        yield engine
    finally:
        await engine.aclose()
        await running


class Gate:
    """Holds the fake model before each step after the first `free_steps`, until the test lets it go."""

    def __init__(self, free_steps: int = 0) -> None:
        self._free_steps = free_steps
        self._open = threading.Event()
        self.plans: list[StepPlan] = []

    def __call__(self, plan: StepPlan) -> None:
        self.plans.append(plan)
        if len(self.plans) > self._free_steps:
            assert self._open.wait(30), "the test never opened the gate"

    def open(self) -> None:
        self._open.set()


class Recorder(EngineObserver):
    def __init__(self) -> None:
        self.steps = 0
        self.first_tokens = 0
        self.next_tokens = 0
        self.restarts = self.resumed = self.quarantined = 0
        self.done: list[tuple[Outcome, int, int]] = []

    def on_step(self, stats: StepStats) -> None:
        self.steps += 1

    def on_first_output(self, queue_time_s: float) -> None:
        assert queue_time_s >= 0

    def on_first_token(self, ttft_s: float) -> None:
        assert ttft_s >= 0
        self.first_tokens += 1

    def on_next_tokens(self, interval_s: float, num_tokens: int) -> None:
        assert interval_s >= 0
        self.next_tokens += num_tokens

    def on_choice_done(self, outcome: Outcome, e2e_s: float, num_prompt_tokens: int, num_output_tokens: int) -> None:
        self.done.append((outcome, num_prompt_tokens, num_output_tokens))

    def on_restart(self) -> None:
        self.restarts += 1

    def on_resumed(self, num_choices: int) -> None:
        self.resumed += num_choices

    def on_quarantined(self) -> None:
        self.quarantined += 1


def request(prompt: str = "hi", *, prompts: list[list[int]] | None = None, **options: Any) -> GenerationRequest:
    sampling = {key: options.pop(key) for key in list(options) if key in SamplingParams.__struct_fields__}
    return GenerationRequest(
        request_id="test",
        prompts=prompts if prompts is not None else [list(prompt.encode())],
        sampling=SamplingParams(**sampling),
        **options,
    )


async def texts(stream: AsyncIterator[RequestOutput]) -> dict[int, str]:
    result: dict[int, str] = {}
    async for output in stream:
        result[output.index] = result.get(output.index, "") + output.text
    return result


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (any of many things may make it true)
            await asyncio.sleep(0)


def running(next_token: NextToken = alphabet, **options: Any) -> FakeExecutor:
    return FakeExecutor(next_token, **options)


async def test_stream_gives_the_text_and_then_ends(model: Path) -> None:
    async with engine_with(model, builds(running(says("Grüße 🐋")))) as engine:
        outputs = [output async for output in engine.submit(request(max_tokens=50))]
    assert "".join(output.text for output in outputs) == "Grüße 🐋"
    assert [output.finish_reason for output in outputs if output.finish_reason] == ["stop"]
    assert sum(len(output.token_ids) for output in outputs) == len("Grüße 🐋".encode()) + 1
    assert outputs[0].num_cached_tokens == 0
    assert outputs[0].queue_time_s is not None


async def test_choices_are_numbered_prompt_by_prompt(model: Path) -> None:
    def two_letters(prompt: Any, output: Any) -> int:
        return int(prompt[0]) + len(output)

    async with engine_with(model, builds(running(two_letters))) as engine:
        stream = engine.submit(request(prompts=[[65], [75, 75]], n=2, max_tokens=2))
        assert await texts(stream) == {0: "AB", 1: "AB", 2: "KL", 3: "KL"}
        assert stream.num_prompt_tokens == [1, 2]


async def test_more_choices_than_slots_all_complete(model: Path) -> None:
    async with engine_with(model, builds(running(), max_num_seqs=2), max_queue_len=30) as engine:
        streams = [engine.submit(request(max_tokens=n)) for n in range(1, 21)]
        results = await asyncio.gather(*(texts(stream) for stream in streams))
        assert [len(result[0]) for result in results] == list(range(1, 21))
        assert engine.num_queued == engine.num_running == 0


async def test_omitted_max_tokens_is_the_rest_of_the_context(model: Path) -> None:
    async with engine_with(model, builds(running(), max_model_len=20)) as engine:
        outputs = [output async for output in engine.submit(request("12345", max_tokens=None))]
    assert sum(len(output.token_ids) for output in outputs) == 15
    assert outputs[-1].finish_reason == "length"


async def test_samples_have_seeds_of_their_own_and_the_first_has_the_one_asked_for(model: Path) -> None:
    executor = running()
    async with engine_with(model, builds(executor)) as engine:
        await texts(engine.submit(request(n=3, seed=7, max_tokens=1)))
        await texts(engine.submit(request(n=3, seed=7, max_tokens=1)))
        await texts(engine.submit(request(n=2, max_tokens=1)))
    seeds = seeds_of(executor)
    assert seeds[0] == 7
    assert seeds[:3] == seeds[3:6]
    assert len(set(seeds[:3])) == 3
    assert len(set(seeds[6:])) == 2


@pytest.mark.parametrize(("seed", "is_repeatable"), [(3, True), (None, False)])
async def test_engines_with_a_seed_give_the_same_seeds_in_order_of_arrival(
    model: Path, seed: int | None, is_repeatable: bool
) -> None:
    runs = []
    for _ in range(2):
        executor = running()
        async with engine_with(model, builds(executor), seed=seed) as engine:
            await texts(engine.submit(request(max_tokens=1)))
            await texts(engine.submit(request(n=2, max_tokens=1)))
        runs.append(seeds_of(executor))
    assert len(set(runs[0])) == 3
    assert (runs[0] == runs[1]) is is_repeatable


def seeds_of(executor: FakeExecutor) -> list[int | None]:
    return [new.sampling.seed for plan in executor.plans for new in plan.new_requests]


async def test_slow_reader_gets_what_it_missed_as_one_output(model: Path) -> None:
    async with engine_with(model, builds(running())) as engine:
        stream = engine.submit(request(max_tokens=30, logprobs=1))
        assert await engine.drained(10)
        outputs = [output async for output in stream]
    assert len(outputs) == 1
    assert outputs[0].text == "abcdefghijklmnopqrstuvwxyzabcd"
    assert len(outputs[0].logprobs or []) == len(outputs[0].token_ids) == 30
    assert outputs[0].finish_reason == "length"


async def test_a_slow_reader_gets_log_probabilities_in_outputs_of_bounded_size(model: Path) -> None:
    async with engine_with(model, builds(running())) as engine:
        stream = engine.submit(request(max_tokens=200, logprobs=20, n=2))
        assert await engine.drained(10)
        outputs = [output async for output in stream]
    assert len(outputs) > 4
    assert all(len(output.logprobs or []) * 21 < FULL_LOGPROBS + 21 for output in outputs)
    for index in range(2):
        of_choice = [output for output in outputs if output.index == index]
        assert "".join(output.text for output in of_choice) == (ascii_lowercase * 8)[:200]
        entries = [entry.token_id for output in of_choice for entry in output.logprobs or []]
        assert entries == [token_id for output in of_choice for token_id in output.token_ids]
        assert [output.finish_reason for output in of_choice[-2:]] == [None, "length"]


async def test_stop_string_ends_the_request_in_the_engine_too(model: Path) -> None:
    gate, recorder = Gate(free_steps=10), Recorder()
    async with engine_with(model, builds(running(before_step=gate)), observer=recorder) as engine:
        stream = engine.submit(request(max_tokens=200, stop=("fgh",)))
        outputs = [output async for output in stream]
        await all_slots_free(engine, gate)
    assert "".join(output.text for output in outputs) == "abcde"
    assert outputs[-1].stop_reason == "fgh"
    assert sum(len(output.token_ids) for output in outputs) == 8
    assert recorder.done == [("stop", 2, 8)]
    assert len(gate.plans) <= 12


async def test_prompt_logprobs_come_once_and_without_tokens_if_none_are_wanted(model: Path) -> None:
    async with engine_with(model, builds(running())) as engine:
        (output,) = [o async for o in engine.submit(request("abc", max_tokens=0, prompt_logprobs=1))]
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [entry.token_id for entry in output.prompt_logprobs[1:] if entry] == [98, 99]
    assert (output.token_ids, output.finish_reason) == ([], "length")


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (request(prompts=[]), "at least one prompt"),
        (request(prompts=[[1], []]), "empty"),
        (request(prompts=[[5, 259]]), "token id 259"),
        (request(prompts=[[-1]]), "token id -1"),
        (request(logit_bias={300: 1.0}), "logit_bias"),
        (request(n=13), "at most 12 choices"),
    ],
)
async def test_what_can_never_be_served_is_refused(model: Path, bad: GenerationRequest, words: str) -> None:
    recorder = Recorder()
    async with engine_with(model, builds(running()), observer=recorder) as engine:
        with pytest.raises(InvalidRequestError, match=words):
            engine.submit(bad)
    assert recorder.done == []


@pytest.mark.parametrize(
    ("length", "max_tokens", "numbers"),
    [(10, 11, ("20", "21")), (20, None, ("20",)), (21, 0, ("20", "21")), (25, 1, ("20", "26"))],
)
async def test_context_overflow_is_refused_with_both_numbers(
    model: Path, length: int, max_tokens: int | None, numbers: tuple[str, ...]
) -> None:
    async with engine_with(model, builds(running(), max_model_len=20)) as engine:
        with pytest.raises(ContextLengthError) as caught:
            engine.submit(request("x" * length, max_tokens=max_tokens))
    assert all(number in str(caught.value) for number in numbers)


async def test_prompt_that_fills_the_context_can_be_scored(model: Path) -> None:
    async with engine_with(model, builds(running(), max_model_len=20)) as engine:
        outputs = [o async for o in engine.submit(request("x" * 20, max_tokens=0, prompt_logprobs=0))]
    assert len(outputs[0].prompt_logprobs or []) == 20


async def test_full_queue_refuses_at_once_and_each_choice_needs_a_place(model: Path) -> None:
    gate = Gate()
    recorder = Recorder()
    build = builds(running(before_step=gate), max_num_seqs=2)
    async with engine_with(model, build, max_queue_len=3, observer=recorder) as engine:
        streams = [engine.submit(request(n=4, max_tokens=1))]
        with pytest.raises(QueueFullError) as caught:
            engine.submit(request(n=2))
        assert 1 <= caught.value.retry_after_s <= 120
        streams.append(engine.submit(request(max_tokens=1)))
        assert engine.num_queued + engine.num_running == 5
        gate.open()
        for stream in streams:
            await texts(stream)
        await texts(engine.submit(request(n=5, max_tokens=1)))
    assert [outcome for outcome, *_ in recorder.done] == ["length"] * 10


async def test_nothing_is_admitted_while_loading_draining_or_dead(model: Path) -> None:
    loading = AsyncEngine(fake_settings(model))
    with pytest.raises(EngineUnavailableError, match="loading"):
        loading.submit(request())
    with pytest.raises(EngineUnavailableError, match="loading"):
        _ = loading.tokenizer
    async with engine_with(model, builds(running())) as engine:
        stream = engine.submit(request(max_tokens=5))
        engine.start_draining()
        with pytest.raises(DrainingError, match="takes no new requests"):
            engine.submit(request())
        assert await texts(stream) == {0: "abcde"}
        assert await engine.drained(5)
    with pytest.raises(EngineUnavailableError, match="not running: the server is shutting down"):
        engine.submit(request())


# --- leaving early --------------------------------------------------------------------------------------


async def all_slots_free(engine: AsyncEngine, gate: Gate) -> None:
    gate.open()
    await until(lambda: engine.stats.num_running == 0 and engine.num_running == engine.num_queued == 0)


async def test_leaving_the_stream_aborts(model: Path) -> None:
    gate, recorder = Gate(), Recorder()
    async with engine_with(model, builds(running(before_step=gate)), observer=recorder) as engine:
        async with engine.submit(request(n=2, max_tokens=200)) as stream:
            pass
        assert await texts(stream) == {}
        stream.abort()
        await all_slots_free(engine, gate)
    assert [outcome for outcome, *_ in recorder.done] == ["abort", "abort"]
    assert len(gate.plans) <= 2, "the engine was not told"


async def test_cancelled_reader_aborts(model: Path) -> None:
    gate, recorder = Gate(), Recorder()
    async with engine_with(model, builds(running(before_step=gate)), observer=recorder) as engine:

        async def read() -> None:
            async with engine.submit(request(max_tokens=200)) as stream:
                await texts(stream)

        reader = asyncio.create_task(read())
        await until(lambda: engine.num_queued + engine.num_running == 1)
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader
        assert recorder.done == [("abort", 2, 0)]
        await all_slots_free(engine, gate)


async def test_dropped_stream_aborts(model: Path) -> None:
    gate, recorder = Gate(), Recorder()
    async with engine_with(model, builds(running(before_step=gate)), observer=recorder) as engine:
        stream = engine.submit(request(max_tokens=200))
        del stream
        gc.collect()
        await until(lambda: recorder.done == [("abort", 2, 0)])
        await all_slots_free(engine, gate)


async def test_stream_dropped_in_another_thread_is_aborted_on_the_loop(model: Path) -> None:
    class Threads(Recorder):
        """Notes where choices end."""

        def __init__(self) -> None:
            super().__init__()
            self.ends: list[int] = []

        def on_choice_done(self, *details: Any) -> None:
            super().on_choice_done(*details)
            self.ends.append(threading.get_ident())

    gate, recorder = Gate(), Threads()
    async with engine_with(model, builds(running(before_step=gate)), observer=recorder) as engine:
        held = [engine.submit(request(max_tokens=200))]
        await asyncio.to_thread(held.clear)
        await until(lambda: recorder.ends == [threading.get_ident()])
        await all_slots_free(engine, gate)


async def test_waiting_for_the_next_output_may_be_cancelled_and_tried_again(model: Path) -> None:
    gate = Gate()
    async with engine_with(model, builds(running(says("ok"), before_step=gate))) as engine:
        stream = engine.submit(request())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        gate.open()
        assert await texts(stream) == {0: "ok"}


async def test_deadline_ends_running_and_queued_choices_with_an_error(model: Path) -> None:
    gate, recorder = Gate(), Recorder()
    build = builds(running(before_step=gate), max_num_seqs=1)
    async with engine_with(model, build, observer=recorder) as engine:
        streams = [engine.submit(request(max_tokens=200, timeout_s=0.05)) for _ in range(2)]
        for stream in streams:
            with pytest.raises(RequestTimeoutError, match=r"0\.05 s"):
                await texts(stream)
        await all_slots_free(engine, gate)
    assert [outcome for outcome, *_ in recorder.done] == ["timeout", "timeout"]
    assert len(gate.plans) <= 2, "the engine was not told"


async def test_finished_request_does_not_time_out_later(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_at = loop.call_at

    def noted(when: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        timer = call_at(when, *args, **kwargs)
        if when - loop.time() > 1800:
            timers.append(timer)
        return timer

    monkeypatch.setattr(loop, "call_at", noted)  # call_later goes through it
    async with engine_with(model, builds(running())) as engine:
        stream = engine.submit(request(max_tokens=1, timeout_s=3600))
        assert await engine.drained(60)
        assert [timer.cancelled() for timer in timers] == [True]
        assert await texts(stream) == {0: "a"}


# --- faults ---------------------------------------------------------------------------------------------


async def test_a_request_whose_steps_fail_is_failed_and_the_engine_goes_on(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(plan: StepPlan) -> None:
        if any(bytes(new.token_ids[:3]) == b"bad" for new in plan.new_requests):
            raise RuntimeError("kernel fault")

    recorder = Recorder()
    async with engine_with(model, builds(running(before_step=fail)), observer=recorder) as engine:
        with caplog.at_level(logging.CRITICAL, "orcinus.engine.core"):
            bad, good = engine.submit(request("bad", n=2)), engine.submit(request(max_tokens=3))
            with pytest.raises(RequestFailedError, match="RuntimeError"):
                await texts(bad)
            assert await texts(good) == {0: "abc"}
        assert engine.state == "ready"
    assert sorted(outcome for outcome, *_ in recorder.done) == ["error", "error", "length"]
    assert recorder.restarts == 0


async def test_dead_engine_fails_every_waiter(
    model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(core: EngineCore) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(EngineCore, "step", fail)
    async with engine_with(model, builds(running()), max_engine_restarts=0) as engine:
        with caplog.at_level(logging.CRITICAL, "orcinus.engine.supervision.engine_process"):
            streams = [engine.submit(request()) for _ in range(3)]
            for stream in streams:
                with pytest.raises(EngineUnavailableError, match="the engine failed: RuntimeError"):
                    await texts(stream)
        assert engine.state == "dead"
        with pytest.raises(EngineUnavailableError):
            await engine.wait_ready()
        assert await engine.drained(1)


async def test_model_that_cannot_be_loaded_is_reported_to_who_waits(model: Path) -> None:
    def build(config: Any) -> Any:
        raise ModelLoadError("no such architecture")

    with pytest.raises(ModelLoadError, match="no such architecture"):
        async with engine_with(model, build):
            pass


async def test_tokenizer_that_cannot_be_loaded_is_reported_to_who_waits(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    with pytest.raises(ModelLoadError, match="tokenizer"):
        async with engine_with(tmp_path, builds(running())):
            pass


async def test_closing_fails_what_is_in_flight(model: Path) -> None:
    gate = Gate()
    async with engine_with(model, builds(running(before_step=gate))) as engine:
        stream = engine.submit(request())
        closing = asyncio.create_task(engine.aclose())
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            await texts(stream)
        gate.open()
        await closing


# --- watching -------------------------------------------------------------------------------------------


async def test_observer_counts_what_the_reader_saw(model: Path) -> None:
    recorder = Recorder()
    async with engine_with(model, builds(running()), observer=recorder) as engine:
        outputs = [o async for o in engine.submit(request("abc", n=3, max_tokens=5))]
    num_tokens = sum(len(output.token_ids) for output in outputs)
    assert recorder.first_tokens == 3
    assert recorder.first_tokens + recorder.next_tokens == num_tokens == 15
    assert sorted(recorder.done) == [("length", 0, 5), ("length", 0, 5), ("length", 3, 5)]
    assert recorder.steps >= 5


async def test_random_traffic_leaves_nothing_behind_and_counts_agree(model: Path) -> None:
    """Readers that finish, stop early, time out or leave, over few slots."""
    chance, recorder = random.Random(1), Recorder()

    async def client(engine: AsyncEngine) -> int:
        """Returns the tokens it saw if it read to the end, else -1."""
        asked = request(
            "x" * chance.randint(1, 40),
            n=chance.randint(1, 3),
            max_tokens=chance.randint(1, 60),
            stop=chance.choice([(), ("gh",), ("abc", "zz")]),
            timeout_s=chance.choice([None, None, 0.002]),
        )
        patience, seen = chance.choice([1000, 1000, 0, 5]), 0
        with suppress(RequestTimeoutError):
            async with engine.submit(asked) as stream:
                async for output in stream:
                    seen += len(output.token_ids)
                    if (patience := patience - 1) < 0:
                        return -1
                return seen
        return -1

    build = builds(running(), max_num_seqs=3, num_kv_blocks=24)
    async with engine_with(model, build, max_queue_len=1000, observer=recorder) as engine:
        seen = await asyncio.gather(*(client(engine) for _ in range(150)))
        assert await engine.drained(10)
        await until(lambda: engine.stats.num_running == engine.stats.num_waiting == 0)
        assert engine.stats.num_kv_blocks_used == 0
    outcomes = [outcome for outcome, *_ in recorder.done]
    assert {"stop", "length", "abort", "timeout"} == set(outcomes)
    assert sum(count for count in seen if count > 0) <= sum(tokens for _, _, tokens in recorder.done)
    assert sum(tokens for _, _, tokens in recorder.done) == recorder.first_tokens + recorder.next_tokens


async def test_long_texts_are_encoded_as_short_ones_are(model: Path) -> None:
    async with engine_with(model, builds(running())) as engine:
        assert await engine.encode("hi") == [104, 105]
        assert await engine.encode("x" * 10_000) == [120] * 10_000
        for content in ("hi", "x" * 10_000):
            messages = [{"role": "user", "content": content}]
            ids = await engine.render_and_encode(messages)
            assert engine.tokenizer.decode(ids, skip_special_tokens=False) == engine.tokenizer.render_chat(messages)
