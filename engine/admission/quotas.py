"""What each client has in flight, and how many tokens it may still use this minute.

A token bucket for each client: what a request may come to is taken out when it is admitted, and what it did not use is
put back when it ends. Knows nothing of queues and slots, nor who the clients are.
"""

import time
from collections.abc import Callable

_PRUNE_AT = 256  # clients; those of whom nothing need be remembered are forgotten from there on


class TokenBucket:
    """Full at first, and filled at a rate that takes a minute from empty to full. Debt is possible, and waited off."""

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self._level = float(capacity)
        self._as_of = now

    def level(self, now: float) -> float:
        """Tokens that may be taken now; below 0: how many were used beyond those."""
        self._level = min(float(self.capacity), self._level + (now - self._as_of) * self.capacity / 60)
        self._as_of = now
        return self._level

    def take(self, num_tokens: int, now: float) -> None:
        """Negative: put back."""
        self._level = self.level(now) - num_tokens

    def seconds_until(self, num_tokens: int, now: float) -> float:
        return max(0.0, num_tokens - self.level(now)) * 60 / self.capacity


class ClientAccount:
    """What one client has in flight, and its bucket if tokens are limited."""

    __slots__ = ("bucket", "num_in_flight")

    def __init__(self, bucket: TokenBucket | None) -> None:
        self.num_in_flight = 0  # choices
        self.bucket = bucket

    def is_as_new(self, now: float) -> bool:
        return self.num_in_flight == 0 and (self.bucket is None or self.bucket.level(now) >= self.bucket.capacity)


class ClientAccounts:
    """The accounts of all clients. Whoever has nothing in flight and a full bucket is forgotten before long."""

    def __init__(self, tokens_per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._accounts: dict[str, ClientAccount] = {}
        self._prune_at = _PRUNE_AT

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, client: str) -> ClientAccount:
        account = self._accounts.get(client)
        if account is None:
            self._prune()
            account = self._accounts[client] = ClientAccount(self._new_bucket())
        return account

    def _new_bucket(self) -> TokenBucket | None:
        return None if self._tokens_per_minute is None else TokenBucket(self._tokens_per_minute, self._clock())

    def _prune(self) -> None:
        if len(self._accounts) < self._prune_at:
            return
        now = self._clock()
        self._accounts = {name: account for name, account in self._accounts.items() if not account.is_as_new(now)}
        self._prune_at = max(_PRUNE_AT, 2 * len(self._accounts))
