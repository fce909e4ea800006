"""Arguments between tags that a pattern of a response template (`xml-inline`) describes.

    <parameter=(?P<key>[^>\\n]+)>\\s*(?P<value>.*?)\\s*</parameter>
    <arg_key>(?P<key>[^<]+)</arg_key>\\s*<arg_value>(?P<value>.*?)</arg_value>

A pattern is read while the text comes if it is made as these are: a text, the name of the argument, something that ends
in a text, the value, and a text that closes it. A value that can be nothing but a string is handed on as it comes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading
from orcinus.server.reading.tools.argument_values import is_plain_string
from orcinus.server.reading.tools.call_writer import CallWriter
from orcinus.server.reading.tools.json_values import Give
from orcinus.server.reading.tools.template_writer import CallSite, TemplateWriter
from orcinus.server.reading.tools.typed_arguments import as_json

_MAX_HEAD_CHARS = 1024
_TAG = re.compile(
    r"(?P<opening>.+?)(?P<name>\(\?P<key>[^()]*\))(?P<between>[^()|]*?)(?P<before>\\s\*)?"
    r"\(\?P<value>\.\*\?\)(?P<after>\\s\*)?(?P<closing>.+)",
    re.DOTALL,
)
_SPECIAL = frozenset(".^$*+?{}[]|()\\")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_LAST_TEXT = re.compile(r"(?<!\\)(?:[^\\.^$*+?{}\[\]|()]|\\[^\w\s]|\\n(?![*+?{]))+$")
_JSON_STARTS = frozenset('{["-0123456789')
_JSON_WORDS = ("true", "false", "null", "NaN", "Infinity")


def literal(pattern: str) -> str | None:
    """Return the text that a regular expression matches alone; None where it matches others, too."""
    text = ""
    characters = iter(pattern)
    for char in characters:
        if char == "\\":
            escaped = next(characters, "")
            if escaped in _ESCAPES:
                text += _ESCAPES[escaped]
            elif not escaped or escaped.isalnum():
                return None
            else:
                text += escaped
        elif char in _SPECIAL:
            return None
        else:
            text += char
    return text or None


@dataclass(frozen=True, slots=True)
class TaggedArguments:
    """`head` matches from `opening` on to `head_end`, with the name; `closing` ends a value.

    `value_kind` is "raw" for text as it is, "text" for text without white space around it, "json" for JSON and other
    text.
    """

    opening: str
    head: re.Pattern[str]
    head_end: str
    closing: str
    trims_start: bool
    trims_end: bool
    value_kind: str

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> "TaggedArguments | None":
        """Return how to read arguments by these `content_args`; None where they ask for more."""
        parts = _TAG.fullmatch(str(args.get("tag_pattern")))
        value_kind = _value_kind(args.get("value_parser"))
        if parts is None or value_kind is None or args.get("merge_duplicates"):
            return None
        opening, closing = literal(parts["opening"]), literal(parts["closing"])
        last = _LAST_TEXT.search(parts["between"])
        head_end = literal(last[0]) if last else None
        if opening is None or closing is None or head_end is None:
            return None
        try:
            head = re.compile(parts["opening"] + parts["name"] + parts["between"], re.DOTALL)
        except re.error:
            return None
        trims = value_kind != "raw"
        return cls(opening, head, head_end, closing, bool(parts["before"]) or trims, bool(parts["after"]), value_kind)

    def read(self, text: IncomingText, writer: CallWriter, site: CallSite) -> Reading[None]:
        assert isinstance(writer, TemplateWriter)
        if not (yield from text.peek()) and text.is_cut:
            return
        writer.start_call(site.name, site.call_id)
        before = "{"
        while (yield from text.read_until(Markers([self.opening]), _ignore)):
            name = yield from self._read_name(text)
            if name is None:
                continue
            writer.arguments_as_they_are(f"{before}{as_json(name)}: ")
            before = ", "
            yield from self._read_value(text, writer.arguments_as_they_are, site, name)
        if not text.is_cut:
            writer.arguments_as_they_are("{}" if before == "{" else "}")

    def _read_name(self, text: IncomingText) -> Reading[str | None]:
        parts = [self.opening]
        end = yield from text.read_until(Markers([self.head_end]), parts.append)
        head = "".join(parts) + end
        match = self.head.fullmatch(head) if end and len(head) <= _MAX_HEAD_CHARS else None
        return match["key"] if match else None

    def _read_value(self, text: IncomingText, give: Give, site: CallSite, name: str) -> Reading[None]:
        if self.trims_start:
            yield from text.take_space()
        value = _Value(give, trims_end=self.trims_end or self.value_kind != "raw")
        schema = site.schemas.get(name)
        value.is_string = self.value_kind != "json" and (not schema or is_plain_string(schema))
        value.may_be_string = not schema or is_plain_string(schema)
        marker = yield from text.read_until(Markers([self.closing]), value.give)
        if marker or not text.is_cut:
            value.end(lambda written: site.cast(name, self._parsed(written, site)))

    def _parsed(self, written: str, site: CallSite) -> Any:
        return site.parse(written) if self.value_kind == "json" else written


class _Value:
    """Writes a value as a JSON string while it comes, as soon as it can be nothing else."""

    def __init__(self, give: Give, *, trims_end: bool) -> None:
        self._give = give
        self._trims_end = trims_end
        self._held: list[str] = []
        self._has_begun = False
        self.is_string = False
        self.may_be_string = False  # unless it is JSON

    def give(self, text: str) -> None:
        self._held.append(text)
        if not self.is_string:
            if not self.may_be_string:
                return
            bare = "".join(self._held).strip()
            self.may_be_string = bare[:1] not in _JSON_STARTS
            if not bare or not self.may_be_string or any(word.startswith(bare) for word in _JSON_WORDS):
                return
            self.is_string = True
        self._begin()
        written = "".join(self._held)
        body = written.rstrip() if self._trims_end else written
        self._held = [written[len(body) :]]
        if body:
            self._give(as_json(body)[1:-1])

    def end(self, to_value: Callable[[str], Any]) -> None:
        """Write what is left; `to_value` makes a value of all of it, where that was not known before."""
        if self.is_string:
            self._begin()
            self._give('"')
            return
        written = "".join(self._held)
        self._give(as_json(to_value(written.rstrip() if self._trims_end else written)))

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._give('"')


def _value_kind(parser: Any) -> str | None:
    match parser:
        case None:
            return "raw"
        case {"name": "text", **rest} if not rest.get("args"):
            return "text"
        case {"name": "json", "args": {"allow_non_json": True, **rest}} if not rest:
            return "json"
    return None


def _ignore(text: str) -> None:
    """Leave out what stands between tags."""
