"""What the engine tells of its slots while somebody watches, and that it tells nothing otherwise."""

import msgspec
import pytest

from orcinus.engine.messages import SlotMove, SlotReport, StepOutputs
from orcinus.engine.scheduler import slot_watch
from orcinus.engine.scheduler.slot_watch import MAX_SLOTS, REPORT_INTERVAL_S
from orcinus.engine.supervision.wire import encode_frame
from tests.unit.engine.scheduler.simulator import SimulatedEngine


def add(engine: SimulatedEngine, request_id: str, num_prompt_tokens: int, max_tokens: int) -> None:
    content = sum(request_id.encode())
    prompt = [1 + (content * 31 + i * 7) % 49 for i in range(num_prompt_tokens)]
    engine.add(request_id, prompt, max_tokens=max_tokens, ignore_eos=True)


def reported(engine: SimulatedEngine) -> SlotReport:
    """What is told with the next step, which comes late enough to tell something."""
    engine.clock.now += REPORT_INTERVAL_S
    slots = engine.step().slots
    assert slots is not None
    return slots


def told(moves: list[SlotMove]) -> list[tuple[int, str, str]]:
    return [(move.slot, move.kind, move.request_id) for move in moves]


def watched(**changes: object) -> SimulatedEngine:
    engine = SimulatedEngine(**changes)  # type: ignore[arg-type]
    engine.core.watch_slots(is_on=True)
    return engine


def test_nothing_is_computed_and_nothing_sent_while_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("something is computed for nobody")

    engine = SimulatedEngine()
    for method in ("note", "report"):
        monkeypatch.setattr(slot_watch.SlotWatch, method, fail)
    add(engine, "a", 5, 10)
    for _ in range(12):
        outputs = engine.step()
        assert outputs.slots is None
        assert encode_frame(outputs) == encode_frame(
            StepOutputs(deltas=outputs.deltas, stats=outputs.stats, ended_at=outputs.ended_at)
        )
        assert "slots" not in msgspec.to_builtins(outputs)
    assert engine.core.news().slots is None


def test_it_tells_nothing_any_more_after_the_last_watcher_has_left() -> None:
    engine = watched()
    add(engine, "a", 5, 10)
    assert reported(engine).is_whole
    engine.core.watch_slots(is_on=False)
    assert all(engine.step().slots is None for _ in range(5))


def test_a_request_comes_decodes_and_leaves_and_the_next_one_gets_its_slot() -> None:
    engine = watched(max_num_seqs=2)
    add(engine, "short", 3, 2)
    add(engine, "long", 3, 9)
    add(engine, "next", 3, 9)
    first = reported(engine)
    assert first.is_whole
    assert told(first.moves) == [(0, "came", "short"), (0, "decodes", ""), (1, "came", "long"), (1, "decodes", "")]
    assert [move.num_prefill_tokens for move in first.moves if move.kind == "came"] == [3, 3]
    second = reported(engine)
    assert not second.is_whole
    assert told(second.moves) == [(0, "left", "")]
    third = reported(engine)
    assert told(third.moves) == [(0, "came", "next"), (0, "decodes", "")]


def test_who_came_before_somebody_watched_has_come_when_it_did() -> None:
    engine = SimulatedEngine()
    add(engine, "a", 3, 20)
    engine.clock.now = 7.0
    for _ in range(5):
        engine.step()
        engine.clock.now += 1.0
    engine.core.watch_slots(is_on=True)
    add(engine, "b", 3, 20)
    moves = [*reported(engine).moves, *reported(engine).moves]
    before = [(move.kind, move.request_id, move.at_s) for move in moves[:2]]
    assert before == [("came", "a", 7.0), ("decodes", "", 7.0)]
    assert moves[2].request_id == "b"
    assert all(move.at_s > 11.0 for move in moves[2:])


