"""Brings a text to an end of its grammar before its tokens run out, by a short path to an accepting state.

A path is a list of tokens. To find one, a copy of the grammar's automaton is fed what usually closes texts: brackets,
quotes, short values. Knows nothing of logits, and of a request only how many tokens are left to it.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import chain
from typing import NamedTuple

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from orcinus.engine.grammar.masks import empty_mask, tokens_in

# A path has at most so many tokens, so many of them chosen among others. The bounds count tokens and not seconds, so
# that the same text always gets the same path.
MAX_PATH_TOKENS = 1024
_MAX_CHOICES = 512
_TIMEOUT_S = 0.5  # of processor time, many times what these take: any client may send a grammar
# While so many more tokens are left than the longest path so far had, what each token does to the path is not computed.
_NEAR = 256

# What is tried first, where nearly any letter may come (in strings) and where not (between them).
_IN_STRINGS = b"\"ab@.c<'`\n)]}>;/,"
_BETWEEN = b"}])>:,\"'0nt1f;.-[{"
_SHORT_VALUES_FIRST = b"}])>:,0nt1f\"';.-[{"
_STRUCTURE = b"}])>:,\"'[{"
_LAST = b" \t\r\n\\"
_LESS = b"<"
_AFTER_LESS = b"/|\"!#$%&'()*+,-.:;=>?@[]^_`{}~abcdefghijklmnopqrstuvwxyz"  # a closing tag goes on with one of these
_MARKER = 300  # between the closing bytes and all others
_NUM_LIKELY = 16  # tried one by one, before the mask of the whole vocabulary is computed
_NUM_ROUNDS = 3  # through the likely ones, before others get their turn
_SOME_LETTERS = b"kqZ"  # where one of these may come, we are in a string


class _Order:
    """The candidates, as positions in `PathFinder.ids`, best first, and the rank of each."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = np.array(ranks, dtype=np.int64)
        self.likely: list[int] = np.argsort(self.ranks, kind="stable")[:_NUM_LIKELY].tolist()


class _Orders(NamedTuple):
    in_strings: _Order
    between: _Order


class PathFinder:
    """Finds paths made of a vocabulary's single bytes and of its special tokens, which may be a grammar's markers."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        special_token_ids: Sequence[int],
        end_ids: Sequence[int],
        tokenizer: LLTokenizer,
    ) -> None:
        no_text = frozenset(special_token_ids) | frozenset(end_ids)
        single = {token[0]: i for i, token in enumerate(tokens) if len(token) == 1 and i not in no_text}
        markers = [i for i in special_token_ids if i not in end_ids]
        self.ids = [*single.values(), *markers]
        self.preferred: tuple[int, ...] = ()
        self._less = frozenset(i for i, token in enumerate(tokens) if token.endswith(_LESS) and i not in no_text)
        self.after_less = [single[byte] for byte in _AFTER_LESS if byte in single]
        self.letters = [single[byte] for byte in _SOME_LETTERS if byte in single]
        self.structure = frozenset(position for position, byte in enumerate(single) if byte in _STRUCTURE)
        self.sizes = [0 if i in no_text else len(token) for i, token in enumerate(tokens)]  # in bytes
        self.tokenizer = tokenizer
        self.vocab_size = len(tokens) - 1

        def order(first: bytes, *, backwards: bool = False) -> _Order:
            return _Order([_rank(byte, first, backwards=backwards) for byte in single] + [_MARKER] * len(markers))

        self._orders = [
            _Orders(order(_IN_STRINGS), order(_BETWEEN)),
            _Orders(order(_IN_STRINGS, backwards=True), order(_SHORT_VALUES_FIRST, backwards=True)),
        ]

    def preferring(self, token_ids: Iterable[int]) -> "PathFinder":
        """Return a finder that takes these tokens wherever they may come: those that stand in a grammar."""
        finder = copy(self)
        finder.preferred = tuple(token_ids)
        return finder

    def begins_tag(self, token_id: int) -> bool:
        """Return whether a token's text ends with what a closing tag begins with."""
        return token_id in self._less

    def find_path(self, matcher: LLMatcher, max_tokens: int) -> list[int] | None:
        """Return tokens that lead from the state of `matcher` to an accepting one, or None if none are found.

        They need not be the fewest. `matcher` itself stays in its state. Raises `TimeoutError` for an automaton that is
        far too slow.
        """
        limit, deadline = min(max_tokens, MAX_PATH_TOKENS), time.thread_time() + _TIMEOUT_S
        for orders in self._orders:
            path = _PathSearch(self, orders, matcher.deep_copy()).to_end(limit, deadline)
            if path is not None:
                return path
        return None

    def paths(self, matcher: LLMatcher) -> Iterator[list[int]]:
        """Yield the paths among which `find_path` takes the first that has no more than `max_tokens`."""
        for orders in self._orders:
            deadline = time.thread_time() + _TIMEOUT_S
            path = _PathSearch(self, orders, matcher.deep_copy()).to_end(MAX_PATH_TOKENS, deadline)
            if path is not None:
                yield path

    def rest_after(self, path: list[int], num_bytes: int) -> list[int] | None:
        """Return the path less its first tokens that have so many bytes together; None where none have."""
        for num_done, token_id in enumerate(path):
            if num_bytes <= 0 or not self.sizes[token_id]:
                return path[num_done:] if num_bytes == 0 else None
            num_bytes -= self.sizes[token_id]
        return [] if num_bytes >= 0 else None


