"""The parser of a connection, for a server that changes to no other protocol. Of a request that offers one, as Java's
client does (`Upgrade: h2c`), httptools takes the body for what is said in that protocol, and it is lost. Here such a
request is read as if it had offered nothing, as RFC 9110 (7.8) has it.

Knows nothing of what is done with the parts of a request.
"""

from typing import Any

import httptools


class RequestParser:
    """Calls `protocol` as httptools' parser does."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self.on_message_begin = protocol.on_message_begin
        self.on_url = protocol.on_url
        self.on_header = protocol.on_header
        self.on_body = protocol.on_body
        self.on_chunk_header = protocol.on_chunk_header
        self._parser = httptools.HttpRequestParser(self)

    def feed_data(self, data: bytes) -> None:
        """Parse what has come. Raises what httptools' parser does; `HttpParserUpgrade` for CONNECT alone."""
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._has_offer():
                    raise
                data = self._head_without_offer() + data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
            else:
                return

    def on_headers_complete(self) -> None:
        if not self._has_offer():
            self._protocol.on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._has_offer():
            self._protocol.on_message_complete()

    def get_http_version(self) -> str:
        return self._parser.get_http_version()

    def get_method(self) -> bytes:
        return self._parser.get_method()

    def should_keep_alive(self) -> bool:
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        return False

    def _has_offer(self) -> bool:
        return self._parser.should_upgrade() and self.get_method() != b"CONNECT"

    def _head_without_offer(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.get_method(), self._protocol.url, self.get_http_version().encode())]
        lines += [b"%s: %s" % (name, value) for name, value in self._protocol.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])
