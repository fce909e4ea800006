"""AsyncEngine tells a listener what is in the slots of its engines, through all of their lives."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from orcinus.engine.frontend.async_engine import AsyncEngine
from orcinus.engine.frontend.replica import EngineReplica
from orcinus.engine.messages import SlotReport, StepOutputs, StepStarted
from tests.unit.engine.fakes import fake_settings, write_byte_tokenizer
from tests.unit.engine.frontend.test_async_engine import Gate, request, texts, until
from tests.unit.engine.frontend.test_engine_ends import KilledInSteps, ScriptedEngines, engine_on


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "orcinus.engine")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_byte_tokenizer(tmp_path / "model")


@pytest.fixture
def arrived(monkeypatch: pytest.MonkeyPatch) -> list[StepOutputs]:
    """Return what engines have sent of their steps."""
    arrived: list[StepOutputs] = []
    on_message = EngineReplica.on_message

    def noted(replica: EngineReplica, message: StepOutputs | StepStarted) -> None:
        if isinstance(message, StepOutputs):
            arrived.append(message)
        on_message(replica, message)

    monkeypatch.setattr(EngineReplica, "on_message", noted)
    return arrived


class Listener:
    """Notes what it is told, and whose the requests are that come."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, SlotReport]] = []
        self.clients: list[str | None] = []

    def __call__(self, engine: int, report: SlotReport, client_of: Callable[[str], str | None]) -> None:
        self.reports.append((engine, report))
        self.clients += [client_of(move.request_id) for move in report.moves if move.kind == "came"]

    @property
    def engines(self) -> set[int]:
        return {engine for engine, report in self.reports if report.moves}

    def kinds(self) -> list[str]:
        return [move.kind for _, report in self.reports for move in report.moves]


async def test_while_nobody_listens_engines_send_nothing_about_slots(model: Path, arrived: list[StepOutputs]) -> None:
    async with engine_on(model, ScriptedEngines()) as engine:
        await texts(engine.submit(request(max_tokens=20)))
        assert len(arrived) >= 20
        assert not [message for message in arrived if message.slots is not None]


async def test_a_listener_is_told_of_all_at_first_and_nothing_after_it_has_left(
    model: Path, arrived: list[StepOutputs]
) -> None:
    gate = Gate(free_steps=3)
    listener = Listener()
    async with engine_on(model, ScriptedEngines(before_step=gate)) as engine:
        stream = engine.submit(request(max_tokens=20, client="somebody"))
        await until(lambda: engine.num_running == 1)
        engine.watch_slots(listener)
        gate.open()
        await texts(stream)
        await until(lambda: "left" in listener.kinds())
        assert listener.reports[0][1].is_whole
        assert listener.kinds() == ["came", "decodes", "left"]
        assert listener.clients == ["somebody"]
        engine.watch_slots(None)
        num_reports = len(listener.reports)
        await texts(engine.submit(request(max_tokens=5)))
        await texts(engine.submit(request(max_tokens=20)))
        assert len(listener.reports) == num_reports
        assert not [message for message in arrived[-20:] if message.slots is not None]


async def test_a_listener_hears_that_an_engine_has_ended_and_goes_on_with_the_next_one(model: Path) -> None:
    listener = Listener()
    async with engine_on(model, ScriptedEngines(before_step=KilledInSteps(5))) as engine:
        engine.watch_slots(listener)
        await texts(engine.submit(request(max_tokens=20)))
        await until(lambda: listener.kinds().count("left") == 1)
        assert [engine for engine, report in listener.reports if report.is_whole and not report.moves]


async def test_a_listener_hears_all_engines_and_who_has_what(model: Path) -> None:
    gates = [Gate(), Gate()]
    listener = Listener()
    async with engine_on(model, *(ScriptedEngines(before_step=gate) for gate in gates)) as engine:
        engine.watch_slots(listener)
        streams = [engine.submit(request(max_tokens=3, n=2, client=name)) for name in ("one", "two")]
        assert engine.clients() == {"one": 2, "two": 2}
        for gate in gates:
            gate.open()
        for stream in streams:
            await texts(stream)
        await until(lambda: listener.kinds().count("left") == 4)
        assert listener.engines == {0, 1}
        assert engine.clients() == {}


async def test_an_engine_that_is_closed_is_told_of(model: Path) -> None:
    listener = Listener()
    async with engine_on(model, ScriptedEngines()) as engine:
        engine.watch_slots(listener)
        await until(lambda: bool(listener.reports))
        listener.reports.clear()
    assert [report.is_whole for _, report in listener.reports][-1:] == [True]


def test_there_is_a_way_to_watch_before_the_model_is_loaded(model: Path) -> None:
    engine = AsyncEngine(fake_settings(model))
    engine.watch_slots(Listener())
    engine.watch_slots(None)
