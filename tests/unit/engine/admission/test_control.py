"""Room in the queue, and what a client may have: refused with numbers, and given back whatever way a request ends."""

import contextlib
import random
from collections.abc import Callable
from statistics import mean
from typing import Any

import pytest

from orcinus.config.settings import load_settings
from orcinus.engine.admission.control import AdmissionControl
from orcinus.engine.errors import InvalidRequestError, OrcinusError, QueueFullError, QuotaError
from orcinus.engine.outputs import GenerationRequest, Outcome
from orcinus.engine.sampling_params import SamplingParams

SLOTS = 2
CONTEXT = 1000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Front:
    """An `AdmissionControl` and what it has admitted."""

    def __init__(self, max_queue_len: int = 100, num_slots: int = SLOTS, **limits: Any) -> None:
        self.clock = Clock()
        self.num_slots = num_slots
        settings = load_settings(max_queue_len=max_queue_len, **{"max_queue_tokens": 10**9, **limits})
        self.control = AdmissionControl(settings, self.clock)
        self.num_admitted = 0

    def submit(self, prompt: int = 1, *, prompts: int = 1, client: str = "", **sampling: Any) -> list[str]:
        """The names of the choices."""
        tokens = [[1] * prompt for _ in range(prompts)]
        request = GenerationRequest(request_id="r", prompts=tokens, sampling=SamplingParams(**sampling), client=client)
        self.control.check(request, self.num_slots, CONTEXT)
        names = [f"c{self.num_admitted + index}" for index in range(request.num_choices)]
        self.num_admitted += len(names)
        self.control.enter(request, names, CONTEXT)
        return names

    def end(self, names: list[str], num_tokens: int = 1, outcome: Outcome = "stop") -> None:
        if num_tokens:
            self.control.start(names)
        for name in names:
            self.control.leave(name, outcome, num_tokens)

    def serve(self, *, service_s: float, number: int) -> None:
        """With all slots taken all the time."""
        for _ in range(number):
            names = [self.submit()[0] for _ in range(SLOTS)]
            self.clock.now += service_s
            self.end(names)

    def refuse(self, kind: type[OrcinusError], *words: str, **request: Any) -> float:
        """Return when to come back."""
        with pytest.raises(kind) as caught:
            self.submit(**request)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        retry_after_s: float = getattr(caught.value, "retry_after_s", 0.0)
        return retry_after_s


# --- the queue --------------------------------------------------------------------------------------------


def test_slots_and_queue_are_filled_and_no_more_and_every_choice_counts() -> None:
    front = Front(max_queue_len=3)
    first = front.submit(n=4)
    front.control.check_room("", SLOTS)
    assert front.refuse(QueueFullError, "3 places (max_queue_len)", "1 more", n=2) == 10.0
    front.submit()
    front.refuse(QueueFullError, "3 places")
    with pytest.raises(QueueFullError):
        front.control.check_room("", SLOTS)
    front.end(first)
    front.submit(n=4)


def test_more_choices_than_there_can_ever_be_is_an_invalid_request() -> None:
    front = Front(max_queue_len=3, max_requests_per_key=4)
    front.refuse(InvalidRequestError, "at most 5", "max_queue_len is 3", "got 6", n=6)
    front.refuse(InvalidRequestError, "at most 4", "max_requests_per_key", "got 5", n=5)


def test_prompts_that_wait_for_a_slot_are_bounded_in_tokens() -> None:
    front = Front(max_queue_tokens=100)
    first = front.submit(60)
    front.submit(20, n=2)
    assert front.control.num_queued_tokens == 100
    front.refuse(QueueFullError, "100 tokens of prompts wait of at most 100 (max_queue_tokens)", "30 more", prompt=30)
    with pytest.raises(QueueFullError, match="max_queue_tokens"):
        front.control.check_room("", SLOTS)
    for _ in range(2):  # it is preempted, and has a slot again
        front.control.start([*first, "unknown"])
    assert front.control.num_queued_tokens == 40
    front.control.check_room("", SLOTS)
    front.submit(60)


def test_prompts_whose_engine_has_ended_wait_again_and_those_of_other_engines_do_not() -> None:
    front = Front(max_queue_tokens=100)
    elsewhere = front.submit(7)
    front.control.start(elsewhere)
    first, second = front.submit(60), front.submit(40)
    front.control.start(first)
    for _ in range(2):
        front.control.requeue([*first, *second])
        assert front.control.num_queued_tokens == 100
    front.control.start(second)
    assert front.control.num_queued_tokens == 60
    front.end(second)
    front.end(first, num_tokens=0, outcome="error")
    front.end(elsewhere)
    assert front.control.num_queued_tokens == front.control.num_in_flight == 0


