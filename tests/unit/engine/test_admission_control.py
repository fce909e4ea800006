"""Room in the queue, and what a client may have: refused with numbers, and given back whatever way a request ends."""

import contextlib
import random
from typing import Any

import pytest

from config.admission_limits import AdmissionLimits
from engine.admission_control import AdmissionControl
from engine.errors import InvalidRequestError, OrcinusError, QueueFullError, QuotaError
from engine.outputs import GenerationRequest
from engine.sampling_params import SamplingParams

SLOTS = 2
CONTEXT = 1000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Front:
    """An `AdmissionControl` and what it has admitted."""

    def __init__(self, max_queue_len: int = 100, **limits: Any) -> None:
        self.clock = Clock()
        self.control = AdmissionControl(AdmissionLimits(max_queue_len=max_queue_len, **limits), self.clock)
        self.num_admitted = 0

    def submit(self, prompt: int = 1, *, prompts: int = 1, client: str = "", **sampling: Any) -> list[str]:
        """The names of the choices."""
        tokens = [[1] * prompt for _ in range(prompts)]
        request = GenerationRequest(request_id="r", prompts=tokens, sampling=SamplingParams(**sampling), client=client)
        self.control.check(request, SLOTS, CONTEXT)
        names = [f"c{self.num_admitted + index}" for index in range(request.num_choices)]
        self.num_admitted += len(names)
        self.control.enter(request, names, CONTEXT)
        return names

    def end(self, names: list[str], num_tokens: int = 1) -> None:
        for name in names:
            if num_tokens:
                self.control.start(name)
            self.control.leave(name, num_tokens)

    def refuse(self, kind: type[OrcinusError], *words: str, **request: Any) -> float:
        """When to come back."""
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


def test_prompts_that_wait_are_bounded_in_tokens_until_they_bring_one() -> None:
    front = Front(max_queue_tokens=100)
    first = front.submit(60)
    front.submit(20, n=2)
    assert front.control.num_queued_tokens == 100
    front.refuse(QueueFullError, "100 tokens of prompts wait of at most 100 (max_queue_tokens)", "30 more", prompt=30)
    with pytest.raises(QueueFullError, match="max_queue_tokens"):
        front.control.check_room("", SLOTS)
    front.control.start(first[0])
    front.control.check_room("", SLOTS)
    front.submit(60)


def test_a_prompt_longer_than_the_bound_is_admitted_where_none_waits() -> None:
    front = Front(max_queue_tokens=10)
    front.end(front.submit(500))
    front.submit(500)
    front.refuse(QueueFullError, "max_queue_tokens")


def test_when_to_come_back_follows_from_how_fast_requests_leave() -> None:
    front = Front(max_queue_len=1, max_queue_tokens=300)
    for _ in range(20):
        front.end(front.submit(100))
        front.control.observe(2.0)  # a choice and 100 tokens of a prompt
    front.submit(300)
    assert front.refuse(QueueFullError, "max_queue_tokens", prompt=500) == pytest.approx(10.0)
    assert front.refuse(QueueFullError, "max_queue_len", prompts=3) == pytest.approx(2.0)


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


def test_a_client_with_few_of_many_choices_waits_longer_for_one_of_its_own() -> None:
    front = Front(max_requests_per_key=10)
    for _ in range(10):
        front.end(front.submit())
        front.control.observe(1.0)
    front.submit(client="many", n=9)
    front.submit(client="few", n=1)
    assert front.refuse(QuotaError, client="many", n=2) == pytest.approx(10 / 9)
    assert front.refuse(QuotaError, client="few", n=10) == pytest.approx(10.0)


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