class StartPaths:
    """The paths from the start of one grammar, searched for once for all its texts. For any thread."""

    def __init__(self, path_finder: PathFinder, automaton: LLMatcher) -> None:
        self._search = path_finder.paths(automaton.deep_copy())
        self._found: list[list[int]] = []
        self._is_too_slow = False
        self._lock = threading.Lock()

    def within(self, max_tokens: int) -> list[int] | None:
        """Return what `PathFinder.find_path` returns. Raises `TimeoutError` as it does."""
        with self._lock:
            if self._is_too_slow:
                raise TimeoutError
            return next((path for path in chain(self._found, self._remaining()) if len(path) <= max_tokens), None)

    def _remaining(self) -> Iterator[list[int]]:
        try:
            for path in self._search:
                self._found.append(path)
                yield path
        except TimeoutError:
            self._is_too_slow = True
            raise


class _PathSearch:
    """One search, on a copy of the automaton. Where tokens lead nowhere, those that were used least are tried next."""

    def __init__(self, path_finder: PathFinder, orders: _Orders, matcher: LLMatcher) -> None:
        self._path_finder = path_finder
        self._orders = orders
        self._matcher = matcher
        self._used: Counter[int] = Counter()
        self._num_preferred: Counter[int] = Counter()
        self._num_choices = 0
        self._was_in_string = False
        self._last = -1

    def to_end(self, limit: int, deadline: float) -> list[int] | None:
        path: list[int] = []
        while not self._matcher.is_accepting():
            if len(path) >= limit or self._num_choices == _MAX_CHOICES:
                return None
            if time.thread_time() > deadline:
                raise TimeoutError
            tokens = self._forced() or self._best()
            num_taken = self._matcher.try_consume_tokens(tokens)
            if num_taken == 0:
                return None
            path += tokens[:num_taken]
            self._last = path[-1]
        return path if len(path) <= limit else None

    def _forced(self) -> list[int]:
        """Return the tokens of the text that alone may come next, none if there are alternatives."""
        try:
            text = self._matcher.compute_ff_bytes().decode()
        except UnicodeDecodeError:
            return []
        return self._path_finder.tokenizer.greedy_tokenize(text) if text else []

    def _best(self) -> list[int]:
        """Return the best token in a list, an empty one if no token may come next."""
        self._num_choices += 1
        if (marker := self._preferred()) is not None:
            return [marker]
        is_in_string = any(map(self._may_come, self._path_finder.letters))
        if is_in_string != self._was_in_string:
            self._used.clear()
            self._was_in_string = is_in_string
        order = self._orders.in_strings if is_in_string else self._orders.between
        best = self._best_likely(order)
        if best is None:
            mask = self._mask()
            best = self._best_of(mask, order)
            if best is None:
                return [int(token_id) for token_id in tokens_in(mask)[:1]]
        if best in self._path_finder.structure and not is_in_string:
            self._used.clear()
        else:
            self._used[best] += 1
        return [self._path_finder.ids[best]]

    def _preferred(self) -> int | None:
        """Return a token that ends what might be any text."""
        ending = [*filter(self._ends_text, filter(self._is_due, self._path_finder.preferred))]
        if len(ending) > 1:  # of those that end nothing, each gets its turn
            ending.sort(key=lambda token_id: (not self._ends_all(token_id), self._num_preferred[token_id]))
        if ending:
            self._num_preferred[ending[0]] += 1
            return ending[0]
        if not self._path_finder.begins_tag(self._last):
            return None
        return next(filter(self._ends_text, self._path_finder.after_less), None)

    def _is_due(self, token_id: int) -> bool:
        """Return whether a token is to be tried still: where it ends no text it may begin the same thing for ever."""
        return self._num_preferred[token_id] < _NUM_ROUNDS or any(map(self._may_come, self._path_finder.letters))

    def _ends_all(self, token_id: int) -> bool:
        after = self._matcher.deep_copy()
        return bool(after.consume_token(token_id) and after.is_accepting())

    def _ends_text(self, token_id: int) -> bool:
        """Return whether a token may come, and no letter after it."""
        return self._may_come(token_id) and not any(
            self._matcher.validate_tokens([token_id, letter]) == 2 for letter in self._path_finder.letters
        )

    def _best_likely(self, order: _Order) -> int | None:
        fresh = [position for position in order.likely if self._used[position] < _NUM_ROUNDS]
        fresh.sort(key=self._used.__getitem__)
        return next((position for position in fresh if self._may_come(self._path_finder.ids[position])), None)

    def _best_of(self, mask: NDArray[np.int32], order: _Order) -> int | None:
        ids = np.array(self._path_finder.ids)
        allowed: list[int] = np.flatnonzero(mask[ids >> 5] >> (ids & 31) & 1).tolist()
        due = [position for position in allowed if self._is_due(self._path_finder.ids[position])]
        return min(due or allowed, key=lambda position: (self._used[position], order.ranks[position]), default=None)

    def _may_come(self, token_id: int) -> bool:
        return self._matcher.validate_tokens([token_id]) == 1

    def _mask(self) -> NDArray[np.int32]:
        mask = empty_mask(self._path_finder.vocab_size)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        return mask


