"""Calls written as Python. In Llama 3.2's and 4's way, and ToolACE's, the whole answer is a list of them:

    [get_weather(city="Paris", days=3), get_time()]

The special tokens around it are optional. An answer that is a list but calls none of the request's tools is an answer.
LFM2 and OLMo 3 write calls between tags of their own, with text around them:

    <|tool_call_start|>[get_weather(city="Paris"), get_time()]<|tool_call_end|>
    <function_calls>\nget_weather(city="Paris")\nget_time()\n</function_calls>

A string is handed on as it comes, other values once they are complete. A quotation mark in the midst of a string that
was not escaped, as these templates leave them, is part of the string.
"""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar

from orcinus.engine.sampling_params import Opening
from orcinus.server.reading.incoming_text import IncomingText, Reading
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, opening_tag, terminal_by
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.json_calls import CallRules, read_calls, read_tagged_calls
from orcinus.server.reading.tools.lark import Terminal, one_of, quote, repeated
from orcinus.server.reading.tools.python_grammar import call_rules
from orcinus.server.reading.tools.python_literals import to_json
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.traits import Streaming, Strictness

_NAME = re.compile(r"[\w.-]+")
_PLAIN = re.compile(r"""[^"'()\[\]{},<]+""")
_IN_STRING = {mark: re.compile(rf"[^{mark}\\]+") for mark in "\"'"}
_BRACKETS = re.compile(r"[)\]}]+")
_SEPARATORS = re.compile(r"[,; \t\r\n]+")
_DIGITS = {
    "x": (2, re.compile(r"[0-9a-fA-F]")),
    "u": (4, re.compile(r"[0-9a-fA-F]")),
    "U": (8, re.compile("[0-9a-fA-F]")),
}
_OCTAL = (2, re.compile(r"[0-7]"))  # after the first digit
_AFTER_VALUE = ("", ",", ")", "]", "}", ":")


@dataclass(frozen=True, slots=True)
class Pythonic:
    """`tags` stand around the calls. Unless `is_tagged` they are optional, and the calls are the whole answer."""

    name: str
    tags: tuple[str, str]
    is_tagged: bool = True
    brackets: tuple[str, str] = ("[", "]")
    separator: str = ", "

    is_parallel: ClassVar[bool] = True
    streaming: ClassVar[Streaming] = "strings"
    strictness: ClassVar[Strictness] = "arguments"

    @property
    def markers(self) -> tuple[str, ...]:
        return self.tags if self.is_tagged else ()

    @property
    def openings(self) -> tuple[str, ...]:
        return self.tags[:1] if self.is_tagged else ()

    def suited_to(self, template: str) -> "Pythonic":
        return self

    def new_call_id(self) -> str:
        return openai_call_id()

    def sample(self) -> str:
        """Return a call of `f` with `x` = 1."""
        (opening, closing), (before, after) = self.tags if self.is_tagged else ("", ""), self.brackets
        return f"{opening}{before}f(x=1){after}{closing}"

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        if self.is_tagged:
            read_inside = _Calls(text, writer, None, self.tags).read_tagged
            yield from read_tagged_calls(text, writer, self.openings, self.tags[1], read_inside)
        else:
            yield from _Calls(text, writer, {tool.name for tool in tool_use.tools}, self.tags).read_answer()
            writer.release()
            yield from text.read_rest(writer.content)

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        tools = tool_use.callable_tools
        before, after = map(quote, self.brackets)
        calls = f"{before} {repeated('call', quote(self.separator), tool_use)} {after}"
        if self.is_tagged:
            calls = f"{terminal(self.tags[0])} {calls} {terminal(self.tags[1])}"
        rules = [f"calls: {calls}", f"call: {one_of(f'call_{i}' for i in range(len(tools)))}"]
        for i, tool in enumerate(tools):
            rules += call_rules(tool, f"call_{i}")
        return "\n".join(rules)

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        """Return what calls are to be after a tag, or once the beginning calls one of the tools: then they are all."""
        rules = self.grammar_rules(tool_use, terminal_by(token_id))
        if self.is_tagged:
            return BegunCalls(rules, after(tool_use, opening_tag(self.tags[0], token_id)))
        openings = [
            Opening((*before, "[", tool.name, "("), (f"[{tool.name}(",), between=" \t\r\n", is_first=True)
            for tool in tool_use.callable_tools
            for before in ((), self.tags[:1])
        ]
        return BegunCalls(rules, after(tool_use, *openings, text_follows=False))


