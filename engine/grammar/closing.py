"""Brings a text to an end of its grammar before its tokens run out, by a short way there.

A way is a list of tokens. To find one, a copy of the grammar's automaton is led to an end by what usually closes texts:
brackets, quotes, short values. Knows nothing of logits, and of a request only how many tokens are left to it.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from orcinus.engine.grammar.masks import empty_mask, tokens_in

# A way has at most so many tokens, so many of them chosen among others. These are the bounds, and not a time, so that
# the same text is always led the same way.
_MAX_TOKENS = 1024
_MAX_CHOICES = 512
_TIMEOUT_S = 0.5  # of processor time, many times what these take: grammars come from anybody
# While so many more tokens are left than the longest way so far had, nobody looks at what each token does to the way.
_NEAR = 256

# What is tried first, where nearly any letter may come (in strings) and where not (between them).
_IN_STRINGS = b"\"ab@.c<'`\n)]}>;/,"
_BETWEEN = b"}])>:,\"'0nt1f;.-[{"
_SHORT_VALUES_FIRST = b"}])>:,0nt1f\"';.-[{"
_STRUCTURE = b"}])>:,\"'[{"
_LAST = b" \t\r\n\\"
_MARKER = 300  # between the closing bytes and all others
_NUM_LIKELY = 16  # tried one by one, before the mask of the whole vocabulary is computed
_NUM_ROUNDS = 3  # through the likely ones, before others get their turn
_SOME_LETTERS = b"kqZ"  # where one of these may come, we are in a string


class _Order:
    """The candidates, as positions in `Closers.ids`, best first, and the rank of each."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = np.array(ranks, dtype=np.int64)
        self.likely: list[int] = np.argsort(self.ranks, kind="stable")[:_NUM_LIKELY].tolist()


class _Orders(NamedTuple):
    in_strings: _Order
    between: _Order


class Closers:
    """What a vocabulary has to make ways of: single bytes, and special tokens, which may be a grammar's markers."""

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
        self.letters = [single[byte] for byte in _SOME_LETTERS if byte in single]
        self.structure = frozenset(position for position, byte in enumerate(single) if byte in _STRUCTURE)
        self.tokenizer = tokenizer
        self.vocab_size = len(tokens) - 1

        def order(first: bytes, *, backwards: bool = False) -> _Order:
            return _Order([_rank(byte, first, backwards=backwards) for byte in single] + [_MARKER] * len(markers))

        self._orders = [
            _Orders(order(_IN_STRINGS), order(_BETWEEN)),
            _Orders(order(_IN_STRINGS, backwards=True), order(_SHORT_VALUES_FIRST, backwards=True)),
        ]

    def way(self, matcher: LLMatcher, max_tokens: int) -> list[int] | None:
        """Tokens that lead from where `matcher` is to where the text may end. None if none are found.

        They need not be the fewest. `matcher` itself stays where it is. Raises `TimeoutError` for an automaton that is
        far too slow.
        """
        limit, deadline = min(max_tokens, _MAX_TOKENS), time.thread_time() + _TIMEOUT_S
        for orders in self._orders:
            way = _Walk(self, orders, matcher.deep_copy()).to_end(limit, deadline)
            if way is not None:
                return way
        return None


class _Walk:
    """A copy of an automaton on its way to an end. Where tokens lead nowhere, those that were used least come next."""

    def __init__(self, closers: Closers, orders: _Orders, matcher: LLMatcher) -> None:
        self._closers = closers
        self._orders = orders
        self._matcher = matcher
        self._used: Counter[int] = Counter()
        self._num_choices = 0
        self._was_in_string = False

    def to_end(self, limit: int, deadline: float) -> list[int] | None:
        way: list[int] = []
        while not self._matcher.is_accepting():
            if len(way) >= limit or self._num_choices == _MAX_CHOICES:
                return None
            if time.thread_time() > deadline:
                raise TimeoutError
            tokens = self._forced() or self._chosen()
            num_taken = self._matcher.try_consume_tokens(tokens)
            if num_taken == 0:
                return None
            way += tokens[:num_taken]
        return way if len(way) <= limit else None

    def _forced(self) -> list[int]:
        """The tokens of a text that has no alternative here."""
        try:
            text = self._matcher.compute_ff_bytes().decode()
        except UnicodeDecodeError:
            return []
        return self._closers.tokenizer.greedy_tokenize(text) if text else []

    def _chosen(self) -> list[int]:
        """The best token, or nothing if there is none."""
        self._num_choices += 1
        is_in_string = any(map(self._may_come, self._closers.letters))
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
        if best in self._closers.structure and not is_in_string:
            self._used.clear()
        else:
            self._used[best] += 1
        return [self._closers.ids[best]]

    def _best_likely(self, order: _Order) -> int | None:
        fresh = [position for position in order.likely if self._used[position] < _NUM_ROUNDS]
        fresh.sort(key=self._used.__getitem__)
        return next((position for position in fresh if self._may_come(self._closers.ids[position])), None)

    def _best_of(self, mask: NDArray[np.int32], order: _Order) -> int | None:
        ids = np.array(self._closers.ids)
        allowed: list[int] = np.flatnonzero(mask[ids >> 5] >> (ids & 31) & 1).tolist()
        return min(allowed, key=lambda position: (self._used[position], order.ranks[position]), default=None)

    def _may_come(self, token_id: int) -> bool:
        return self._matcher.validate_tokens([token_id]) == 1

    def _mask(self) -> NDArray[np.int32]:
        mask = empty_mask(self._closers.vocab_size)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        return mask


