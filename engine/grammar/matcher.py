"""Which tokens a grammar allows next: compiled once for each grammar, followed once for each request, as packed bits.

The automata are llguidance's. Knows nothing of logits, batches on a device and requests' parameters; what a grammar
may contain is a matter of `engine.grammar.source`.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.grammar.closing import Closers, Closing
from orcinus.engine.grammar.masks import empty_mask, pack_tokens
from orcinus.engine.grammar.source import llguidance_grammar
from orcinus.engine.sampling_params import Grammar, GrammarKind, Thinking

if TYPE_CHECKING:
    from orcinus.engine.text.tokenizer import Tokenizer

_MAX_COMPILED = 256
_NUM_COMPILERS = 2
_LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
_TOO_SLOW = "the grammar is too complex: it takes too long to find an end of the text"
_TEXT_BEFORE = "\x02"  # some tokenizers put a space before the first word of a text

_Key = tuple[GrammarKind, str]


class Vocabulary:
    """A model's tokens as bytes, in the form that llguidance asks for.

    One more token than the model has serves as an end for models that have none. Special tokens have no text. Of a
    byte that is also a token of its own only that token counts: models never write the other.
    """

    def __init__(self, tokenizer: "Tokenizer", vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self.size = vocab_size
        self.end_ids = [i for i in eos_token_ids if i < vocab_size] or [vocab_size]
        self.eos_token_id = self.end_ids[0]
        self.bos_token_id = None
        num_known = min(vocab_size, tokenizer.vocab_size)
        self.special_token_ids = sorted({i for i in tokenizer.special_ids if i < num_known} | set(self.end_ids))
        self.tokens = [tokenizer.token_bytes(i) for i in range(num_known)] + [b""] * (vocab_size + 1 - num_known)
        self._drop_fallback_bytes(tokenizer, num_known)
        for end_id in self.end_ids:
            self.tokens[end_id] = self.tokens[end_id] or b"<end>"
        self._tokenizer = tokenizer
        self._specials = frozenset(self.special_token_ids)
        self.ll_tokenizer = LLTokenizer(TokenizerWrapper(self), eos_token=self.end_ids)
        self.closers = Closers(self.tokens, self.special_token_ids, self.end_ids, self.ll_tokenizer)

    def __call__(self, given: bytes | str) -> list[int]:
        """The tokens that the model would write a text in, without any of the special ones."""
        text = given.encode() if isinstance(given, str) else given
        for before in ("", _TEXT_BEFORE):
            ids = self._tokenizer.encode(before + text.decode(), add_special_tokens=False)
            ids = ids[len(self._tokenizer.encode(before, add_special_tokens=False)) :] if before else ids
            if b"".join(self.tokens[i] for i in ids) == text and self._specials.isdisjoint(ids):
                return ids
        return self.ll_tokenizer.greedy_tokenize(text.decode())

    def _drop_fallback_bytes(self, tokenizer: "Tokenizer", num_known: int) -> None:
        if not tokenizer.has_byte_fallback:
            return
        written = {self.tokens[i] for i in range(num_known) if tokenizer.fallback_byte(i) is None}
        for i in range(num_known):
            if tokenizer.fallback_byte(i) is not None and self.tokens[i] in written:
                self.tokens[i] = b""


class GrammarMatcher:
    """Follows one request's tokens. `mask` has a bit for each token that may come next, once `fill_mask` has run.

    With `max_tokens` it brings the text to an end within them, where that can be done (`engine.grammar.closing`). Used
    by one thread at a time. Where it cannot go on, `error` says why, and nothing it says holds any more.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: Vocabulary,
        thinking: Thinking | None = None,
        *,
        ignore_eos: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        self.mask: NDArray[np.int32] = empty_mask(vocabulary.size)
        self.error: str | None = None
        self.is_finished = False  # nothing can follow
        self._matcher = matcher
        self._closing = None if max_tokens is None else Closing(vocabulary.closers, vocabulary.end_ids, max_tokens)
        self._vocab_size = vocabulary.size
        self._ends = pack_tokens(vocabulary.end_ids, vocabulary.size)
        self._ignores_eos = ignore_eos
        self._opening = None if thinking is None else thinking.start
        self._thought: deque[int] | None = None
        self._thinking_end: tuple[int, ...] = () if thinking is None else thinking.end
        if thinking is not None and thinking.start is None:
            self._begin_thinking()

    def fill_mask(self) -> None:
        """Fill `mask` for the next token. A token that ends the text is allowed only where the text may end."""
        if self._thought is not None:
            self.mask[:] = ~self._ends
            return
        self._matcher.unsafe_compute_mask_ptr(self.mask.ctypes.data, self.mask.nbytes)
        self._check()
        if self._ignores_eos and (self.mask & ~self._ends).any():
            self.mask &= ~self._ends
        if self._opening is not None:
            self.mask |= pack_tokens([self._opening], self._vocab_size)
        self._look_for_the_end()

    def replacement_for(self, token_id: int) -> int:
        """Return the token to take where `token_id` was drawn: another one if the text could not end in time after it."""
        if self._closing is None or self._is_free(token_id) or self.error is not None:
            return token_id
        try:
            return self._closing.replacement_for(self._matcher, token_id)
        except TimeoutError:
            self.give_up(_TOO_SLOW)
            return token_id

    def replay(self, token_id: int) -> None:
        """Take in a token that another matcher of the same request has taken in before."""
        if self._thought is None:
            self._look_for_the_end()
        self.accept(token_id)

    def accept(self, token_id: int) -> None:
        """Take in the token that was chosen."""
        self._count(token_id)
        opening, self._opening = self._opening, None
        if self._thought is not None:
            self._think(self._thought, token_id)
        elif token_id == opening:
            self._begin_thinking()
        else:
            self._matcher.consume_token(token_id)
            self._check()
            self.is_finished = self.error is None and self._matcher.is_stopped()

    @property
    def is_steered(self) -> bool:
        """Whether a token was taken that had not been drawn."""
        return self._closing is not None and self._closing.is_steered

    def give_up(self, reason: str) -> None:
        self.error = self.error or reason

    def _is_free(self, token_id: int) -> bool:
        """Whether it is not the grammar's."""
        return self._thought is not None or token_id == self._opening

    def _look_for_the_end(self) -> None:
        if self._closing is None or self.error is not None:
            return
        try:
            self._closing.look(self._matcher)
        except TimeoutError:
            self.give_up(_TOO_SLOW)

    def _count(self, token_id: int) -> None:
        if self._closing is None or self.error is not None:
            return
        if self._is_free(token_id):
            self._closing.spend()
            return
        try:
            self._closing.accept(self._matcher, token_id)
        except TimeoutError:
            self.give_up(_TOO_SLOW)

    def _begin_thinking(self) -> None:
        self._thought = deque(maxlen=len(self._thinking_end))

    def _think(self, thought: deque[int], token_id: int) -> None:
        thought.append(token_id)
        if tuple(thought) == self._thinking_end:
            self._thought = None

    def _check(self) -> None:
        if self._matcher.is_error():
            self.give_up(f"the grammar cannot be followed: {_one_line(self._matcher.get_error())}")


