"""Token ids to text while they arrive: whole code points only, and nothing of a stop string.

A `Detokenizer` gives out the text that `Tokenizer.decode` gives the whole output, in pieces, at a constant cost per
token. A `StopScanner` reads that text and holds back what may become a stop string. Neither knows about requests.
"""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from orcinus.engine.text.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    def feed(self, token_ids: Iterable[int]) -> str:
        """The text that is complete with these tokens."""

    def flush(self) -> str:
        """The rest, replacement characters where bytes are missing, as at the end of the whole text."""


def make_detokenizer(tokenizer: "Tokenizer", prompt: Sequence[int], *, skip_special_tokens: bool) -> Detokenizer:
    """For output that continues `prompt`: its text is what it adds to the text of both together. So a tokenizer that
    drops a text's leading space (Llama 2) drops the prompt's, and not the one between prompt and output.
    """
    skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
    if tokenizer.is_byte_level:
        return ByteLevelDetokenizer(tokenizer, skipped)
    if tokenizer.has_byte_fallback:
        return ByteFallbackDetokenizer(tokenizer, skipped)
    return WindowDetokenizer(tokenizer, prompt, skip_special_tokens)


class ByteLevelDetokenizer:
    """Byte-level BPE: the text is the tokens' bytes read as UTF-8, and at most three bytes wait for their rest."""

    def __init__(self, tokenizer: "Tokenizer", skipped: frozenset[int]) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_ids: Iterable[int]) -> str:
        token_bytes, skipped = self._token_bytes, self._skipped
        return self._decoder.decode(b"".join([token_bytes(i) for i in token_ids if i not in skipped]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteFallbackDetokenizer:
    """SentencePiece with byte fallback: tokens have text of their own, or one byte of a run that is UTF-8.

    A run that begins with invalid bytes is given out as one replacement character per byte, as the whole decode does.
    A run that turns invalid only after whole code points keeps those (the whole decode replaces them, too: following
    it would hold back any run to its end).
    """

    def __init__(self, tokenizer: "Tokenizer", skipped: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._pending = b""
        self._is_run_broken = False

    def feed(self, token_ids: Iterable[int]) -> str:
        return "".join([self._feed_one(token_id) for token_id in token_ids if token_id not in self._skipped])

    def flush(self) -> str:
        replaced = REPLACEMENT * len(self._pending)
        self._pending = b""
        self._is_run_broken = False
        return replaced

    def _feed_one(self, token_id: int) -> str:
        byte = self._tokenizer.fallback_byte(token_id)
        if byte is None:
            return self.flush() + self._tokenizer.token_bytes(token_id).decode()
        if self._is_run_broken:
            return REPLACEMENT
        self._pending += bytes([byte])
        return self._take_pending()

    def _take_pending(self) -> str:
        try:
            text = codecs.utf_8_decode(self._pending, "strict", False)[0]
        except UnicodeDecodeError:
            text = self.flush()
            self._is_run_broken = True
        if text:
            self._pending = b""
        return text


class WindowDetokenizer:
    """Any tokenizer: decodes the tokens given out last with and without the new ones; the difference is new.

    A text that ends in replacement characters may only lack bytes that are yet to come, so it waits, but not for more
    than `max_held_tokens`: a model can write invalid bytes for ever.
    """

    prompt_tokens = 6  # of the prompt, as the first context
    max_held_tokens = 8

    def __init__(self, tokenizer: "Tokenizer", prompt: Sequence[int], skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._context = list(prompt[-self.prompt_tokens :])  # begins and ends with whole code points
        self._held: list[int] = []

    def feed(self, token_ids: Iterable[int]) -> str:
        return "".join([self._feed_one(token_id) for token_id in token_ids])

    def flush(self) -> str:
        return self._give_out(self._new_text())

    def _feed_one(self, token_id: int) -> str:
        self._held.append(token_id)
        text = self._new_text()
        is_complete = text and not text.endswith(REPLACEMENT)
        return self._give_out(text) if is_complete or len(self._held) >= self.max_held_tokens else ""

    def _new_text(self) -> str:
        return self._decode(self._context + self._held)[len(self._decode(self._context)) :]

    def _give_out(self, text: str) -> str:
        """Tokens without text (skipped special ones) make no context: after nothing, a space would be dropped."""
        if text:
            self._context = self._held
        self._held = []
        return text

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)


@dataclass(frozen=True, slots=True)
class Scanned:
    """Text that may go out. `stop` is the stop string that was completed: nothing after it counts."""

    text: str
    stop: str | None = None


class StopScanner:
    """Finds the first stop string to be completed, and holds back what may still become one.

    Reads character by character (Knuth, Morris, Pratt), so that the result does not depend on how the text is cut.
    Of two stop strings completed by the same character the longer one, which begins earlier, counts.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._fallbacks = [_fallbacks(stop) for stop in self._stops]
        self._num_matched = [0] * len(self._stops)  # characters of each that the text so far ends in
        self._held = ""
        self._include_stop = include_stop

    def feed(self, text: str, *, is_armed: bool = True) -> Scanned:
        """While not `is_armed`, a stop string that `text` completes is text like any other."""
        for position, character in enumerate(text):
            stop = self._advance(character)
            if stop is not None and is_armed:
                return Scanned(self._cut(self._held + text[: position + 1], stop), stop)
        return Scanned(self._release(text))

    def flush(self) -> str:
        """What is held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

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
        return text if self._include_stop else text[: len(text) - len(stop)]

    def _release(self, text: str) -> str:
        """A completed stop string that did not count is held back no longer than what it ends in might be one."""
        num_held = max(
            (
                fallbacks[-1] if matched == len(stop) else matched
                for stop, fallbacks, matched in zip(self._stops, self._fallbacks, self._num_matched, strict=True)
            ),
            default=0,
        )
        text = self._held + text
        cut = len(text) - num_held
        self._held = text[cut:]
        return text[:cut]


def _fallbacks(pattern: str) -> list[int]:
    """For each prefix of `pattern`, the length of its longest proper prefix that it also ends in."""
    lengths = [0] * len(pattern)
    for end in range(1, len(pattern)):
        length = lengths[end - 1]
        while length and pattern[length] != pattern[end]:
            length = lengths[length - 1]
        lengths[end] = length + (pattern[length] == pattern[end])
    return lengths
