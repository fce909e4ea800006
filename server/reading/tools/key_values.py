"""Calls in the way of Gemma 4 and FunctionGemma: keys, values, and marks around strings that no string has in it.

    <|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3,at:{x:1.5}}<tool_call|>
    <start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}<end_function_call>

Arguments are made JSON while they come: strings as they come, other values once they are complete. What has no marks
and is no JSON is a string.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading
from orcinus.server.reading.tools.argument_values import StringWriter, is_written_json, value_as_json
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, one_call, opening_tag, terminal_by
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.json_calls import read_tagged_calls
from orcinus.server.reading.tools.json_values import comes_any
from orcinus.server.reading.tools.key_value_grammar import KeyValueGrammar
from orcinus.server.reading.tools.lark import Terminal, one_of, properties_of, repeated
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.traits import Streaming, Strictness

_HEAD = "call:"
_NAME = re.compile(r"[\w.-]+")
_SEPARATORS = re.compile(r"[, \t\r\n]+")
_IN_KEY = re.compile(r"[^:,{}\[\]<]+")
_IN_VALUE = re.compile(r"[^,{}\[\]<]+")
_CLOSING = {"{": "}", "[": "]"}


@dataclass(frozen=True, slots=True)
class KeyValues:
    """`tags` stand around each call, and `mark` around each string."""

    name: str
    tags: tuple[str, str]
    mark: str

    is_parallel: ClassVar[bool] = True
    streaming: ClassVar[Streaming] = "strings"
    strictness: ClassVar[Strictness] = "strings as written"

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.tags, self.mark)

    @property
    def openings(self) -> tuple[str, ...]:
        return self.tags[:1]

    def suited_to(self, template: str) -> "KeyValues":
        return self

    def new_call_id(self) -> str:
        return openai_call_id()

    def sample(self) -> str:
        """Return a call of `f` with `x` = 1."""
        return f"{self.tags[0]}{_HEAD}f{{x:1}}{self.tags[1]}"

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        schemas = {tool.name: properties_of(tool) for tool in tool_use.tools}
        opening, closing = self.tags
        held = {tool.name for tool in tool_use.tools if tool_use.holds(tool)}
        read_call = _Calls(self, text, writer, schemas, held).read_call
        yield from read_tagged_calls(text, writer, [opening], closing, read_call)

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        opening, closing = map(terminal, self.tags)
        tools = tool_use.callable_tools
        calls = one_of(f"call_{i}" for i in range(len(tools)))
        rules = [f"calls: {repeated('call', '', tool_use)}", f'call: {opening} "{_HEAD}" {calls} {closing}']
        grammar = KeyValueGrammar(self.mark, terminal)
        for i, tool in enumerate(tools):
            rules += grammar.call_rules(tool, f"call_{i}")
        return "\n".join([*rules, *grammar.shared_rules()])

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        rules = self.grammar_rules(one_call(tool_use), terminal_by(token_id))
        return BegunCalls(rules, after(tool_use, opening_tag(self.tags[0], token_id)))


class _Calls:
    """Reads what stands between two tags. Until the name of the call is known, everything is held.

    Calls of the tools in `writing_json` were held to a grammar: what has no marks is JSON.
    """

    def __init__(
        self,
        form: KeyValues,
        text: IncomingText,
        writer: CallWriter,
        schemas: Mapping[str, Mapping[str, Any]],
        writing_json: Collection[str],
    ) -> None:
        self._form = form
        self._text = text
        self._writer = writer
        self._schemas = schemas
        self._writing_json = writing_json
        self._is_json = False
        self._mark = Markers([form.mark])

    def read_call(self) -> Reading[bool]:
        """Read a call. Returns whether there is one."""
        self._writer.hold((yield from self._text.take_space()))
        self._writer.hold((yield from self._text.take_if(_HEAD)))
        name = yield from self._text.take_all(_NAME)
        self._writer.hold(name + (yield from self._text.take_space()))
        if not name or (yield from self._text.peek()) != "{":
            return False
        self._text.take()
        self._writer.start_call(name)
        self._is_json = name in self._writing_json
        yield from self._read_arguments(self._schemas.get(name, {}))
        return True

    def _read_arguments(self, schemas: Mapping[str, Any]) -> Reading[None]:
        """Read up to the bracket that closes the arguments, and close those that the model forgot."""
        give = self._writer.arguments
        give("{")
        open_brackets = ["}"]
        comma = ""
        while open_brackets and not (yield from self._ends()):
            char = yield from self._text.peek()
            if char in ("}", "]"):
                self._text.take()
                give(open_brackets.pop())
                comma = ", "
                continue
            schema: Any = {}
            if open_brackets[-1] == "}":
                key = yield from self._read_key()
                if key is None:
                    continue
                schema = schemas.get(key, {}) if len(open_brackets) == 1 else {}
                comma += json.dumps(key, ensure_ascii=False) + ": "
                yield from self._text.take_space()
            comma = yield from self._read_value(schema, comma, open_brackets)
        if not self._text.is_cut:
            give("".join(reversed(open_brackets)))

    def _ends(self) -> Reading[bool]:
        """Return whether the closing tag comes, or the end of the text, after commas and white space."""
        yield from self._text.take_all(_SEPARATORS)
        char = yield from self._text.peek()
        return not char or (char == "<" and (yield from self._is_at_end()))

    def _is_at_end(self) -> Reading[bool]:
        return (yield from comes_any(self._text, self._form.tags)) or not (yield from self._text.peek())

    def _read_key(self) -> Reading[str | None]:
        """Read a key and its colon; None where there is none, past what takes its place."""
        parts: list[str] = []
        if (yield from self._text.take_if(self._form.mark)):
            yield from self._text.read_until(self._mark, parts.append)
        else:
            parts.append((yield from self._text.take_all(_IN_KEY)))
        char = yield from self._text.peek()
        if char == ":":
            self._text.take()
            return "".join(parts).strip()
        if char and not any(parts):
            self._text.take()
        return None

    def _read_value(self, schema: Any, before: str, open_brackets: list[str]) -> Reading[str]:
        """Read a value, or the bracket that opens one, and give it after `before`. Returns the comma after it."""
        give = self._writer.arguments
        char = yield from self._text.peek()
        if char in _CLOSING:
            self._text.take()
            give(before + char)
            open_brackets.append(_CLOSING[char])
            return ""
        if (yield from self._text.take_if(self._form.mark)):
            give(before)
            yield from self._read_string(give)
            return ", "
        written = yield from self._read_bare()
        if not self._text.is_cut or (yield from self._text.peek()):
            written = written.strip()
            is_json = self._is_json and is_written_json(written)
            give(before + (written if is_json else value_as_json(written, schema)))
        return ", "

    def _read_string(self, give: Callable[[str], None]) -> Reading[None]:
        string = StringWriter(give, "")
        found = yield from self._text.read_until(self._mark, string.give)
        string.end(is_complete=bool(found) or not self._text.is_cut)

    def _read_bare(self) -> Reading[str]:
        """Read a value without marks, up to the comma, bracket or tag that ends it."""
        parts: list[str] = []
        while char := (yield from self._text.peek()):
            if run := self._text.take_run(_IN_VALUE):
                parts.append(run)
            elif char != "<" or (yield from self._is_at_end()):
                break
            else:
                parts.append(self._text.take())
        return "".join(parts)


GEMMA4 = KeyValues("gemma4", ("<|tool_call>", "<tool_call|>"), '<|"|>')
FUNCTIONGEMMA = KeyValues("functiongemma", ("<start_function_call>", "<end_function_call>"), "<escape>")
