"""Requests that have ended engines, remembered for a while, so that they are refused when they come again.

Clients retry by themselves, and each time would cost two more engines. What is remembered is a digest of what was
asked, whoever asks: a request that differs in anything is another one.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from orcinus.engine.errors import RequestQuarantinedError
from orcinus.engine.outputs import GenerationRequest

_REMEMBERED_S = 600.0
_MAX_REMEMBERED = 256


class Convictions:
    """`add` a request that was given up; `check` each new one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, request: GenerationRequest) -> None:
        """Remember a request. The one that was convicted longest ago is forgotten where there are too many."""
        digest = _digest(request)
        self._until[digest] = self._clock() + _REMEMBERED_S
        self._until.move_to_end(digest)
        if len(self._until) > _MAX_REMEMBERED:
            self._until.popitem(last=False)

    def check(self, request: GenerationRequest) -> None:
        """Raise `RequestQuarantinedError` for a request that was convicted. Costs nothing where none was."""
        self._forget()
        if not self._until:
            return
        until = self._until.get(_digest(request))
        if until is not None:
            raise RequestQuarantinedError(
                "the engine ended again and again while it ran this request, which is refused for"
                f" {until - self._clock():.0f} s more"
            )

    def _forget(self) -> None:
        now = self._clock()
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)


def _digest(request: GenerationRequest) -> bytes:
    asked = msgspec.msgpack.encode((request.prompts, request.sampling, request.adapter))
    return hashlib.blake2b(asked, digest_size=16).digest()
