"""Between what finds the regions of an answer (`server.reading.region_parser`) and what makes pieces of them."""

from collections.abc import Mapping
from typing import Protocol


class UnreadableAnswerError(Exception):
    """The template cannot read this answer: a pattern takes too long, or two of them match nothing in turns."""


class RegionSink(Protocol):
    """Takes regions. `is_prompt` marks what the prompt has written; a field of None is text of no region.

    The region that has no delimiters is opened and closed as others are, by nothing, where there is text in it.
    """

    def open(self, field: str, opening: str, captures: Mapping[str, str], *, is_prompt: bool) -> None: ...
    def text(self, field: str | None, text: str, *, is_prompt: bool) -> None: ...
    def close(
        self, field: str, closing: str, captures: Mapping[str, str], *, is_prompt: bool, is_cut: bool
    ) -> None: ...
