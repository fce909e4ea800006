"""Fair sharing between clients: the bound of the paper, first come first served with one client, corner cases."""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from orcinus.engine.messages import AddRequest
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.scheduler.fair_queue import MAX_IDLE_CLIENTS, OUTPUT_WEIGHT, PROMPT_WEIGHT, FairQueue
from orcinus.engine.scheduler.request import Request
from orcinus.engine.scheduler.waiting_queue import WaitingQueue
from tests.unit.engine.scheduler.simulator import SimulatedEngine

MAX_WAIT_S = 60.0


def request(
    number: int, client: str = "", *, prompt: int = 1, output: int = 1, arrival: float | None = None, priority: int = 0
) -> Request:
    added = AddRequest(
        request_id=f"{client}{number}",
        prompt_token_ids=[1] * prompt,
        sampling=SamplingParams(max_tokens=output),
        arrival_time=float(number) if arrival is None else arrival,
        priority=priority,
        client=client,
    )
    return Request(added, number)


def fair_queue(*requests: Request) -> FairQueue:
    queue = FairQueue(MAX_WAIT_S)
    for waiting in requests:
        queue.push(waiting)
    return queue


def take(queue: FairQueue, now: float = 0.0) -> str:
    """Whose turn it is; it takes a slot."""
    waiting = queue.peek(now)
    assert waiting is not None
    queue.take(waiting)
    return waiting.request_id


def take_all(queue: FairQueue, now: float = 0.0) -> list[str]:
    return [take(queue, now) for _ in range(len(queue))]


# --- the paper's theorem ----------------------------------------------------------------------------------


@dataclass
class Batch:
    """Runs what fits within `max_tokens`, all of its tokens counted, to its end: a token each in every step."""

    queue: FairQueue
    max_tokens: int
    running: dict[str, tuple[Request, int]] = field(default_factory=dict)
    service: Counter[str] = field(default_factory=Counter)
    num_waiting: Counter[str] = field(default_factory=Counter)

    def push(self, waiting: Request) -> None:
        self.queue.push(waiting)
        self.num_waiting[waiting.client] += 1

    def admit(self) -> None:
        while (waiting := self.queue.peek(0.0)) is not None and self._has_room(waiting):
            self.queue.take(waiting)
            self.num_waiting[waiting.client] -= 1
            self.running[waiting.request_id] = waiting, 0
            self.service[waiting.client] += PROMPT_WEIGHT * waiting.num_prompt_tokens

    def _has_room(self, waiting: Request) -> bool:
        return sum(map(size, (running for running, _ in self.running.values()))) + size(waiting) <= self.max_tokens

    def step(self) -> None:
        for running, num_generated in [*self.running.values()]:
            self.queue.charge_output(running, 1)
            self.service[running.client] += OUTPUT_WEIGHT
            self.running[running.request_id] = running, num_generated + 1
            if num_generated + 1 == running.sampling.max_tokens:
                del self.running[running.request_id]


def size(waiting: Request) -> int:
    return waiting.num_prompt_tokens + (waiting.sampling.max_tokens or 0)


@pytest.mark.parametrize("seed", range(6))
def test_two_clients_who_always_have_work_waiting_get_the_same_service_but_for_what_the_batch_holds(seed: int) -> None:
    rng = random.Random(seed)
    shapes = {client: (rng.randrange(1, 60), rng.randrange(1, 60)) for client in "fg"}
    batch = Batch(FairQueue(MAX_WAIT_S), max_tokens=rng.randrange(120, 500))
    number = 0
    differences = []
    for _ in range(1500):
        for client, (most_prompt, most_output) in shapes.items():
            while batch.num_waiting[client] < 30:
                prompt, output = rng.randrange(1, most_prompt + 1), rng.randrange(1, most_output + 1)
                batch.push(request(number, client, prompt=prompt, output=output))
                number += 1
        if rng.random() < 0.05:  # others come and go
            batch.push(request(number, rng.choice("hij"), prompt=rng.randrange(1, 60), output=rng.randrange(1, 60)))
            number += 1
        batch.admit()
        batch.step()
        differences.append(batch.service["f"] - batch.service["g"])
    bound = max(PROMPT_WEIGHT * 60, OUTPUT_WEIGHT * batch.max_tokens)
    assert max(differences) - min(differences) <= 2 * bound
    assert min(batch.service["f"], batch.service["g"]) > 5 * bound, "nothing was shown"


