"""Drafts from texts: what followed a request's last tokens where they stood before, in its own text or in another one.

Prompt lookup (Saxena, https://github.com/apoorvumang/prompt-lookup-decoding): what copies, quotes or edits its context
repeats it at length. Where a text begins to differ from the one that it repeats, by the value of a field, a new name or
a line more, it is taken to go on alike. Knows nothing of the model and of what is accepted.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from orcinus.engine.messages import DraftBasis, NewRequest, Proposal
from orcinus.engine.runner.token_index import LONGEST_MATCH, SHORTEST_MATCH, TokenIndex

# A match of so many tokens is a long one: what followed it mostly follows again.
_LONG = 5
# After so many proposals without a match, or beyond so many tokens, nobody looks where a text goes on.
_MAX_MISSES = 32
_WINDOW = 32

Tenant = tuple[str | None, str | None]
"""Salt and adapter: those who share both may see each other's texts."""


class Found(NamedTuple):
    """A match of so many tokens, the place behind the latest such one in its text, and what may follow."""

    length: int
    text: "array[int]"
    place: int
    drafts: list[int]


class Likeness:
    """Says where a text may go on in one that it was like, while no match tells."""

    __slots__ = ("_differs_at", "_end", "_num_misses", "_place", "_text")

    def __init__(self, text: "array[int]", place: int) -> None:
        """Begin with the place there that the end of the text stands for."""
        self._text, self._end = text, len(text)  # which may be the one that goes on
        self._place = self._differs_at = place
        self._num_misses = 0

    def move(self, num_tokens: int) -> None:
        """Take so many more tokens for others in the place of those there, until something tells otherwise."""
        self._place += num_tokens

    def proposal(self, text: "array[int]", most: int) -> Proposal | None:
        """Return up to `most` tokens that may follow the last ones of a text."""
        self._num_misses += 1
        if self._num_misses == 1:
            self._differs_at = self._place - 1
        if self._num_misses > _MAX_MISSES:
            return None
        place, basis = self._place_behind(text[-2], text[-1])
        tokens = following(self._text, place, most) if place >= 0 else []
        return Proposal(tokens, basis) if tokens else None

    def _place_behind(self, before_last: int, last: int) -> tuple[int, DraftBasis]:
        """Return the place behind these tokens, or that of as many tokens for a while; -1 if there is none.

        There may be more tokens than there were, or fewer: two of them tell where it goes on, or the last one.
        """
        text, place = self._text, self._place
        if text[place - 1 : place].tolist() == [last]:
            return place, "realignment"
        if self._num_misses > 1:
            first = self._differs_at
            window = text[first : min(first + _WINDOW + self._num_misses, self._end)]
            behind = [first + i + 1 for i, token in enumerate(window) if token == last]
            if behind:
                return next((at for at in behind if text[at - 2] == before_last), behind[0]), "realignment"
        return place if self._num_misses <= SHORTEST_MATCH else -1, "substitution"


class Text:
    """A request's text so far. Its first `num_before` tokens were there when it began."""

    __slots__ = ("index", "likeness", "num_before", "tenant")

    def __init__(self, new: NewRequest) -> None:
        self.tenant: Tenant = (new.cache_salt, new.adapter)
        self.num_before = len(new.token_ids)
        self.index = TokenIndex(self.num_before)
        self.index.extend(new.token_ids)
        self.likeness: Likeness | None = None

    def extend(self, token_ids: Sequence[int]) -> None:
        if len(token_ids) == 1:
            self.index.append(token_ids[0])
        else:
            self.index.extend(token_ids)
        if self.likeness is not None:
            self.likeness.move(len(token_ids))


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

    def propose(self, request_ids: Sequence[str]) -> dict[str, Proposal]:
        """Return proposals by request id, of those that have any."""
        proposals = {}
        for request_id in request_ids:
            if (proposal := self._proposal(self._texts[request_id])) is not None:
                proposals[request_id] = proposal
        return proposals

    def release(self, request_id: str) -> None:
        """Forget a request, whose text may be kept by a source."""
        text = self._texts.pop(request_id, None)
        if text is not None:
            for source in self._sources:
                source.keep(text)

    def _proposal(self, text: Text) -> Proposal | None:
        best, shortest = None, SHORTEST_MATCH
        for source in self._sources:
            if (found := source.find(text, shortest, self._max_drafts)) is not None:
                best, shortest = found, found.length + 1
                if found.length == LONGEST_MATCH:
                    break
        if best is None:
            return None if text.likeness is None else text.likeness.proposal(text.index.text, self._max_drafts)
        text.likeness = Likeness(best.text, best.place)
        if not best.drafts:
            return None
        return Proposal(best.drafts, "long match" if best.length >= _LONG else "short match")


def following(text: "array[int]", place: int, most: int) -> list[int]:
    """Return up to `most` tokens of a text from a place on, to its end or to a token that is none (below 0)."""
    tokens: list[int] = text[place : place + most].tolist()
    end = next((i for i, token in enumerate(tokens) if token < 0), None)
    return tokens[:end]
