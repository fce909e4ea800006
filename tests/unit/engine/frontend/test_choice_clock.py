"""When what became of a choice, from what engines report."""

from typing import Any

import pytest

from orcinus.engine.frontend.choice_clock import ChoiceClock
from orcinus.engine.messages import RequestDelta
from orcinus.engine.outputs import ChoiceTimes


class Clock:
    """A choice that was admitted at 10, told of by `monotonic`, which a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.ends: list[ChoiceTimes] = []
        monkeypatch.setattr("orcinus.engine.frontend.choice_clock.time.monotonic", lambda: self.now)
        self.clock = ChoiceClock(ChoiceTimes(index=0, arrived_at=10.0), self.ends.append)

    def step(self, ended_at: float, *token_ids: int, **delta: Any) -> None:
        self.clock.on_delta(RequestDelta("a", [*token_ids], **delta), ended_at)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_times_are_those_of_the_engines_steps(clock: Clock) -> None:
    clock.step(13.0, 97, queue_time_s=2.0, num_cached_tokens=16)
    clock.step(14.0, 98, 99)
    clock.now = 99.0
    clock.clock.on_end("stop", 2)
    [times] = clock.ends
    assert (times.first_scheduled_at, times.first_token_at, times.ended_at) == (12.0, 13.0, 14.0)
    assert (times.num_cached_tokens, times.num_output_tokens, times.outcome) == (16, 2, "stop")


def test_what_is_given_up_ends_when_that_happens(clock: Clock) -> None:
    clock.step(13.0, 97, queue_time_s=2.0)
    clock.now = 20.0
    clock.clock.on_end("abort", 1)
    assert clock.ends[0].ended_at == 20.0


def test_what_never_ran_has_no_step(clock: Clock) -> None:
    clock.now = 20.0
    clock.clock.on_end("timeout", 0)
    [times] = clock.ends
    assert (times.first_scheduled_at, times.first_token_at, times.ended_at) == (None, None, 20.0)


def test_a_restart_lasts_until_the_next_engine_has_begun_with_it(clock: Clock) -> None:
    clock.step(13.0, 97, queue_time_s=2.0)
    clock.now = 15.0
    clock.clock.on_engine_end()
    clock.now = 16.0
    clock.clock.on_engine_end()  # of an engine that did not come to it
    clock.step(19.0, 98, queue_time_s=8.0, pauses=[(18.0, 18.5)])
    clock.clock.on_end("length", 2)
    [times] = clock.ends
    assert (times.first_scheduled_at, times.restarts, times.pauses) == (12.0, [(15.0, 18.0)], [(18.0, 18.5)])


def test_an_engine_that_ends_before_it_brought_anything_is_part_of_the_queue(clock: Clock) -> None:
    clock.now = 15.0
    clock.clock.on_engine_end()
    clock.step(19.0, 97, queue_time_s=8.0)
    clock.clock.on_end("length", 1)
    [times] = clock.ends
    assert (times.first_scheduled_at, times.restarts) == (18.0, [(15.0, 18.0)])
