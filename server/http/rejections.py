"""Requests that are refused before the engine has them: why, and how many sequences they would have been.

Counted at the door and not in the engine, because most refusals never come so far.
"""

from collections.abc import Mapping
from typing import Any

from orcinus.engine.errors import (
    ContextLengthError,
    DrainingError,
    EngineUnavailableError,
    InvalidRequestError,
    OrcinusError,
    QueueFullError,
    QuotaError,
    RequestTimeoutError,
)
from orcinus.engine.sampling_params import MAX_N
from orcinus.server.metrics import Metrics, RejectionReason
from orcinus.server.requests.schemas import MAX_PROMPTS

# The first that fits: a class comes after those that are derived from it.
_REASONS: tuple[tuple[type[OrcinusError], RejectionReason], ...] = (
    (ContextLengthError, "too_long"),
    (InvalidRequestError, "invalid"),
    (QueueFullError, "queue_full"),
    (QuotaError, "rate_limited"),
    (DrainingError, "draining"),
    (EngineUnavailableError, "unavailable"),
)


def count_rejection(metrics: Metrics, error: OrcinusError, body: Mapping[str, Any]) -> None:
    """Count a request that ended with this error. `body` is what was read of it; what was late was not refused."""
    if not isinstance(error, RequestTimeoutError):
        metrics.on_rejected(reason_of(error), num_choices_of(body))


def reason_of(error: OrcinusError) -> RejectionReason:
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "error")


def num_choices_of(body: Mapping[str, Any]) -> int:
    """Return prompts times n of a body that nobody has checked: 1 for each of both that it does not say or may not."""
    return _num_prompts(body.get("prompt", body.get("input"))) * max(
        _num_samples(body.get(k)) for k in ("n", "best_of")
    )


def _num_samples(given: Any) -> int:
    return given if type(given) is int and 1 <= given <= MAX_N else 1


def _num_prompts(given: Any) -> int:
    """Return how many prompts a list is: of texts, or of lists of token ids, each of which is one."""
    is_several = isinstance(given, list) and given and isinstance(given[0], (str, list))
    return len(given) if is_several and len(given) <= MAX_PROMPTS else 1
