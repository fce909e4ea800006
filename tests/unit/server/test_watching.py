"""What watchers are told: events of one schema, small and complete however much happens between them."""

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from starlette.exceptions import HTTPException

from orcinus.config.api_keys import key_name
from orcinus.config.engine_config import EngineConfig
from orcinus.config.settings import load_settings
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.frontend.async_engine import AsyncEngine
from orcinus.engine.frontend.replica import EngineReplica, EngineSpec
from orcinus.engine.messages import SlotMove, SlotReport, StepOutputs, StepStats
from orcinus.engine.supervision.transport import InProcessTransport
from orcinus.server.app import create_app
from orcinus.server.watching.board import MAX_NAMES, MAX_SLOTS, ClientNames, SlotBoard
from orcinus.server.watching.fields import EVENT_FIELDS, event_schema
from orcinus.server.watching.watch import MAX_MOVES, MAX_WATCHERS, Watch, Watcher
from tests.unit.engine.fakes import FakeExecutor, alphabet, fake_config, write_byte_tokenizer
from tests.unit.server.serving import Gate, Serving, generation_request, serving, until


def watch_of(served: Serving) -> Watch:
    watch: Watch = served.app.state.watch
    return watch


def came(slot: int, name: str, at_s: float = 1.0) -> SlotMove:
    return SlotMove(slot, at_s, "came", f"cmpl-{name:0>6}.{slot}", 20)


def report(moves: Sequence[SlotMove], num_taken: int = 0, *, is_whole: bool = False) -> SlotReport:
    return SlotReport([*moves], is_whole, [1000] * num_taken, [16] * num_taken)


