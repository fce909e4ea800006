"""What was counted between two events: differences of what the metrics count in any case. Counts nothing itself."""

from dataclasses import dataclass
from typing import Any

from orcinus.server.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Observed:
    """Tells how often something was observed, and the sum of it, in seconds."""

    count: int
    sum_s: float

    def mean_ms_since(self, before: "Observed") -> float | None:
        """Return the mean of what was observed since, in milliseconds; None where nothing was."""
        count = self.count - before.count
        return round((self.sum_s - before.sum_s) / count * 1000, 3) if count else None


@dataclass(frozen=True, slots=True)
class Totals:
    """All that was counted so far, of what events tell."""

    step_time: Observed
    ttft: Observed
    inter_token: Observed
    num_generated: int
    num_prefilled: int

    @classmethod
    def of(cls, metrics: Metrics) -> "Totals":
        return cls(
            Observed(*metrics.observed("orcinus_step_time_seconds")),
            Observed(*metrics.observed("orcinus_time_to_first_token_seconds")),
            Observed(*metrics.observed("orcinus_inter_token_latency_seconds")),
            metrics.counted("orcinus_generation_tokens_total"),
            metrics.counted("orcinus_prefill_tokens_total"),
        )

    def since(self, before: "Totals") -> dict[str, Any]:
        """Return the fields of an event that tell what was counted since."""
        return {
            "steps": self.step_time.count - before.step_time.count,
            "step_s": round(self.step_time.sum_s - before.step_time.sum_s, 6),
            "tokens": self.num_generated - before.num_generated,
            "prefill_tokens": self.num_prefilled - before.num_prefilled,
            "ttft_ms": self.ttft.mean_ms_since(before.ttft),
            "itl_ms": self.inter_token.mean_ms_since(before.inter_token),
        }
