"""When an engine counts as stuck, and how often it is replaced: the rules, without engines."""

import pytest

from orcinus.engine.messages import Alive, StepOutputs, StepStats
from orcinus.engine.supervision.liveness import Backoff, LivenessMonitor

STEP = StepOutputs(deltas=[], stats=StepStats())


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orcinus.engine.supervision.liveness.SILENCE_S", 3.0)
    monkeypatch.setattr("orcinus.engine.supervision.liveness.LOADING_SILENCE_S", 5.0)


def monitoring(step_timeout_s: float = 120.0) -> LivenessMonitor:
    monitor = LivenessMonitor(step_timeout_s, is_first=True)
    monitor.on_loaded()
    return monitor


def failure_of(monitor: LivenessMonitor) -> str:
    return monitor.failure or ""


def test_silence_beyond_the_limit_is_a_failure() -> None:
    monitor = monitoring()
    for _ in range(3):
        monitor.tick()
    assert not failure_of(monitor)
    monitor.tick()
    assert failure_of(monitor) == "it gave no sign of life for 3 s"
    assert monitor.is_silent


@pytest.mark.parametrize("message", [Alive(), STEP])
def test_any_message_is_a_sign_of_life(message: Alive | StepOutputs) -> None:
    monitor = monitoring()
    for _ in range(10):
        monitor.tick()
        monitor.tick()
        monitor.on_message(message)
    assert not failure_of(monitor)


def test_a_step_beyond_its_limit_is_a_failure() -> None:
    monitor = monitoring(step_timeout_s=5)
    monitor.on_message(Alive(stalled_s=4))
    assert not failure_of(monitor)
    monitor.on_message(Alive(stalled_s=5))
    assert "5 s (step_timeout_s)" in failure_of(monitor)
    assert not monitor.is_silent


def test_without_a_limit_a_step_may_take_for_ever() -> None:
    monitor = monitoring(step_timeout_s=0)
    monitor.on_message(Alive(stalled_s=1e6))
    assert not failure_of(monitor)


def test_the_first_engine_may_load_in_silence_and_later_ones_for_longer_than_they_may_run() -> None:
    first = LivenessMonitor(120.0, is_first=True)
    later = LivenessMonitor(120.0, is_first=False)
    for _ in range(5):
        first.tick()
        later.tick()
    assert not failure_of(later)
    later.tick()
    assert failure_of(later)
    for _ in range(1000):
        first.tick()
    assert not failure_of(first)
    first.on_loaded()
    first.tick()
    assert not failure_of(first)


# --- the next engine ------------------------------------------------------------------------------------


def test_engines_that_end_without_use_are_replaced_ever_later_and_at_last_not_at_all() -> None:
    backoff = Backoff(9)
    delays = [backoff.next_delay_s(was_useful=False) for _ in range(10)]
    assert delays == [0, 1, 2, 4, 8, 16, 30, 30, 30, None]


def test_an_engine_that_was_of_use_is_replaced_at_once_however_often() -> None:
    backoff = Backoff(1)
    assert [backoff.next_delay_s(was_useful=True) for _ in range(20)] == [0.0] * 20
    assert backoff.next_delay_s(was_useful=False) == 0
    assert backoff.next_delay_s(was_useful=False) is None


def test_with_no_restarts_the_first_end_is_the_last() -> None:
    assert Backoff(0).next_delay_s(was_useful=True) is None