def read_call_list(text: IncomingText, writer: CallWriter) -> Reading[None]:
    """Read the one list of calls that `text` is, whatever they call. What is no such list is held."""
    yield from _Calls(text, writer, None, PYTHONIC.tags).read_answer()
    yield from text.read_rest(writer.hold)


class _Calls:
    """Holds what has been read, until a call has its first argument or its end. Without `known_names` all names are."""

    def __init__(
        self, text: IncomingText, writer: CallWriter, known_names: Collection[str] | None, tags: tuple[str, str]
    ) -> None:
        self._text = text
        self._writer = writer
        self._known_names = known_names
        self._tags = tags
        self._has_call = False

    def read_answer(self) -> Reading[None]:
        """Read calls up to the end of the list, or to what does not fit."""
        yield from self._next_character()
        self._writer.hold((yield from self._text.take_if(self._tags[0])))
        if not (yield from self._take("[")):
            return
        if (yield from self._read_calls()) and (yield from self._next_character()) in (")", "]", "}"):
            yield from self._text.take_all(_BRACKETS)
            yield from self._text.take_space()
            yield from self._text.take_if(self._tags[1])
            self._writer.drop()

    def read_tagged(self) -> Reading[bool]:
        """Read calls after an opening tag, in JSON if the model was asked for that. Returns whether there are any."""
        self._has_call = False
        yield from self._take("[")
        if (yield from self._next_character()) == "{":
            return (yield from read_calls(self._text, self._writer, CallRules(ends=self._tags)))
        yield from self._read_calls()
        return self._has_call

    def _read_calls(self) -> Reading[bool]:
        """Read calls, one after another. Returns whether all of them were complete."""
        is_complete = True
        while is_complete := (yield from self._read_call()):
            self._writer.hold((yield from self._text.take_all(_SEPARATORS)))
            if not _NAME.match((yield from self._text.peek())):
                break
        if not is_complete and self._has_call and self._text.is_cut and not (yield from self._text.peek()):
            self._writer.drop()  # the call or argument that was cut before it was known as one
        return is_complete

    def _read_call(self) -> Reading[bool]:
        """Read a call. Returns False where something does not fit."""
        name = yield from self._read_name()
        is_known = bool(name) if self._known_names is None else name in self._known_names
        if not is_known or not (yield from self._take("(")):
            return False
        before, begun_call = "{", name
        while (yield from self._next_character()) != ")":
            key = yield from self._read_name()
            if not key or not (yield from self._take("=")):
                return False
            if not (yield from self._read_argument(f'{before}"{key}": ', begun_call)):
                return False
            before, begun_call = ", ", ""
            if not (yield from self._take(",")) and (yield from self._text.peek()) != ")":
                return False
        self._text.take()
        self._hand_on("{}" if begun_call else "}", begun_call)
        return True

    def _hand_on(self, arguments: str, begun_call: str) -> None:
        if begun_call:
            self._has_call = True
            self._writer.start_call(begun_call)
        self._writer.arguments(arguments)
        self._writer.drop()

    def _read_argument(self, head: str, begun_call: str) -> Reading[bool]:
        """Read a value, and hand it on after `head`. Returns whether it is one."""
        if (yield from self._next_character()) in ('"', "'"):
            self._hand_on(head, begun_call)
            is_complete = yield from self._read_string(lambda text: self._hand_on(text, ""))
            self._writer.drop()
            return is_complete
        parts: list[str] = []
        yield from self._read_value(parts)
        is_cut = self._text.is_cut and not (yield from self._text.peek())
        value = None if is_cut else to_json("".join(parts))
        if value is not None:
            self._hand_on(head + value, begun_call)
        return value is not None

    def _read_value(self, parts: list[str]) -> Reading[None]:
        """Read up to the comma or bracket that ends the value."""
        depth = 0
        while char := (yield from self._text.peek()):
            if run := self._text.take_run(_PLAIN):
                self._keep(run, parts)
            elif char in "\"'":
                yield from self._read_string(parts.append)
            elif (depth == 0 and char in ",)]}") or (char == "<" and (yield from self._ends())):
                return
            else:
                depth += (char in "([{") - (char in ")]}")
                self._keep(self._text.take(), parts)

    def _ends(self) -> Reading[bool]:
        """Return whether the closing tag comes, or the text was cut in what may be one."""
        return (yield from self._text.comes(self._tags[1])) or not (yield from self._text.peek())

    def _read_string(self, give: Callable[[str], None]) -> Reading[bool]:
        """Give away the string that comes next, as JSON. Returns whether it is complete."""
        mark = yield from self._text.peek()
        end = mark * 3 if (yield from self._text.comes(mark * 3)) else mark
        self._writer.hold((yield from self._text.take_if(end)))
        give('"')
        while char := (yield from self._text.peek()):
            if run := self._text.take_run(_IN_STRING[mark]):
                self._writer.hold(run)
                give(_in_json(run))
            elif char == "\\":
                yield from self._read_escape(give)
            elif (yield from self._text.comes(end)):
                self._writer.hold((yield from self._text.take_if(end)))
                space = yield from self._text.take_space()
                self._writer.hold(space)
                if len(end) > 1 or (yield from self._is_after_value()):
                    give('"')
                    return True
                give(_in_json(mark + space))
            elif (yield from self._text.peek()):  # else the text was cut in what may be the end
                self._writer.hold(self._text.take())
                give(_in_json(mark))
        return False

    def _is_after_value(self) -> Reading[bool]:
        char = yield from self._text.peek()
        return char in _AFTER_VALUE or (char == "<" and (yield from self._ends()))

    def _read_escape(self, give: Callable[[str], None]) -> Reading[None]:
        """Read a backslash and what it stands for; alone at the end of the text it is left out."""
        source = self._text.take()
        self._writer.hold(source)
        if not (char := (yield from self._text.peek())):
            return
        source += self._text.take()
        most, pattern = _OCTAL if char in "01234567" else _DIGITS.get(char, (0, _OCTAL[1]))
        while len(source) < most + 2 and pattern.match((yield from self._text.peek())):
            source += self._text.take()
        self._writer.hold(source[1:])
        read = to_json(f"'{source}'")
        give(_in_json(source) if read is None else read[1:-1])

    def _keep(self, text: str, parts: list[str]) -> None:
        self._writer.hold(text)
        parts.append(text)

    def _read_name(self) -> Reading[str]:
        yield from self._next_character()
        name = yield from self._text.take_all(_NAME)
        self._writer.hold(name)
        return name

    def _take(self, char: str) -> Reading[bool]:
        """Take and hold `char` if it is what comes next."""
        if (yield from self._next_character()) != char:
            return False
        self._writer.hold(self._text.take())
        return True

    def _next_character(self) -> Reading[str]:
        """Return what comes after white space, which is held."""
        self._writer.hold((yield from self._text.take_space()))
        return (yield from self._text.peek())


def _in_json(text: str) -> str:
    """Return the text inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


PYTHONIC = Pythonic("pythonic", ("<|python_start|>", "<|python_end|>"), is_tagged=False)
LFM2 = Pythonic("lfm2", ("<|tool_call_start|>", "<|tool_call_end|>"))
OLMO3 = Pythonic("olmo3", ("<function_calls>", "</function_calls>"), brackets=("\n", "\n"), separator="\n")
