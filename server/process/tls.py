"""The certificate that new connections get, read again when its files change, without a connection that notices.

A pair that cannot be used is not taken: the last one stays, and the log says why. Knows files and TLS; nothing of HTTP.
"""

import asyncio
import logging
import ssl
from pathlib import Path

from orcinus.config.certificates import server_context
from orcinus.config.settings import Settings
from orcinus.server.process.listening import ListenError

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0

Stamp = tuple[int, int, int]


class Certificate:
    """`context` is for `create_server`, and gives each handshake the pair that is valid then. One event loop.

    Raises `ListenError` for files that cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.ssl_certfile is not None
        self._files = (settings.ssl_certfile, settings.ssl_keyfile)
        self._password = settings.ssl_keyfile_password
        try:
            self._stamps = self._read_stamps()
            self.context = server_context(*self._files, self._password)
        except (OSError, ValueError) as error:  # which could be used when the settings were read
            raise ListenError(str(error)) from error
        self._current = self.context
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in each handshake, whether the client names a host or not."""
        connection.context = self._current

    async def watch(self) -> None:
        """Look at the files once a second, and read them again when they have changed. Runs until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await asyncio.to_thread(self.reload)

    def reload(self, *, is_forced: bool = False) -> None:
        """Take the pair that the files hold now, if they have changed, or in any case."""
        try:
            stamps = self._read_stamps()
            if stamps == self._stamps and not is_forced:
                return
            self._stamps = stamps
            self._current = server_context(*self._files, self._password)
        except (OSError, ValueError) as error:
            logger.warning("the certificate is not taken, and the last one stays: %s", error)
        else:
            logger.info("the certificate %s was read again: new connections get it", self._files[0])

    def _read_stamps(self) -> tuple[Stamp | None, ...]:
        return tuple(_stamp(file) for file in self._files if file is not None)


def _stamp(file: Path) -> Stamp | None:
    """Return what changes with a file, None while there is none: it is being replaced."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
