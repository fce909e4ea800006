"""Drafts from texts: what followed a request's last tokens where they stood before, in its own text or in another one.

Prompt lookup (Saxena, https://github.com/apoorvumang/prompt-lookup-decoding): what copies, quotes or edits its context
repeats it at length. Where a token is another one than there, as the value of a field, what follows is tried as if it
went on alike. Knows nothing of the model and of what is accepted.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from orcinus.engine.messages import NewRequest
from orcinus.engine.runner.token_index import LONGEST_MATCH, SHORTEST_MATCH, TokenIndex

Tenant = tuple[str | None, str | None]
"""Salt and adapter: those who share both may see each other's texts."""


class Found(NamedTuple):
    """A match of so many tokens, the place behind the latest such one in its text, and what may follow."""

    length: int
    text: "array[int]"
    place: int
    drafts: list[int]


class Text:
    """A request's text so far. Its first `num_before` tokens were there when it began.

    `source` and `place` say what it may go on alike, `num_misses` how often in a row no match has confirmed that.
    """

    __slots__ = ("index", "num_before", "num_misses", "place", "source", "tenant")

    def __init__(self, new: NewRequest) -> None:
        self.tenant: Tenant = (new.cache_salt, new.adapter)
        self.num_before = len(new.token_ids)
        self.index = TokenIndex(self.num_before)
        self.index.extend(new.token_ids)
        self.source: array[int] | None = None
        self.place = 0
        self.num_misses = 0

    def extend(self, token_ids: Sequence[int]) -> None:
        if len(token_ids) == 1:
            self.index.append(token_ids[0])
        else:
            self.index.extend(token_ids)
        self.place += len(token_ids)

    def follow(self, found: Found) -> None:
        self.source, self.place, self.num_misses = found.text, found.place, 0

    def going_on_alike(self, most: int) -> list[int]:
        """Return what follows in the text that this one was like, until matches would have been found again."""
        if self.source is None:
            return []
        self.num_misses += 1
        if self.num_misses > SHORTEST_MATCH:
            self.source = None
            return []
        return following(self.source, self.place, most)


class Source(Protocol):
    """Knows texts. `OwnText` knows the request's own, `PastAnswers` those of requests that ended."""

    def find(self, text: Text, shortest: int, most: int) -> Found | None:
        """Return the longest match of a text's end, if it has so many tokens, with up to `most` drafts."""

    def keep(self, text: Text) -> None:
        """Learn that a text ends here."""


class OwnText:
    """Finds what followed the latest of the longest matches in the request's own prompt and output."""

    def find(self, text: Text, shortest: int, most: int) -> Found | None:
        index = text.index
        if index.last_place < 0 or (matches := index.own_matches()).length < shortest:
            return None
        place = matches.places[0]
        drafts = following(index.text, place, most)
        period = len(index.text) - place
        # What repeats itself goes on beyond the end.
        drafts += [drafts[i % period] for i in range(len(drafts), most)]
        return Found(matches.length, index.text, place, drafts)

    def keep(self, text: Text) -> None:
        """Nothing is kept."""


class TextDrafter:
    """Proposes up to `max_drafts` tokens by the longest match in any of its sources, of as long ones the first's."""

    def __init__(self, sources: Sequence[Source], max_drafts: int) -> None:
        self._sources = sources
        self._max_drafts = max_drafts
        self._texts: dict[str, Text] = {}

    def begin(self, new: NewRequest) -> None:
        self._texts[new.request_id] = Text(new)

    def take_in(self, grown: Mapping[str, Sequence[int]]) -> None:
        texts = self._texts
        for request_id, token_ids in grown.items():
            texts[request_id].extend(token_ids)

    def propose(self, request_ids: Sequence[str]) -> dict[str, list[int]]:
        """Return drafts by request id, of those that have any."""
        proposals = {}
        for request_id in request_ids:
            if drafts := self._drafts(self._texts[request_id]):
                proposals[request_id] = drafts
        return proposals

    def release(self, request_id: str) -> None:
        """Forget a request, whose text may be kept by a source."""
        text = self._texts.pop(request_id, None)
        if text is not None:
            for source in self._sources:
                source.keep(text)

    def _drafts(self, text: Text) -> list[int]:
        best, shortest = None, SHORTEST_MATCH
        for source in self._sources:
            if (found := source.find(text, shortest, self._max_drafts)) is not None:
                best, shortest = found, found.length + 1
                if found.length == LONGEST_MATCH:
                    break
        if best is None:
            return text.going_on_alike(self._max_drafts)
        text.follow(best)
        return best.drafts


def following(text: "array[int]", place: int, most: int) -> list[int]:
    """Return up to `most` tokens of a text from a place on, to its end or to a token that is none (below 0)."""
    tokens: list[int] = text[place : place + most].tolist()
    end = next((i for i, token in enumerate(tokens) if token < 0), None)
    return tokens[:end]
