"""How much is admitted, and whose turn it is: a frozen, plain value for the server's side of the engine.

`config.settings.Settings` owns the defaults, the help and the validation, and builds this.
"""

from dataclasses import dataclass
from typing import Literal

SchedulingPolicy = Literal["fair", "fcfs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """The settings of the same names; None is no limit. A key is whatever tells clients apart."""

    max_queue_len: int
    max_queue_tokens: int | None = None
    max_requests_per_key: int | None = None
    max_tokens_per_minute_per_key: int | None = None
    scheduling_policy: SchedulingPolicy = "fair"
