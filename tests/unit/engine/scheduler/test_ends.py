"""How requests end whose grammar is complete: they stop, and say whether their last token is text."""

from typing import Any

import pytest

from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, RequestDelta, StepPlan, StepResult
from orcinus.engine.sampling_params import SamplingParams
from tests.unit.engine.fakes import END_OF_TEXT, FakeExecutor, fake_info


class Finishing(FakeExecutor):
    """Says that nothing can follow once a request has `num_tokens`, of which the last is `last_token`."""

    def __init__(self, num_tokens: int, last_token: int, steered_at: int = 0) -> None:
        super().__init__(lambda prompt, output: last_token if len(output) == num_tokens - 1 else 65)
        self._num_tokens = num_tokens
        self._steered_at = steered_at  # with so many tokens, and not after a preemption

    def execute(self, plan: StepPlan) -> StepResult:
        result = super().execute(plan)
        lengths = {s.request_id: s.num_computed_tokens + s.num_tokens for s in plan.scheduled}
        return StepResult(
            sampled_token_ids=result.sampled_token_ids,
            logprobs=result.logprobs,
            finished=[name for name, length in lengths.items() if length == self._num_tokens],
            steered=[name for name, length in lengths.items() if length == self._steered_at],
        )


def last_delta(last_token: int, steered_at: int = 0, **sampling: Any) -> RequestDelta:
    """Of a request with a prompt of one token, finished after three."""
    core = EngineCore(fake_info(), Finishing(3, last_token, steered_at))
    params = SamplingParams(**{"max_tokens": 9, **sampling})
    core.add_request(AddRequest(request_id="r", prompt_token_ids=[1], sampling=params, arrival_time=0.0))
    deltas: list[RequestDelta] = []
    while core.has_work:
        deltas += core.step().deltas
        core.scheduler.check_integrity()
    is_end_steered = steered_at > 0 and last_token == END_OF_TEXT
    assert sum(len(delta.token_ids) for delta in deltas) == 3 - is_end_steered
    return deltas[-1]


@pytest.mark.parametrize("sampling", [{}, {"max_tokens": 3}, {"min_tokens": 9}, {"ignore_eos": True}])
def test_a_request_stops_where_nothing_can_follow_and_keeps_its_last_token(sampling: Any) -> None:
    delta = last_delta(66, **sampling)
    assert (delta.finish_reason, delta.stop_reason, delta.ends_in_text) == ("stop", None, True)


@pytest.mark.parametrize("sampling", [{}, {"min_tokens": 9}, {"ignore_eos": True}])
def test_an_end_token_that_nothing_can_follow_stops_and_is_no_text(sampling: Any) -> None:
    delta = last_delta(END_OF_TEXT, **sampling)
    assert (delta.finish_reason, delta.stop_reason, delta.ends_in_text) == ("stop", None, False)


def test_a_stop_token_that_nothing_can_follow_is_named() -> None:
    delta = last_delta(66, stop_token_ids=(66,))
    assert (delta.finish_reason, delta.stop_reason, delta.ends_in_text) == ("stop", 66, False)


def test_a_request_that_ends_before_the_last_of_what_is_forced_is_not_complete() -> None:
    """Its grammar is complete with the fourth token, of which the limit leaves three."""

    class Forced(FakeExecutor):
        def execute(self, plan: StepPlan) -> StepResult:
            return StepResult(sampled_token_ids={"r": [65, 66, 67, 68]}, finished=["r"])

    for sampling, tokens, reason in (
        ({"max_tokens": 3}, [65, 66, 67], "length"),
        ({"max_tokens": 9, "stop_token_ids": (66,)}, [65, 66], "stop"),
        ({"max_tokens": 9}, [65, 66, 67, 68], "stop"),
    ):
        core = EngineCore(fake_info(), Forced())
        core.add_request(AddRequest("r", [1], SamplingParams(**sampling), 0.0))
        (delta,) = core.step().deltas
        assert (delta.token_ids, delta.finish_reason, delta.ends_in_text) == (tokens, reason, len(tokens) == 4)


@pytest.mark.parametrize("steered_at", [1, 3])
@pytest.mark.parametrize("sampling", [{}, {"max_tokens": 3}, {"min_tokens": 9}, {"ignore_eos": True}])
def test_a_request_that_was_led_to_its_end_ended_at_its_limit(steered_at: int, sampling: Any) -> None:
    delta = last_delta(66, steered_at, **sampling)
    assert (delta.finish_reason, delta.stop_reason, delta.token_ids) == ("length", None, [66])


@pytest.mark.parametrize("sampling", [{}, {"min_tokens": 9}, {"ignore_eos": True}])
def test_an_end_token_that_the_limit_called_for_is_not_given_out(sampling: Any) -> None:
    delta = last_delta(END_OF_TEXT, 3, logprobs=1, **sampling)
    assert (delta.finish_reason, delta.stop_reason, delta.token_ids, delta.logprobs) == ("length", None, [], [])


def test_a_stop_token_ends_a_request_that_was_led_to_its_end() -> None:
    delta = last_delta(66, 1, stop_token_ids=(66,))
    assert (delta.finish_reason, delta.stop_reason, delta.token_ids) == ("stop", 66, [66])


@pytest.mark.parametrize("sampling", [{}, {"ignore_eos": True}])
def test_another_end_token_ends_a_request_as_the_models_own_does(sampling: Any) -> None:
    delta = last_delta(66, more_eos_token_ids=(66,), **sampling)
    assert (delta.finish_reason, delta.stop_reason, delta.ends_in_text) == ("stop", None, False)
