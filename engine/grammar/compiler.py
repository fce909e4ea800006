"""Compiles grammars for one model in threads of its own, so that no step ever waits for it.

Whoever needs a compiled grammar keeps it: only those used last are kept here. What a grammar may contain is a matter of
`engine.grammar.source`. Knows nothing of steps and of requests.
"""

import contextlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from llguidance import LLMatcher, LLParserLimits

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.grammar.closing import MAX_PATH_TOKENS, StartPaths
from orcinus.engine.grammar.matcher import GrammarMatcher, one_line
from orcinus.engine.grammar.opened import OpenedMatcher, OpenedText
from orcinus.engine.grammar.source import llguidance_grammar
from orcinus.engine.grammar.vocabulary import Vocabulary
from orcinus.engine.platform.priority import lower_priority
from orcinus.engine.sampling_params import Grammar, GrammarKind, Openings, Thinking

if TYPE_CHECKING:
    from orcinus.engine.text.tokenizer import Tokenizer

_MAX_KEPT = 256
_NUM_COMPILERS = 2
_TOKEN = re.compile(r"<\[(\d+)\]>")  # in Lark's notation
_LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


class CompiledGrammar:
    """One grammar's automaton over one model's vocabulary, to make matchers of."""

    def __init__(self, automaton: LLMatcher, vocabulary: Vocabulary) -> None:
        self._automaton = automaton
        self._vocabulary = vocabulary
        self._start_paths = StartPaths(vocabulary.path_finder, automaton)

    def automaton(self) -> LLMatcher:
        """Return the automaton at its start, a copy of its own for every caller."""
        return self._automaton.deep_copy()

    def search_end(self, max_tokens: int) -> None:
        """Search for a text of so few tokens, where none is known yet. What takes too long is left to requests."""
        with contextlib.suppress(TimeoutError):
            self._start_paths.within(max_tokens)

    def matcher(
        self,
        thinking: Thinking | None = None,
        *,
        ignore_eos: bool = False,
        max_tokens: int | None = None,
        tokens: Iterable[int] = (),
    ) -> GrammarMatcher:
        """Return a matcher for a request that has generated `tokens`. What fails over them is told by its `error`."""
        matcher = self._new_matcher(thinking, ignore_eos=ignore_eos, max_tokens=max_tokens)
        matcher.replay(tokens)
        return matcher

    def begun(self) -> "list[CompiledGrammar]":
        """Return the grammars that a text follows, each from its start."""
        return [self]

    def _new_matcher(self, thinking: Thinking | None, *, ignore_eos: bool, max_tokens: int | None) -> GrammarMatcher:
        return GrammarMatcher(
            self.automaton(),
            self._vocabulary,
            self._start_paths,
            thinking,
            ignore_eos=ignore_eos,
            max_tokens=max_tokens,
        )


class CompiledOpenings(CompiledGrammar):
    """A grammar that counts after openings alone."""

    def __init__(
        self, automaton: LLMatcher, vocabulary: Vocabulary, openings: Openings, markers: Iterable[int]
    ) -> None:
        super().__init__(automaton, vocabulary)
        self._text = OpenedText(automaton, vocabulary, openings, markers)

    def search_end(self, max_tokens: int) -> None:
        self._text.search_ends()

    def begun(self) -> list[CompiledGrammar]:
        """Return the grammar after each of its openings."""
        return [CompiledGrammar(begun.automaton, self._vocabulary) for begun in self._text.begun.values()]

    def _new_matcher(self, thinking: Thinking | None, *, ignore_eos: bool, max_tokens: int | None) -> GrammarMatcher:
        return OpenedMatcher(
            self._text,
            self.automaton(),
            self._start_paths,
            thinking,
            ignore_eos=ignore_eos,
            max_tokens=max_tokens,
        )


class _Kept(NamedTuple):
    future: Future[CompiledGrammar]
    max_tokens: int  # the least that a text was searched for with


