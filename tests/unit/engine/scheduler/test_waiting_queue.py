import gc

import pytest

from orcinus.engine.messages import AddRequest
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.scheduler.request import Request
from orcinus.engine.scheduler.waiting_queue import WaitingQueue


def request(number: int, arrival_time: float, priority: int = 0) -> Request:
    added = AddRequest(
        request_id=f"r{number}",
        prompt_token_ids=[1],
        sampling=SamplingParams(),
        arrival_time=arrival_time,
        priority=priority,
    )
    return Request(added, number)


def drain(queue: WaitingQueue, now: float) -> list[str]:
    names = []
    while (waiting := queue.peek(now)) is not None:
        queue.remove(waiting)
        names.append(waiting.request_id)
    return names


@pytest.fixture
def queue() -> WaitingQueue:
    return WaitingQueue(max_wait_s=60)


def test_priority_comes_first_and_arrival_second(queue: WaitingQueue) -> None:
    for number, (arrival, priority) in enumerate([(0, 1), (1, 0), (2, -1), (3, 0)]):
        queue.push(request(number, arrival, priority))
    assert drain(queue, now=4) == ["r2", "r1", "r3", "r0"]


def test_whoever_waited_too_long_goes_first(queue: WaitingQueue) -> None:
    queue.push(request(0, arrival_time=0, priority=9))
    queue.push(request(1, arrival_time=50))
    assert drain(queue, now=60.5) == ["r0", "r1"]


def test_one_that_left_from_the_middle_is_gone(queue: WaitingQueue) -> None:
    requests = [request(number, number) for number in range(3)]
    for waiting in requests:
        queue.push(waiting)
    queue.remove(requests[1])
    assert len(queue) == 2
    assert "r1" not in queue
    assert drain(queue, now=3) == ["r0", "r2"]


def test_one_that_comes_back_has_its_old_place_and_waits_anew(queue: WaitingQueue) -> None:
    preempted = request(0, arrival_time=0, priority=9)
    queue.push(request(1, arrival_time=1))
    queue.push(preempted)
    queue.remove(preempted)
    preempted.queued_since = 50
    queue.push(preempted)
    oldest = queue.oldest()
    assert oldest is not None
    assert oldest.request_id == "r1"
    queue.push(request(2, arrival_time=55))
    assert drain(queue, now=60.5) == ["r1", "r2", "r0"]
    assert len(queue) == 0


def test_those_who_left_while_nobody_gets_a_slot_are_not_kept(queue: WaitingQueue) -> None:
    first = request(0, arrival_time=0)
    queue.push(first)
    for number in range(1, 2000):
        leaving = request(number, number)
        queue.push(leaving)
        queue.remove(leaving)
    gone = [kept for kept in gc.get_objects() if type(kept) is Request and kept is not first]
    assert len(gone) < 200
    assert queue.peek(now=3) is first
