"""Limits of one client: each a number, and what says so, which the error names to whoever goes beyond it."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Limit:
    """Holds a number that may not be exceeded, and the setting or the entry of a key file that has it."""

    value: int
    source: str


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Holds what a client may have: sequences at once, requests and tokens a minute, tokens generated per choice."""

    max_requests: Limit | None = None
    max_requests_per_minute: Limit | None = None
    max_tokens_per_minute: Limit | None = None
    max_tokens: Limit | None = None

    def over(self, others: "ClientLimits") -> "ClientLimits":
        """Return these limits and, where there is none, that of `others`."""
        return ClientLimits(
            **{each.name: getattr(self, each.name) or getattr(others, each.name) for each in fields(self)}
        )


NO_LIMITS = ClientLimits()
