"""What each client has in flight, and how many tokens it may still use this minute.

Each client has a token bucket: what a request may use is taken out when it is admitted, and what it did not use is put
back when it ends. Queues and slots are unknown here, and so is who the clients are.
"""

import time
from collections.abc import Callable

_PRUNE_AT = 256  # clients; those of which nothing need be remembered are forgotten from there on


class TokenBucket:
    """A bucket that is full at first, and takes a minute to fill. It may go into debt, which is paid off in time."""

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self._level = float(capacity)
        self._as_of = now

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
    """Holds what one client has in flight, and its bucket if tokens are limited."""

    __slots__ = ("bucket", "num_in_flight")

    def __init__(self, bucket: TokenBucket | None) -> None:
        self.num_in_flight = 0  # choices
        self.bucket = bucket

    def is_as_new(self, now: float) -> bool:
        """Return whether a new account would do as well."""
        return self.num_in_flight == 0 and (self.bucket is None or self.bucket.level(now) >= self.bucket.capacity)


class ClientAccounts:
    """The accounts of all clients. A client with nothing in flight and a full bucket is forgotten before long."""

    def __init__(self, tokens_per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._accounts: dict[str, ClientAccount] = {}
        self._prune_at = _PRUNE_AT

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, client: str) -> ClientAccount:
        """Return the client's account, which is made if there is none."""
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
