"""Values that models write as bare text, made JSON by the schema of the argument that they are for."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from orcinus.server.reading.tools.json_values import mended_object
from orcinus.server.reading.tools.lark import Terminal, inline_json, one_of, quote
from orcinus.server.reading.tools.python_literals import to_json

_ANY_STRING = "ANY_STRING"
_MAX_DEPTH = 8  # of alternatives in alternatives


def is_plain_string(schema: Any) -> bool:
    """Return whether the value can be nothing but a string, which needs not be known as a whole."""
    return set(_types(schema)) == {"string"}


def value_as_json(written: str, schema: Any) -> str:
    """Return the JSON text of a value that may be something else than a string."""
    types = set(_types(schema))
    bare = written.strip()
    if "string" in types:
        return "null" if bare in ("null", "None") and "null" in types else json.dumps(written, ensure_ascii=False)
    value = to_json(bare) if bare else None
    if value is None and bare.startswith("{"):
        value = mended_object(bare)
    return json.dumps(written, ensure_ascii=False) if value is None else value


def is_written_json(written: str) -> bool:
    """Return whether a text is a value in JSON."""
    try:
        msgspec.json.decode(written)
    except ValueError:
        return False
    return True


def value_rule(schema: Any, *, strict: bool) -> str | None:
    """Return the rule of a grammar for a value written as bare text; None where it may be any string."""
    if not is_plain_string(schema):
        return inline_json(schema if isinstance(schema, dict) else {}, strict=strict)
    if isinstance(allowed := schema.get("enum"), list) and allowed:
        return one_of(quote(value) for value in allowed)
    return quote(schema["const"]) if "const" in schema else None


def written_tag(tag: str, terminal: Terminal, token: str = "") -> str:
    """Return a tag, or a text, in a grammar: a token of its own where it is one, or with the token in its midst."""
    whole = terminal(tag) if tag.startswith("<") else quote(tag)
    before, found, after = tag.partition(token) if token else (tag, "", "")
    if not found or whole != quote(tag):
        return whole
    return " ".join([quote(before), terminal(token), *([quote(after)] if after else [])])


def any_string_rule(closing: str, terminal: Terminal, token: str = "") -> str:
    """Return the rule for any string and the tag that ends it. Unless that is a token, there is no `</` in the string.

    They are one expression, for one that ends before a tag cannot take back the tag's first character. In general it is
    the first two characters of the tag that are not in the string. Where the tag is a token the rules need that of
    `any_string_terminal`.
    """
    if (end := terminal(closing)) != quote(closing):
        return f"{_ANY_STRING} {end}"
    before, found, after = closing.partition(token) if token else (closing, "", "")
    first, second = (re.escape(char).replace("/", r"\/") for char in closing[:2])
    ending = re.escape(before).replace("/", r"\/")
    rule = rf"/([^{first}]|{first}+[^{first}{second}])*{ending}/"
    return f"{rule} {terminal(token)} {quote(after)}" if found else rule


def any_string_terminal(*tags: str) -> str:
    """Return the rule for any string without these tags, which end it wherever they stand."""
    ends = "|".join(re.escape(tag).replace("/", r"\/") for tag in tags)
    return rf"{_ANY_STRING}: /(.|\n)*/ & ~/(.|\n)*({ends})(.|\n)*/"


class StringWriter:
    """Writes a JSON string while its text comes. A `newline` before the text and one after it are none of it."""

    def __init__(self, give: Callable[[str], None], newline: str) -> None:
        self._give = give
        self._newline = newline
        self._has_begun = False
        self._held = ""

    def give(self, text: str) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._give('"')
            text = text.removeprefix(self._newline)
        text = self._held + text
        self._held = self._newline if self._newline and text.endswith(self._newline) else ""
        if body := text.removesuffix(self._held):
            self._give(json.dumps(body, ensure_ascii=False)[1:-1])

    def end(self, *, is_complete: bool) -> None:
        if not self._has_begun:
            self.give("")
        if is_complete:
            self._give('"')


def _types(schema: Any, depth: int = 0) -> Iterator[str]:
    """Yield the types that a schema speaks of; nothing where it says nothing of them."""
    if not isinstance(schema, dict) or depth == _MAX_DEPTH:
        return
    kind = schema.get("type")
    yield from (name for name in (kind if isinstance(kind, list) else [kind]) if isinstance(name, str))
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    if kind is None:
        yield from ("string" if isinstance(value, str) else "null" if value is None else "other" for value in values)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            for part in schema[key]:
                yield from _types(part, depth + 1)