@pytest.mark.parametrize("seed", range(4))
def test_nobody_waits_while_there_is_room_and_everybody_is_served(seed: int) -> None:
    rng = random.Random(seed)
    batch = Batch(FairQueue(MAX_WAIT_S), max_tokens=100)
    pushed: list[Request] = []
    for number in range(800):
        if rng.random() < 0.3:
            pushed.append(request(number, rng.choice("abc"), prompt=rng.randrange(1, 40), output=rng.randrange(1, 30)))
            batch.push(pushed[-1])
        batch.admit()
        waiting = batch.queue.peek(0.0)
        assert (waiting is None) == (len(batch.queue) == 0)
        assert batch.running or waiting is None
        batch.step()
    while batch.running or len(batch.queue):
        batch.admit()
        batch.step()
    expected = Counter[str]()
    for done in pushed:
        output = done.sampling.max_tokens or 0
        expected[done.client] += PROMPT_WEIGHT * done.num_prompt_tokens + OUTPUT_WEIGHT * output
    assert batch.service == expected


# --- one client -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_with_one_client_the_order_is_that_of_first_come_first_served(seed: int) -> None:
    rng = random.Random(seed)
    fair, plain = FairQueue(MAX_WAIT_S), WaitingQueue(MAX_WAIT_S)
    waiting: list[Request] = []
    running: list[Request] = []
    now = 0.0
    for number in range(2000):
        now += rng.random()
        action = rng.random()
        if action < 0.4:
            waiting.append(request(number, arrival=now, priority=rng.choice([0, 0, 0, -1, 5])))
            fair.push(waiting[-1])
            plain.push(waiting[-1])
        elif action < 0.5 and waiting:
            leaving = waiting.pop(rng.randrange(len(waiting)))
            fair.remove(leaving)
            plain.remove(leaving)
        elif action < 0.6 and running:
            back = running.pop()
            back.forget_computed(now)
            waiting.append(back)
            fair.push(back)
            plain.push(back)
        elif (first := plain.peek(now)) is not None:
            plain.remove(first)
            fair.take(first)
            waiting.remove(first)
            running.append(first)
            fair.charge_output(first, rng.randrange(9))
        assert fair.peek(now) is plain.peek(now)
        assert fair.oldest() is plain.oldest()
        assert len(fair) == len(plain) == len(waiting)


# --- between clients --------------------------------------------------------------------------------------


def test_a_thousand_requests_of_one_client_do_not_hold_up_one_of_another() -> None:
    queue = fair_queue(*(request(number, "many") for number in range(1000)))
    for _ in range(500):
        take(queue)
    queue.push(request(1000, "one"))
    assert "one1000" in [take(queue), take(queue)]


def test_requests_that_have_waited_too_long_do_not_go_before_those_of_another_client() -> None:
    queue = fair_queue(*(request(number, "many", arrival=0) for number in range(1000)))
    late = 10 * MAX_WAIT_S
    take(queue, late)
    queue.push(request(1000, "one", arrival=late))
    assert "one1000" in [take(queue, late), take(queue, late)]


def test_priority_counts_among_the_requests_of_one_client() -> None:
    urgent = [request(number, "pushy", priority=-100) for number in range(4)]
    queue = fair_queue(*urgent, request(4, "calm", priority=1), request(5, "calm", priority=0))
    assert take_all(queue) == ["pushy0", "calm5", "pushy1", "calm4", "pushy2", "pushy3"]


def test_tokens_are_shared_and_not_requests() -> None:
    long = [request(number, "long", prompt=30) for number in range(4)]
    short = [request(number, "short", prompt=10) for number in range(4, 16)]
    order = take_all(fair_queue(*long, *short))
    first_half = order[: order.index("long2")]
    assert (sum(name.startswith("long") for name in first_half), len(first_half)) == (2, 2 + 6)


def test_generated_tokens_weigh_double_and_cached_ones_of_a_prompt_nothing() -> None:
    cached = request(0, "a", prompt=50)
    queue = fair_queue(cached)
    cached.num_computed_tokens = 48
    queue.take(cached)
    queue.charge_output(cached, 5)
    assert queue.service_of("a") == 2 * PROMPT_WEIGHT + 5 * OUTPUT_WEIGHT == 12


def test_what_a_client_left_unused_is_lost_to_it() -> None:
    queue = fair_queue(*(request(number, "busy", prompt=10) for number in range(60)))
    for _ in range(50):
        take(queue)
    for number in range(60, 65):
        queue.push(request(number, "idle", prompt=10))
    assert [name[:4] for name in take_all(queue)[:10]] == ["busy", "idle"] * 5


