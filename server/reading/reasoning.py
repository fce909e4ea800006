"""Where a model's thinking ends and its answer begins: `<think>` ... `</think>`.

The prompt may have opened the thinking, the output may, or there is none. The newlines inside the tags and after them
belong to neither part. Only the beginning of the output can be thinking: tags further on are text like any other.
A prompt that ends in the midst of a thought (a continued message) is not seen as one.
"""

import re
from collections.abc import Callable
from typing import Literal

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading, TextReader

OPENING = "<think>"
CLOSING = "</think>"

_OTHER_CHANNELS = "<|channel|>"  # Harmony's, which has thinking in a channel of its own

_NEWLINES = re.compile(r"\n+")
_END = Markers([CLOSING])

Start = Literal["open", "undecided", "over"]


def thinks(template: str) -> bool:
    """Return whether models with this chat template write their thinking between the tags."""
    return (OPENING in template or CLOSING in template) and _OTHER_CHANNELS not in template


def start_of_output(prompt_tail: str) -> Start:
    """Return whether the prompt has opened the thinking, left it to the model, or ended it already."""
    end = prompt_tail.rstrip()
    if end.endswith(OPENING):
        return "open"
    return "over" if end.endswith(CLOSING) else "undecided"


def split_reasoning(
    start: Start, give_reasoning: Callable[[str], None], give_answer: Callable[[str], None]
) -> TextReader:
    """Return a reader that hands on the two parts of what it is fed."""
    text = IncomingText()
    return TextReader(text, _Splitting(text, give_reasoning, give_answer).read(start))


class _Splitting:
    def __init__(
        self, text: IncomingText, give_reasoning: Callable[[str], None], give_answer: Callable[[str], None]
    ) -> None:
        self._text = text
        self._give_reasoning = give_reasoning
        self._give_answer = give_answer
        self._newlines: list[str] = []  # held back: the closing tag may follow

    def read(self, start: Start) -> Reading[None]:
        if start != "over" and (yield from self._is_opened(start)):
            yield from self._read_reasoning()
        yield from self._text.read_rest(self._give_answer)

    def _is_opened(self, start: Start) -> Reading[bool]:
        space = yield from self._text.take_space()
        if (yield from self._text.take_if(OPENING)):
            yield from self._text.take_all(_NEWLINES)
            return True
        if start == "open":
            self._reason(space.lstrip("\n"))
            return True
        if space:
            self._give_answer(space)
        return False

    def _read_reasoning(self) -> Reading[None]:
        if (yield from self._text.read_until(_END, self._reason)):
            yield from self._text.take_all(_NEWLINES)
        elif self._newlines:
            self._give_reasoning("".join(self._newlines))

    def _reason(self, text: str) -> None:
        body = text.rstrip("\n")
        if body:
            self._give_reasoning("".join(self._newlines) + body)
            self._newlines.clear()
        if len(body) < len(text):
            self._newlines.append(text[len(body) :])
