"""What the APIs share that answer with one message, as events of several kinds: Responses, and Anthropic's Messages.

Knows how the message is read, and nothing of how either API writes it.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from orcinus.engine.outputs import RequestOutput
from orcinus.server.apis.chat_request import ChatRequest
from orcinus.server.apis.generation import StreamableGeneration
from orcinus.server.apis.json_pieces import pieces_of
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.reading.output_pieces import read_pieces
from orcinus.server.reading.pieces import Piece


class SingleChoiceGeneration(StreamableGeneration):
    """A request of one choice. Its stream begins with the first piece, so that an error before it is a response.

    `finish_reason` and `stop_reason` are the engine's, None until the message is complete.
    """

    def __init__(self, ctx: ServingContext, request: ChatRequest, stream: OutputStream, *, is_streamed: bool) -> None:
        super().__init__(ctx, request.generation, stream, is_streamed=is_streamed)
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self._reader = request.new_reader()
        self._has_begun = False

    def encode(self, output: RequestOutput) -> Iterable[bytes]:
        self._account(output)
        pieces = self._take(output)
        return self._events(pieces) if pieces or self.finish_reason else ()

    def _events(self, pieces: Sequence[Piece]) -> Iterator[bytes]:
        if not self._has_begun:
            self._has_begun = True
            yield from self._opening_events()
        for piece in pieces:
            yield from self._piece_events(piece)

    def encode_end(self) -> Iterable[bytes]:
        self._check_complete()
        return self._closing_events()

    @abstractmethod
    def _opening_events(self) -> Iterable[bytes]:
        """Return the events before the first piece."""

    @abstractmethod
    def _piece_events(self, piece: Piece) -> Iterable[bytes]:
        """Return the events of one piece."""

    @abstractmethod
    def _closing_events(self) -> Iterable[bytes]:
        """Return the events after the last piece."""

    def _take(self, output: RequestOutput) -> list[Piece]:
        pieces = read_pieces(self._reader, output)
        self.finish_reason = output.finish_reason
        self.stop_reason = output.stop_reason
        return pieces


def event_pieces(name: str, data: Mapping[str, Any]) -> Iterator[bytes]:
    """Return a server-sent event with a name."""
    yield b"event: %b\ndata: " % name.encode()
    yield from pieces_of(data)
    yield b"\n\n"
