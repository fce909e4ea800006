"""Calls in the region of a response template, read while they are written where the template's data allow it.

    {"name": "get_weather", "arguments": {...}}     the name in the region (`JsonCalls`)
    {"city": "Paris"}                               the name in what opened it (`JsonArguments`)
    {city:<|"|>Paris<|"|>,days:3}                   the same, in JSON of the model's own (`LaxArguments`)
    <parameter=city>Paris</parameter>               one tag for each argument (`TaggedArguments`)
    [get_weather(city="Paris")]                     Python (`CallList`)

`find_call_body` recognizes these. What it does not recognize, and what then is no such call, is for the library to
parse once the region has ended.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading
from orcinus.server.reading.tools.call_writer import CallWriter
from orcinus.server.reading.tools.json_calls import CallRules, read_calls
from orcinus.server.reading.tools.json_values import Give, read_brackets, read_string
from orcinus.server.reading.tools.pythonic import read_call_list
from orcinus.server.reading.tools.tagged_arguments import TaggedArguments
from orcinus.server.reading.tools.template_writer import CallSite

_ARGUMENT_KEYS = ("arguments", "parameters")
_PLACEHOLDER = re.compile(r"\{(\w+(?:\.\w+)?)\}")
_WORD = re.compile(r"\w+")
_PYTHONS = {"True": "true", "False": "false", "None": "null"}


class CallBody(Protocol):
    """Reads one way of writing calls between what opens a region and what closes it."""

    def read(self, text: IncomingText, writer: CallWriter, site: CallSite) -> Reading[None]:
        """Read the region to its end, and write down its calls. Before the first one, all is held."""


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Reads objects with a name and arguments, one after another or in a list."""

    name_key: str = "name"
    arguments_key: str = "arguments"
    is_list: bool = False

    def read(self, text: IncomingText, writer: CallWriter, site: CallSite) -> Reading[None]:
        yield from read_calls(text, writer, CallRules(name_key=self.name_key))
        yield from text.read_rest(writer.hold)


@dataclass(frozen=True, slots=True)
class JsonArguments:
    """Reads an object. Nothing at all is a call without arguments."""

    def read(self, text: IncomingText, writer: CallWriter, site: CallSite) -> Reading[None]:
        yield from text.take_space()
        char = yield from text.peek()
        if char == "{":
            writer.start_call(site.name, site.call_id)
            yield from read_brackets(text, writer.arguments)
        elif not char and not text.is_cut:
            writer.start_call(site.name, site.call_id)
            writer.arguments("{}")
        yield from text.read_rest(writer.hold)


@dataclass(frozen=True, slots=True)
class LaxArguments:
    """Reads an object with names that are not quoted, or strings between delimiters, or both."""

    string_delims: tuple[tuple[str, str], ...] = ()
    unquoted_keys: bool = False

    def read(self, text: IncomingText, writer: CallWriter, site: CallSite) -> Reading[None]:
        yield from text.take_space()
        char = yield from text.peek()
        if char == "{":
            writer.start_call(site.name, site.call_id)
            yield from self._read_object(text, writer.arguments)
        elif not char and not text.is_cut:
            writer.start_call(site.name, site.call_id)
            writer.arguments("{}")
        yield from text.read_rest(writer.hold)

    def _read_object(self, text: IncomingText, give: Give) -> Reading[None]:
        depth, last = 0, ""
        while char := (yield from text.peek()):
            if (yield from self._read_delimited(text, give)):
                last = '"'
            elif not (yield from text.peek()):  # the text was cut in what may be a delimiter
                return
            elif char == '"':
                yield from read_string(text, give)
                last = '"'
            elif word := (yield from text.take_all(_WORD)):
                yield from self._read_word(text, give, word, may_be_key=last in ("{", ","))
                last = "a"
            else:
                give(text.take())
                last = last if char.isspace() else char
                depth += (char in "{[") - (char in "}]")
                if not depth:
                    return

    def _read_delimited(self, text: IncomingText, give: Give) -> Reading[bool]:
        """Read a string between delimiters, if one comes next."""
        for opening, closing in self.string_delims:
            if (yield from text.take_if(opening)):
                give('"')
                marker = yield from text.read_until(Markers([closing]), lambda part: give(_escaped(part)))
                if marker or not text.is_cut:
                    give('"')
                return True
        return False

    def _read_word(self, text: IncomingText, give: Give, word: str, *, may_be_key: bool) -> Reading[None]:
        space = yield from text.take_space()
        if text.is_cut and not (yield from text.peek()):  # nobody knows how it went on
            return
        is_key = self.unquoted_keys and may_be_key and (yield from text.peek()) == ":"
        give((f'"{word}"' if is_key else _PYTHONS.get(word, word)) + space)


