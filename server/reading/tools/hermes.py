"""Calls in the way of Hermes 2 Pro, which Qwen 2.5 and Qwen 3 write too: JSON objects between tags.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Text may stand before, between and after them. Objects of the same shape in one pair of tags are calls as well.
"""

from dataclasses import dataclass
from typing import ClassVar

from orcinus.server.reading.incoming_text import IncomingText, Reading
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, one_call, opening_tag, terminal_by
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.json_calls import read_tagged_calls
from orcinus.server.reading.tools.lark import Terminal, json_call_rules, quote, repeated
from orcinus.server.reading.tools.request import ToolUse

OPENING = "<tool_call>"
CLOSING = "</tool_call>"


@dataclass(frozen=True, slots=True)
class Hermes:
    name: ClassVar[str] = "hermes"
    markers: ClassVar[tuple[str, ...]] = (OPENING, CLOSING)
    openings: ClassVar[tuple[str, ...]] = (OPENING,)

    @classmethod
    def suited_to(cls, template: str) -> "Hermes":
        return cls()

    def new_call_id(self) -> str:
        return openai_call_id()

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        yield from read_tagged_calls(text, writer, OPENING, CLOSING)

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        calls = repeated("call", quote("\n"), tool_use)
        call = f'{terminal(OPENING)} "\\n" object "\\n" {terminal(CLOSING)}'
        return f"calls: {calls}\ncall: {call}\n{json_call_rules(tool_use, 'arguments')}"

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        rules = self.grammar_rules(one_call(tool_use), terminal_by(token_id))
        return BegunCalls(rules, after(tool_use, opening_tag(OPENING, token_id)))