class GrammarCompiler:
    """Compiles grammars for one model, in threads, and keeps the last ones. The tokenizer is loaded at first use."""

    def __init__(
        self, load_tokenizer: "Callable[[], Tokenizer]", vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._load_tokenizer = load_tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._vocabulary: Vocabulary | None = None
        self._loading = threading.Lock()
        self._lock = threading.Lock()  # of what follows
        self._compiled: OrderedDict[_Key, LLMatcher] = OrderedDict()
        self._compiling: dict[_Key, Future[LLMatcher]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def prepare(self, grammar: Grammar) -> "Future[LLMatcher] | None":
        """Begin to compile a grammar; None if it is at hand. The future raises `InvalidRequestError` if it fails."""
        key = grammar.kind, grammar.source
        if self._find(key) is not None:
            return None
        self._compiling = {key: future for key, future in self._compiling.items() if not future.done()}
        if key not in self._compiling:
            self._threads = self._threads or ThreadPoolExecutor(_NUM_COMPILERS, "grammar")
            self._compiling[key] = self._threads.submit(self._compile_and_keep, *key)
        return self._compiling[key]

    def matcher(
        self,
        grammar: Grammar,
        *,
        ignore_eos: bool = False,
        max_tokens: int | None = None,
        tokens: Iterable[int] = (),
    ) -> GrammarMatcher:
        """A matcher for a request that has generated `tokens`. Compiles here and now what was not prepared."""
        key = grammar.kind, grammar.source
        compiled = self._find(key) or self._compile_and_keep(*key)
        matcher = GrammarMatcher(
            compiled.deep_copy(), self.vocabulary, grammar.thinking, ignore_eos=ignore_eos, max_tokens=max_tokens
        )
        for token_id in tokens:
            matcher.replay(token_id)
        return matcher

    def compile(self, kind: GrammarKind, source: str) -> LLMatcher:
        """A matcher to copy. Raises `InvalidRequestError`."""
        compiled = LLMatcher(
            self.vocabulary.ll_tokenizer, llguidance_grammar(kind, source), log_level=0, limits=_LIMITS
        )
        if compiled.is_error():
            raise InvalidRequestError(_refusal(kind, compiled.get_error()))
        return compiled

    @property
    def vocabulary(self) -> Vocabulary:
        with self._loading:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._load_tokenizer(), self._vocab_size, self._eos_token_ids)
            return self._vocabulary

    def _compile_and_keep(self, kind: GrammarKind, source: str) -> LLMatcher:
        compiled = self.compile(kind, source)
        with self._lock:
            self._compiled[kind, source] = compiled
            while len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        return compiled

    def _find(self, key: _Key) -> LLMatcher | None:
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
            return self._compiled.get(key)


def _refusal(kind: GrammarKind, error: str) -> str:
    if "coerce_one_of" in error:
        return "the schema cannot be used: oneOf is supported where no two alternatives overlap; anyOf always is"
    what = {"regex": "regular expression", "choice": "list of choices", "grammar": "grammar"}.get(kind, "schema")
    if kind != "grammar":
        error = error.partition("\n   1 | ")[0]  # the grammar that was made of it
    return f"the {what} cannot be used: {_one_line(error).replace('Unimplemented keys', 'not supported')}"


def _one_line(error: str) -> str:
    """llguidance's messages may go on with the state that it was in."""
    if "NoExtension" in error:
        return "no text matches it"
    return " ".join(error.replace("<non-verbose/>", "").split())[:300]