@dataclass(frozen=True, slots=True)
class CallList:
    """Reads a list of calls in Python, of which each argument is handed on when it is complete."""

    def read(self, text: IncomingText, writer: CallWriter, site: CallSite) -> Reading[None]:
        yield from read_call_list(text, writer)


@dataclass(frozen=True, slots=True)
class CallShape:
    """Says where a transform takes a call from: placeholders as they are written, less the braces, or nothing."""

    name: str
    arguments: str
    call_id: str = ""
    function: str = ""  # of a call as a whole

    @classmethod
    def of(cls, transform: Any) -> "CallShape":
        if isinstance(transform, list) and len(transform) == 1:
            transform = transform[0]
        if transform is None:
            return cls("", "", function="content")
        if not isinstance(transform, Mapping):
            return cls("", "", function=_placeholder(transform))
        function = transform.get("function", transform)
        if not isinstance(function, Mapping):
            return cls("", "", function=_placeholder(function))
        name, arguments = _placeholder(function.get("name")), _placeholder(function.get("arguments"))
        return cls(name, arguments, _placeholder(transform.get("id", function.get("id"))))


def find_call_body(field: Any, captured: frozenset[str]) -> CallBody | None:
    """Return how to read the field while it is written, None where only the library can, once it is complete.

    `field` is the library's; `captured` are the names that what opens the region captures.
    """
    shape = CallShape.of(field.transform)
    has_name = shape.name in captured and shape.arguments == "content" and not field.transform_each
    options = {key: value for key, value in field.content_args.items() if value and key != "allow_non_json"}
    match field.content:
        case "json" if has_name:
            return JsonArguments() if not options else _lax_arguments(options)
        case "json" if not options:
            return _json_calls(shape, is_list=field.transform_each)
        case "xml-inline" if has_name:
            return TaggedArguments.of(field.content_args)
        case "python-call-list" if field.transform is None:
            return CallList()
        case "python-call-list" if field.transform_each and (shape.name, shape.arguments) == ("name", "arguments"):
            return CallList()
    return None


def _json_calls(shape: CallShape, *, is_list: bool) -> JsonCalls | None:
    if shape.function == "content" and not is_list:
        return JsonCalls()
    within = "" if is_list else "content."
    name, arguments = shape.name.removeprefix(within), shape.arguments.removeprefix(within)
    if not (shape.name.startswith(within) and shape.arguments.startswith(within)):
        return None
    return JsonCalls(name, arguments, is_list) if name and arguments in _ARGUMENT_KEYS else None


def _lax_arguments(options: Mapping[str, Any]) -> LaxArguments | None:
    delims = options.get("string_delims", [])
    if not options.keys() <= {"string_delims", "unquoted_keys"} or not isinstance(delims, list):
        return None
    pairs = tuple((str(opening), str(closing)) for opening, closing in delims)
    return LaxArguments(pairs, bool(options.get("unquoted_keys"))) if all(map(all, pairs)) else None


def calls_in(value: Any) -> list[tuple[str, Any, str | None]]:
    """Return the calls in what the library has parsed: name, arguments, id. Raises `ValueError` where it is none."""
    if isinstance(value, list):
        return [call for item in value for call in calls_in(item)]
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError("this is no call")
    call_id = value.get("id")
    return [(function["name"], function.get("arguments"), call_id if isinstance(call_id, str) and call_id else None)]


def _placeholder(value: Any) -> str:
    match = _PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
    return match[1] if match else ""


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
