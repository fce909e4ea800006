"""Text that comes in parts, read by generators that wait where they need more of it.

A reader is written as if all the text were there: it peeks, takes, and looks for markers with `yield from`; whenever
the text runs out it is suspended until `IncomingText.add` or `end`. Where a part ends therefore never changes what is
read. Knows nothing of messages.
"""

import re
from collections.abc import Callable, Collection, Generator
from typing import Protocol, TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]

_SPACE = re.compile(r"[ \t\r\n]+")


class Markers:
    """A few strings to look for. Where two begin at one place, the longer one counts."""

    def __init__(self, markers: Collection[str]) -> None:
        self._pattern = re.compile("|".join(re.escape(marker) for marker in sorted(markers, key=len, reverse=True)))
        self._beginnings = {marker[:length] for marker in markers for length in range(1, len(marker))}
        self._longest = max(map(len, markers))

    def find(self, text: str, start: int) -> re.Match[str] | None:
        """Return the first one that is there."""
        return self._pattern.search(text, start)

    def num_held_back(self, text: str, start: int) -> int:
        """Return how many characters at the end may turn out to begin a marker."""
        for length in range(min(self._longest - 1, len(text) - start), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0


class IncomingText:
    """Holds what has come and was not read yet. One generator reads it."""

    def __init__(self) -> None:
        self._text = ""
        self._position = 0
        self._is_at_end = False
        self._is_cut = False

    def add(self, text: str) -> None:
        self._text = self._text[self._position :] + text
        self._position = 0

    def end(self, *, is_cut: bool = False) -> None:
        """Let readers that wait for more have what there is: no more will come.

        With `is_cut` there would have been more: the beginning of a marker at the end is none of the text.
        """
        self._is_at_end = True
        self._is_cut = is_cut

    @property
    def is_cut(self) -> bool:
        """Whether the text has ended, at a limit."""
        return self._is_cut

    def peek(self) -> Reading[str]:
        """Return the next character; at the end of the text, nothing."""
        while self._position == len(self._text):
            if self._is_at_end:
                return ""
            yield
        return self._text[self._position]

    def take(self) -> str:
        """Take the character that was peeked at."""
        self._position += 1
        return self._text[self._position - 1]

    def take_run(self, pattern: re.Pattern[str]) -> str:
        """Take as much as is there and matches `pattern`, which has to match character by character."""
        match = pattern.match(self._text, self._position)
        if match is None:
            return ""
        self._position = match.end()
        return match[0]

    def take_all(self, pattern: re.Pattern[str]) -> Reading[str]:
        """Take as much as matches `pattern`, whatever it takes to have it all."""
        runs: list[str] = []
        while (yield from self.peek()) and (run := self.take_run(pattern)):
            runs.append(run)
        return "".join(runs)

    def take_space(self) -> Reading[str]:
        return (yield from self.take_all(_SPACE))

    def comes(self, marker: str) -> Reading[bool]:
        """Return whether `marker` comes next."""
        while len(self._text) - self._position < len(marker):
            rest = self._text[self._position :]
            if not marker.startswith(rest):
                return False
            if self._is_at_end:
                self._drop_if_cut(len(rest))
                return False
            yield
        return self._text.startswith(marker, self._position)

    def take_if(self, marker: str) -> Reading[str]:
        """Take `marker` if it comes next, otherwise nothing."""
        if not (yield from self.comes(marker)):
            return ""
        self._position += len(marker)
        return marker

    def take_repeats(self, marker: str) -> Reading[str]:
        """Take white space, and `marker` with white space after it as often as it comes."""
        parts = [(yield from self.take_space())]
        while repeat := (yield from self.take_if(marker)):
            parts += [repeat, (yield from self.take_space())]
        return "".join(parts)

    def read_until(self, markers: Markers, give: Callable[[str], None]) -> Reading[str]:
        """Give away what comes before the first marker, as it comes. Returns the marker, or nothing at the end."""
        while True:
            held_back = markers.num_held_back(self._text, self._position)
            if self._is_at_end:
                held_back = self._drop_if_cut(held_back)
            sure = len(self._text) - held_back
            match = markers.find(self._text, self._position)
            if match and match.start() < sure:
                self._give(match.start(), give)
                self._position = match.end()
                return match[0]
            self._give(sure, give)
            if self._is_at_end:
                return ""
            yield

    def read_rest(self, give: Callable[[str], None]) -> Reading[None]:
        """Give away everything there is and will be."""
        while not self._is_at_end:
            self._give(len(self._text), give)
            yield
        self._give(len(self._text), give)

    def _drop_if_cut(self, length: int) -> int:
        """Drop so much at the end, the beginning of a marker, where the text was cut. Returns how much is held back."""
        if self._is_cut:
            self._text = self._text[: len(self._text) - length]
        return 0

    def _give(self, end: int, give: Callable[[str], None]) -> None:
        if end > self._position:
            given = self._text[self._position : end]
            self._position = end
            give(given)


class TextFeed(Protocol):
    """Reads text that comes in parts."""

    def feed(self, text: str) -> None: ...
    def end(self, *, is_cut: bool = False) -> None: ...


class TextReader:
    """A generator at work on incoming text. `feed` and `end` run it as far as the text goes."""

    def __init__(self, text: IncomingText, reading: Reading[None]) -> None:
        self._text = text
        self._reading = reading

    def feed(self, text: str) -> None:
        self._text.add(text)
        next(self._reading, None)

    def end(self, *, is_cut: bool = False) -> None:
        self._text.end(is_cut=is_cut)
        next(self._reading, None)