def test_who_comes_after_all_had_left_starts_where_the_last_one_was() -> None:
    queue = fair_queue(request(0, "first", prompt=500))
    take(queue)
    queue.push(request(1, "second", prompt=5))
    assert queue.service_of("second") == 500


def test_leaving_and_coming_back_wipes_nothing_out() -> None:
    queue = fair_queue(request(0, "greedy", prompt=500), request(1, "modest"), request(2, "modest"))
    assert take(queue) == "greedy0"
    queue.push(request(3, "greedy"))
    assert take_all(queue) == ["modest1", "modest2", "greedy3"]


def test_a_preempted_request_goes_before_those_that_never_ran_and_its_prompt_is_charged_once() -> None:
    preempted = request(0, "a", prompt=500)
    queue = fair_queue(preempted, request(1, "b"), request(2, "b"))
    assert take(queue) == "a0"
    assert take(queue) == "b1"
    preempted.forget_computed(now=1.0)
    queue.push(preempted)
    assert take(queue) == "a0"
    assert queue.service_of("a") == 500


def test_of_several_clients_with_preempted_requests_the_one_that_had_least_goes_first_whatever_its_priority() -> None:
    pushy, calm = request(0, "pushy", prompt=50, priority=-100), request(1, "calm", prompt=40)
    queue = fair_queue(pushy, calm)
    take_all(queue)
    for preempted in (calm, pushy):
        preempted.forget_computed(now=1.0)
        queue.push(preempted)
    assert take_all(queue) == ["calm1", "pushy0"]


def test_a_request_that_an_earlier_engine_had_begun_goes_first_and_its_prompt_is_not_charged_again() -> None:
    added = AddRequest("resumed", [1] * 90, SamplingParams(), 9.0, output_token_ids=[1], client="a")
    queue = fair_queue(request(0, "b"), request(1, "c"), Request(added, 9))
    assert take(queue) == "resumed"
    assert queue.service_of("a") == 0


def test_one_that_left_from_the_middle_is_gone() -> None:
    requests = [request(number, client) for number, client in enumerate("aabb")]
    queue = fair_queue(*requests)
    queue.remove(requests[0])
    queue.remove(requests[2])
    queue.remove(requests[3])
    assert ("a1" in queue, "b2" in queue, len(queue)) == (True, False, 1)
    assert take_all(queue) == ["a1"]
    assert queue.peek(0.0) is None


def test_few_of_many_clients_that_came_once_are_remembered_and_those_who_had_most_are() -> None:
    greedy = request(1, "greedy", prompt=9000)
    queue = fair_queue(request(0, "waits"), greedy)
    queue.take(greedy)
    for number in range(2, 3 * MAX_IDLE_CLIENTS):
        passing = request(number, f"client{number}")
        queue.push(passing)
        queue.take(passing)
    known = sum(queue.service_of(f"client{number}") > 0 for number in range(2, 3 * MAX_IDLE_CLIENTS))
    assert known <= MAX_IDLE_CLIENTS
    assert queue.service_of("greedy") == 9000


# --- in the engine ----------------------------------------------------------------------------------------


def test_clients_get_the_same_service_from_the_engine_however_many_and_long_their_requests_are() -> None:
    engine = SimulatedEngine(max_num_seqs=4, num_kv_blocks=80)
    for number in range(200):
        engine.add(f"many{number}", [number % 40 + 1, 2, 3], max_tokens=24, ignore_eos=True, client="many")
    for number in range(60):
        engine.add(f"few{number}", [number % 40 + 1, 2, 3], max_tokens=4, ignore_eos=True, client="few")
    while any(f"few{number}" not in engine.finish_reasons for number in range(60)):
        engine.step()
    num_done = sum(name.startswith("many") for name in engine.finish_reasons)
    service, service_of_many = 60 * (3 + 2 * 4), 3 + 2 * 24
    assert abs(num_done - service / service_of_many) <= 4


def test_the_first_token_of_one_request_comes_as_soon_as_one_of_a_thousand_others_has_ended() -> None:
    engine = SimulatedEngine(max_num_seqs=8, num_kv_blocks=160, max_num_batched_tokens=64)
    for number in range(1000):
        engine.add(f"many{number}", [number % 40 + 1, 2, 3, 4], max_tokens=32, ignore_eos=True, client="many")
    for _ in range(200):
        engine.step()
    engine.add("one", [9, 9, 9, 9], max_tokens=32, ignore_eos=True, client="one")
    for _ in range(2 * 32):
        engine.step()
    assert len(engine.tokens["one"]) > 0
