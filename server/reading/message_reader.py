"""What a model wrote, split into the pieces of a message (content, reasoning, and calls of tools) while it is written.

Knows neither how a format is found (`server.reading.message_format`) nor how an API writes pieces.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby

from orcinus.server.reading.harmony import read_harmony
from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading, TextFeed, TextReader
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallStart
from orcinus.server.reading.reasoning import Give, IsCall, Start, no_call, split_reasoning
from orcinus.server.reading.thought_tags import ThoughtTags
from orcinus.server.reading.tools.call_writer import CallWriter
from orcinus.server.reading.tools.formats import SILENT_MARKERS, ToolFormat
from orcinus.server.reading.tools.request import ToolUse


class MessageReader:
    """Splits the text of one choice. It may be cut anywhere: the pieces, joined, are the same.

    What could be part of a marker is held back until that is known; `finish` gives out the rest. `tagged_reader` and
    `channel_reader` make one.
    """

    def __init__(self, calls: CallWriter | None = None) -> None:
        self._gives_reasoning = True
        self._pieces: list[Piece] = []
        self._calls = calls
        self._readers: list[TextFeed] = []  # each feeds the next
        self._feed: Callable[[str], None] = self._give_content

    def read_calls(self, reader: TextFeed) -> None:
        """Have `reader` read what is an answer so far, for the writer of calls."""
        self._put_first(reader)

    def split_off_reasoning(self, split: Callable[[Give, Give], TextReader]) -> None:
        """Have a reader split the text in thoughts and what the readers so far get."""
        self._put_first(split(self._give_reasoning, self._feed))

    def leave_out(self, tokens: frozenset[str]) -> None:
        if tokens:
            self._put_first(_without(tokens, self._feed))

    def leave_out_reasoning(self) -> None:
        """Give out no reasoning from here on."""
        self._gives_reasoning = False

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

    def _put_first(self, reader: TextFeed) -> None:
        self._readers.insert(0, reader)
        self._feed = reader.feed

    def _give_content(self, text: str) -> None:
        self._pieces.append(Content(text))

    def _give_reasoning(self, text: str) -> None:
        if self._gives_reasoning:
            self._pieces.append(Reasoning(text))

    def _take(self) -> list[Piece]:
        """Return the pieces so far; reasoning comes before everything that the calls' reader has read."""
        pieces, self._pieces = self._pieces, []
        written = self._calls.take() if self._calls else []
        if not self._gives_reasoning:
            written = [piece for piece in written if not isinstance(piece, Reasoning)]
        return join_pieces(pieces + written)


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


def tagged_reader(
    start: Start,
    tags: ThoughtTags | None,
    tool_format: ToolFormat | None,
    tool_use: ToolUse | None,
    *,
    meaningless_tokens: frozenset[str] = frozenset(),
    waits: bool = False,
) -> MessageReader:
    """Return a reader of thoughts between tags and, where there are tools to use, of calls.

    `waits` is explained in `server.reading.reasoning`.
    """
    calls: CallWriter | None = None
    if tool_format is not None and tool_use is not None:
        calls = CallWriter(parallel=tool_use.parallel, new_call_id=tool_format.new_call_id)
    reader = MessageReader(calls)
    openings: tuple[str, ...] = ()
    is_call: IsCall = no_call
    if calls is not None:
        assert tool_format is not None
        assert tool_use is not None
        openings = tool_format.openings
        if not tool_use.holds_calls:  # a call inside a thought is not held to its schema
            is_call = partial(_is_call, tool_format, tool_use)
        reader.read_calls(_call_reader(tool_format, tool_use, calls))
    if tags is not None and (start != "over" or tags.answer):
        reader.split_off_reasoning(
            lambda give_reasoning, give_answer: split_reasoning(
                start,
                give_reasoning,
                give_answer,
                tags,
                waits=waits,
                call_markers=openings,
                is_call=is_call,
                silent_markers=SILENT_MARKERS,
            )
        )
    reader.leave_out(meaningless_tokens)
    return reader


def channel_reader(
    prompt_tail: str,
    tool_use: ToolUse | None,
    *,
    has_reasoning: bool,
    meaningless_tokens: frozenset[str] = frozenset(),
) -> MessageReader:
    """Return a reader of Harmony's channels, in which there are calls where there are tools to use."""
    writer = CallWriter(parallel=tool_use is None or tool_use.parallel)
    text = IncomingText()
    reading = read_harmony(text, writer, prompt_tail, may_call=tool_use is not None, has_reasoning=has_reasoning)
    reader = MessageReader(writer)
    reader.read_calls(TextReader(text, reading))
    reader.leave_out(meaningless_tokens)
    return reader


def _call_reader(tool_format: ToolFormat, tool_use: ToolUse, writer: CallWriter) -> TextReader:
    text = IncomingText()
    return TextReader(text, tool_format.read(text, writer, tool_use))


def _is_call(tool_format: ToolFormat, tool_use: ToolUse, text: str, is_cut: bool) -> bool:
    """Return whether a text that begins with a marker is a call, or where it was cut the beginning of one."""
    writer = CallWriter(parallel=True)
    writer.is_cut = is_cut
    reader = _call_reader(tool_format, tool_use, writer)
    reader.feed(text)
    reader.end(is_cut=is_cut)
    writer.finish()
    pieces = writer.take()
    return not isinstance(pieces[0], Content) if pieces else is_cut


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
