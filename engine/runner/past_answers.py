"""Past answers as a source of drafts: what most often followed a request's last tokens in the answers given before.

SuffixDecoding (Oliaro et al., https://arxiv.org/abs/2411.04975): agents, retries and extractions get much the same text
again and again. Answers are kept in memory alone, bounded, and apart by salt and adapter as the prefix cache keeps
prompts: how fast a text comes tells one tenant nothing of another's.
"""

from collections import Counter
from collections.abc import Sequence

from orcinus.engine.runner.text_drafter import Found, Tenant, Text, following
from orcinus.engine.runner.token_index import LONGEST_MATCH, SHORTEST_MATCH, TokenIndex

# Tokens of answers in one generation. The older of two is dropped when the newer one is full: 8 bytes a token, and
# 512 KiB for the table of each.
MAX_GENERATION_TOKENS = 1 << 15
# So many tenants' answers are kept, of those who ended a request last: 1.5 MiB each at most.
MAX_TENANTS = 64
# What follows in so small a share of the places is not proposed.
_MIN_SHARE = 0.25
_END = -1  # behind each answer


class PastAnswers:
    """Keeps the answers of the tenants who ended a request last. Used by one thread."""

    def __init__(self) -> None:
        self._tenants: dict[Tenant, TenantAnswers] = {}  # the one who ended a request last at the end

    def find(self, text: Text, shortest: int, most: int) -> Found | None:
        """Return the longest match of a text's end in its tenant's answers, if it has so many tokens."""
        answers = self._tenants.get(text.tenant)
        return None if answers is None else answers.find(text.index, shortest, most)

    def keep(self, text: Text) -> None:
        """Keep the answer of a request that ended, or what is new of one that is to be computed anew.

        It has the last tokens before it as well, by which its first ones are found.
        """
        if len(text.index.text) <= max(text.num_before, SHORTEST_MATCH):
            return
        answers = self._tenants.pop(text.tenant, None) or TenantAnswers()
        self._tenants[text.tenant] = answers
        answers.add(text.index.text[max(0, text.num_before - LONGEST_MATCH) :])
        if len(self._tenants) > MAX_TENANTS:
            del self._tenants[next(iter(self._tenants))]


class TenantAnswers:
    """Keeps the latest answers of one tenant: at least one generation of them, at most two."""

    def __init__(self) -> None:
        self.generations = [TokenIndex(MAX_GENERATION_TOKENS)]  # the latest first

    @property
    def num_tokens(self) -> int:
        return sum(len(index.text) for index in self.generations)

    def add(self, token_ids: Sequence[int]) -> None:
        """Keep an answer; of one that is longer than a generation its end."""
        token_ids = token_ids[-MAX_GENERATION_TOKENS + 1 :]
        if len(self.generations[0].text) + len(token_ids) + 1 > MAX_GENERATION_TOKENS:
            self.generations = [TokenIndex(MAX_GENERATION_TOKENS), self.generations[0]]
        self.generations[0].extend([*token_ids, _END])

    def find(self, index: TokenIndex, shortest: int, most: int) -> Found | None:
        """Return the longest match of what ends a text, and what most of the places go on with."""
        both = []
        for answers in self.generations:
            matches = answers.matches(index)
            if matches.length >= shortest:
                both.append((answers.text, matches))
        if not both:
            return None
        longest = max(matches.length for _, matches in both)
        places = [(text, place) for text, matches in both if matches.length == longest for place in matches.places]
        ways = [following(text, place, most) for text, place in places]
        return Found(longest, *places[0], ways[0] if len(ways) == 1 else likeliest(ways))


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
