"""Grammars that count only after an opening, in a text that is otherwise free: what follows a call's opening is a call.

Free text costs a look at each token's bytes, and no mask where every token may come. It has one where a token would end
an opening and go on with what the grammar cannot begin with. Knows nothing of calls.
"""

import threading
from collections import deque
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.grammar.closing import MAX_PATH_TOKENS, Closing, StartPaths
from orcinus.engine.grammar.masks import pack_tokens
from orcinus.engine.grammar.matcher import GrammarMatcher
from orcinus.engine.grammar.openings import OpeningFinder
from orcinus.engine.grammar.vocabulary import Vocabulary
from orcinus.engine.sampling_params import Openings, Thinking


class Begun(NamedTuple):
    """A grammar after one opening. `probe` is at the same place, for one thread at a time."""

    automaton: LLMatcher
    probe: LLMatcher
    start_paths: StartPaths

    def num_needed(self) -> int:
        """Return how many tokens lead to the grammar's end; 0 where none are known to."""
        try:
            return len(self.start_paths.within(MAX_PATH_TOKENS) or ())
        except TimeoutError:
            return 0


class _Completion(NamedTuple):
    """A token that ends an opening."""

    token_id: int
    opening: int
    fits: bool  # whether the grammar can begin with the rest of it


class OpenedText:
    """One grammar over one vocabulary and the openings after which it counts. For any thread.

    `markers` are the tokens that stand in the grammar. Raises `InvalidRequestError` for one that no text can match.
    """

    def __init__(
        self, automaton: LLMatcher, vocabulary: Vocabulary, openings: Openings, markers: Iterable[int] = ()
    ) -> None:
        self.path_finder = vocabulary.path_finder.preferring(markers)
        self.text_follows = openings.text_follows
        self.is_single = openings.is_single
        self.vocabulary = vocabulary
        self.finder = OpeningFinder(openings)
        self.begun = {of.begin: self._begin(automaton, of.begin) for of in openings.openings}
        self._begins = [of.begin for of in openings.openings]
        texts = {marker.encode() for marker in openings.markers}
        written = vocabulary.written
        self._specials = {i: written[i] if written[i] in texts else b"" for i in vocabulary.special_token_ids}
        self._completions: dict[int, list[_Completion]] = {}
        self._masks: dict[tuple[int, bool], NDArray[np.int32] | None] = {}
        self._lock = threading.Lock()

    def _begin(self, automaton: LLMatcher, begin: Iterable[str | int]) -> Begun:
        begun = automaton.deep_copy()
        for part in begin:
            begun.consume_tokens([part] if isinstance(part, int) else self.vocabulary(part))
        if begun.is_error():
            raise InvalidRequestError("the grammar allows no text at all", "structured_outputs")
        return Begun(begun, begun.deep_copy(), StartPaths(self.path_finder, begun))

    def begun_by(self, opening: int) -> Begun:
        """Return the grammar after an opening."""
        return self.begun[self._begins[opening]]

    @cached_property
    def nums_needed(self) -> list[int]:
        """Return how many tokens lead from each opening to the grammar's end. Searched for once."""
        needed = {begin: begun.num_needed() for begin, begun in self.begun.items()}
        return [needed[begin] for begin in self._begins]

    def search_ends(self) -> int:
        """Search for what texts need from their first token on. Returns how many tokens the longest way to an end has.

        That are the ways from openings to the grammar's end, and the masks of text without a part of an opening.
        """
        for state in (self.finder.start, self.finder.base):
            self.mask(state, is_over=False)
        return self._most_needed

    def is_too_late(self, state: int, token_id: int, num_left: int) -> bool:
        """Return whether a token ends an opening, and the `num_left` tokens with it do not suffice for what follows."""
        if num_left > MAX_PATH_TOKENS or num_left > self._most_needed:
            return False
        found = self.finder.feed(state, self.text_of(token_id))
        return found.opening is not None and self.nums_needed[found.opening] >= num_left

    @cached_property
    def _most_needed(self) -> int:
        return max(self.nums_needed, default=0)

    def text_of(self, token_id: int) -> bytes:
        """Return what a reader of the text sees of a token."""
        known = self._specials.get(token_id)
        if known is not None:
            return known
        return self.vocabulary.written[token_id] if token_id < len(self.vocabulary.written) else b""

    def after(self, opening: int, rest: bytes) -> LLMatcher:
        """Return the automaton after an opening and what has followed it. It may be in error."""
        automaton = self.begun_by(opening).automaton.deep_copy()
        if rest:
            automaton.consume_tokens(self._tokens(rest))
        return automaton

    def mask(self, state: int, *, is_over: bool) -> NDArray[np.int32] | None:
        """Return which tokens may come in free text, None if all may. No opening may where `is_over`."""
        key = state, is_over
        if key not in self._masks:
            with self._lock:
                out = [end.token_id for end in self._ends(state) if is_over or not end.fits]
                self._masks[key] = ~pack_tokens(out, self.vocabulary.size) if out else None
        return self._masks[key]

    def _ends(self, state: int) -> list[_Completion]:
        known = self._completions.get(state)
        if known is None:
            known = self._completions[state] = [*self._find_ends(state)]
        return known

    def _find_ends(self, state: int) -> Iterable[_Completion]:
        markers = {i for i, text in self._specials.items() if text}
        ids = set().union(*map(self.vocabulary.containing, self.finder.last_bytes)) - self._specials.keys()
        for token_id in sorted(ids | markers):
            found = self.finder.feed(state, self.text_of(token_id))
            if found.opening is not None:
                yield _Completion(token_id, found.opening, self._fits(found.opening, found.rest))

    def _fits(self, opening: int, rest: bytes) -> bool:
        tokens = self._tokens(rest) if rest else []
        return not tokens or bool(self.begun_by(opening).probe.validate_tokens(tokens) == len(tokens))

    def _tokens(self, text: bytes) -> list[int]:
        return self.vocabulary.ll_tokenizer.tokenize_bytes(text)


