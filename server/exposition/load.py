"""What a server does, in one line for the log: made of two looks at its counters. Knows nothing of when they are."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """The counters and gauges of a moment that the line is made of. Sums are since the server began."""

    num_slots: int
    num_running: int
    num_waiting: int
    num_running_tokens: int
    kv_utilization: float
    slot_s: float
    slot_capacity_s: float
    num_prefill_tokens: int
    num_generated_tokens: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_preemptions: int
    num_restarts: int
    blocked: Mapping[str, int]
    outcomes: Mapping[str, int]
    ttft_s: float
    num_first_tokens: int
    inter_token_s: float
    num_next_tokens: int
    energy_j: float | None


def describe_load(before: Load, after: Load, seconds: float) -> str | None:
    """Return what happened in `seconds` between two moments; None where nothing did and nobody waits."""
    num_prefilled = after.num_prefill_tokens - before.num_prefill_tokens
    num_generated = after.num_generated_tokens - before.num_generated_tokens
    if not (num_prefilled or num_generated or after.num_running or after.num_waiting):
        return None
    parts = [
        _slots(before, after),
        f"{num_prefilled / seconds:,.0f} prompt and {num_generated / seconds:,.0f} generated tokens/s"
        + _share(", {} of prompts cached", after, before),
        *_latencies(before, after),
        f"KV cache {after.kv_utilization:.0%} with {after.num_running_tokens:,} tokens",
        *_ends(before, after),
        *_energy(before, after, num_generated),
    ]
    return "; ".join(parts)


def _slots(before: Load, after: Load) -> str:
    text = f"{after.num_running} of {after.num_slots} slots"
    if capacity_s := after.slot_capacity_s - before.slot_capacity_s:
        text += f" ({(after.slot_s - before.slot_s) / capacity_s:.0%} of the time)"
    text += f", {after.num_waiting} waiting"
    blocked = {reason: number - before.blocked.get(reason, 0) for reason, number in after.blocked.items()}
    reason = max(blocked, key=lambda each: blocked[each], default="")
    return text + (f" for {reason}" if after.num_waiting and reason and blocked[reason] else "")


def _share(text: str, after: Load, before: Load) -> str:
    queries = after.prefix_cache_queries - before.prefix_cache_queries
    return text.format(f"{(after.prefix_cache_hits - before.prefix_cache_hits) / queries:.0%}") if queries else ""


def _latencies(before: Load, after: Load) -> list[str]:
    parts = []
    if number := after.num_first_tokens - before.num_first_tokens:
        parts.append(f"first token after {_milliseconds((after.ttft_s - before.ttft_s) / number)}")
    if number := after.num_next_tokens - before.num_next_tokens:
        parts.append(f"each next after {_milliseconds((after.inter_token_s - before.inter_token_s) / number)}")
    return [", ".join(parts)] if parts else []


def _ends(before: Load, after: Load) -> list[str]:
    ended = {outcome: number - before.outcomes.get(outcome, 0) for outcome, number in after.outcomes.items()}
    parts = [f"{number} {outcome}" for outcome, number in ended.items() if number]
    lines = [f"ended: {', '.join(parts)}"] if parts else []
    if preempted := after.num_preemptions - before.num_preemptions:
        lines.append(f"{preempted} preempted")
    if restarts := after.num_restarts - before.num_restarts:
        lines.append(f"engine restarts: {restarts}")
    return lines


def _energy(before: Load, after: Load, num_generated: int) -> list[str]:
    if before.energy_j is None or after.energy_j is None or not num_generated:
        return []
    return [f"{(after.energy_j - before.energy_j) / num_generated:.2g} J a generated token"]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
