"""What an output of the engine adds to the message that is read out of it."""

from orcinus.engine.outputs import RequestOutput
from orcinus.server.reading.pieces import Content, Piece, PieceReader


def read_pieces(reader: PieceReader | None, output: RequestOutput) -> list[Piece]:
    """Return what an output adds to its message. Without a reader all text is content."""
    if reader is None:
        return [Content(output.text)] if output.text else []
    pieces = reader.feed(output.text)
    if output.finish_reason is None:
        return pieces
    return pieces + reader.finish(is_cut=output.finish_reason == "length")
