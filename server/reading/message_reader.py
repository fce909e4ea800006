"""What a model wrote, split into the pieces of a message (content, reasoning, and calls of tools) while it is written.

Knows neither how a format is found (`server.reading.message_format`) nor how an API writes pieces.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading, TextReader
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallStart
from orcinus.server.reading.reasoning import Start, split_reasoning
from orcinus.server.reading.tools.call_writer import CallWriter
from orcinus.server.reading.tools.formats import ToolFormat
from orcinus.server.reading.tools.request import ToolUse


class MessageReader:
    """Splits the text of one choice. It may be cut anywhere: the pieces, joined, are the same.

    What could be part of a marker is held back until that is known; `finish` gives out the rest.
    """

    def __init__(
        self,
        start: Start,
        tool_format: ToolFormat | None,
        tool_use: ToolUse | None,
        meaningless_tokens: frozenset[str],
    ) -> None:
        self._pieces: list[Piece] = []
        self._calls: CallWriter | None = None
        self._readers: list[TextReader] = []  # each feeds the next
        self._feed: Callable[[str], None] = self._give_content
        if tool_format is not None and tool_use is not None:
            self._calls = CallWriter(parallel=tool_use.parallel, new_call_id=tool_format.new_call_id)
            self._put_first(_read_calls(tool_format, tool_use, self._calls))
        if start != "over":
            self._put_first(split_reasoning(start, self._give_reasoning, self._feed))
        if meaningless_tokens:
            self._put_first(_without(meaningless_tokens, self._feed))

    @property
    def num_tool_calls(self) -> int:
        return self._calls.num_calls if self._calls else 0

    def feed(self, text: str) -> list[Piece]:
        self._feed(text)
        return self._take()

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        """Return what was held back: the text has ended, or with `is_cut` was cut off at a limit.

        Where it was cut, the beginning of a marker, or of a call whose name is not known yet, is left out.
        """
        if self._calls:
            self._calls.is_cut = is_cut
        for reader in self._readers:
            reader.end(is_cut=is_cut)
        if self._calls:
            self._calls.finish()
        return self._take()

    def _put_first(self, reader: TextReader) -> None:
        self._readers.insert(0, reader)
        self._feed = reader.feed

    def _give_content(self, text: str) -> None:
        self._pieces.append(Content(text))

    def _give_reasoning(self, text: str) -> None:
        self._pieces.append(Reasoning(text))

    def _take(self) -> list[Piece]:
        """Return the pieces so far; reasoning comes before everything that the calls' reader has read."""
        pieces, self._pieces = self._pieces, []
        return join_pieces(pieces + self._calls.take() if self._calls else pieces)


def join_pieces(pieces: Iterable[Piece]) -> list[Piece]:
    """Make neighbours of one kind one."""
    return [_join(list(group)) for _, group in groupby(pieces, key=_kind)]


def _kind(piece: Piece) -> tuple[type[Piece], int | None]:
    return type(piece), getattr(piece, "index", None)


def _join(pieces: Sequence[Piece]) -> Piece:
    first = pieces[0]
    if len(pieces) == 1 or isinstance(first, ToolCallStart):
        return first
    return replace(first, text="".join(piece.text for piece in pieces if not isinstance(piece, ToolCallStart)))


def _read_calls(tool_format: ToolFormat, tool_use: ToolUse, writer: CallWriter) -> TextReader:
    text = IncomingText()
    return TextReader(text, tool_format.read(text, writer, tool_use))


def _without(tokens: frozenset[str], give: Callable[[str], None]) -> TextReader:
    text = IncomingText()
    return TextReader(text, _leave_out(text, _markers(tokens), give))


@lru_cache(maxsize=8)
def _markers(tokens: frozenset[str]) -> Markers:
    """Cached, because some models have a thousand special tokens, and every request the same."""
    return Markers(tokens)


def _leave_out(text: IncomingText, tokens: Markers, give: Callable[[str], None]) -> Reading[None]:
    while (yield from text.read_until(tokens, give)):
        pass
