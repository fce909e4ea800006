"""The pieces of a message with calls, in the order in which a format's reader finds them.

Owns the ids of calls, the white space around them, which is not content, and what is held back while it is not known
whether it is a call. Knows no format.
"""

import secrets
import string
from collections.abc import Callable

from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart

_ALPHANUMERIC = string.ascii_letters + string.digits
_SPACE = " \t\r\n"
_JUNK = _SPACE + "}])>,;`"  # what models write too much of after a call


def openai_call_id() -> str:
    return "call_" + "".join(secrets.choice(_ALPHANUMERIC) for _ in range(24))


def mistral_call_id() -> str:
    """Return an id of the one form that Mistral's templates take."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


class CallWriter:
    """Takes down what a reader finds; `take` hands it over.

    What is held turns into content with `release`, or is forgotten as the frame of a call with `drop`. Without
    `parallel`, every call after the first is left out. With `is_cut` the text was cut off at a limit, and what is still
    held was about to become a call.
    """

    def __init__(self, *, parallel: bool, new_call_id: Callable[[], str] = openai_call_id) -> None:
        self.num_calls = 0
        self.is_cut = False
        self._max_calls = None if parallel else 1
        self._new_call_id = new_call_id
        self._ids: set[str] = set()
        self._pieces: list[Piece] = []
        self._held: list[str] = []
        self._space: list[str] = []  # at the end of the content so far: a call may follow
        self._follows_call = False
        self._is_left_out = False

    def take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def content(self, text: str) -> None:
        body = text.rstrip(_SPACE)
        space = text[len(body) :]
        if body and self._follows_call:
            body = body.lstrip(_SPACE)
            self._space.clear()
            self._follows_call = False
        if body:
            self._pieces.append(Content("".join(self._space) + body))
            self._space.clear()
        if space:
            self._space.append(space)

    def reasoning(self, text: str) -> None:
        """Add a thought, where the format of calls is one of thoughts too."""
        self._pieces.append(Reasoning(text))

    def hold(self, text: str) -> None:
        if text:
            self._held.append(text)

    def release(self) -> None:
        held = self._take_held()
        if not self.is_cut:
            self.content(held)

    def release_after_call(self) -> None:
        """Make content of what is held and follows a call, less the brackets that close nothing."""
        self.content(self._take_held().lstrip(_JUNK))

    def _take_held(self) -> str:
        held = "".join(self._held)
        self._held.clear()
        return held

    def drop(self) -> None:
        self._held.clear()

    def start_call(self, name: str, call_id: str | None = None) -> None:
        """Begin a call, to which what was held belongs. An id of the model's own is taken once."""
        self._held.clear()
        self._follows_call = True
        self._is_left_out = self.num_calls == self._max_calls
        if not self._is_left_out:
            if call_id is None or call_id in self._ids:
                call_id = self._new_call_id()
            self._ids.add(call_id)
            self._pieces.append(ToolCallStart(self.num_calls, call_id, name))
            self.num_calls += 1

    def arguments(self, text: str) -> None:
        """Add to the arguments of the call that was started last."""
        if text and not self._is_left_out:
            self._pieces.append(ToolCallArguments(self.num_calls - 1, text))

    def finish(self) -> None:
        self.release()
        if self._space and not self._follows_call:
            self._pieces.append(Content("".join(self._space)))
        self._space.clear()
