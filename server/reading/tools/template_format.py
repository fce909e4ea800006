"""The grammar of calls that a response template has as JSON between two texts."""

from dataclasses import dataclass
from typing import ClassVar

from orcinus.server.reading.incoming_text import IncomingText, Reading
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, one_call, opening_tag, terminal_by
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.json_calls import CallRules, read_calls, read_tagged_calls, take_fence
from orcinus.server.reading.tools.lark import Terminal, json_call_rules, quote, repeated
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.template_calls import JsonCalls
from orcinus.server.reading.tools.traits import Streaming, Strictness


@dataclass(frozen=True, slots=True)
class TemplateJson:
    """Writes objects between two texts: each alone, or all of them in one list."""

    name: str
    opening: str
    closing: str
    calls: JsonCalls

    is_parallel: ClassVar[bool] = True
    streaming: ClassVar[Streaming] = "all"
    strictness: ClassVar[Strictness] = "all"

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.opening, self.closing)

    @property
    def openings(self) -> tuple[str, ...]:
        return (self.opening,)

    def suited_to(self, template: str) -> "TemplateJson":
        return self

    def new_call_id(self) -> str:
        return openai_call_id()

    def sample(self) -> str:
        """Return a call of `f` with `x` = 1."""
        call = f'{{"{self.calls.name_key}": "f", "{self.calls.arguments_key}": {{"x": 1}}}}'
        return f"{self.opening}{f'[{call}]' if self.calls.is_list else call}{self.closing}"

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        rules = CallRules(ends=self.markers, name_key=self.calls.name_key)

        def read_inside() -> Reading[bool]:
            writer.hold((yield from take_fence(text)))
            return (yield from read_calls(text, writer, rules))

        yield from read_tagged_calls(text, writer, self.openings, self.closing, read_inside)

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        opening, closing = terminal(self.opening), terminal(self.closing)
        rules = json_call_rules(tool_use, self.calls.arguments_key, self.calls.name_key)
        if self.calls.is_list:
            return f'calls: {opening} "[" {repeated("object", quote(", "), tool_use)} "]" {closing}\n{rules}'
        return f"calls: {repeated('call', quote(chr(10)), tool_use)}\ncall: {opening} object {closing}\n{rules}"

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        rules = self.grammar_rules(tool_use if self.calls.is_list else one_call(tool_use), terminal_by(token_id))
        return BegunCalls(rules, after(tool_use, opening_tag(self.opening, token_id)))