class GrammarCompiler:
    """Compiles grammars for one model. `load_tokenizer` is called in a thread that first needs the tokenizer."""

    def __init__(
        self, load_tokenizer: "Callable[[], Tokenizer]", vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._load_tokenizer = load_tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._vocabulary: Future[Vocabulary] | None = None
        self._loading = threading.Lock()
        self._kept: OrderedDict[tuple[GrammarKind, str, Openings | None], _Kept] = OrderedDict()
        self._threads = ThreadPoolExecutor(_NUM_COMPILERS, "grammar", initializer=lower_priority)

    def prepare(self, grammar: Grammar, max_tokens: int | None = None) -> Future[CompiledGrammar]:
        """Begin to compile a grammar, and to search for a text of at most `max_tokens`, unless that was done lately.

        To be called by one thread. The future raises `InvalidRequestError` for a grammar that cannot be compiled, and
        `ModelLoadError` for a model whose tokenizer cannot be read.
        """
        self.load()
        key = grammar.kind, grammar.source, grammar.openings
        kept, limit = self._kept.get(key), min(max_tokens or MAX_PATH_TOKENS, MAX_PATH_TOKENS)
        if kept is None or (kept.future.done() and kept.future.exception() is not None):
            kept = self._kept[key] = _Kept(self._threads.submit(self._compile_and_close, *key, limit), limit)
        elif limit < kept.max_tokens:
            kept = self._kept[key] = _Kept(self._threads.submit(_close, kept.future, limit), limit)
        self._kept.move_to_end(key)
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return kept.future

    def compile(self, kind: GrammarKind, source: str, openings: Openings | None = None) -> CompiledGrammar:
        """Compile a grammar here and now. Raises what `prepare` promises."""
        automaton = LLMatcher(
            self.vocabulary.ll_tokenizer, llguidance_grammar(kind, source), log_level=0, limits=_LIMITS
        )
        if automaton.is_error():
            raise InvalidRequestError(_refusal(kind, automaton.get_error()))
        if openings is None:
            return CompiledGrammar(automaton, self.vocabulary)
        markers = sorted({int(number) for number in _TOKEN.findall(source)})
        return CompiledOpenings(automaton, self.vocabulary, openings, markers)

    def _compile_and_close(
        self, kind: GrammarKind, source: str, openings: Openings | None, max_tokens: int
    ) -> CompiledGrammar:
        """Compile a grammar, and search here for the way to its end: no step is to wait for that."""
        compiled = self.compile(kind, source, openings)
        compiled.search_end(max_tokens)
        return compiled

    @property
    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary, as soon as it is loaded. Raises `ModelLoadError` where it cannot be."""
        return self.load().result()

    def load(self) -> Future[Vocabulary]:
        """Begin to load the vocabulary, unless that was done, in a thread of the caller's process's own priority.

        It holds the interpreter's lock while it makes its tree of tokens: at a low priority others would wait for it as
        long as the machine is busy.
        """
        with self._loading:
            if self._vocabulary is None or (self._vocabulary.done() and self._vocabulary.exception() is not None):
                self._vocabulary = Future()
                threading.Thread(
                    target=self._load_vocabulary, args=[self._vocabulary], name="vocabulary", daemon=True
                ).start()
            return self._vocabulary

    def _load_vocabulary(self, loaded: Future[Vocabulary]) -> None:
        try:
            loaded.set_result(Vocabulary(self._load_tokenizer(), self._vocab_size, self._eos_token_ids))
        except BaseException as error:  # whoever waits for it is told, whatever it is
            loaded.set_exception(error)


def _close(compiling: Future[CompiledGrammar], max_tokens: int) -> CompiledGrammar:
    """Search for the way to a grammar's end. It was compiled, or is being compiled: that was asked for before."""
    compiled = compiling.result()
    compiled.search_end(max_tokens)
    return compiled


def _refusal(kind: GrammarKind, error: str) -> str:
    if "coerce_one_of" in error:
        return "the schema cannot be used: the alternatives of a oneOf cannot be told apart; anyOf can always be used"
    what = {"regex": "regular expression", "choice": "list of choices", "grammar": "grammar"}.get(kind, "schema")
    if kind != "grammar":
        error = error.partition("\n   1 | ")[0]  # the grammar that was made of it
    return f"the {what} cannot be used: {one_line(error).replace('Unimplemented keys', 'not supported')}"
