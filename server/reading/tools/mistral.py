"""Calls in the way of Mistral's models, after the special token `[TOOL_CALLS]`, of which there are two.

    [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]
    [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}

The newer way, in which every call has a token of its own, may give an id after `[CALL_ID]`. It is not used: models
repeat ids, and clients need them to differ.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, one_call, opening_tag, terminal_by
from orcinus.server.reading.tools.call_writer import CallWriter, mistral_call_id
from orcinus.server.reading.tools.json_calls import CallRules, drop_brackets, read_calls
from orcinus.server.reading.tools.json_values import read_brackets
from orcinus.server.reading.tools.lark import (
    Terminal,
    arguments_schema,
    inline_json,
    json_call_rules,
    one_of,
    quote,
    repeated,
)
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.traits import Streaming, Strictness

CALLS = "[TOOL_CALLS]"
ARGUMENTS = "[ARGS]"
CALL_ID = "[CALL_ID]"

_CALLS = Markers([CALLS])
_RULES = CallRules()
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Mistral:
    """`names_first` says which of the two ways the model was trained on; both are understood."""

    names_first: bool = False
    has_call_ids: bool = False

    name: ClassVar[str] = "mistral"
    markers: ClassVar[tuple[str, ...]] = (CALLS, ARGUMENTS, CALL_ID)
    openings: ClassVar[tuple[str, ...]] = (CALLS,)

    is_parallel: ClassVar[bool] = True
    streaming: ClassVar[Streaming] = "all"
    strictness: ClassVar[Strictness] = "all"

    def suited_to(self, template: str) -> "Mistral":
        return Mistral(names_first=ARGUMENTS in template, has_call_ids=CALL_ID in template)

    def sample(self) -> str:
        """Return a call of `f` with `x` = 1, in each of the two ways."""
        return f'{CALLS} [{{"name": "f", "arguments": {{"x": 1}}}}], {CALLS}f{ARGUMENTS}{{"x": 1}}'

    def new_call_id(self) -> str:
        return mistral_call_id()

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        while marker := (yield from text.read_until(_CALLS, writer.content)):
            writer.hold(marker + (yield from text.take_repeats(CALLS)))
            if (yield from text.peek()) in ("{", "["):
                yield from read_calls(text, writer, _RULES)
                writer.release()
            else:
                yield from _read_named_call(text, writer)

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        if self.names_first:
            return self._named_call_rules(tool_use, terminal)
        objects = repeated("object", quote(", "), tool_use)
        return f'calls: {terminal(CALLS)} " "? "[" {objects} "]"\n{json_call_rules(tool_use, "arguments")}'

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        """Return what a call is to be. After a list nothing follows: an object further on would be a call."""
        used = one_call(tool_use) if self.names_first else tool_use
        rules = self.grammar_rules(used, terminal_by(token_id))
        return BegunCalls(rules, after(tool_use, opening_tag(CALLS, token_id), text_follows=self.names_first))

    def _named_call_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        tools = tool_use.callable_tools
        call_id = f"{terminal(CALL_ID)} /[a-zA-Z0-9]{{9}}/ " if self.has_call_ids else ""
        rules = [
            f"calls: {repeated('call', '', tool_use)}",
            f"call: {terminal(CALLS)} {one_of(f'call_{i}' for i in range(len(tools)))}",
        ]
        for i, tool in enumerate(tools):
            rules.append(f"call_{i}: {quote(tool.name)} {call_id}{terminal(ARGUMENTS)} arguments_{i}")
            rules.append(f"arguments_{i}: {inline_json(arguments_schema(tool), strict=tool.strict)}")
        return "\n".join(rules)


def _read_named_call(text: IncomingText, writer: CallWriter) -> Reading[None]:
    """Read a call that begins with its name, where no bracket comes next."""
    name = yield from text.take_all(_NAME)
    writer.hold(name)
    if (yield from text.comes(CALL_ID)):
        writer.hold((yield from text.take_if(CALL_ID)))
        writer.hold((yield from text.take_all(_NAME)))
    writer.hold((yield from text.take_if(ARGUMENTS)))
    writer.hold((yield from text.take_space()))
    if (yield from text.peek()) != "{":
        writer.release()
        return
    writer.start_call(name)
    yield from read_brackets(text, writer.arguments)
    writer.hold((yield from text.take_space()))
    yield from drop_brackets(text, writer)
    writer.release()