def test_a_free_slot_with_the_lowest_number_is_taken_first_and_kept() -> None:
    engine = watched(max_num_seqs=4)
    for name, max_tokens in (("a", 2), ("b", 9), ("c", 2), ("d", 9)):
        add(engine, name, 3, max_tokens)
    reported(engine)
    assert {move.slot for move in reported(engine).moves if move.kind == "left"} == {0, 2}
    add(engine, "e", 3, 9)
    assert told(reported(engine).moves)[0] == (0, "came", "e")
    add(engine, "f", 3, 9)
    assert told(reported(engine).moves)[0] == (2, "came", "f")


def test_columns_say_what_each_slot_has_computed_and_holds() -> None:
    engine = watched(block_size=4, max_num_batched_tokens=16)
    add(engine, "a", 10, 9)
    add(engine, "b", 3, 1)
    report = reported(engine)
    assert report.num_computed_tokens == [10]  # the other one has ended
    assert report.num_blocks == [3]
    assert [len(engine.core._blocks.block_table("a"))] == report.num_blocks
    add(engine, "c", 3, 9)
    report = reported(engine)
    assert report.num_computed_tokens == [11, 3]
    engine.core.abort_requests(["a"])
    report = reported(engine)
    assert report.num_computed_tokens == [0, 4]
    assert report.num_blocks == [0, 1]


def test_a_prompt_in_chunks_decodes_with_its_first_token() -> None:
    engine = watched(max_num_batched_tokens=4)
    add(engine, "a", 10, 3)
    assert told(reported(engine).moves) == [(0, "came", "a")]
    assert told(reported(engine).moves) == []
    assert told(reported(engine).moves) == [(0, "decodes", "")]


def test_a_request_of_one_step_is_told_of() -> None:
    engine = watched()
    add(engine, "a", 3, 1)
    assert told(reported(engine).moves) == []  # at first only who is there
    add(engine, "b", 3, 1)
    assert told(reported(engine).moves) == [(0, "came", "b"), (0, "left", "")]


def test_reports_are_few_while_something_runs_and_the_last_one_comes_at_once() -> None:
    engine = watched()
    add(engine, "a", 3, 40)
    reports = []
    for _ in range(40):
        reports.append(engine.step().slots)
        step_s = engine.clock.now / len(reports)
    assert not engine.core.scheduler.has_work
    assert step_s < REPORT_INTERVAL_S / 5
    assert 2 <= sum(report is not None for report in reports) <= 2 + 40 * step_s / REPORT_INTERVAL_S
    assert reports[-1] is not None
    assert told(reports[-1].moves)[-1] == (0, "left", "")


def test_a_preempted_request_leaves_its_slot_and_comes_back_with_all_that_it_had() -> None:
    engine = watched(max_num_seqs=2, num_kv_blocks=16, block_size=4, enable_prefix_caching=False)
    add(engine, "a", 8, 50)
    add(engine, "b", 8, 50)
    moves: list[SlotMove] = []
    while engine.core.has_work:
        moves += reported(engine).moves
    arrivals = [move for move in moves if move.request_id == "b"]
    assert len(arrivals) > 1
    assert arrivals[0].num_prefill_tokens == 8
    assert arrivals[1].num_prefill_tokens > 8
    assert told(moves)[-1][1] == "left"


def test_where_too_much_has_happened_a_report_tells_anew_who_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_watch, "MAX_MOVES", 8)
    engine = watched()
    add(engine, "stays", 3, 60)
    reported(engine)
    for number in range(9):
        add(engine, f"{number}", 3, 1)
    while engine.core.scheduler.num_waiting or engine.core.scheduler.num_running > 1:
        assert engine.step().slots is None
    report = reported(engine)
    assert report.is_whole
    assert told(report.moves) == [(0, "came", "stays"), (0, "decodes", "")]


def test_slots_beyond_the_bound_are_not_told_of() -> None:
    num_slots = MAX_SLOTS + 3
    engine = watched(max_num_seqs=num_slots, max_num_batched_tokens=4 * num_slots, num_kv_blocks=4 * num_slots)
    for number in range(num_slots):
        add(engine, f"{number}", 3, 9)
    report = reported(engine)
    assert len(report.num_blocks) == MAX_SLOTS
    assert max(move.slot for move in report.moves) == MAX_SLOTS - 1
