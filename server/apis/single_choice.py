"""What the APIs share that answer with one message, as events of several kinds: Responses, and Anthropic's Messages.

Knows how the message is read, and nothing of how either API writes it.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import msgspec

from orcinus.engine.outputs import RequestOutput
from orcinus.server.apis.chat_request import ChatRequest
from orcinus.server.apis.generation import StreamableGeneration
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.reading.pieces import Piece
from orcinus.server.reading.whole_message import WholeMessage, read_pieces

_encode = msgspec.json.encode


class SingleChoiceGeneration(StreamableGeneration):
    """A request of one choice. Its stream begins with the first piece, so that an error before it is a response.

    `finish_reason` and `stop_reason` are the engine's, None until the message is complete.
    """

    def __init__(self, ctx: ServingContext, request: ChatRequest, stream: OutputStream, *, is_streamed: bool) -> None:
        super().__init__(ctx, request.generation, stream, is_streamed=is_streamed)
        self.message = WholeMessage()
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self._reader = request.new_reader()
        self._has_begun = False

    def _collect(self, output: RequestOutput) -> None:
        self._take(output)

    def encode(self, output: RequestOutput) -> bytes:
        self._account(output)
        pieces = self._take(output)
        if not pieces and self.finish_reason is None:
            return b""
        opening = b"" if self._has_begun else self._opening_events()
        self._has_begun = True
        return opening + b"".join(map(self._piece_events, pieces))

    def encode_end(self) -> bytes:
        self._check_complete()
        return self._closing_events()

    @abstractmethod
    def _opening_events(self) -> bytes:
        """Return the events before the first piece."""

    @abstractmethod
    def _piece_events(self, piece: Piece) -> bytes:
        """Return the events of one piece."""

    @abstractmethod
    def _closing_events(self) -> bytes:
        """Return the events after the last piece."""

    def _take(self, output: RequestOutput) -> list[Piece]:
        pieces = read_pieces(self._reader, output)
        self.message.add(pieces)
        self.finish_reason = output.finish_reason
        self.stop_reason = output.stop_reason
        return pieces


def encode_event(name: str, data: Mapping[str, Any]) -> bytes:
    """Return a server-sent event with a name."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))