def test_a_prompt_longer_than_the_bound_is_admitted_where_none_waits() -> None:
    front = Front(max_queue_tokens=10)
    front.end(front.submit(500))
    front.submit(500)
    front.refuse(QueueFullError, "max_queue_tokens")


# --- when to come back ------------------------------------------------------------------------------------


class Server:
    """Slots and a queue that are always full, as soon as there is room: who ends is replaced at once."""

    def __init__(self, rng: random.Random, num_slots: int, max_queue_len: int, service_s: Callable[[], float]) -> None:
        self.rng = rng
        self.front = Front(max_queue_len, num_slots=num_slots)
        self.num_places = num_slots + max_queue_len
        self.service_s = service_s
        self.waiting: list[str] = []
        self.running: list[tuple[float, str]] = []  # when it will be served
        self.fill()

    def fill(self) -> None:
        while len(self.waiting) + len(self.running) < self.num_places:
            self.waiting += self.front.submit()
            self.start()

    def start(self) -> None:
        while self.waiting and len(self.running) < self.front.num_slots:
            name = self.waiting.pop(0)
            self.front.control.start([name])
            self.running.append((self.front.clock.now + self.service_s(), name))

    def serve(self, number: int) -> list[float]:
        """Return when they were."""
        times_s = []
        for _ in range(number):
            self.running.sort()
            self.front.clock.now, name = self.running.pop(0)
            times_s.append(self.front.clock.now)
            self.front.control.leave(name, "length", 1)
            self.start()
            self.fill()
        return times_s

    def serve_until(self, time_s: float) -> None:
        while min(self.running)[0] < time_s:
            self.serve(1)
        self.front.clock.now = time_s

    def lose(self, outcome: Outcome) -> None:
        """Most of the queue, and sometimes one of those who run, end without having been served."""
        lost = self.waiting[3:]
        del self.waiting[3:]
        if self.rng.random() < 0.2:
            lost.append(self.running.pop()[1])
        for name in lost:
            self.front.control.leave(name, outcome, 0)
        self.start()
        self.fill()

    def refuse(self, number: int) -> list[float]:
        """Return when each of a crowd is told to come back: in so many seconds."""
        return [self.front.refuse(QueueFullError) for _ in range(number)]


SERVICE_TIMES: dict[str, Callable[[random.Random], float]] = {
    "short": lambda rng: rng.uniform(0.1, 0.5),
    "even": lambda rng: rng.uniform(1.0, 7.0),
    "long": lambda rng: 20.0 + rng.expovariate(1 / 30.0),
    "random": lambda rng: rng.expovariate(1 / 4.0),
    "some long": lambda rng: 15.0 if rng.random() < 0.1 else 3.0,
}


@pytest.mark.parametrize("kind", SERVICE_TIMES)
@pytest.mark.parametrize("num_slots", [1, 6])
def test_who_is_refused_is_told_the_time_until_its_place_is_free(num_slots: int, kind: str) -> None:
    """It holds whatever becomes of requests that wait, and whichever others are told to come back."""
    rng = random.Random(f"{num_slots} {kind}")
    server = Server(rng, num_slots, 40, lambda: SERVICE_TIMES[kind](rng))
    told: list[list[float]] = []
    true: list[list[float]] = []
    for _ in range(40):
        server.serve(4 * num_slots)
        for outcome in ("timeout", "abort", "error"):
            server.lose(outcome)
        server.serve_until(server.front.clock.now + rng.uniform(0, 20) * server.service_s())
        told.append(server.refuse(40))
        now = server.front.clock.now
        true.append([min(max(time_s - now, 1.0), 120.0) for time_s in server.serve(40)])
    for place in range(40):
        assert 0.5 < mean(times[place] for times in told) / mean(times[place] for times in true) < 2.0, place


def test_requests_that_were_not_served_tell_nothing_of_how_fast_others_are() -> None:
    front = Front(max_queue_len=40)
    front.serve(service_s=20.0, number=5)
    for outcome in ("timeout", "abort", "error"):
        names = front.submit(n=SLOTS + 40)
        front.control.start(names[:SLOTS])
        front.clock.now += 1.0
        for name in names:
            front.control.leave(name, outcome, 0)
    front.submit(n=SLOTS + 40)
    assert front.refuse(QueueFullError) == pytest.approx(10.0)


