"""Calls in the way of gpt-oss, which `server.reading.harmony` reads, together with everything else in its channels.

    <|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>

A call ends the output, so there is one.
"""

from dataclasses import dataclass
from typing import ClassVar

from orcinus.server.reading.harmony import CALL, CHANNEL, CONSTRAIN, MARKERS, MESSAGE, read_harmony
from orcinus.server.reading.incoming_text import IncomingText, Reading
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.lark import Terminal, arguments_schema, inline_json, one_of, quote
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.traits import Streaming, Strictness


@dataclass(frozen=True, slots=True)
class OpenAI:
    name: ClassVar[str] = "openai"
    markers: ClassVar[tuple[str, ...]] = MARKERS
    openings: ClassVar[tuple[str, ...]] = ()
    is_parallel: ClassVar[bool] = False
    streaming: ClassVar[Streaming] = "all"
    strictness: ClassVar[Strictness] = "all"

    def suited_to(self, template: str) -> "OpenAI":
        return self

    def sample(self) -> str:
        """Return a call of `f` with `x` = 1."""
        return f'{CHANNEL}commentary to=functions.f {CONSTRAIN}json{MESSAGE}{{"x": 1}}{CALL}'

    def new_call_id(self) -> str:
        return openai_call_id()

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        yield from read_harmony(text, writer, "", may_call=True, has_reasoning=True)

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        tools = tool_use.callable_tools
        head, json_type = terminal(CHANNEL), f"{terminal(CONSTRAIN)} {quote('json')} {terminal(MESSAGE)}"
        rules = [f"calls: {head} {one_of(f'call_{i}' for i in range(len(tools)))}"]
        for i, tool in enumerate(tools):
            recipient = quote(f"commentary to=functions.{tool.name} ")
            rules.append(f"call_{i}: {recipient} {json_type} arguments_{i}")
            rules.append(f"arguments_{i}: {inline_json(arguments_schema(tool), strict=tool.strict)}")
        return "\n".join(rules)
