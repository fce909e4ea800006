"""What may be asked of usage, on the command line and over HTTP: by what, and since when. Checks, and reads nothing."""

from collections.abc import Iterable, Iterator
from datetime import date
from typing import Any

from orcinus.server.usage.store import GROUPS, Groups


def parse_by(texts: Iterable[str]) -> tuple[str, ...]:
    """Return what is summed by, in the order in which it was given: `day,key`, say. Raises `ValueError`."""
    names = tuple(dict.fromkeys(name.strip() for text in texts for name in text.split(",")))
    if unknown := [name for name in names if name not in GROUPS]:
        raise ValueError(f"by must be one or more of {', '.join(GROUPS)}, with commas, got {unknown[0][:40]!r}")
    return names or ("key",)


def parse_since(text: str) -> str:
    """Return a day as the file has it. Raises `ValueError`."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"since must be a day such as 2027-01-31, got {text[:40]!r}") from None


def rows_of(groups: Groups, by: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Give an object for each group: what it is of, and its counts."""
    names = tuple(by)
    for group, usage in groups.items():
        yield {**dict(zip(names, group, strict=True)), **usage._asdict()}