def test_a_quiet_server_knows_how_fast_a_full_one_is_and_does_not_forget_it() -> None:
    front = Front(max_queue_len=5)
    for _ in range(20):
        front.clock.now += 3.0
        name = front.submit()
        front.clock.now += 8.0  # one of two slots
        front.end(name)
    front.clock.now += 3600.0
    front.submit(n=SLOTS + 5)
    assert front.refuse(QueueFullError, n=3) == pytest.approx(12.0)


def test_a_server_that_becomes_faster_is_believed_before_long() -> None:
    front = Front(max_queue_len=5)
    front.serve(service_s=60.0, number=20)
    front.serve(service_s=2.0, number=60)
    front.submit(n=SLOTS + 5)
    assert front.refuse(QueueFullError, n=7) == pytest.approx(7.0, rel=0.3)


def test_a_server_that_has_served_nobody_yet_guesses_and_learns_from_how_long_nothing_ends() -> None:
    front = Front(max_queue_len=40)
    running = front.submit(n=SLOTS + 40)[:SLOTS]
    front.control.start(running)
    assert front.refuse(QueueFullError) == 10.0
    assert front.refuse(QueueFullError) == 10.0
    assert front.refuse(QueueFullError, n=8) == 50.0
    front.clock.now += 60.0
    assert front.refuse(QueueFullError) == 120.0
    front.end(running, outcome="abort")


def test_a_crowd_is_told_one_time_after_another_and_no_more_than_there_are_places() -> None:
    front = Front(max_queue_len=4)
    front.serve(service_s=4.0, number=10)
    names = front.submit(n=SLOTS + 4)
    assert [front.refuse(QueueFullError) for _ in range(9)] == pytest.approx([2, 4, 6, 8, 10, 12, 14, 14, 14])
    front.end(names[:4], outcome="abort")
    front.submit(n=4)
    assert front.refuse(QueueFullError) == pytest.approx(6.0)


def test_who_brings_too_many_tokens_waits_for_those_before_it_to_start() -> None:
    front = Front(max_queue_tokens=300)
    front.serve(service_s=4.0, number=10)
    front.submit(100, n=3)
    assert front.refuse(QueueFullError, "max_queue_tokens", prompt=200) == pytest.approx(4.0)
    other = Front(max_queue_tokens=300)
    other.serve(service_s=4.0, number=10)
    other.submit(100, n=3)
    assert other.refuse(QueueFullError, "max_queue_tokens", prompt=5000) == pytest.approx(6.0)


# --- choices of one client --------------------------------------------------------------------------------


def test_a_client_has_so_many_choices_at_once_and_others_have_theirs() -> None:
    front = Front(max_requests_per_key=3)
    first = front.submit(client="a", n=2)
    front.refuse(QuotaError, "3 choices", "max_requests_per_key", "this one has 2", "2 more", client="a", n=2)
    front.submit(client="a")
    with pytest.raises(QuotaError):
        front.control.check_room("a", SLOTS)
    front.control.check_room("b", SLOTS)
    front.submit(client="b", n=3)
    front.end(first[:1])
    front.submit(client="a")
    front.refuse(QuotaError, client="a")


@pytest.mark.parametrize(("policy", "many_s", "few_s"), [("fair", 8.0, 8.0), ("fcfs", 4.0 * 10 / 9, 40.0)])
def test_a_client_with_few_of_many_choices_waits_longer_only_where_clients_have_no_shares(
    policy: str, many_s: float, few_s: float
) -> None:
    front = Front(max_requests_per_key=10, scheduling_policy=policy)
    front.serve(service_s=8.0, number=10)
    front.submit(client="many", n=9)
    front.submit(client="few", n=1)
    assert front.refuse(QuotaError, client="many", n=2) == pytest.approx(many_s)
    assert front.refuse(QuotaError, client="few", n=10) == pytest.approx(few_s)


def test_where_slots_are_free_a_client_waits_for_its_own_choices_alone() -> None:
    front = Front(max_requests_per_key=2, num_slots=8)
    for _ in range(40):
        names = [front.submit(client=client)[0] for client in "aab"]
        front.clock.now += 6.0
        front.end(names)
    front.submit(client="a", n=2)
    front.submit(client="b")
    assert front.refuse(QuotaError, client="a") == pytest.approx(3.0)


# --- tokens per minute ------------------------------------------------------------------------------------


def test_tokens_are_reserved_at_admission_and_given_back_at_the_end() -> None:
    front = Front(max_tokens_per_minute_per_key=600)
    first = front.submit(100, max_tokens=400, client="a")
    wait_s = front.refuse(
        QuotaError, "600 tokens a minute", "100 are left", "need 110", prompt=100, max_tokens=10, client="a"
    )
    assert wait_s == pytest.approx(1.0)
    front.submit(100, max_tokens=500, client="b")
    front.end(first, num_tokens=50)
    front.submit(100, max_tokens=350, client="a")
    front.refuse(QuotaError, "0 are left", client="a")
    front.clock.now += 6.0
    front.submit(10, max_tokens=50, client="a")


