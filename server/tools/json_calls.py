"""Calls written as JSON objects, which three of the formats share: `{"name": ..., "arguments": {...}}`.

The arguments are handed on as the model writes them, character by character the same, whether they are good JSON or
not: the client is told what the model said. The keys may come in any order; arguments that come before the name are
held back until it is known. Before a call is recognized, whatever does not fit makes all of it content again.
"""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from server.incoming_text import IncomingText, Reading
from server.tools.call_writer import CallWriter

MAX_NAME_CHARS = 256

_ARGUMENT_KEYS = ("arguments", "parameters")
_PLAIN = re.compile(r'[^"{}\[\]<]+')
_IN_STRING = re.compile(r'[^"\\]+')
_IN_NAME = re.compile(r'[^"\\\x00-\x1f]+')
_SCALAR = re.compile(r"[A-Za-z0-9.+-]+")
_SEPARATORS = re.compile(r"[,; \t\r\n]+")


@dataclass(frozen=True, slots=True)
class CallRules:
    """When an object is a call.

    `known_names` None: with any name, and with or without arguments, for a marker has said that it is a call.
    Otherwise only with one of these names and with arguments: it could be an answer in JSON.
    `closing` ends arguments that the model forgot to close, outside of strings.
    """

    known_names: Collection[str] | None = None
    closing: str = ""


async_unused = None


class JsonCalls:
    """Reads calls one after another. Each method takes what it has read, and holds it until a call is recognized."""

    def __init__(self, text: IncomingText, writer: CallWriter, rules: CallRules) -> None:
        self._text = text
        self._writer = writer
        self._rules = rules

    def read(self) -> Reading[bool]:
        """Objects, or a list of them, up to what is neither. Whether the first one was a call.

        What does not fit is content when this returns, and so is what was held before.
        """
        is_list = (yield from self._text.peek()) == "["
        if is_list:
            self._hold_next()
        has_call = False
        while (yield from self._read_next()):
            has_call = True
        if has_call and is_list and (yield from self._text.peek()) == "]":
            self._text.take()
            self._writer.drop()
        self._writer.release()
        return has_call

    def _read_next(self) -> Reading[bool]:
        """The next object, with what separates it from the one before."""
        self._writer.hold((yield from self._text.take_all(_SEPARATORS)))
        return (yield from self._text.peek()) == "{" and (yield from _Call(self._text, self._writer, self._rules).read())

    def _hold_next(self) -> None:
        self._writer.hold(self._text.take())
