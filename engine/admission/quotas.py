"""What each client has in flight, and how many tokens it may still use this minute.

Each client has a token bucket: what a request may use is taken out when it is admitted, and what it did not use is put
back when it ends. Queues and slots are unknown here, and so is who the clients are.
"""

import time
from collections.abc import Callable

from orcinus.config.limits import NO_LIMITS, ClientLimits, Limit

_PRUNE_AT = 256  # clients; those of which nothing need be remembered are forgotten from there on


class TokenBucket:
    """A bucket that is full at first, and takes a minute to fill. It may go into debt, which is paid off in time."""

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self._level = float(capacity)
        self._as_of = now

    def resize(self, capacity: int, now: float) -> None:
        """Have another capacity from now on. What has been taken stays taken."""
        self._level = self.level(now)
        self.capacity = capacity

    def level(self, now: float) -> float:
        """Return the tokens that may be taken at the time `now`. A negative number is a debt."""
        self._level = min(float(self.capacity), self._level + (now - self._as_of) * self.capacity / 60)
        self._as_of = now
        return self._level

    def take(self, num_tokens: int, now: float) -> None:
        """Take tokens out; a negative number puts them back."""
        self._level = self.level(now) - num_tokens

    def seconds_until(self, num_tokens: int, now: float) -> float:
        """Return the seconds from `now` until so many tokens may be taken; 0 where they may be now."""
        return max(0.0, num_tokens - self.level(now)) * 60 / self.capacity


class ClientAccount:
    """Holds what one client has in flight, its limits, and a bucket for each of those that are by the minute."""

    __slots__ = ("bucket", "limits", "num_in_flight", "requests")

    def __init__(self) -> None:
        self.num_in_flight = 0  # choices
        self.limits = NO_LIMITS
        self.bucket: TokenBucket | None = None
        self.requests: TokenBucket | None = None

    def hold_to(self, limits: ClientLimits, now: float) -> None:
        """Have these limits from now on."""
        if limits is not self.limits:
            self.bucket = _fitted(self.bucket, limits.max_tokens_per_minute, now)
            self.requests = _fitted(self.requests, limits.max_requests_per_minute, now)
            self.limits = limits

    def is_as_new(self, now: float) -> bool:
        """Return whether a new account would do as well."""
        buckets = (self.bucket, self.requests)
        return self.num_in_flight == 0 and all(each is None or each.level(now) >= each.capacity for each in buckets)


class ClientAccounts:
    """The accounts of all clients. A client with nothing in flight and full buckets is forgotten before long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, ClientAccount] = {}
        self._prune_at = _PRUNE_AT

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, client: str, limits: ClientLimits) -> ClientAccount:
        """Return the client's account, which is made if there is none, and is held to `limits` from now on."""
        account = self._accounts.get(client)
        if account is None:
            self._prune()
            account = self._accounts[client] = ClientAccount()
        account.hold_to(limits, self._clock())
        return account

    def _prune(self) -> None:
        if len(self._accounts) < self._prune_at:
            return
        now = self._clock()
        self._accounts = {name: account for name, account in self._accounts.items() if not account.is_as_new(now)}
        self._prune_at = max(_PRUNE_AT, 2 * len(self._accounts))


def _fitted(bucket: TokenBucket | None, limit: Limit | None, now: float) -> TokenBucket | None:
    """Return the bucket for a limit, which keeps what has been taken out of the one before."""
    if limit is None:
        return None
    if bucket is None:
        return TokenBucket(limit.value, now)
    bucket.resize(limit.value, now)
    return bucket