class Shown:
    """What one who reads the events takes to be in the slots."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[str, bool]] = {}

    def take_in(self, event: dict[str, Any]) -> None:
        jsonschema.validate(json.loads(msgspec.json.encode(event)), event_schema())
        for slot, kind, _, *rest in event["moves"]:
            match kind:
                case "came":
                    self.slots[slot] = (rest[0], False)
                case "decodes":
                    self.slots[slot] = (self.slots[slot][0], True)
                case "left":
                    self.slots.pop(slot, None)


def board_shows(board: SlotBoard) -> dict[int, tuple[str, bool]]:
    stays = enumerate(board.stays)
    return {slot: (stay.came.id, stay.decodes is not None) for slot, stay in stays if stay is not None}


def apply(watcher: Watcher, moves: SlotReport, engine: int = 0) -> None:
    watcher._board.apply(engine, range(engine * 100, engine * 100 + MAX_SLOTS), moves, lambda request_id: None)


# --- events ---------------------------------------------------------------------------------------------


async def test_an_event_has_the_fields_of_the_schema_and_its_numbers_are_those_of_the_metrics(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(alphabet)) as served:
        shown = Shown()
        with watch_of(served).open() as watcher:
            first = watcher.event()
            shown.take_in(first)
            assert set(first) == {field.name for field in EVENT_FIELDS}
            assert first["server"]["num_slots"] == first["server"]["num_shown_slots"] == 4
            await served.complete("ab", max_tokens=9)
            await until(lambda: watcher._board.num_moves == 3)
            event = watcher.event()
            shown.take_in(event)
        assert set(event) == {field.name for field in EVENT_FIELDS if field.is_always}
        assert [move[1] for move in event["moves"]] == ["came", "decodes", "left"]
        assert (event["tokens"], event["prefill_tokens"], event["steps"]) == (9, 2, 9)
        assert event["ttft_ms"] > 0
        assert event["itl_ms"] > 0
        assert [(decodes, prompt) for _, decodes, prompt in event["step_times"]] == [(0, 2)] + [(1, 0)] * 8
        assert shown.slots == {}


async def test_a_watcher_that_comes_later_is_told_who_is_there(tmp_path: Path) -> None:
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(alphabet, before_step=gate)) as served:
        stream = served.engine.submit(generation_request("answer-123456", 2))
        with watch_of(served).open() as early:
            gate.let(2)
            await until(lambda: early._board.num_moves >= 2)
            with watch_of(served).open() as late:
                event = late.event()
                assert [move[3] for move in event["moves"] if move[1] == "came"] == ["123456"] * 2
                assert event["by_key"] == [(None, 2)]
            gate.open()
            stream.abort()


async def test_ids_are_cut_and_keys_are_numbered(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(alphabet), api_key=("secret-one", "secret-two")) as served:
        with watch_of(served).open() as watcher:
            for key in ("secret-one", "secret-two"):
                headers = {"authorization": f"Bearer {key}"}
                body = {"prompt": "a", "max_tokens": 30}
                answer = await served.client.post("/v1/completions", json=body, headers=headers)
                assert answer.status_code == 200
                await until(lambda: "left" in str(watcher._board._moves))
            text = msgspec.json.encode(watcher.event()).decode()
            assert "secret" not in text
            for digest in (known.client for known in served.app.state.keys._keys):
                assert digest not in text


def test_clients_are_numbered_in_their_order_and_no_more_than_some_of_them() -> None:
    names = ClientNames(key_name)
    assert [names.number(client) for client in ("x", "y", "x", "", None)] == [0, 1, 0, None, None]
    assert names.names == ["key 1", "key 2"]
    for number in range(MAX_NAMES + 5):
        names.number(f"client {number}")
    assert len(names.names) == MAX_NAMES + 1
    assert names.number("one more") == MAX_NAMES
    assert names.names[MAX_NAMES] == "other keys"


# --- size and completeness ------------------------------------------------------------------------------


@pytest.fixture
async def watcher(tmp_path: Path) -> Any:
    async with serving(tmp_path) as served:
        with watch_of(served).open() as watcher:
            watcher.event()
            served.engine.watch_slots(None)  # here the test says what is reported
            yield watcher


async def test_an_event_is_a_few_kilobytes_with_256_slots_that_are_all_given_to_others(watcher: Watcher) -> None:
    shown = Shown()
    apply(watcher, report([], is_whole=True))
    for turn in range(5):
        moves = [came(slot, f"{turn}{slot:05}", 25_811.924 + turn) for slot in range(MAX_SLOTS)]
        moves += [SlotMove(slot, 25_811.924 + turn, "decodes") for slot in range(MAX_SLOTS)]
        apply(watcher, report(moves, MAX_SLOTS))
        watcher._watch.step_times.extend([(123.45, 256, 1000)] * 128)
        watcher._watch.num_steps += 128
        event = watcher.event()
        shown.take_in(event)
        assert len(event["moves"]) == MAX_MOVES
        assert len(msgspec.json.encode(event)) < 8 * 1024
    for _ in range(2 * MAX_SLOTS // MAX_MOVES):
        shown.take_in(watcher.event())
    assert shown.slots == board_shows(watcher._board)
    assert len(shown.slots) == MAX_SLOTS
    assert watcher.event()["moves"] == []


async def test_whatever_happens_between_events_their_reader_knows_who_is_there(watcher: Watcher) -> None:
    shown = Shown()
    apply(watcher, report([], is_whole=True))
    taken: dict[int, bool] = {}
    for turn in range(400):
        slot = turn * 7 % 30
        if slot in taken:
            del taken[slot]
            apply(watcher, report([SlotMove(slot, turn, "left")]))
        else:
            taken[slot] = True
            apply(watcher, report([came(slot, f"{turn}", turn), SlotMove(slot, turn, "decodes")]))
        if turn % 97 == 0 or turn > 380:
            shown.take_in(watcher.event())
    for _ in range(4):
        shown.take_in(watcher.event())
    assert shown.slots == board_shows(watcher._board)
    assert set(shown.slots) == set(taken)


async def test_no_slot_is_left_out_for_long_where_all_are_given_to_others_all_the_time(watcher: Watcher) -> None:
    apply(watcher, report([], is_whole=True))
    told: set[int] = set()
    for turn in range(2 * MAX_SLOTS // MAX_MOVES):
        moves = [came(slot, f"{turn}{slot:05}", turn) for slot in range(MAX_SLOTS)]
        apply(watcher, report([*moves, *[SlotMove(slot, turn, "decodes") for slot in range(MAX_SLOTS)]], MAX_SLOTS))
        told |= {move[0] for move in watcher.event()["moves"]}
    assert told == {*range(MAX_SLOTS)}


async def test_an_engine_that_has_ended_leaves_its_slots_and_the_other_keeps_its_own(watcher: Watcher) -> None:
    for engine in (0, 1):
        watcher._board.apply(engine, range(engine * 4, engine * 4 + 4), report([came(0, "a")], 1, is_whole=True), str)
    assert sorted(board_shows(watcher._board)) == [0, 4]
    watcher._board.apply(0, range(4), report([], is_whole=True), str)
    assert sorted(board_shows(watcher._board)) == [4]
    assert watcher._board.blocks == [0, 0, 0, 0, 16]


def test_a_board_takes_no_part_of_a_story_for_the_whole() -> None:
    board = SlotBoard(ClientNames(key_name))
    board.apply(0, range(4), report([came(0, "a")], 1), str)
    assert board_shows(board) == {}
    board.apply(0, range(4), report([came(1, "b")], 2, is_whole=True), str)
    assert board_shows(board) == {1: ("00000b", False)}


# --- who watches ----------------------------------------------------------------------------------------


async def test_nothing_is_sent_or_counted_for_watchers_while_there_are_none(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[StepOutputs] = []
    on_step = EngineReplica._on_step

    def noted(replica: EngineReplica, outputs: StepOutputs) -> None:
        arrived.append(outputs)
        on_step(replica, outputs)

    monkeypatch.setattr(EngineReplica, "_on_step", noted)
    watch = watch_of(served)
    await served.complete("ab", max_tokens=5)
    assert arrived
    assert not [outputs for outputs in arrived if outputs.slots is not None]
    assert watch.num_steps == 0
    assert served.app.state.metrics.step_listener is None
    with watch.open() as first, watch.open():
        await until(first.news.is_set)
        await served.complete("ab", max_tokens=5)
        assert watch.num_steps > 0
    num_steps = watch.num_steps
    await served.complete("ab", max_tokens=5)
    arrived.clear()
    await served.complete("ab", max_tokens=5)
    assert not [outputs for outputs in arrived if outputs.slots is not None]
    assert watch.num_steps == num_steps
    assert served.app.state.metrics.step_listener is None


async def test_one_watcher_too_many_is_refused_until_another_has_left(served: Serving) -> None:
    watch = watch_of(served)
    opened = [watch.open() for _ in range(MAX_WATCHERS)]
    for each in opened:
        each.__enter__()
    with pytest.raises(HTTPException, match=f"at most {MAX_WATCHERS} may watch at once") as refused:
        watch.open().__enter__()
    assert refused.value.status_code == 429
    opened.pop().__exit__(None, None, None)
    with watch.open():
        pass
    for each in opened:
        each.__exit__(None, None, None)


async def test_the_status_follows_the_engine_and_the_intake(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        watch = watch_of(served)
        assert watch.status == "ready"
        served.app.state.context.intake.close()
        assert watch.status == "draining"
        await served.engine.aclose()
        assert watch.status == "dead"
        assert watch.server()["model"] == "fake-model"


async def test_one_who_watches_an_engine_that_cannot_be_loaded_sees_it_end(tmp_path: Path) -> None:
    may_fail = threading.Event()

    def fail(config: EngineConfig) -> Any:
        assert may_fail.wait(30)
        raise ModelLoadError("there is no such model")

    settings = load_settings(model=str(write_byte_tokenizer(tmp_path / "fake-model")))
    engine = AsyncEngine(settings, engines=[EngineSpec(fake_config(tmp_path), lambda: InProcessTransport(fail))])
    engine.start()
    app = create_app(engine, settings)
    async with app.router.lifespan_context(app):
        watch: Watch = app.state.watch
        with watch.open() as watcher:
            assert watcher.event()["status"] == "loading"
            may_fail.set()
            await asyncio.wait_for(watcher.news.wait(), 30)
            assert watcher.event()["status"] == "dead"
        with pytest.raises(ModelLoadError):
            await engine.wait_ready()


async def test_steps_are_told_the_last_ones_where_there_were_many(watcher: Watcher) -> None:
    for number in range(150):
        watcher._watch._on_step(StepStats(step_time_s=number / 1000, num_decode_tokens=1))
    assert [step[0] for step in watcher.event()["step_times"]] == [*range(22, 150)]
    watcher._watch._on_step(StepStats(step_time_s=0.5, num_decode_tokens=1))
    assert watcher.event()["step_times"] == [(500.0, 1, 0)]
    await asyncio.sleep(0)
    assert watcher.event()["step_times"] == []
