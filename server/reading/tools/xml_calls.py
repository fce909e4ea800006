"""Calls written as tags, one for each argument: Qwen3-Coder's, Seed-OSS's, MiniMax's and GLM's.

    <tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>
    <minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n</minimax:...
    <tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>

Values are written without a type: `argument_values` makes JSON of them by the tool's schema. A string is handed on as
it comes, anything else once it is complete. What stands between the tags is no content.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading
from orcinus.server.reading.tools.argument_values import (
    StringWriter,
    any_string_rule,
    any_string_terminal,
    is_plain_string,
    is_written_json,
    value_as_json,
    value_rule,
)
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, one_call, opening_tag, terminal_by
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.json_values import read_brackets, read_string
from orcinus.server.reading.tools.lark import (
    Terminal,
    one_of,
    properties_of,
    quote,
    repeated,
    required_arguments,
    takes_anything,
)
from orcinus.server.reading.tools.request import ToolUse

_NAME = re.compile(r"[\w.:/-]+")
_ANY_NAME = "/[A-Za-z0-9_.-]{1,64}/"


@dataclass(frozen=True, slots=True)
class XmlCalls:
    """One way of writing calls as tags. `function` and `key` stand around a name, and may be empty around a function's.

    `newline` is what the model's template writes around a value, and is none of it; `gap` stands between tags.
    """

    name: str
    section: tuple[str, str]
    function: tuple[str, str]
    function_end: str
    key: tuple[str, str]
    value: tuple[str, str]
    newline: str = ""
    gap: str = "\n"

    @property
    def markers(self) -> tuple[str, ...]:
        tags = (*self.section, *self.key, *self.value, *self.function, self.function_end)
        return tuple(tag for tag in tags if tag.startswith("<"))

    @property
    def openings(self) -> tuple[str, ...]:
        return (self.section[0],)

    def suited_to(self, template: str) -> "XmlCalls":
        return self

    def new_call_id(self) -> str:
        return openai_call_id()

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        schemas = {tool.name: properties_of(tool) for tool in tool_use.tools}
        held = {tool.name for tool in tool_use.tools if tool_use.holds(tool)}
        calls = _Calls(self, text, writer, schemas, held)
        outside = Markers(self.openings)
        marker = yield from text.read_until(outside, writer.content)
        while marker:
            writer.hold(marker)
            marker = yield from calls.read_section()
            if marker != self.section[0]:
                marker = yield from text.read_until(outside, writer.content)

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        tools = tool_use.callable_tools
        rules = [
            f"calls: {repeated('call', quote(self.gap) if self.gap else '', tool_use)}",
            f"call: {one_of(f'call_{i}' for i in range(len(tools)))}",
        ]
        section, end = self.section
        if terminal(self.value[1]) != quote(self.value[1]):
            rules.append(any_string_terminal(self.value[1], end))
        for i, tool in enumerate(tools):
            schemas, required = properties_of(tool), set(required_arguments(tool))
            names = sorted(schemas, key=lambda name: name not in required)
            arguments = [f"call_{i}_{n}{'' if name in required else '?'}" for n, name in enumerate(names)]
            if takes_anything(tool):
                arguments = [f"call_{i}_any*"]
                rules.append(self._any_argument_rule(f"call_{i}_any", terminal))
            head = [
                section,
                self.gap if self.function[0] else "",
                self.function[0],
                tool.name,
                self.function[1],
                self.gap,
            ]
            tail = [self.function_end, self.gap if self.function_end else "", end]
            rules.append(f"call_{i}: {_written(head, terminal)} {' '.join(arguments)} {_written(tail, terminal)}")
            for n, name in enumerate(names):
                rules += self._argument_rules(f"call_{i}_{n}", name, schemas[name], terminal, strict=tool.strict)
        return "\n".join(rules)

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        rules = self.grammar_rules(one_call(tool_use), terminal_by(token_id))
        return BegunCalls(rules, after(tool_use, opening_tag(self.section[0], token_id)))

    def _any_argument_rule(self, rule: str, terminal: Terminal) -> str:
        key, key_end = _written([self.key[0]], terminal), self.key[1]
        between = self.gap if self.value[0] else ""
        opening = _written([key_end, between, self.value[0], self.newline], terminal)
        end = any_string_rule(self.value[1], terminal)
        return f"{rule}: {key} {_ANY_NAME} {opening} {end} {_written([self.gap], terminal)}"

    def _argument_rules(self, rule: str, name: str, schema: Any, terminal: Terminal, *, strict: bool) -> list[str]:
        between = self.gap if self.value[0] else ""
        opening = _written([self.key[0], name, self.key[1], between, self.value[0], self.newline], terminal)
        value = value_rule(schema, strict=strict)
        if value is None:
            end = any_string_rule(self.value[1], terminal)
            return [f"{rule}: {opening} {end} {_written([self.gap], terminal)}"]
        closing = _written([self.newline, self.value[1], self.gap], terminal)
        return [f"{rule}: {opening} {rule}_value {closing}", f"{rule}_value: {value}"]


def _written(parts: Sequence[str], terminal: Terminal) -> str:
    """Return texts, one after another, in a grammar: a tag is a token of its own where there is one."""
    return " ".join(terminal(part) if part.startswith("<") else quote(part) for part in parts if part)


class _Calls:
    """Reads the calls of a section. Until the name of one is known, everything is held.

    Calls of the tools in `writing_json` were held to a grammar: what may be something else than a string is JSON.
    """

    def __init__(
        self,
        form: XmlCalls,
        text: IncomingText,
        writer: CallWriter,
        schemas: Mapping[str, Mapping[str, Any]],
        writing_json: Collection[str],
    ) -> None:
        self._form = form
        self._text = text
        self._writer = writer
        self._schemas = schemas
        self._writing_json = writing_json
        self._in_call = Markers([tag for tag in (form.key[0], form.function_end, *form.section) if tag])
        self._after_call = Markers([tag for tag in (form.function[0], *form.section) if tag])
        self._key_ends = Markers([form.key[1], form.section[1]])
        self._value_ends = Markers([form.value[1], form.section[1]])

    def read_section(self) -> Reading[str]:
        """Read what follows the opening tag of a section, and return the tag that ends it, or begins another."""
        self._writer.hold((yield from self._text.take_repeats(self._form.section[0])))
        opening = yield from self._text.take_if(self._form.function[0])
        self._writer.hold(opening)
        name = (yield from self._read_name()) if opening == self._form.function[0] else ""
        if not name:
            self._writer.release()
            return ""
        while name:
            marker = yield from self._read_arguments(name)
            name = ""
            if marker == self._form.function_end:
                marker = yield from self._text.read_until(self._after_call, self._writer.hold)
                name = (yield from self._read_name()) if marker and marker == self._form.function[0] else ""
        self._writer.drop() if marker else self._writer.release_after_call()
        return marker

    def _read_name(self) -> Reading[str]:
        """Return the name of a function, if it is one and what has to follow it does."""
        name = yield from self._text.take_all(_NAME)
        self._writer.hold(name)
        if self._form.function[1]:
            ending = yield from self._text.take_if(self._form.function[1])
            self._writer.hold(ending)
            return name if ending else ""
        self._writer.hold((yield from self._text.take_space()))
        for tag in (self._form.key[0], self._form.section[1]):
            if (yield from self._text.comes(tag)):
                return name
        return "" if self._text.is_cut or (yield from self._text.peek()) else name

    def _read_arguments(self, name: str) -> Reading[str]:
        """Read the arguments of a call, and return the tag that ends it; nothing where the text ends."""
        self._writer.start_call(name)
        schemas = self._schemas.get(name, {})
        before = "{"
        while marker := (yield from self._text.read_until(self._in_call, _ignore)):
            if marker != self._form.key[0]:
                break
            parts: list[str] = []
            marker = yield from self._text.read_until(self._key_ends, parts.append)
            if marker != self._form.key[1]:
                break
            key = "".join(parts).strip()
            self._writer.arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
            before = ", "
            marker = yield from self._read_value(schemas.get(key), is_json=name in self._writing_json)
            if marker != self._form.value[1]:
                break
        if marker or not self._text.is_cut:
            self._writer.arguments("{}" if before == "{" else "}")
        return marker

    def _read_value(self, schema: Any, *, is_json: bool) -> Reading[str]:
        if self._form.value[0]:
            yield from self._text.take_space()
            yield from self._text.take_if(self._form.value[0])
        if is_plain_string(schema):
            string = StringWriter(self._writer.arguments, self._form.newline)
            marker = yield from self._text.read_until(self._value_ends, string.give)
            string.end(is_complete=bool(marker) or not self._text.is_cut)
            return marker
        parts: list[str] = []
        if is_json:
            yield from self._read_json(parts)
        marker = yield from self._text.read_until(self._value_ends, parts.append)
        if marker or not self._text.is_cut:
            written = "".join(parts).removeprefix(self._form.newline).removesuffix(self._form.newline)
            self._writer.arguments(written if is_json and is_written_json(written) else value_as_json(written, schema))
        return marker

    def _read_json(self, parts: list[str]) -> Reading[None]:
        """Read a value in JSON, in whose strings any tag may stand."""
        parts.append((yield from self._text.take_if(self._form.newline)))
        match (yield from self._text.peek()):
            case "{" | "[":
                yield from read_brackets(self._text, parts.append)
            case '"':
                yield from read_string(self._text, parts.append)


def _ignore(text: str) -> None:
    """Leave out what stands between tags."""


_PARAMETER = (("<parameter=", ">"), ("", "</parameter>"))

QWEN3_CODER = XmlCalls(
    "qwen3_coder", ("<tool_call>", "</tool_call>"), ("<function=", ">"), "</function>", *_PARAMETER, newline="\n"
)
SEED_OSS = XmlCalls(
    "seed_oss", ("<seed:tool_call>", "</seed:tool_call>"), ("<function=", ">"), "</function>", *_PARAMETER
)
MINIMAX_M2 = XmlCalls(
    "minimax_m2",
    ("<minimax:tool_call>", "</minimax:tool_call>"),
    ('<invoke name="', '">'),
    "</invoke>",
    ('<parameter name="', '">'),
    ("", "</parameter>"),
)
GLM45 = XmlCalls(
    "glm45",
    ("<tool_call>", "</tool_call>"),
    ("", ""),
    "",
    ("<arg_key>", "</arg_key>"),
    ("<arg_value>", "</arg_value>"),
)
