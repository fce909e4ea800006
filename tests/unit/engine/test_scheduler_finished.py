"""Requests whose grammar is complete: they stop, and say whether their last token is text."""

from typing import Any

import pytest

from engine.core import EngineCore
from engine.messages import AddRequest, RequestDelta, StepPlan, StepResult
from engine.sampling_params import SamplingParams
from tests.unit.engine.fakes import END_OF_TEXT, FakeExecutor, fake_info


class Finishing(FakeExecutor):
    """Says that nothing can follow once a request has `num_tokens`, of which the last is `last_token`."""

    def __init__(self, num_tokens: int, last_token: int) -> None:
        super().__init__(lambda prompt, output: last_token if len(output) == num_tokens - 1 else 65)
        self._num_tokens = num_tokens

    def execute(self, plan: StepPlan) -> StepResult:
        result = super().execute(plan)
        finished = [s.request_id for s in plan.scheduled if s.num_computed_tokens + s.num_tokens == self._num_tokens]
        return StepResult(sampled_token_ids=result.sampled_token_ids, finished=finished)


def last_delta(last_token: int, **sampling: Any) -> RequestDelta:
    """Of a request with a prompt of one token, finished after three."""
    core = EngineCore(fake_info(), Finishing(3, last_token))
    params = SamplingParams(**{"max_tokens": 9, **sampling})
    core.add_request(AddRequest(request_id="r", prompt_token_ids=[1], sampling=params, arrival_time=0.0))
    deltas: list[RequestDelta] = []
    while core.has_work:
        deltas += core.step().deltas
        core.scheduler.check_integrity()
    assert sum(len(delta.token_ids) for delta in deltas) == 3
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
