"""Calls in the way of gpt-oss, which `server.reading.harmony` reads, together with everything else in its channels.

    <|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>

A call ends the output, so there is one.
"""

from dataclasses import dataclass
from typing import ClassVar

import msgspec

from orcinus.engine.sampling_params import Opening
from orcinus.server.reading.harmony import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    MARKERS,
    MESSAGE,
    RETURN,
    START,
    header_in_prompt,
    read_harmony,
)
from orcinus.server.reading.incoming_text import IncomingText, Reading
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, begin_with, terminal_by
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.lark import Terminal, arguments_schema, inline_json, one_of, quote
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.traits import Streaming, Strictness

_TO = "to="
_SPACE = " \t\r\n"


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

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        """Return what a call is to be once a header names a recipient, before its channel or after it."""
        terminal = terminal_by(token_id)
        rules = self.grammar_rules(tool_use, terminal).replace("calls:", "with_channel:", 1)
        late = [
            f"late_{i}: {quote(f'functions.{tool.name}')} {terminal(CHANNEL)} {quote('commentary ')} "
            f"{terminal(CONSTRAIN)} {quote('json')} {terminal(MESSAGE)} arguments_{i}"
            for i, tool in enumerate(tool_use.callable_tools)
        ]
        before = f"{terminal(START)} {quote(f'assistant {_TO}')} {one_of(f'late_{i}' for i in range(len(late)))}"
        openings = after(tool_use, *_openings(token_id, prompt_tail), text_follows=False)
        return BegunCalls(
            "\n".join(["calls: with_channel | without_channel", f"without_channel: {before}", rules, *late]),
            msgspec.structs.replace(openings, resets=(MESSAGE, END, CALL, RETURN)),
        )


def _openings(token_id: TokenId, prompt_tail: str) -> list[Opening]:
    """Return the beginnings of headers of calls, up to where the recipient stands."""
    with_channel = begin_with(token_id, CHANNEL, f"commentary {_TO}")
    without_channel = begin_with(token_id, START, f"assistant {_TO}")
    openings = [
        Opening((CHANNEL, _TO), with_channel, between=None),
        Opening((START, "assistant", _TO), without_channel, between=None),
        Opening((START, _TO), without_channel, between=_SPACE),
    ]
    header = header_in_prompt(prompt_tail)
    if header:
        begin = with_channel if CHANNEL in header else without_channel
        openings.append(Opening((_TO,), begin, between=None, is_first=True))
    elif header is not None:
        openings.append(Opening((_TO,), without_channel, between=_SPACE, is_first=True))
        openings.append(Opening((f"assistant {_TO}",), without_channel, between=_SPACE, is_first=True))
    return openings
