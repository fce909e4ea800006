"""Compiles grammars for one model, off the engine's thread, once for each grammar.

What a grammar may contain is a matter of `engine.grammar.source`. Knows nothing of steps and requests' parameters.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.grammar.matcher import GrammarMatcher, one_line
from orcinus.engine.grammar.source import llguidance_grammar
from orcinus.engine.grammar.vocabulary import Vocabulary
from orcinus.engine.sampling_params import Grammar, GrammarKind

if TYPE_CHECKING:
    from orcinus.engine.text.tokenizer import Tokenizer

_MAX_COMPILED = 256
_NUM_COMPILERS = 2
_LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)

_Key = tuple[GrammarKind, str]


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
    return f"the {what} cannot be used: {one_line(error).replace('Unimplemented keys', 'not supported')}"
