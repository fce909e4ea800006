"""Calls written as JSON objects, which several formats share: `{"name": ..., "arguments": {...}}`, or `{name: {...}}`.

The arguments are handed on while the model writes them, as `json_values` reads them. The keys may come in any order;
arguments that come before the name are held back until it is known. Until a call is recognized, whatever does not fit
makes all of it content again. After one, brackets that close nothing are left out.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading
from orcinus.server.reading.tools.call_writer import CallWriter
from orcinus.server.reading.tools.json_values import comes_any, loads_string, mended_object, read_brackets, read_string

MAX_KEY_CHARS = 256

_ARGUMENT_KEYS = ("arguments", "parameters")
_CALL_KEYS = ("name", *_ARGUMENT_KEYS, "type", "id")
_SCALAR = re.compile(r"[A-Za-z0-9.+-]+")
_LANGUAGE = re.compile(r"[A-Za-z_]+")
_SEPARATORS = re.compile(r"[,; \t\r\n]+")


@dataclass(frozen=True, slots=True)
class CallRules:
    """Says what makes an object a call.

    With `known_names` it needs one of these names, arguments, and no keys but a call's: nothing else tells it from an
    answer in JSON. With None it comes after a marker, and a name is enough. The markers `ends` end arguments that the
    model forgot to close. Without a `name_key` the name is the key of the arguments, and the object's only one. With
    `name_first` nothing but `"type": "function"` may stand before the name, and neither has escapes.
    """

    known_names: Collection[str] | None = None
    ends: tuple[str, ...] = ()
    name_key: str | None = "name"
    name_first: bool = False


def read_calls(text: IncomingText, writer: CallWriter, rules: CallRules) -> Reading[bool]:
    """Read objects one after another, or a list of them, up to what is neither. Returns whether there was a call.

    What was held before is part of the first call, or stays held. So does what came after the last one and is no call,
    but for brackets.
    """
    writer.hold((yield from text.take_space()))
    if (yield from text.peek()) == "[":
        writer.hold(text.take())
    has_call = False
    while (yield from _read_next(text, writer, rules, has_call)):
        has_call = True
    return has_call


def read_tagged_calls(
    text: IncomingText,
    writer: CallWriter,
    openings: Collection[str],
    closing: str,
    read_inside: Callable[[], Reading[bool]],
) -> Reading[None]:
    """Read an answer in which calls stand between two tags; what stands there after them is left out.

    `read_inside` reads what follows an opening tag, which is held, and returns whether there was a call. Where
    `closing` is empty or missing, what follows the calls is content.
    """
    outside, inside = Markers(openings), Markers([*openings, closing] if closing else openings)
    marker = yield from text.read_until(outside, writer.content)
    while marker:
        writer.hold(marker + (yield from text.take_repeats(marker)))
        marker = ""
        if not (yield from read_inside()):
            writer.release()
        elif not closing:
            writer.release_after_call()
        else:
            marker = yield from text.read_until(inside, writer.hold)
            writer.drop() if marker == closing else writer.release_after_call()
        if marker not in openings:
            marker = yield from text.read_until(outside, writer.content)


def drop_brackets(text: IncomingText, writer: CallWriter) -> Reading[None]:
    """Leave out brackets that close nothing, and what was held before them. What comes after them is held."""
    while (yield from text.peek()) in ("}", "]"):
        text.take()
        writer.drop()
        writer.hold((yield from text.take_all(_SEPARATORS)))


def take_fence(text: IncomingText) -> Reading[str]:
    """Take what begins a block of code in Markdown, if one begins here."""
    fence = yield from text.take_if("```")
    if not fence:
        return ""
    language = yield from text.take_all(_LANGUAGE)
    return fence + language + (yield from text.take_space())


def _read_next(text: IncomingText, writer: CallWriter, rules: CallRules, has_call: bool) -> Reading[bool]:
    writer.hold((yield from text.take_all(_SEPARATORS)))
    if has_call:
        yield from drop_brackets(text, writer)
    if (yield from text.peek()) != "{":
        return False
    is_call = yield from _Call(text, writer, rules).read()
    if has_call and not is_call and text.is_cut and not (yield from text.peek()):
        writer.drop()  # the next call, which was cut before it was known as one
    return is_call


def _ignore(text: str) -> None:
    """Take what is held alone."""


class _Call:
    """One object. Everything but the arguments of a recognized call is held."""

    def __init__(self, text: IncomingText, writer: CallWriter, rules: CallRules) -> None:
        self._text = text
        self._writer = writer
        self._rules = rules
        self._name: str | None = None
        self._early_arguments: str | None = None
        self._is_recognized = False
        self._has_type = False

    def read(self) -> Reading[bool]:
        self._hold_next()
        while (yield from self._next_character()) != "}":
            if not (yield from self._read_member()):
                return self._is_recognized
            if (yield from self._next_character()) == ",":
                self._hold_next()
        self._hold_next()
        if not self._is_recognized and self._name is not None and self._rules.known_names is None:
            self._start("{}")
        if self._is_recognized:
            self._writer.drop()
        return self._is_recognized

    def _read_member(self) -> Reading[bool]:
        """Read a key and its value. Returns False where it is neither well formed nor part of a call."""
        key = yield from self._read_key()
        if key is None or not self._may_have(key) or (yield from self._next_character()) != ":":
            return False
        self._hold_next()
        yield from self._next_character()
        if self._rules.name_key is None and self._name is None:
            return (yield from self._read_named_arguments(key))
        if key == self._rules.name_key and self._name is None:
            return (yield from self._read_name())
        if self._rules.name_first and self._name is None:
            return (yield from self._read_type(key))
        if key in _ARGUMENT_KEYS and not self._is_recognized:
            return (yield from self._read_arguments())
        return (yield from self._skip_value())

    def _read_type(self, key: str) -> Reading[bool]:
        """Read what may stand before a name that comes first, once."""
        if key != "type" or self._has_type:
            return False
        self._has_type = True
        return (yield from self._read_key()) == "function"

    def _may_have(self, key: str) -> bool:
        return self._is_recognized or self._rules.known_names is None or key in _CALL_KEYS

    def _is_name(self, name: str) -> bool:
        known = self._rules.known_names
        return bool(name) and name.isprintable() and (known is None or name in known)

    def _read_named_arguments(self, name: str) -> Reading[bool]:
        if not self._is_name(name) or (yield from self._text.peek()) not in ('"', "{", "n"):
            return False
        self._name = name
        return (yield from self._read_arguments())

    def _read_name(self) -> Reading[bool]:
        name = yield from self._read_key()
        if name is None or not self._is_name(name):
            return False
        self._name = name
        if self._early_arguments is not None:
            self._start(self._early_arguments)
        return True

    def _read_arguments(self) -> Reading[bool]:
        char = yield from self._text.peek()
        if char == '"':
            return (yield from self._read_quoted_arguments())
        if char == "n":
            return (yield from self._skip_value())
        if char != "{":
            return False
        if self._name is None:
            return (yield from self._read_early_arguments())
        self._start("")
        return (yield from read_brackets(self._text, self._writer.arguments, ends=self._rules.ends))

    def _read_early_arguments(self) -> Reading[bool]:
        parts: list[str] = []
        is_complete = yield from read_brackets(self._text, parts.append, self._writer.hold, self._rules.ends)
        self._early_arguments = "".join(parts)
        return is_complete

    def _read_quoted_arguments(self) -> Reading[bool]:
        """Read an object that was written as JSON once more, into a string."""
        parts: list[str] = []
        yield from read_string(self._text, parts.append, self._writer.hold)
        quoted = loads_string("".join(parts))
        arguments = None if quoted is None else mended_object(quoted)
        if arguments is None:
            return False
        if self._name is None:
            self._early_arguments = arguments
        else:
            self._start(arguments)
        return True

    def _skip_value(self) -> Reading[bool]:
        char = yield from self._text.peek()
        if char == '"':
            return (yield from read_string(self._text, _ignore, self._writer.hold))
        if char in ("{", "["):
            return (yield from read_brackets(self._text, _ignore, self._writer.hold, self._rules.ends))
        scalar = yield from self._text.take_all(_SCALAR)
        self._writer.hold(scalar)
        return bool(scalar)

    def _read_key(self) -> Reading[str | None]:
        """Read a short JSON string, and return it decoded; None where there is none."""
        if (yield from self._text.peek()) != '"':
            return None
        parts: list[str] = []
        hold = self._hold_in(parts)
        hold(self._text.take())
        while (char := (yield from self._text.peek())) >= " " and len(parts) < MAX_KEY_CHARS:
            if char == "<" and (yield from self._ends()):
                return None
            hold(self._text.take())
            if char == '"':
                return loads_string("".join(parts))
            if char == "\\" and self._rules.name_first and self._name is None:
                return None
            if char == "\\" and (yield from self._text.peek()):
                hold(self._text.take())
        return None

    def _ends(self) -> Reading[bool]:
        """Return whether a marker comes next that ends the call, or the text was cut in what may be one."""
        return (yield from comes_any(self._text, self._rules.ends)) or not (yield from self._text.peek())

    def _start(self, arguments: str) -> None:
        assert self._name is not None
        self._is_recognized = True
        self._writer.start_call(self._name)
        self._writer.arguments(arguments)

    def _next_character(self) -> Reading[str]:
        """Return what comes after white space, which is held."""
        self._writer.hold((yield from self._text.take_space()))
        return (yield from self._text.peek())

    def _hold_next(self) -> None:
        self._writer.hold(self._text.take())

    def _hold_in(self, parts: list[str]) -> Callable[[str], None]:
        """Hold what is given, and keep it in `parts` too."""

        def hold(text: str) -> None:
            self._writer.hold(text)
            parts.append(text)

        return hold
