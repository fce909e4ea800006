"""JSON as models write it, read while it comes and made JSON that every parser takes, where it can be read as such.

What JSON forbids and models write is mended on the way: line breaks and other control characters inside strings,
escapes that there are not, strings in single quotes, Python's `True`, `False` and `None`, a comma before a closing
bracket. `NaN` and `Infinity`, for which JSON has nothing, become null.
Everything else is handed on as it was written, whether it is good JSON or not: the client is told what the
model said.
"""

import json
import re
from collections.abc import Callable, Collection

from orcinus.server.reading.incoming_text import IncomingText, Reading

Give = Callable[[str], None]

_PLAIN = re.compile(r"""[^"'{}\[\]<,A-Za-z_+-]+""")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IN_STRING = {mark: re.compile(rf"[^{mark}\"\\\x00-\x1f]+") for mark in "\"'"}
_HEX = re.compile(r"[0-9a-fA-F]")
_CLOSING = {"{": "}", "[": "]"}
_WORDS = {"True": "true", "False": "false", "None": "null", "NaN": "null", "Infinity": "null"}
_NO_NUMBERS = frozenset({"NaN", "Infinity"})
_ESCAPES = frozenset('"\\/bfnrt')


def _ignore(text: str) -> None:
    """Take what nobody wants."""


def read_brackets(text: IncomingText, give: Give, hold: Give = _ignore, ends: Collection[str] = ()) -> Reading[bool]:
    """Give away the object or list that comes next, mended. Returns whether it is complete.

    `hold` gets the same as it was written. Markers in `ends`, which are no part of any value outside strings, end it
    where brackets are missing; those are added.
    """
    open_brackets: list[str] = []
    while char := (yield from text.peek()):
        if run := text.take_run(_PLAIN):
            _give_both(run, give, hold)
        elif char in "\"'":
            yield from read_string(text, give, hold)
        elif char == ",":
            yield from _read_comma(text, give, hold)
        elif char in "{[}]":
            _give_both(text.take(), give, hold)
            if char in _CLOSING:
                open_brackets.append(_CLOSING[char])
            elif not open_brackets or (open_brackets.pop() and not open_brackets):
                return True
        elif char == "<":
            if (yield from comes_any(text, ends)):
                give("".join(reversed(open_brackets)))
                return False
            if not (yield from text.peek()):  # the text was cut in what may be a marker
                return False
            _give_both(text.take(), give, hold)
        elif char in "+-":
            yield from _read_signed(text, give, hold)
        else:
            word = yield from text.take_all(_WORD)
            hold(word)
            give(_WORDS.get(word, word))
    return False


def read_string(text: IncomingText, give: Give, hold: Give = _ignore) -> Reading[bool]:
    """Give away the string that comes next, mended. Returns whether it is complete."""
    mark = text.take()
    hold(mark)
    give('"')
    while char := (yield from text.peek()):
        if run := text.take_run(_IN_STRING[mark]):
            _give_both(run, give, hold)
            continue
        hold(text.take())
        if char == mark:
            give('"')
            return True
        if char == "\\":
            yield from _read_escape(text, give, hold)
        else:
            give(_escaped(char))
    return False


def mended_object(source: str) -> str | None:
    """Return the text of an object, mended; None where it cannot be read as one."""
    text = IncomingText()
    text.add(source.strip() or "{}")
    text.end()
    parts: list[str] = []
    for _ in read_brackets(text, parts.append):
        raise AssertionError("the text has ended, and nothing is waited for")
    mended = "".join(parts)
    try:
        mended.encode()  # raises on half a surrogate pair
        return mended if isinstance(json.loads(mended), dict) else None
    except (ValueError, RecursionError):
        return None


def loads_string(quoted: str) -> str | None:
    try:
        return str(json.loads(quoted))
    except ValueError:
        return None


def comes_any(text: IncomingText, markers: Collection[str]) -> Reading[bool]:
    """Return whether one of the markers comes next."""
    for marker in markers:
        if (yield from text.comes(marker)):
            return True
    return False


def _read_comma(text: IncomingText, give: Give, hold: Give) -> Reading[None]:
    """Read a comma and the white space after it, and leave the comma out where a bracket closes."""
    hold(text.take())
    space = yield from text.take_space()
    hold(space)
    give(space if (yield from text.peek()) in ("}", "]") else "," + space)


def _read_signed(text: IncomingText, give: Give, hold: Give) -> Reading[None]:
    """Read a sign, and the word after it, of which null takes the place with the sign."""
    sign = text.take()
    word = yield from text.take_all(_WORD)
    hold(sign + word)
    give(_WORDS[word] if word in _NO_NUMBERS else sign + word)


def _read_escape(text: IncomingText, give: Give, hold: Give) -> Reading[None]:
    """Read what follows a backslash in a string."""
    char = yield from text.peek()
    if not char:
        return
    hold(text.take())
    if char in _ESCAPES:
        give("\\" + char)
    elif char == "u":
        digits = yield from _read_hex(text)
        hold(digits)
        if len(digits) < 4 and text.is_cut and not (yield from text.peek()):
            return
        give(("\\u" if len(digits) == 4 else "\\\\u") + digits)
    elif char == "'":
        give(char)
    else:
        give(_escaped(char) if char < " " else "\\\\" + char)


def _read_hex(text: IncomingText) -> Reading[str]:
    digits = ""
    while len(digits) < 4 and _HEX.match((yield from text.peek())):
        digits += text.take()
    return digits


def _escaped(char: str) -> str:
    return json.dumps(char)[1:-1]


def _give_both(text: str, give: Give, hold: Give) -> None:
    hold(text)
    give(text)
