"""How many requests are admitted, and by which policy they take turns: a frozen, plain value.

`config.settings.Settings` owns the defaults, the help and the validation, and builds this for the engine's client.
"""

from dataclasses import dataclass
from typing import Literal

SchedulingPolicy = Literal["fair", "fcfs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """The settings of the same names; None is no limit. A key is what clients are told apart by."""

    max_queue_len: int
    max_queue_tokens: int | None = None
    max_requests_per_key: int | None = None
    max_tokens_per_minute_per_key: int | None = None
    scheduling_policy: SchedulingPolicy = "fair"
