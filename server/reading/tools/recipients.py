"""Messages by their recipients, in the way of Functionary 3.2: to everybody, or to a tool, which is a call.

    >>>all
    Let me see.>>>get_weather
    {"city": "Paris"}

The prompt ends in the first mark, so that the output begins with a recipient. Everything is framed so, tools or not.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.json_calls import drop_brackets
from orcinus.server.reading.tools.json_values import read_brackets
from orcinus.server.reading.tools.lark import Terminal, arguments_schema, inline_json, one_of, quote, repeated
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.traits import Streaming, Strictness

_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, slots=True)
class Recipients:
    """`mark` stands before a recipient, who has a line of its own; `everybody` is not a tool."""

    name: str
    mark: str
    everybody: str

    is_parallel: ClassVar[bool] = True
    streaming: ClassVar[Streaming] = "all"
    strictness: ClassVar[Strictness] = "all"

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.mark,)

    @property
    def openings(self) -> tuple[str, ...]:
        return (self.mark,)

    def suited_to(self, template: str) -> "Recipients":
        return self

    def new_call_id(self) -> str:
        return openai_call_id()

    def sample(self) -> str:
        """Return a call of `f` with `x` = 1."""
        return f'{self.mark}f\n{{"x": 1}}'

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        mark = Markers([self.mark])
        is_message = True
        while is_message:
            writer.hold((yield from text.take_repeats(self.mark)))
            yield from self._read_message(text, writer, may_call=bool(tool_use.tools))
            marker = yield from text.read_until(mark, writer.content)
            writer.hold(marker)
            is_message = bool(marker)

    def _read_message(self, text: IncomingText, writer: CallWriter, *, may_call: bool) -> Reading[None]:
        """Read the recipient, and if it is a tool what it is called with."""
        name = yield from text.take_all(_NAME)
        line_end = yield from text.take_if("\n")
        writer.hold(name + line_end)
        if name == self.everybody and line_end:
            writer.drop()
        elif name and line_end and may_call and (yield from text.peek()) == "{":
            writer.start_call(name)
            yield from read_brackets(text, writer.arguments)
            writer.hold((yield from text.take_space()))
            yield from drop_brackets(text, writer)
        writer.release()

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        tools = tool_use.callable_tools
        calls = repeated("call", terminal(self.mark), tool_use)
        rules = [f"calls: {calls}", f"call: {one_of(f'call_{i}' for i in range(len(tools)))}"]
        for i, tool in enumerate(tools):
            head = quote(f"{tool.name}\n")
            rules.append(f"call_{i}: {head} arguments_{i}")
            rules.append(f"arguments_{i}: {inline_json(arguments_schema(tool), strict=tool.strict)}")
        return "\n".join(rules)


FUNCTIONARY_V32 = Recipients("functionary_v32", ">>>", "all")
