"""Calls written as tags, one for each argument: Qwen3-Coder's, Seed-OSS's, MiniMax's, GLM's, DeepSeek's and others'.

    <tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>
    <minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n</minimax:...
    <tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>
    <｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n...

Values are written without a type, unless the tag says whether it is a string: `argument_values` makes JSON of them by
the tool's schema. A string is handed on as it comes, anything else once it is complete. What stands between the tags is
no content.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from orcinus.engine.sampling_params import Opening
from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading
from orcinus.server.reading.tools.argument_values import (
    StringWriter,
    any_string_rule,
    any_string_terminal,
    is_plain_string,
    is_written_json,
    value_as_json,
    value_rule,
    written_tag,
)
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, begin_with, one_call, terminal_by
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
from orcinus.server.reading.tools.traits import Streaming, Strictness

_NAME = re.compile(r"[\w.:/-]+")
_STRING = {"type": "string"}
_ANY_NAME = "/[A-Za-z0-9_.-]{1,64}/"


@dataclass(frozen=True, slots=True)
class XmlCalls:
    """One way of writing calls as tags. `function` and `key` stand around a name, and may be empty around a function's.

    `newline` is what the model's template writes around a value, and is none of it; `gap` stands between tags. With
    `typed` a key ends as the first where the value is a string, as the second where it is JSON, or as in `key`, where
    the schema says it. `frame` is what stands around a function besides, and `is_nested` says that all functions of an
    answer stand in one section. `token` is a token of the model's in the midst of its tags. Where models are known to
    leave the tag of the section out, it `is_optional`.
    """

    name: str
    section: tuple[str, str]
    function: tuple[str, str]
    function_end: str
    key: tuple[str, str]
    value: tuple[str, str]
    newline: str = ""
    gap: str = "\n"
    typed: tuple[str, str] = ("", "")
    frame: tuple[tuple[str, ...], str] = ((), "")
    is_nested: bool = False
    token: str = ""
    is_optional: bool = False

    is_parallel: ClassVar[bool] = True
    streaming: ClassVar[Streaming] = "strings"
    strictness: ClassVar[Strictness] = "strings as written"

    @property
    def markers(self) -> tuple[str, ...]:
        before, after = self.frame
        tags = (*self.section, *before, *self.key, *self.value, *self.function, self.function_end, after)
        return (*(tag for tag in tags if tag.startswith("<")), *([self.token] if self.token else []))

    @property
    def openings(self) -> tuple[str, ...]:
        return (self.section[0], self.function[0]) if self.is_optional else (self.section[0],)

    def suited_to(self, template: str) -> "XmlCalls":
        """Return the format without gaps, where the template writes a key and its value without one (GLM 4.7)."""
        is_compact = bool(self.value[0]) and self.key[1] + self.value[0] in template
        return replace(self, gap="") if is_compact else self

    def new_call_id(self) -> str:
        return openai_call_id()

    def sample(self) -> str:
        """Return a call of `f` with `x` = 1."""
        before, after = self.frame
        head = (self.section[0], *before, self.function[0], "f", self.function[1])
        argument = (self.key[0], "x", self.typed[1] or self.key[1], self.value[0], "1", self.value[1])
        return "".join((*head, *argument, self.function_end, after, self.section[1]))

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        schemas = {tool.name: properties_of(tool) for tool in tool_use.tools}
        held = {tool.name for tool in tool_use.tools if tool_use.holds(tool)}
        calls = _Calls(self, text, writer, schemas, held)
        outside = Markers(self.openings)
        marker = yield from text.read_until(outside, writer.content)
        while marker:
            writer.hold(marker)
            marker = yield from calls.read_section(marker)
            if marker != self.section[0]:
                marker = yield from text.read_until(outside, writer.content)

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        calls = repeated("call", quote(self.gap) if self.gap else "", tool_use)
        section, tail = self.section
        head = self._written([section, self.gap if self.function[0] or self.is_nested else ""], terminal)
        tail = self._written([self.gap if self.function_end or self.is_nested else "", tail], terminal)
        around = [f"calls: {head} {calls} {tail}", "call: function"]
        if not self.is_nested:
            around = [f"calls: {calls}", f"call: {head} function {tail}"]
        return "\n".join([*around, *self._function_rules(tool_use, terminal)])

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        """Return what calls are to be, all of a section where it has all, and without its tag where that is read."""
        terminal = terminal_by(token_id)
        rules = self.grammar_rules(tool_use if self.is_nested else one_call(tool_use), terminal)
        if self.is_optional:
            tail = self._written([self.gap, self.section[1]], terminal)
            rules = f"calls: tagged | function {tail}\n" + rules.replace("calls:", "tagged:", 1)
        openings = (Opening((tag,), self._begin(tag, token_id)) for tag in self.openings)
        return BegunCalls(rules, after(tool_use, *openings))

    def _begin(self, tag: str, token_id: TokenId) -> tuple[str | int, ...]:
        """Return a tag as it is in the grammar."""
        if not self.token or token_id(tag) is not None:
            return begin_with(token_id, tag)
        return begin_with(token_id, *filter(None, tag.partition(self.token)))

    def _function_rules(self, tool_use: ToolUse, terminal: Terminal) -> list[str]:
        """Return the rule `function`: the call of one tool, in its frame, without the section."""
        tools = tool_use.callable_tools
        rules = [f"function: {one_of(f'call_{i}' for i in range(len(tools)))}"]
        if terminal(self.value[1]) != quote(self.value[1]):
            rules.append(any_string_terminal(self.value[1], self.section[1]))
        before, end = self.frame
        tail = self._written([self.function_end, end], terminal)
        for i, tool in enumerate(tools):
            schemas, required = properties_of(tool), set(required_arguments(tool))
            names = sorted(schemas, key=lambda name: name not in required)
            arguments = [f"call_{i}_{n}{'' if name in required else '?'}" for n, name in enumerate(names)]
            if takes_anything(tool):
                arguments = [f"call_{i}_any*"]
                rules.append(self._any_argument_rule(f"call_{i}_any", terminal))
            head = self._written([*before, self.function[0], tool.name, self.function[1], self.gap], terminal)
            rules.append(f"call_{i}: {head} {' '.join(arguments)} {tail}")
            for n, name in enumerate(names):
                rules += self._argument_rules(f"call_{i}_{n}", name, schemas[name], terminal, strict=tool.strict)
        return rules

    def _any_argument_rule(self, rule: str, terminal: Terminal) -> str:
        between = self.gap if self.value[0] else ""
        key, key_end = self._written([self.key[0]], terminal), self.typed[0] or self.key[1]
        opening = self._written([key_end, between, self.value[0], self.newline], terminal)
        end = any_string_rule(self.value[1], terminal, self.token)
        return f"{rule}: {key} {_ANY_NAME} {opening} {end} {self._written([self.gap], terminal)}"

    def _argument_rules(self, rule: str, name: str, schema: Any, terminal: Terminal, *, strict: bool) -> list[str]:
        between = self.gap if self.value[0] else ""
        key_end = self.typed[not is_plain_string(schema)] or self.key[1]
        opening = self._written([self.key[0], name, key_end, between, self.value[0], self.newline], terminal)
        value = value_rule(schema, strict=strict)
        if value is None:
            end = any_string_rule(self.value[1], terminal, self.token)
            return [f"{rule}: {opening} {end} {self._written([self.gap], terminal)}"]
        closing = self._written([self.newline, self.value[1], self.gap], terminal)
        return [f"{rule}: {opening} {rule}_value {closing}", f"{rule}_value: {value}"]

    def _written(self, parts: Sequence[str], terminal: Terminal) -> str:
        """Return texts, one after another, in a grammar: a tag is a token of its own where there is one."""
        return " ".join(written_tag(part, terminal, self.token) for part in parts if part)


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
        self._frame = tuple(tag for tag in (*form.frame[0], form.frame[1]) if tag.startswith("<"))
        self._after_call = Markers([tag for tag in (form.function[0], *form.section, *self._frame) if tag])
        self._key_ends = Markers([form.key[1], form.section[1], *filter(None, form.typed)])
        self._value_ends = Markers([form.value[1], form.section[1]])

    def read_section(self, opening: str) -> Reading[str]:
        """Read what follows the opening tag of a section, and return the tag that ends it, or begins another.

        The section may begin with the tag of its first function instead.
        """
        if opening == self._form.section[0]:
            self._writer.hold((yield from self._text.take_repeats(opening)))
            for part in self._form.frame[0]:
                self._writer.hold((yield from self._text.take_if(part)) + (yield from self._text.take_space()))
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
                marker = yield from self._read_after_call()
                name = (yield from self._read_name()) if marker and marker == self._form.function[0] else ""
        self._writer.drop() if marker else self._writer.release_after_call()
        return marker

    def _read_after_call(self) -> Reading[str]:
        """Read up to the tag that begins another call, or ends the section."""
        is_framed = False
        while (marker := (yield from self._text.read_until(self._after_call, self._writer.hold))) in self._frame:
            is_framed = True
            self._writer.drop()
        if is_framed and not marker and self._text.is_cut:
            self._writer.drop()
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
            if not marker or marker not in (self._form.key[1], *self._form.typed):
                break
            key = "".join(parts).strip()
            self._writer.arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
            before = ", "
            schema = self._schema(schemas.get(key), marker)
            marker = yield from self._read_value(schema, is_json=name in self._writing_json)
            if marker != self._form.value[1]:
                break
        if marker or not self._text.is_cut:
            self._writer.arguments("{}" if before == "{" else "}")
        return marker

    def _schema(self, schema: Any, key_end: str) -> Any:
        """Return what a value is read by: what the tag says of it, or else the schema."""
        if key_end == self._form.key[1]:
            return schema
        return _STRING if key_end == self._form.typed[0] else {}

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
_ATTRIBUTE = (('<parameter name="', '">'), ("", "</parameter>"))
_ARGUMENT = (("<arg_key>", "</arg_key>"), ("<arg_value>", "</arg_value>"))
_FUNCTION = ("<function=", ">")
_INVOKE = ('<invoke name="', '">')

QWEN3_CODER = XmlCalls(
    "qwen3_coder",
    ("<tool_call>", "</tool_call>"),
    _FUNCTION,
    "</function>",
    *_PARAMETER,
    newline="\n",
    is_optional=True,
)
MIMO = XmlCalls("mimo", ("<tool_call>", "</tool_call>"), _FUNCTION, "</function>", *_PARAMETER, is_optional=True)
SEED_OSS = XmlCalls("seed_oss", ("<seed:tool_call>", "</seed:tool_call>"), _FUNCTION, "</function>", *_PARAMETER)
MINIMAX_M2 = XmlCalls("minimax_m2", ("<minimax:tool_call>", "</minimax:tool_call>"), _INVOKE, "</invoke>", *_ATTRIBUTE)
DOTS = XmlCalls("dots", ("<dots_function_call>", "</dots_function_call>"), _INVOKE, "</invoke>", *_ATTRIBUTE)
STEP3 = XmlCalls(
    "step3",
    ("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"),
    ('<steptml:invoke name="', '">'),
    "</steptml:invoke>",
    ('<steptml:parameter name="', '">'),
    ("", "</steptml:parameter>"),
    gap="",
    frame=(("<｜tool_call_begin｜>", "function", "<｜tool_sep｜>"), "<｜tool_call_end｜>"),
    is_nested=True,
)
GLM45 = XmlCalls("glm45", ("<tool_call>", "</tool_call>"), ("", ""), "", *_ARGUMENT)
LONGCAT_2 = XmlCalls(
    "longcat_2",
    ("<longcat_tool_call>", "</longcat_tool_call>"),
    ("", ""),
    "",
    ("<longcat_arg_key>", "</longcat_arg_key>"),
    ("<longcat_arg_value>", "</longcat_arg_value>"),
)
HY_V3 = XmlCalls(
    "hy_v3",
    ("<tool_calls>", "</tool_calls>"),
    ("<tool_call>", "<tool_sep>"),
    "</tool_call>",
    *_ARGUMENT,
    is_nested=True,
)


def _dsml(name: str, section: str, space: str = "") -> XmlCalls:
    """Return a dialect of DeepSeek's markup: the name of the section, and what stands before the name of a tag."""

    def tags(kind: str) -> tuple[str, str]:
        return f"<｜DSML｜{space}{kind}", f"</｜DSML｜{space}{kind}>"

    (invoke, end), (parameter, value_end), (opening, closing) = tags("invoke"), tags("parameter"), tags(section)
    return XmlCalls(
        name,
        (f"{opening}>", closing),
        (f'{invoke} name="', '">'),
        end,
        (f'{parameter} name="', '">'),
        ("", value_end),
        typed=('" string="true">', '" string="false">'),
        is_nested=True,
        token="｜DSML｜",  # noqa: S106 - no password
    )


DEEPSEEK_V32 = _dsml("deepseek_v32", "function_calls")
DEEPSEEK_V4 = _dsml("deepseek_v4", "tool_calls")
DEEPSEEK_V41 = _dsml("deepseek_v41", "calls", " ")
