import pytest

from orcinus.config.limits import NO_LIMITS, ClientLimits, Limit
from orcinus.engine.admission.quotas import ClientAccounts, TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_is_full_at_first_and_fills_in_a_minute() -> None:
    bucket = TokenBucket(600, now=0.0)
    assert bucket.level(0.0) == 600
    bucket.take(600, now=0.0)
    assert bucket.seconds_until(1, now=0.0) == pytest.approx(0.1)
    assert bucket.seconds_until(600, now=30.0) == pytest.approx(30.0)
    assert bucket.level(60.0) == pytest.approx(600)
    assert bucket.level(1000.0) == 600


def test_what_is_put_back_does_not_overflow() -> None:
    bucket = TokenBucket(600, now=0.0)
    bucket.take(600, now=0.0)
    bucket.take(-500, now=60.0)
    assert bucket.level(60.0) == 600


def test_debt_is_waited_off() -> None:
    bucket = TokenBucket(60, now=0.0)
    bucket.take(100, now=0.0)
    assert bucket.seconds_until(1, now=0.0) == pytest.approx(41)
    assert bucket.seconds_until(1, now=41.0) == pytest.approx(0)


def test_a_limit_of_one_token_gives_one_a_minute() -> None:
    bucket = TokenBucket(1, now=10.0)
    bucket.take(1, now=10.0)
    assert bucket.seconds_until(1, now=10.0) == pytest.approx(60)


LIMITS = ClientLimits(max_tokens_per_minute=Limit(600, "max_tokens_per_minute_per_key"))


def test_clients_of_whom_nothing_need_be_remembered_are_forgotten() -> None:
    clock = Clock()
    accounts = ClientAccounts(clock)
    accounts.of("busy", LIMITS).num_in_flight = 1
    bucket = accounts.of("spent", LIMITS).bucket
    assert bucket is not None
    bucket.take(6000, clock.now)
    for number in range(10_000):
        accounts.of(f"passing {number}", LIMITS)
    assert len(accounts) < 1000
    assert accounts.of("busy", LIMITS).num_in_flight == 1
    assert accounts.of("spent", LIMITS).bucket is bucket
    clock.now += 3600
    for number in range(10_000):
        accounts.of(f"passing {number}", LIMITS)
    assert accounts.of("spent", LIMITS).bucket is not bucket


def test_another_limit_leaves_what_has_been_taken_taken() -> None:
    clock = Clock()
    accounts = ClientAccounts(clock)
    before = accounts.of("a", LIMITS)
    assert before.requests is None
    assert before.bucket is not None
    before.bucket.take(500, clock.now)
    wider = ClientLimits(max_requests_per_minute=Limit(2, "r"), max_tokens_per_minute=Limit(6000, "t"))
    account = accounts.of("a", wider)
    assert account is before
    assert account.requests is not None
    assert account.bucket is not None
    assert account.bucket.level(clock.now) == pytest.approx(100)
    clock.now += 1
    assert account.bucket.level(clock.now) == pytest.approx(200)
    unlimited = accounts.of("a", NO_LIMITS)
    assert [unlimited.bucket, unlimited.requests] == [None, None]
