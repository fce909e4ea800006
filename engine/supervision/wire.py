"""Messages as bytes between the server process and the engine process: msgpack behind a length of four bytes.

Nothing in a frame can run code. Who sends, and why, is unknown here.
"""

import msgspec

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.messages import FromEngine, ToEngine

_LENGTH_BYTES = 4
_encoder = msgspec.msgpack.Encoder()

config_decoder = msgspec.msgpack.Decoder(EngineConfig)
to_engine_decoder = msgspec.msgpack.Decoder(list[ToEngine])
from_engine_decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode_frame(message: EngineConfig | list[ToEngine] | FromEngine) -> bytes:
    payload = _encoder.encode(message)
    return len(payload).to_bytes(_LENGTH_BYTES, "big") + payload


class FrameReader:
    """Cuts a stream of bytes, fed as it arrives, into the payloads of its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_payload(self) -> bytes | None:
        """Return the next whole payload, or None until more is fed."""
        length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
        end = _LENGTH_BYTES + length
        if len(self._buffer) < _LENGTH_BYTES or len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[_LENGTH_BYTES:end])
        del self._buffer[:end]
        return payload
