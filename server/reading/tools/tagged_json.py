"""Calls as a list of JSON objects between two tags: Granite's, Phi's, Hunyuan's, Nemotron's and Command's.

<tool_calls>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</tool_calls>
<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris"}}]<|END_ACTION|>
"""

from dataclasses import dataclass

from orcinus.server.reading.incoming_text import IncomingText, Reading
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, opening_tag, terminal_by
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.json_calls import read_tagged_calls
from orcinus.server.reading.tools.lark import Terminal, json_call_rules, quote, repeated
from orcinus.server.reading.tools.request import ToolUse


@dataclass(frozen=True, slots=True)
class TaggedJson:
    """`closing` is empty where the end of the text closes."""

    name: str
    opening: str
    closing: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.opening, self.closing) if self.closing else (self.opening,)

    @property
    def openings(self) -> tuple[str, ...]:
        return (self.opening,)

    def suited_to(self, template: str) -> "TaggedJson":
        return self

    def new_call_id(self) -> str:
        return openai_call_id()

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        yield from read_tagged_calls(text, writer, self.opening, self.closing, self.name_key)

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        objects = repeated("object", quote(", "), tool_use)
        closing = f" {terminal(self.closing)}" if self.closing else ""
        rules = json_call_rules(tool_use, self.arguments_key, self.name_key)
        return f'calls: {terminal(self.opening)} "[" {objects} "]"{closing}\n{rules}'

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        rules = self.grammar_rules(tool_use, terminal_by(token_id))
        opening = opening_tag(self.opening, token_id)
        # Without a tag that closes, an object further on would be a call.
        return BegunCalls(rules, after(tool_use, opening, text_follows=bool(self.closing)))


GRANITE = TaggedJson("granite", "<|tool_call|>")
PHI4_MINI = TaggedJson("phi4_mini", "<|tool_call|>", "<|/tool_call|>")
HUNYUAN = TaggedJson("hunyuan", "<tool_calls>", "</tool_calls>")
NEMOTRON = TaggedJson("nemotron", "<TOOLCALL>", "</TOOLCALL>")
COHERE_COMMAND = TaggedJson("cohere_command", "<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters")
