"""Log lines that anybody on the network can cause, by their number: a line for each of a flood costs as much as the
flood itself. Knows nothing of what the lines are about."""

import asyncio
import logging
from typing import Any

logger = logging.getLogger("orcinus.server.access")

LOGGED_EVERY_S = 1.0


class ThrottledLog:
    """The one counter of a server for all such lines. To be called on the event loop."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def count(self, what: str) -> None:
        """Log "WHAT: NUMBER" once in a while."""
        self._begin(what)
        self._numbers[what] += 1

    def line(self, what: str, message: str, *args: Any) -> None:
        """Log the first of a kind as it is, and how many more there were once in a while."""
        if self._begin(what):
            logger.info(message, *args)
        else:
            self._numbers[what] += 1

    def _begin(self, what: str) -> bool:
        """Return whether nothing of this kind is being counted yet."""
        if what in self._numbers:
            return False
        self._numbers[what] = 0
        asyncio.get_running_loop().call_later(LOGGED_EVERY_S, self._log, what)
        return True

    def _log(self, what: str) -> None:
        if number := self._numbers.pop(what):
            logger.warning("%s: %d", what, number)
