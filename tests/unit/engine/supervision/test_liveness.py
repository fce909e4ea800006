"""When an engine counts as stuck, and how often it is replaced: the rules, without engines."""

import pytest

from orcinus.engine.messages import Alive, StepOutputs, StepStats
from orcinus.engine.supervision.liveness import Backoff, SupervisionLimits, Vigil

STEP = StepOutputs(deltas=[], stats=StepStats())


# --- the vigil ------------------------------------------------------------------------------------------


def vigil(**limits: float) -> Vigil:
    watch = Vigil(SupervisionLimits(**limits), is_first=True)  # type: ignore[arg-type]
    watch.loaded()
    return watch


def complaint_of(watch: Vigil) -> str:
    return watch.complaint or ""


def test_silence_beyond_the_limit_is_complained_of() -> None:
    watch = vigil(silence_s=3)
    for _ in range(3):
        watch.tick()
    assert not complaint_of(watch)
    watch.tick()
    assert complaint_of(watch) == "it gave no sign of life for 3 s"
    assert watch.is_silent


@pytest.mark.parametrize("message", [Alive(), STEP])
def test_any_message_is_a_sign_of_life(message: Alive | StepOutputs) -> None:
    watch = vigil(silence_s=3)
    for _ in range(10):
        watch.tick()
        watch.tick()
        watch.hear(message)
    assert not complaint_of(watch)


def test_a_step_beyond_its_limit_is_complained_of() -> None:
    watch = vigil(step_timeout_s=5)
    watch.hear(Alive(stalled_s=4))
    assert not complaint_of(watch)
    watch.hear(Alive(stalled_s=5))
    assert "5 s (step_timeout_s)" in complaint_of(watch)
    assert not watch.is_silent


def test_without_a_limit_a_step_may_take_for_ever() -> None:
    watch = vigil(step_timeout_s=0)
    watch.hear(Alive(stalled_s=1e6))
    assert not complaint_of(watch)


def test_the_first_engine_may_load_in_silence_and_later_ones_for_longer_than_they_may_run() -> None:
    first = Vigil(SupervisionLimits(), is_first=True)
    later = Vigil(SupervisionLimits(silence_s=2, loading_silence_s=5), is_first=False)
    for _ in range(5):
        first.tick()
        later.tick()
    assert not complaint_of(later)
    later.tick()
    assert complaint_of(later)
    for _ in range(1000):
        first.tick()
    assert not complaint_of(first)
    first.loaded()
    first.tick()
    assert not complaint_of(first)


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


def test_with_no_restarts_the_first_death_is_the_last() -> None:
    assert Backoff(0).next_delay_s(was_useful=True) is None
