"""Drafts from past answers: what most often followed a request's last tokens in the answers given before.

SuffixDecoding (Oliaro et al., https://arxiv.org/abs/2411.04975): agents, retries and extractions get much the same text
again and again. Answers are kept in memory alone, bounded, and apart by salt and adapter as the prefix cache keeps
prompts: how fast a text comes tells one tenant nothing of another's. Knows nothing of the model.
"""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from orcinus.engine.messages import NewRequest
from orcinus.engine.runner.token_index import LONGEST_MATCH, SHORTEST_MATCH, TokenIndex

# Tokens of answers in one generation. The older of two is dropped when the newer one is full: 16 bytes a token.
MAX_GENERATION_TOKENS = 1 << 15
# So many tenants' answers are kept: those who came last, 1.3 MB each at most.
MAX_TENANTS = 64
# What a draft is followed in so small a share of its places is not proposed.
_MIN_SHARE = 0.25
_END = -1  # between answers

Tenant = tuple[str | None, str | None]
"""Salt and adapter."""


class PastAnswers:
    """Keeps the latest answers of one tenant: at least one generation of them, at most two."""

    def __init__(self) -> None:
        self._generations = [TokenIndex(MAX_GENERATION_TOKENS)]  # the latest first

    @property
    def num_tokens(self) -> int:
        return sum(len(index.text) for index in self._generations)

    def add(self, token_ids: Sequence[int]) -> None:
        """Keep an answer; of one that is longer than a generation its end."""
        token_ids = token_ids[-MAX_GENERATION_TOKENS + 1 :]
        if len(self._generations[0].text) + len(token_ids) + 1 > MAX_GENERATION_TOKENS:
            self._generations = [TokenIndex(MAX_GENERATION_TOKENS), self._generations[0]]
        self._generations[0].extend([*token_ids, _END])

    def following(self, tail: "array[int]", shortest: int, most: int) -> list[int]:
        """Return up to `most` tokens that followed the longest match, if that has so many tokens."""
        found = [(index, index.matches(tail)) for index in self._generations]
        longest = max(matches.length for _, matches in found)
        if longest < shortest:
            return []
        ways = [
            _until_end(index.text[place : place + most])
            for index, matches in found
            if matches.length == longest
            for place in matches.places
        ]
        return ways[0] if len(ways) == 1 else likeliest(ways)


class _Text(NamedTuple):
    """A text so far, or its end. Its first tokens were there before: the prompt, and what was kept of the answer."""

    tenant: Tenant
    token_ids: "array[int]"
    num_before: int


class SuffixDrafter:
    """Proposes up to `max_drafts` tokens of past answers. Used by one thread."""

    def __init__(self, max_drafts: int) -> None:
        self._max_drafts = max_drafts
        self._texts: dict[str, _Text] = {}
        self._answers: dict[Tenant, PastAnswers] = {}  # the tenant who ended a request last at the end

    def begin(self, new: NewRequest) -> None:
        self.follow(new, array("i", new.token_ids[-LONGEST_MATCH:]))

    def follow(self, new: NewRequest, token_ids: "array[int]") -> None:
        """Get to know a request whose text, or the end of it, this is; what comes next is appended to it elsewhere."""
        self._texts[new.request_id] = _Text((new.cache_salt, new.adapter), token_ids, len(token_ids))

    def take_in(self, grown: Mapping[str, Sequence[int]]) -> None:
        texts = self._texts
        for request_id, token_ids in grown.items():
            texts[request_id].token_ids.extend(token_ids)

    def propose(self, request_ids: Sequence[str]) -> dict[str, list[int]]:
        """Return drafts by request id, of those that have any."""
        proposals = {}
        for request_id in request_ids if self._answers else ():
            if drafts := self.following(request_id, SHORTEST_MATCH):
                proposals[request_id] = drafts
        return proposals

    def following(self, request_id: str, shortest: int) -> list[int]:
        """Return the drafts of a request by matches of so many tokens or more."""
        text = self._texts[request_id]
        answers = self._answers.get(text.tenant)
        if answers is None:
            return []
        return answers.following(text.token_ids[-LONGEST_MATCH:], shortest, self._max_drafts)

    def release(self, request_id: str) -> None:
        """Keep the answer of a request that ended, or what there is of one that is to be computed anew."""
        text = self._texts.pop(request_id, None)
        if text is None or len(text.token_ids) <= max(text.num_before, SHORTEST_MATCH):
            return
        answers = self._answers.pop(text.tenant, None) or PastAnswers()
        self._answers[text.tenant] = answers
        answers.add(text.token_ids[max(0, text.num_before - LONGEST_MATCH) :])
        if len(self._answers) > MAX_TENANTS:
            del self._answers[next(iter(self._answers))]


def likeliest(ways: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens that most of the ways agree on, one after the other; of as many the first one's.

    It ends where fewer than a quarter of all go on together.
    """
    drafts: list[int] = []
    left = [way for way in ways if way]
    while left:
        (token_id, count), *_ = Counter(way[len(drafts)] for way in left).most_common(1)
        if count < _MIN_SHARE * len(ways):
            break
        drafts.append(token_id)
        left = [way for way in left if way[len(drafts) - 1] == token_id and len(way) > len(drafts)]
    return drafts


def _until_end(token_ids: "array[int]") -> list[int]:
    tokens: list[int] = token_ids.tolist()
    return tokens[: tokens.index(_END)] if _END in tokens else tokens
