"""Calls in a section of their own, each between tokens: DeepSeek's and Kimi's.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜> ...
    <|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": ...

DeepSeek V3 and R1 write "function", the separator, the name, and the arguments in a fenced block; V3.1 as above. What
Kimi writes for a name is the id of the call, by which its template finds it again.
"""

import re
from dataclasses import dataclass

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, opening_tag, terminal_by
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.json_values import read_brackets
from orcinus.server.reading.tools.lark import Terminal, arguments_schema, inline_json, one_of, quote, repeated
from orcinus.server.reading.tools.request import ToolUse

_FENCE = "\n```json\n"
_NAME_BEFORE_FENCE = re.compile(r"[^\n`{<]+")
_BEFORE_ARGUMENTS = re.compile(r"[^{<]+")
_ID = re.compile(r"(?:functions\.)?(?P<name>.+?)(?::\d+)?")


@dataclass(frozen=True, slots=True)
class Sections:
    """`is_fenced` is DeepSeek V3's way, `has_ids` Kimi's."""

    name: str
    section: tuple[str, str]
    call: tuple[str, str]
    separator: str
    is_fenced: bool = False
    has_ids: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.section, *self.call, self.separator)

    @property
    def openings(self) -> tuple[str, ...]:
        return (self.section[0], self.call[0])

    def suited_to(self, template: str) -> "Sections":
        return self

    def new_call_id(self) -> str:
        return openai_call_id()

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        outside, inside = Markers(self.openings), Markers([*self.section, *self.call])
        is_inside = has_call = False
        while marker := (
            yield from text.read_until(*((inside, writer.hold) if is_inside else (outside, writer.content)))
        ):
            writer.hold(marker)
            if marker == self.call[0]:
                has_call = yield from self._read_call(text, writer)
            elif marker == self.section[0]:
                has_call = False
            elif has_call:
                writer.drop()
            is_inside = marker != self.section[1]
            if not is_inside:
                writer.release()
        if has_call:
            writer.release_after_call()
        else:
            writer.release()

    def _read_call(self, text: IncomingText, writer: CallWriter) -> Reading[bool]:
        """Read a call whose beginning is held. Returns whether it is one; if not, it stays held."""
        parts: list[str] = []
        marker = yield from text.read_until(self._after_head, parts.append)
        writer.hold("".join(parts) + marker)
        if marker != self.separator:
            return False
        if self.is_fenced:
            parts = [(yield from text.take_all(_NAME_BEFORE_FENCE))]
            writer.hold(parts[0])
        call_id, name = self._id_and_name("".join(parts).strip())
        writer.hold((yield from text.take_all(_BEFORE_ARGUMENTS)))
        if not name or not name.isprintable() or (text.is_cut and not (yield from text.peek())):
            return False
        writer.start_call(name, call_id)
        if (yield from text.peek()) == "{":
            yield from read_brackets(text, writer.arguments, ends=self.markers)
        else:
            writer.arguments("{}")
        return True

    @property
    def _after_head(self) -> Markers:
        return Markers(self.markers)

    def _id_and_name(self, head: str) -> tuple[str | None, str]:
        match = _ID.fullmatch(head) if self.has_ids else None
        return (head, match["name"]) if match else (None, head)

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        return f"calls: section\n{self._section_rules(tool_use, terminal)}"

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        """Return what calls are to be, in a section or, as they are read, a single one without."""
        rules = f"calls: section | call\n{self._section_rules(tool_use, terminal_by(token_id))}"
        return BegunCalls(rules, after(tool_use, *(opening_tag(tag, token_id) for tag in self.openings)))

    def _section_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        tools = tool_use.callable_tools
        calls = repeated("call", quote("\n") if self.is_fenced else "", tool_use)
        begin, end = map(terminal, self.section)
        rules = [f"section: {begin} {calls} {end}", f"call: {one_of(f'call_{i}' for i in range(len(tools)))}"]
        begin, end = map(terminal, self.call)
        for i, tool in enumerate(tools):
            rules.append(f"call_{i}: {begin} {self._head(tool.name, terminal)} arguments_{i} {self._tail}{end}")
            rules.append(f"arguments_{i}: {inline_json(arguments_schema(tool), strict=tool.strict)}")
        return "\n".join(rules)

    def _head(self, name: str, terminal: Terminal) -> str:
        if self.is_fenced:
            return f"{quote('function')} {terminal(self.separator)} {quote(f'{name}{_FENCE}')}"
        if self.has_ids:
            return f"{quote(f'functions.{name}:')} /[0-9]{{1,4}}/ {terminal(self.separator)}"
        return f"{quote(name)} {terminal(self.separator)}"

    @property
    def _tail(self) -> str:
        return quote("\n```") + " " if self.is_fenced else ""


_DEEPSEEK_SECTION = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_CALL = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")

DEEPSEEK_V3 = Sections("deepseek_v3", _DEEPSEEK_SECTION, _DEEPSEEK_CALL, "<｜tool▁sep｜>", is_fenced=True)
DEEPSEEK_V31 = Sections("deepseek_v31", _DEEPSEEK_SECTION, _DEEPSEEK_CALL, "<｜tool▁sep｜>")
KIMI_K2 = Sections(
    "kimi_k2",
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ("<|tool_call_begin|>", "<|tool_call_end|>"),
    "<|tool_call_argument_begin|>",
    has_ids=True,
)