def test_a_prompt_is_reserved_once_and_what_is_generated_for_each_choice() -> None:
    front = Front(max_tokens_per_minute_per_key=1000)
    names = front.submit(100, prompts=2, n=2, max_tokens=50)
    front.refuse(QuotaError, "600 are left", prompt=601, max_tokens=0)
    front.end(names, num_tokens=10)
    front.refuse(QuotaError, "760 are left", prompt=761, max_tokens=0)


def test_without_max_tokens_the_rest_of_the_context_is_reserved() -> None:
    front = Front(max_tokens_per_minute_per_key=5000)
    front.submit(100, max_tokens=None)
    front.refuse(QuotaError, "4000 are left", prompt=4001, max_tokens=0)


def test_a_request_beyond_a_minutes_tokens_needs_a_full_bucket_and_pays_off_the_rest() -> None:
    front = Front(max_tokens_per_minute_per_key=60)
    names = front.submit(500, max_tokens=100)
    front.end(names, num_tokens=100)
    assert front.refuse(QuotaError, "0 are left", prompt=1, max_tokens=0) == pytest.approx(541)
    front.clock.now += 541
    front.submit(1, max_tokens=0)
    front.refuse(QuotaError, prompt=500)


def test_a_request_beyond_a_minutes_tokens_is_told_what_it_asked_for() -> None:
    front = Front(max_tokens_per_minute_per_key=3000)
    front.submit(100, max_tokens=0)
    front.refuse(QuotaError, "3000 tokens a minute", "2900 are left", "need 4100", prompt=100, max_tokens=4000)


@pytest.mark.parametrize("limits", [{"max_requests_per_key": 3}, {"max_queue_len": 2, "num_slots": 1}])
def test_too_many_choices_are_blamed_on_prompts_where_each_has_one(limits: dict[str, Any]) -> None:
    front = Front(**limits)
    for prompts, n, param in ((4, 1, "prompt"), (1, 4, "n"), (2, 2, "n")):
        with pytest.raises(InvalidRequestError, match="got 4") as caught:
            front.submit(prompts=prompts, n=n)
        assert caught.value.param == param


@pytest.mark.parametrize("seed", range(3))
def test_over_any_time_a_client_uses_no_more_than_the_rate_and_the_bucket_allow(seed: int) -> None:
    rng = random.Random(seed)
    front = Front(max_queue_len=10_000, max_tokens_per_minute_per_key=6000)
    used = 0
    running: list[tuple[list[str], int, int]] = []
    for _ in range(5000):
        front.clock.now += rng.random() * 0.2
        prompt, most = rng.randrange(1, 300), rng.randrange(1, 600)
        with contextlib.suppress(QuotaError):
            running.append((front.submit(prompt, max_tokens=most), prompt, most))
        if running and rng.random() < 0.5:
            names, prompt, most = running.pop(rng.randrange(len(running)))
            num_tokens = rng.randrange(most + 1)
            front.end(names, num_tokens)
            used += prompt + num_tokens
        assert used <= 6000 + front.clock.now * 100
    assert used > 0.8 * front.clock.now * 100, "the limit was never reached"


def test_however_a_request_ends_all_of_it_is_given_back() -> None:
    front = Front(max_queue_len=8, max_queue_tokens=50, max_requests_per_key=6, max_tokens_per_minute_per_key=10**9)
    rng = random.Random(1)
    running: list[list[str]] = []
    for _ in range(2000):
        if running and rng.random() < 0.5:
            front.end(running.pop(rng.randrange(len(running))), rng.choice([0, 0, 1, 9]))
        else:
            try:
                running.append(front.submit(rng.randrange(1, 30), n=rng.randrange(1, 4), client=rng.choice("ab")))
            except (QueueFullError, QuotaError):
                continue
    for names in running:
        front.end(names, 0)
    assert front.control.num_queued_tokens == 0
    front.submit(client="a", n=6)
    front.submit(client="b", n=4)


def test_what_is_not_limited_is_not_refused() -> None:
    front = Front(max_queue_len=100_000)
    for _ in range(300):
        front.submit(900, n=128, max_tokens=100)
    front.control.check_room("", SLOTS)


def test_clients_have_shares_of_their_own_unless_first_come_is_first_served() -> None:
    assert Front().control.share_of("a") == "a"
    assert Front(scheduling_policy="fcfs").control.share_of("a") == Front().control.share_of("") == ""