class OpenedMatcher(GrammarMatcher):
    """Follows one request's tokens through free text and what its openings begin.

    With `max_tokens` what was opened is brought to its end as by every `GrammarMatcher`. Where too few are left for
    that, a token that would end an opening is replaced by the end of the text: free text stays what it is.
    """

    def __init__(
        self,
        text: OpenedText,
        automaton: LLMatcher,
        start_paths: StartPaths,
        thinking: Thinking | None = None,
        *,
        ignore_eos: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(automaton, text.vocabulary, start_paths, thinking, ignore_eos=ignore_eos)
        self._text = text
        self._state = text.finder.start
        self._is_inside = False
        self._is_over = False  # no opening is to come
        self._was_steered = False
        self._steered_to: int | None = None  # instead of a token that was drawn in free text
        self._num_left = max_tokens

    @property
    def is_steered(self) -> bool:
        return self._was_steered or super().is_steered

    def fill_mask(self) -> None:
        if self._is_thinking:
            self.mask = None  # free text may end in a thought
        elif self._is_inside:
            super().fill_mask()
        else:
            self.mask = self._text.mask(self._state, is_over=self._is_over)

    def replacement_for(self, token_id: int) -> int:
        if self._is_inside or super()._is_free(token_id) or self.error is not None:
            return super().replacement_for(token_id)
        if self._num_left is None or not self._text.is_too_late(self._state, token_id, self._num_left):
            return token_id
        self._steered_to = self._text.vocabulary.end_ids[0]
        return self._steered_to

    @property
    def _is_strict(self) -> bool:
        return self._is_inside and super()._is_strict

    def _find_coming(self) -> deque[int]:
        return super()._find_coming() if self._is_inside else deque()

    def _is_free(self, token_id: int) -> bool:
        return not self._is_inside or super()._is_free(token_id)

    def _take_in(self, token_id: int) -> None:
        if self._num_left is not None:
            self._num_left -= 1
        if not self._is_inside and not super()._is_free(token_id):
            if self._thought is not None:
                self._thought.add(token_id)
            self._was_steered |= token_id == self._steered_to
            self._steered_to = None
            self._follow(self._text.text_of(token_id))
            return
        super()._take_in(token_id)
        if self._is_inside:
            self._leave_at_end()

    def _follow(self, text: bytes) -> None:
        """Take in free text, and enter the grammar where an opening ends."""
        found = self._text.finder.feed(self._state, text)
        while found.opening is not None and self._is_over:
            found = self._text.finder.feed(found.state, found.rest)
        self._state = found.state
        if found.opening is not None:
            self._enter(found.opening, found.rest)

    def _enter(self, opening: int, rest: bytes) -> None:
        self._is_inside = True
        self._matcher = self._text.after(opening, rest)
        self._coming = None
        self._check()
        if self._num_left is not None:
            finder = self._text.path_finder
            paths = StartPaths(finder, self._matcher) if rest else self._text.begun_by(opening).start_paths
            self._closing = Closing(finder, self._text.vocabulary.end_ids, self._num_left, paths)
        self.is_finished = self.error is None and self._matcher.is_stopped()
        self._leave_at_end()

    def _leave_at_end(self) -> None:
        """Go on with free text where what was opened is complete, unless nothing may follow it."""
        if self.error is not None or not self._text.text_follows or not self._matcher.is_accepting():
            return
        self._was_steered = self.is_steered
        self._closing = None
        self._is_inside = self.is_finished = False
        self._is_over = self._text.is_single
        self._state = self._text.finder.base
