"""Token ids to text while they arrive, in whole code points.

A `Detokenizer` gives out, in pieces and at a constant cost per token, the text that `Tokenizer.decode` gives the whole
output. Knows nothing of requests and of stop strings.
"""

import codecs
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from orcinus.engine.text.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    def feed(self, token_ids: Iterable[int]) -> str:
        """Return the text that is complete with these tokens."""

    def flush(self) -> str:
        """Return the rest, with replacement characters where bytes are missing, as at the end of the whole text."""


def make_detokenizer(tokenizer: "Tokenizer", prompt: Sequence[int], *, skip_special_tokens: bool) -> Detokenizer:
    """Return a detokenizer for output that continues `prompt`.

    The output's text is what it adds to the text of both together. So a tokenizer that drops a text's leading space
    (Llama 2) drops the prompt's, and not the one between prompt and output.
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
        """Return the text of the held tokens, which become the context.

        Tokens without text (skipped special ones) make no context: after nothing, a space would be dropped.
        """
        if text:
            self._context = self._held
        self._held = []
        return text

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)
