"""Finds stop strings in text that arrives in pieces. Knows nothing of tokens and requests."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scanned:
    """Text that may go out. `stop` is the stop string that was completed: nothing after it counts."""

    text: str
    stop: str | None = None


class StopScanner:
    """Finds the first stop string to be completed, and holds back what may still become one.

    Reads character by character (Knuth, Morris, Pratt), so that the result does not depend on how the text is cut.
    Of two stop strings completed by the same character the longer one, which begins earlier, counts.
    Text may be hidden: it counts for stop strings, and does not go out.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._fallbacks = [_fallbacks(stop) for stop in self._stops]
        self._num_matched = [0] * len(self._stops)  # characters of each that the text so far ends in
        self._held = ""
        self._hidden: set[int] = set()  # places in what is held
        self._include_stop = include_stop

    def feed(self, text: str, *, is_armed: bool = True, is_hidden: bool = False) -> Scanned:
        """Return what may go out with `text`. While not `is_armed`, a stop string is text like any other."""
        if is_hidden:
            self._hidden.update(range(len(self._held), len(self._held) + len(text)))
        for position, character in enumerate(text):
            stop = self._advance(character)
            if stop is not None and is_armed:
                return Scanned(self._cut(self._held + text[: position + 1], stop), stop)
        return Scanned(self._release(text))

    def flush(self) -> str:
        """Return what is held back, at the end of the text."""
        return self._let_out(self._held, len(self._held))

    def _advance(self, character: str) -> str | None:
        completed = None
        for index, stop in enumerate(self._stops):
            fallbacks, matched = self._fallbacks[index], self._num_matched[index]
            while matched and (matched == len(stop) or stop[matched] != character):
                matched = fallbacks[matched - 1]
            matched += stop[matched] == character
            self._num_matched[index] = matched
            if matched == len(stop) and completed is None:
                completed = stop
        return completed

    def _cut(self, text: str, stop: str) -> str:
        before = self._let_out(text, len(text) - len(stop))
        return before + stop if self._include_stop else before

    def _release(self, text: str) -> str:
        """Return what cannot become a stop string. Of a completed one that did not count, only its end may still."""
        num_held = max(
            (
                fallbacks[-1] if matched == len(stop) else matched
                for stop, fallbacks, matched in zip(self._stops, self._fallbacks, self._num_matched, strict=True)
            ),
            default=0,
        )
        text = self._held + text
        return self._let_out(text, len(text) - num_held)

    def _let_out(self, text: str, cut: int) -> str:
        """Return what is not hidden of the text before the cut, and hold what comes after it."""
        self._held = text[cut:]
        if not self._hidden:
            return text[:cut]
        shown = "".join(character for place, character in enumerate(text[:cut]) if place not in self._hidden)
        self._hidden = {place - cut for place in self._hidden if place >= cut}
        return shown


def _fallbacks(pattern: str) -> list[int]:
    """Return, for each prefix of `pattern`, the length of its longest proper prefix that it also ends in."""
    lengths = [0] * len(pattern)
    for end in range(1, len(pattern)):
        length = lengths[end - 1]
        while length and pattern[length] != pattern[end]:
            length = lengths[length - 1]
        lengths[end] = length + (pattern[length] == pattern[end])
    return lengths
