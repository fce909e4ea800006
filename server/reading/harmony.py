"""Messages in the way of gpt-oss (Harmony), which writes everything into channels.

    <|channel|>analysis<|message|>Hm ...<|end|><|start|>assistant<|channel|>final<|message|>It is ...<|return|>
    <|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>

`analysis` is thinking, a message to somebody is a call, and everything else is content: `final`, and in `commentary`
what the model says before it calls. A text without any of these markers is content as well.
https://cookbook.openai.com/articles/openai-harmony
"""

import re
from collections.abc import Callable

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading
from orcinus.server.reading.tools.call_writer import CallWriter
from orcinus.server.reading.tools.json_values import read_brackets

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKERS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)

_ENDS = (START, CHANNEL, END, CALL, RETURN)  # of the body of a message, whether they are in place there or not
_AFTER_HEADER = Markers([MESSAGE, START, END, CALL, RETURN])
_AFTER_BODY = Markers(_ENDS)
_BEFORE_MESSAGE = Markers([START, CHANNEL, MESSAGE])
_ROLE = "assistant"
_OTHER_ROLE = re.compile(re.escape(START) + r"\s*(?!assistant|to=)[^\s<]")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*([a-z]+)")
_NAMESPACE = "functions."


def header_in_prompt(prompt_tail: str) -> str | None:
    """Return what the prompt has of the header of the message that comes next; None where its body has begun already.

    A body that the prompt has begun is an answer that is continued.
    """
    _, start, header = prompt_tail.rpartition(START)
    if not start:
        return ""
    return None if MESSAGE in header else header.strip().removeprefix(_ROLE)


def read_harmony(
    text: IncomingText, writer: CallWriter, prompt_tail: str, *, may_call: bool, has_reasoning: bool
) -> Reading[None]:
    """Read an output to its end. Without `may_call` calls are content, without `has_reasoning` thoughts are."""
    yield from _Harmony(text, writer, may_call=may_call, has_reasoning=has_reasoning).read(prompt_tail)


class _Harmony:
    def __init__(self, text: IncomingText, writer: CallWriter, *, may_call: bool, has_reasoning: bool) -> None:
        self._text = text
        self._writer = writer
        self._may_call = may_call
        self._has_reasoning = has_reasoning
        self._has_thought = False

    def read(self, prompt_tail: str) -> Reading[None]:
        header = header_in_prompt(prompt_tail)
        if header is None:
            marker = yield from self._read_body(prompt_tail.rpartition(START)[2])
        else:
            marker = yield from self._read_message(header)
        while marker:
            if marker not in (START, CHANNEL, MESSAGE):
                marker = yield from self._text.read_until(_BEFORE_MESSAGE, self._writer.content)
            elif marker == MESSAGE:
                marker = yield from self._read_body("")
            else:
                marker = yield from self._read_message(marker)

    def _read_message(self, header: str) -> Reading[str]:
        """Read a message from its header on, and return the marker that ends it."""
        space = yield from self._text.take_space()
        if not header and not (yield from self._is_header()):
            if not self._text.is_cut:  # else it may have stood before a header
                self._writer.content(space)
            return (yield from self._text.read_until(_AFTER_BODY, self._writer.content))
        parts = [header]
        marker = yield from self._text.read_until(_AFTER_HEADER, parts.append)
        return (yield from self._read_body("".join(parts))) if marker == MESSAGE else marker

    def _is_header(self) -> Reading[bool]:
        """Return whether a header comes next, and not a text without one."""
        for beginning in (*MARKERS, _ROLE + "<|", _ROLE + " to=", "to="):
            if (yield from self._text.comes(beginning)):
                return True
        return False

    def _read_body(self, header: str) -> Reading[str]:
        recipient = _recipient(header)
        channel = _CHANNEL.search(header)
        if recipient and self._may_call:
            return (yield from self._read_call(recipient))
        if channel and channel[1] == "analysis" and self._has_reasoning:
            give = self._separated_thought()
        else:
            give = self._writer.content
        return (yield from self._text.read_until(_AFTER_BODY, give))

    def _separated_thought(self) -> Callable[[str], None]:
        """Return what takes a thought, which begins on a line of its own."""
        is_first = True

        def give(text: str) -> None:
            nonlocal is_first
            self._writer.reasoning("\n" + text if is_first and self._has_thought else text)
            is_first, self._has_thought = False, True

        return give

    def _read_call(self, name: str) -> Reading[str]:
        self._writer.start_call(name)
        yield from self._text.take_space()
        if (yield from self._text.peek()) == "{":
            yield from read_brackets(self._text, self._writer.arguments, ends=_ENDS)
            return (yield from self._text.read_until(_AFTER_BODY, _ignore))
        written: list[str] = []
        marker = yield from self._text.read_until(_AFTER_BODY, written.append)
        is_unknown = self._text.is_cut and not marker
        self._writer.arguments("".join(written).strip() or ("" if is_unknown else "{}"))
        return marker


def _recipient(header: str) -> str:
    """Return the tool that a message calls, if it does: what others say, or say to the assistant, is no call."""
    recipient = _RECIPIENT.search(header)
    if recipient is None or recipient[1] == _ROLE or _OTHER_ROLE.match(header):
        return ""
    return recipient[1].removeprefix(_NAMESPACE)


def _ignore(text: str) -> None:
    """Leave out what follows a call and belongs to it."""
