"""Messages by their recipients, in the way of Functionary 3.2: to everybody, or to a tool, which is a call.

    >>>all
    Let me see.>>>get_weather
    {"city": "Paris"}

The prompt ends in the first mark, so that the output begins with a recipient. Everything is framed so, tools or not.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from orcinus.engine.sampling_params import Opening
from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, one_call, terminal_by
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
        names = {tool.name for tool in tool_use.tools} if tool_use.holds_calls else None
        may_call = bool(tool_use.tools)
        is_message = True
        while is_message:
            writer.hold((yield from text.take_repeats(self.mark)))
            yield from self._read_message(text, writer, names, may_call=may_call)
            marker = yield from text.read_until(mark, writer.content)
            writer.hold(marker)
            is_message = bool(marker)

    def _read_message(
        self, text: IncomingText, writer: CallWriter, names: Collection[str] | None, *, may_call: bool
    ) -> Reading[None]:
        """Read the recipient, and if it is a tool, one of `names` if there are any, what it is called with."""
        name = yield from text.take_all(_NAME)
        line_end = yield from text.take_if("\n")
        writer.hold(name + line_end)
        if name == self.everybody and line_end:
            writer.drop()
        elif name and line_end and may_call and (names is None or name in names) and (yield from text.peek()) == "{":
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

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        """Return what a call is to be once a tool is named as the recipient."""
        openings = []
        for name in (f"{tool.name}\n" for tool in tool_use.callable_tools):
            openings += [Opening((name,), (name,), is_first=True), Opening((self.mark + name,), (name,))]
        return BegunCalls(self.grammar_rules(one_call(tool_use), terminal_by(token_id)), after(tool_use, *openings))


FUNCTIONARY_V32 = Recipients("functionary_v32", ">>>", "all")