class _Step(NamedTuple):
    token_id: int
    way: list[int] | None  # after it


class Closing:
    """Sees to it that one request's text comes to an end within its `max_tokens`.

    A token after which what is left would not do is replaced by the next one of the way. Until then nothing is changed,
    and little is computed: where far more tokens are left than the way takes, it is looked at now and then. A grammar
    that no way is found for is left alone, and so is one whose way one token makes longer by more than all that is
    left. Used by one thread at a time.

    What it knows follows from `max_tokens` and the tokens that were taken, drawn or not: a request that is resumed is
    led as one that was never interrupted, if for each token `look` and `accept` are called again. They and
    `replacement_for` let `TimeoutError` through.
    """

    def __init__(self, closers: Closers, end_ids: Sequence[int], max_tokens: int) -> None:
        self.is_steered = False
        self._closers = closers
        self._end_ids = end_ids
        self._num_left = max_tokens
        self._look_at = 2 * _MAX_TOKENS  # when so few are left
        self._near = _NEAR
        self._way: list[int] | None = None  # while it is near
        self._step: _Step | None = None  # what was found out about one token that may come next
        self._steered_to: int | None = None  # instead of a token that was drawn

    def look(self, matcher: LLMatcher) -> None:
        """Before a token is chosen: find the way, if it may be time."""
        if self._way is not None or self._num_left > self._look_at:
            return
        way = self._closers.way(matcher, self._num_left)
        if way is None:
            self._look_at = -1
            return
        self._near = max(self._near, len(way) + _NEAR)
        far = self._num_left - len(way) - self._near
        self._look_at = self._num_left - 1 - far // 4
        self._way = way if far <= 0 else None

    def replacement_for(self, matcher: LLMatcher, token_id: int) -> int:
        """The token to take where `token_id` was drawn: this one, or the next one of the way."""
        if self._way is None or token_id in self._end_ids or self._way_after(matcher, token_id) is not None:
            return token_id
        self._steered_to = self._way[0] if self._way else self._end_ids[0]
        return self._steered_to

    def accept(self, matcher: LLMatcher, token_id: int) -> None:
        """Take in the token that was chosen, if need be by somebody else; `matcher` is where it was before it."""
        self._way, self._step = self._way_after(matcher, token_id), None
        self.is_steered |= token_id == self._steered_to
        self._steered_to = None
        self._num_left -= 1

    def spend(self) -> None:
        """Take in a token that the grammar knows nothing of."""
        self._way = self._step = None
        self._num_left -= 1

    def _way_after(self, matcher: LLMatcher, token_id: int) -> list[int] | None:
        """The way from after `token_id`, if few enough tokens do."""
        if self._way is None or token_id in self._end_ids:
            return None
        if self._step is None or self._step.token_id != token_id:
            self._step = _Step(token_id, self._find_way_after(matcher, self._way, token_id))
        return self._step.way

    def _find_way_after(self, matcher: LLMatcher, way: list[int], token_id: int) -> list[int] | None:
        """Often it is the same as before, or a part of it."""
        num_left = self._num_left - 1
        for num_done in range(min(3, len(way) + 1)):
            rest = way[num_done:]
            ahead = [token_id, *rest, self._end_ids[0]]
            if len(rest) <= num_left and matcher.validate_tokens(ahead) == len(ahead):
                return rest
        after = matcher.deep_copy()
        return self._closers.way(after, num_left) if after.consume_token(token_id) else None


def _rank(byte: int, first: bytes, *, backwards: bool) -> int:
    if byte in first:
        return first.index(byte)
    if byte in _LAST:
        return 2 * _MARKER + 256 + _LAST.index(byte)
    return 2 * _MARKER + (-byte if backwards else byte)
