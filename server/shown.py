"""How an error shows a value that a client sent: as the JSON that it was, cut where it is long."""

import json

MAX_SHOWN_CHARS = 100

_encoder = json.JSONEncoder(ensure_ascii=False)


def shown(value: object) -> str:
    """Of a long value no more is encoded than is shown, but for the texts in it."""
    if isinstance(value, str):
        value = value[:MAX_SHOWN_CHARS]
    text = ""
    for piece in _encoder.iterencode(value):
        text += piece
        if len(text) > MAX_SHOWN_CHARS:
            return text[: MAX_SHOWN_CHARS - 3] + "..."
    return text