class _Step(NamedTuple):
    token_id: int
    path: list[int] | None  # after it


class Closing:
    """Ends one request's text within its `max_tokens`, by replacing tokens where it has to.

    A token after which what is left would not suffice is replaced by the next one of the path. Until then nothing is
    changed, and little is computed: where far more tokens are left than the path takes, it is searched for now and
    then. A grammar without a path is left alone, and so is one whose path a single token makes longer by more than all
    that is left. Used by one thread at a time.

    The state follows from `max_tokens` and the tokens that were taken, drawn or not: a resumed request gets the same
    replacements as one that was never interrupted, if `update_path` and `accept` are called for each of its tokens
    again. They and `replacement_for` raise `TimeoutError` for an automaton that is far too slow.
    """

    def __init__(
        self, path_finder: PathFinder, end_ids: Sequence[int], max_tokens: int, start_paths: StartPaths
    ) -> None:
        self.is_steered = False
        self._path_finder = path_finder
        self._start_paths: StartPaths | None = start_paths  # until the first token of the grammar
        self._end_ids = end_ids
        self._num_left = max_tokens
        self._search_at = 2 * MAX_PATH_TOKENS  # with so few tokens left
        self._near = _NEAR
        self._path: list[int] | None = None  # while the end is near
        self._known: list[int] | None = None  # the path that was found last, `_num_bytes` ago
        self._num_bytes = 0
        self._step: _Step | None = None  # what was found out about one token that may come next
        self._steered_to: int | None = None  # instead of a token that was drawn

    @property
    def has_ended(self) -> bool:
        """Whether no token is left."""
        return self._num_left <= 0

    def update_path(self, matcher: LLMatcher) -> None:
        """Search for the path, unless that can wait; to be called before each token is chosen."""
        if self._path is not None or self._num_left > self._search_at:
            return
        path = self._search(matcher)
        if path is None:
            self._search_at = -1
            return
        self._near = max(self._near, len(path) + _NEAR)
        far = self._num_left - len(path) - self._near
        self._search_at = self._num_left - 1 - far // 4
        self._path = path if far <= 0 else None
        self._known, self._num_bytes = path, 0

    def _search(self, matcher: LLMatcher) -> list[int] | None:
        """Return a path: that of all texts at their start, what is left of the one found last, or a new one."""
        if self._start_paths is not None:
            return self._start_paths.within(self._num_left)
        rest = None if self._known is None else self._path_finder.rest_after(self._known, self._num_bytes)
        if rest is not None and len(rest) <= self._num_left and self._is_path(matcher, rest):
            return rest
        return self._path_finder.find_path(matcher, self._num_left)

    def replacement_for(self, matcher: LLMatcher, token_id: int) -> int:
        """Return the token to take where `token_id` was drawn: this one, or the next one of the path."""
        if self._path is None or token_id in self._end_ids or self._path_after(matcher, token_id) is not None:
            return token_id
        self._steered_to = self._path[0] if self._path else self._end_ids[0]
        return self._steered_to

    def accept(self, matcher: LLMatcher, token_id: int) -> None:
        """Take in the token that was chosen, which may be neither of them; `matcher` is in the state before it."""
        self._path, self._step = self._path_after(matcher, token_id), None
        self._start_paths = None
        self._num_bytes += self._path_finder.sizes[token_id]
        self.is_steered |= token_id == self._steered_to
        self._steered_to = None
        self._num_left -= 1

    def count_free_token(self) -> None:
        """Take in a token that is not the grammar's."""
        self._path = self._step = None
        self._num_left -= 1

    def _path_after(self, matcher: LLMatcher, token_id: int) -> list[int] | None:
        """Return the path that begins after `token_id`, or None if it would have too many tokens."""
        if self._path is None or token_id in self._end_ids:
            return None
        if self._step is None or self._step.token_id != token_id:
            self._step = _Step(token_id, self._search_after(matcher, self._path, token_id))
        return self._step.path

    def _search_after(self, matcher: LLMatcher, path: list[int], token_id: int) -> list[int] | None:
        """Search for the path after `token_id`: often it is the old one, or the rest of it.

        What repeats for a bounded number of times has had as many bytes more as the token has.
        """
        num_left = self._num_left - 1
        same_bytes = self._path_finder.rest_after(path, self._path_finder.sizes[token_id])
        shorter = [path[num_done:] for num_done in range(min(3, len(path) + 1))]
        for rest in shorter if same_bytes is None else [same_bytes, *shorter]:
            if len(rest) <= num_left and self._is_path(matcher, rest, token_id):
                return rest
        after = matcher.deep_copy()
        return self._path_finder.find_path(after, num_left) if after.consume_token(token_id) else None

    def _is_path(self, matcher: LLMatcher, path: list[int], *before: int) -> bool:
        ahead = [*before, *path, self._end_ids[0]]
        return bool(matcher.validate_tokens(ahead) == len(ahead))


def _rank(byte: int, first: bytes, *, backwards: bool) -> int:
    if byte in first:
        return first.index(byte)
    if byte in _LAST:
        return 2 * _MARKER + 256 + _LAST.index(byte)
    return 2 * _MARKER + (-byte if backwards else byte)
