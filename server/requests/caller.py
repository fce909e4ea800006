"""Who asks, and until when, as far as the body does not say. Knows headers, and not what a name stands for."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from starlette.types import Scope

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.outputs import ChoiceTimes
from orcinus.server.requests.bodies import MAX_TIMEOUT_S

# A header that is sent for this purpose alone. SDKs also tell how long they wait for bytes (x-stainless-read-timeout,
# ten minutes if nobody chose it): that is not how long an answer may take, least of all a streamed one.
TIMEOUT_HEADER = "x-request-timeout"


@dataclass(frozen=True, slots=True)
class Caller:
    """An opaque name for the client, the deadline that its request has beside the one in the body, and since when.

    `on_choice_end` is told the times of each choice (`GenerationRequest.on_choice_end`).
    """

    client: str = ""
    timeout_s: float | None = None
    asked_at: float | None = None  # by the monotonic clock
    on_choice_end: Callable[[ChoiceTimes], None] | None = None

    def deadline_s(self, timeout_s: float | None) -> float | None:
        """Return the earlier of the two."""
        return min((limit for limit in (self.timeout_s, timeout_s) if limit is not None), default=None)

    @staticmethod
    def timeout_in(body: Mapping[str, Any]) -> float | None:
        """Return the `timeout` of a body that nobody has checked yet; None for one that is none."""
        timeout_s = body.get("timeout")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)):
            return None
        return timeout_s if 0 < timeout_s <= MAX_TIMEOUT_S else None


ANONYMOUS = Caller()


def read_caller(scope: Scope) -> Caller:
    """Return who asks, as the headers say. Raises `InvalidRequestError` for a deadline that is none."""
    values = [value for name, value in scope["headers"] if name == TIMEOUT_HEADER.encode()]
    timeouts = [_read_timeout(value.decode("latin-1")) for value in values]
    return Caller(client_of(scope), min(timeouts, default=None), time.monotonic())


def client_of(scope: Scope) -> str:
    """Return the client's name that `server.http.auth` left; without keys all clients are one."""
    name: str = scope["state"].get("client", "")
    return name


def client_address(scope: Scope) -> str | None:
    """Return the address of the client, or of the last proxy that is not believed; None on a Unix socket.

    A proxy that is believed may pass on what is no address: then nobody knows.
    """
    try:
        return str(ip_address(scope["client"][0])) if scope.get("client") else None
    except ValueError:
        return None


def _read_timeout(value: str) -> float:
    try:
        timeout_s = math.nan if "_" in value else float(value)
    except ValueError:
        timeout_s = math.nan
    if 0 < timeout_s <= MAX_TIMEOUT_S:
        return timeout_s
    raise InvalidRequestError(
        f"{TIMEOUT_HEADER} must be a number of seconds above 0 and at most {MAX_TIMEOUT_S}, got {value[:100]!r}",
        TIMEOUT_HEADER,
    )
