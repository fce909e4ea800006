"""Requests that wait for what is prepared for them: the others go on, and each ends as it must."""

from concurrent.futures import Future
from typing import Any

import pytest

from orcinus.engine.core import EngineCore
from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.messages import AddRequest
from orcinus.engine.sampling_params import Grammar, SamplingParams
from tests.unit.engine.fakes import FakeExecutor, fake_info


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


@pytest.fixture
def core(executor: FakeExecutor) -> EngineCore:
    return EngineCore(fake_info(max_num_seqs=2), executor)


def added(request_id: str, source: str | None = None) -> AddRequest:
    grammar = None if source is None else Grammar("regex", source)
    sampling = SamplingParams(max_tokens=3, grammar=grammar)
    return AddRequest(request_id=request_id, prompt_token_ids=[1, 2], sampling=sampling, arrival_time=0.0)


def step(core: EngineCore) -> dict[str, Any]:
    return {delta.request_id: delta.finish_reason for delta in core.step().deltas}


def test_a_request_waits_for_its_preparation_while_others_run(core: EngineCore, executor: FakeExecutor) -> None:
    future = executor.preparing["slow"] = Future()
    core.add_request(added("held", "slow"))
    core.add_request(added("plain"))
    core.add_request(added("ready", "at hand"))
    assert step(core) == {"plain": None, "ready": None}
    assert core.stats().num_waiting == 1
    future.set_result(None)
    assert step(core) == {"plain": None, "ready": None}
    assert core.stats().num_waiting == 1
    assert step(core) == {"plain": "length", "ready": "length"}
    assert step(core) == {"held": None}
    assert core.stats().num_waiting == 0


def test_a_preparation_that_fails_ends_its_request_with_an_error(core: EngineCore, executor: FakeExecutor) -> None:
    future = executor.preparing["bad"] = Future()
    core.add_request(added("held", "bad"))
    future.set_exception(InvalidRequestError("no such grammar"))
    assert core.wait_time_s() is None
    (delta,) = core.step().deltas
    assert (delta.request_id, delta.finish_reason, delta.error) == ("held", "error", "no such grammar")
    assert not core.has_work
    assert executor.plans == []


def test_a_request_can_be_aborted_while_it_is_held(core: EngineCore, executor: FakeExecutor) -> None:
    future = executor.preparing["slow"] = Future()
    core.add_request(added("held", "slow"))
    had_work = core.has_work
    core.abort_requests(["held", "unknown"])
    assert (had_work, core.has_work) == (True, False)
    future.set_result(None)
    assert step(core) == {}


def test_a_core_that_only_holds_requests_asks_to_be_woken_soon(core: EngineCore, executor: FakeExecutor) -> None:
    assert core.wait_time_s() is None
    future = executor.preparing["slow"] = Future()
    core.add_request(added("held", "slow"))
    wait_s = core.wait_time_s()
    assert wait_s is not None
    assert 0 < wait_s < 0.1
    core.add_request(added("plain"))
    assert core.wait_time_s() is None
    core.abort_requests(["plain"])
    future.set_result(None)
    assert core.wait_time_s() is None


def test_what_was_prepared_comes_with_its_request_whenever_the_executor_meets_it(executor: FakeExecutor) -> None:
    """Also after a preemption: the request itself keeps it."""
    core = EngineCore(fake_info(max_num_seqs=3, max_model_len=32, num_kv_blocks=8, block_size=4), executor)
    for name in "abc":
        executor.preparing[name] = Future()
        executor.preparing[name].set_result(f"compiled {name}")
        sampling = SamplingParams(max_tokens=24, ignore_eos=True, grammar=Grammar("regex", name))
        core.add_request(AddRequest(request_id=name, prompt_token_ids=[1], sampling=sampling, arrival_time=0.0))
    num_preemptions = 0
    while core.has_work:
        num_preemptions += core.step().stats.num_preemptions
    met = [(new.request_id, new.prepared) for plan in executor.plans for new in plan.new_requests]
    assert num_preemptions > 0
    assert len(met) == 3 + num_preemptions
    assert {prepared == f"compiled {name}" for name, prepared in met} == {True}
