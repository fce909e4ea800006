"""Calls in the way of Llama 3.1, 3.2 and 3.3: the whole answer is one, in JSON, without any marker.

    {"name": "get_weather", "parameters": {"city": "Paris"}}

Several stand in a list, or with semicolons or white space between them. The special token before them is optional, and
with it they may follow text; it is none of the content, whatever follows it. An answer that is JSON but names none of
the request's tools is an answer.
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

TAG = "<|python_tag|>"
_TAG = Markers([TAG])
_TYPE = ('"type"', ":", '"function"')
_HEADS = (("{",), ("[", "{"), ("{", *_TYPE), ("[", "{", *_TYPE))  # what may stand before the name


@dataclass(frozen=True, slots=True)
class Llama3Json:
    name: ClassVar[str] = "llama3_json"
    markers: ClassVar[tuple[str, ...]] = (TAG,)
    openings: ClassVar[tuple[str, ...]] = (TAG,)

    @classmethod
    def suited_to(cls, template: str) -> "Llama3Json":
        return cls()

    def new_call_id(self) -> str:
        return openai_call_id()

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        rules = CallRules(known_names={tool.name for tool in tool_use.tools}, name_first=tool_use.holds_calls)
        is_at_calls = True
        while is_at_calls:
            yield from _read_calls_if_any(text, writer, rules)
            is_at_calls = bool((yield from text.read_until(_TAG, writer.content)))

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        calls = repeated("object", quote("; "), tool_use)
        return f"calls: {calls}\n{json_call_rules(tool_use, 'parameters')}"

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        """Return what calls are to be after the tag, or once an object at the beginning names one of the tools.

        They are all the rest of the answer.
        """
        openings = [
            Opening((*head, '"name"', ":", f'"{tool.name}"'), (f'{{"name": "{tool.name}"',), " \t\r\n,;", is_first=True)
            for tool in tool_use.callable_tools
            for head in _HEADS
        ]
        rules = self.grammar_rules(tool_use, terminal_by(token_id))
        return BegunCalls(rules, after(tool_use, Opening((TAG,), ()), *openings, text_follows=False))


def _read_calls_if_any(text: IncomingText, writer: CallWriter, rules: CallRules) -> Reading[None]:
    """Read the calls that come next, if any do, and leave out the tags before them."""
    writer.hold((yield from text.take_space()))
    while (yield from text.take_if(TAG)):
        writer.hold((yield from text.take_space()))
    if (yield from text.peek()) in ("{", "["):
        yield from read_calls(text, writer, rules)
    writer.release()
