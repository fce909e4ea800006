"""A model's tokens in the form that grammars are compiled for. Knows nothing of grammars and requests."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llguidance import LLTokenizer, TokenizerWrapper

from orcinus.engine.grammar.closing import PathFinder

if TYPE_CHECKING:
    from orcinus.engine.text.tokenizer import Tokenizer

_TEXT_BEFORE = "\x02"  # some tokenizers put a space before the first word of a text


class Vocabulary:
    """A model's tokens as bytes, in the form that llguidance asks for.

    One more token than the model has serves as an end for models that have none. Special tokens have no text. Where a
    fallback token stands for the same byte as a token that has it as text, only the latter counts: models never write
    the other.
    """

    def __init__(self, tokenizer: "Tokenizer", vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self.size = vocab_size
        self.end_ids = [i for i in eos_token_ids if i < vocab_size] or [vocab_size]
        self.eos_token_id = self.end_ids[0]
        self.bos_token_id = None
        num_known = min(vocab_size, tokenizer.vocab_size)
        self.special_token_ids = sorted({i for i in tokenizer.special_ids if i < num_known} | set(self.end_ids))
        self.tokens = [tokenizer.token_bytes(i) for i in range(num_known)] + [b""] * (vocab_size + 1 - num_known)
        self.written = [*self.tokens]  # of all tokens, those that models never write included
        self._containing: dict[int, list[int]] = {}
        self._drop_fallback_bytes(tokenizer, num_known)
        for end_id in self.end_ids:
            self.tokens[end_id] = self.tokens[end_id] or b"<end>"
        self._tokenizer = tokenizer
        self._specials = frozenset(self.special_token_ids)
        self.ll_tokenizer = LLTokenizer(TokenizerWrapper(self), eos_token=self.end_ids)
        self.path_finder = PathFinder(self.tokens, self.special_token_ids, self.end_ids, self.ll_tokenizer)

    def __call__(self, given: bytes | str) -> list[int]:
        """Return the tokens that the model would write a text in, without any of the special ones."""
        text = given.encode() if isinstance(given, str) else given
        for before in ("", _TEXT_BEFORE):
            ids = self._tokenizer.encode(before + text.decode(), add_special_tokens=False)
            ids = ids[len(self._tokenizer.encode(before, add_special_tokens=False)) :] if before else ids
            if b"".join(self.tokens[i] for i in ids) == text and self._specials.isdisjoint(ids):
                return ids
        return self.ll_tokenizer.greedy_tokenize(text.decode())

    def containing(self, byte: int) -> list[int]:
        """Return the tokens that have this byte in what they write."""
        known = self._containing.get(byte)
        if known is None:
            known = self._containing[byte] = [i for i, text in enumerate(self.written) if byte in text]
        return known

    def _drop_fallback_bytes(self, tokenizer: "Tokenizer", num_known: int) -> None:
        if not tokenizer.has_byte_fallback:
            return
        written = {self.tokens[i] for i in range(num_known) if tokenizer.fallback_byte(i) is None}
        for i in range(num_known):
            if tokenizer.fallback_byte(i) is not None and self.tokens[i] in written:
                self.tokens[i] = b""
