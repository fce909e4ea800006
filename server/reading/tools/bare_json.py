"""Calls in JSON without any marker, where the whole answer is calls: Llama's 3.1 to 3.3, and xLAM's.

    {"name": "get_weather", "parameters": {"city": "Paris"}}
    [{"name": "get_weather", "arguments": {"city": "Paris"}}]

Several stand in a list, or with semicolons or white space between them. Llama's special token before them is optional,
and with it they may follow text; it is none of the content, whatever follows it. An answer that is JSON but names none
of the request's tools is an answer.
"""

from dataclasses import dataclass
from typing import ClassVar

from orcinus.engine.sampling_params import Opening
from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, terminal_by
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.json_calls import CallRules, read_calls
from orcinus.server.reading.tools.lark import Terminal, json_call_rules, quote, repeated
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.traits import Streaming, Strictness

TAG = "<|python_tag|>"
_TAG = Markers([TAG])
_TYPE = ('"type"', ":", '"function"')
_HEADS = (("{",), ("[", "{"), ("{", *_TYPE), ("[", "{", *_TYPE))  # what may stand before the name


@dataclass(frozen=True, slots=True)
class BareJson:
    name: str
    arguments_key: str
    is_list: bool

    markers: ClassVar[tuple[str, ...]] = (TAG,)
    openings: ClassVar[tuple[str, ...]] = (TAG,)
    is_parallel: ClassVar[bool] = True
    streaming: ClassVar[Streaming] = "all"
    strictness: ClassVar[Strictness] = "all"

    def suited_to(self, template: str) -> "BareJson":
        return self

    def new_call_id(self) -> str:
        return openai_call_id()

    def sample(self) -> str:
        """Return a call of `f` with `x` = 1."""
        call = f'{{"name": "f", "{self.arguments_key}": {{"x": 1}}}}'
        return f"[{call}]" if self.is_list else call

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        rules = CallRules(known_names={tool.name for tool in tool_use.tools}, name_first=tool_use.holds_calls)
        is_at_calls = True
        while is_at_calls:
            yield from _read_calls_if_any(text, writer, rules)
            is_at_calls = bool((yield from text.read_until(_TAG, writer.content)))

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        calls = repeated("object", quote(", " if self.is_list else "; "), tool_use)
        listed = f'"[" {calls} "]"' if self.is_list else calls
        return f"calls: {listed}\n{json_call_rules(tool_use, self.arguments_key)}"

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        """Return what calls are to be after the tag, or once an object at the beginning names one of the tools.

        They are all the rest of the answer.
        """
        openings = []
        for tool in tool_use.callable_tools:
            for head in _HEADS:
                bracket = "[" if self.is_list and head[0] == "[" else ""
                parts, begin = (*head, '"name"', ":", f'"{tool.name}"'), (f'{bracket}{{"name": "{tool.name}"',)
                openings.append(Opening(parts, begin, " \t\r\n,;", is_first=True))
        rules = self.grammar_rules(tool_use, terminal_by(token_id))
        if self.is_list:
            rules = "calls: list | object\n" + rules.replace("calls:", "list:", 1)
        return BegunCalls(rules, after(tool_use, Opening((TAG,), ()), *openings, text_follows=False))


def _read_calls_if_any(text: IncomingText, writer: CallWriter, rules: CallRules) -> Reading[None]:
    """Read the calls that come next, if any do, and leave out the tags before them."""
    writer.hold((yield from text.take_space()))
    while (yield from text.take_if(TAG)):
        writer.hold((yield from text.take_space()))
    if (yield from text.peek()) in ("{", "["):
        yield from read_calls(text, writer, rules)
    writer.release()


LLAMA3_JSON = BareJson("llama3_json", "parameters", is_list=False)
XLAM = BareJson("xlam", "arguments", is_list=True)
