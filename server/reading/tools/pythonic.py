"""Calls as a list of Python calls, which Llama 3.2, Llama 4 and ToolACE write: the whole answer is one.

    [get_weather(city="Paris", days=3), get_time()]

The special tokens around it are optional. Arguments are handed on one by one, as each is complete. An answer that is a
list but calls none of the request's tools is an answer.
"""

import keyword
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import Opening
from orcinus.server.reading.incoming_text import IncomingText, Reading
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, terminal_by
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.lark import (
    Terminal,
    inline_json,
    one_of,
    quote,
    repeated,
    required_arguments,
    takes_anything,
)
from orcinus.server.reading.tools.python_literals import to_json
from orcinus.server.reading.tools.request import Tool, ToolUse

OPENING = "<|python_start|>"
CLOSING = "<|python_end|>"

_NAME = re.compile(r"[\w-]+")
_PLAIN = re.compile(r"""[^"'()\[\]{},]+""")
_IN_STRING = {mark: re.compile(rf"[^{mark}\\\x00\r\n]+") for mark in "\"'"}
_ESCAPED = {"\n": "\\n", "\r": "\\r", "\x00": "\\u0000"}  # inside strings, where Python does not take them
_PYTHON_STRING = r"/'([^'\\\r\n]|\\[\\'nt])*'/"  # in a grammar; with double quotes it is JSON
_BRACKETS = re.compile(r"[)\]}]+")


@dataclass(frozen=True, slots=True)
class Pythonic:
    name: ClassVar[str] = "pythonic"
    markers: ClassVar[tuple[str, ...]] = ()
    openings: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def suited_to(cls, template: str) -> "Pythonic":
        return cls()

    def new_call_id(self) -> str:
        return openai_call_id()

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        yield from _Calls(text, writer, {tool.name for tool in tool_use.tools}).read()
        writer.release()
        yield from text.read_rest(writer.content)

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        tools = tool_use.callable_tools
        calls = repeated("call", quote(", "), tool_use)
        rules = [f'calls: "[" {calls} "]"', f"call: {one_of(f'call_{i}' for i in range(len(tools)))}"]
        for i, tool in enumerate(tools):
            rules += _any_call_rules(tool, f"call_{i}") if takes_anything(tool) else _call_rules(tool, f"call_{i}")
        return "\n".join(rules)

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        """Return what calls are to be once one of the tools is called at the beginning: they are the whole answer."""
        openings = [
            Opening((*before, "[", tool.name, "("), (f"[{tool.name}(",), between=" \t\r\n", is_first=True)
            for tool in tool_use.callable_tools
            for before in ((), (OPENING,))
        ]
        rules = self.grammar_rules(tool_use, terminal_by(token_id))
        return BegunCalls(rules, after(tool_use, *openings, text_follows=False))


def read_call_list(text: IncomingText, writer: CallWriter) -> Reading[None]:
    """Read the one list of calls that `text` is, whatever they call. What is no such list is held."""
    yield from _Calls(text, writer, None).read()
    yield from text.read_rest(writer.hold)


class _Calls:
    """Holds what has been read, until a call has its first argument or its end. Without `known_names` all names are."""

    def __init__(self, text: IncomingText, writer: CallWriter, known_names: Collection[str] | None) -> None:
        self._text = text
        self._writer = writer
        self._known_names = known_names

    def read(self) -> Reading[None]:
        """Read calls up to the end of the list, or to what does not fit."""
        yield from self._next_character()
        self._writer.hold((yield from self._text.take_if(OPENING)))
        if not (yield from self._take("[")):
            return
        while has_call := (yield from self._read_call()):
            if not (yield from self._take(",")):
                break
        if has_call and (yield from self._next_character()) in (")", "]", "}"):
            yield from self._text.take_all(_BRACKETS)
            yield from self._text.take_space()
            yield from self._text.take_if(CLOSING)
            self._writer.drop()

    def _read_call(self) -> Reading[bool]:
        """Read a call. Returns False where something does not fit."""
        name = yield from self._read_name()
        is_known = bool(name) if self._known_names is None else name in self._known_names
        if not is_known or not (yield from self._take("(")):
            return False
        has_arguments = False
        while (yield from self._next_character()) != ")":
            argument = yield from self._read_argument()
            if argument is None:
                return False
            self._hand_on(", " + argument if has_arguments else "{" + argument, None if has_arguments else name)
            has_arguments = True
            if not (yield from self._take(",")) and (yield from self._text.peek()) != ")":
                return False
        self._text.take()
        self._hand_on("}" if has_arguments else "{}", None if has_arguments else name)
        return True

    def _hand_on(self, arguments: str, begun_call: str | None) -> None:
        if begun_call is not None:
            self._writer.start_call(begun_call)
        self._writer.arguments(arguments)
        self._writer.drop()

    def _read_argument(self) -> Reading[str | None]:
        """Read `name=value` as a member of a JSON object."""
        name = yield from self._read_name()
        if not name or not (yield from self._take("=")):
            return None
        parts: list[str] = []
        yield from self._read_value(parts)
        value = to_json("".join(parts))
        return None if value is None else f'"{name}": {value}'

    def _read_value(self, parts: list[str]) -> Reading[None]:
        """Read up to the comma or bracket that ends the value."""
        depth = 0
        while char := (yield from self._text.peek()):
            if run := self._text.take_run(_PLAIN):
                self._keep(run, parts)
            elif char in "\"'":
                yield from self._read_string(char, parts)
            elif depth == 0 and char in ",)]}":
                return
            else:
                depth += (char in "([{") - (char in ")]}")
                self._keep(self._text.take(), parts)

    def _read_string(self, mark: str, parts: list[str]) -> Reading[None]:
        end = mark * 3 if (yield from self._text.comes(mark * 3)) else mark
        self._keep((yield from self._text.take_if(end)), parts)
        while char := (yield from self._text.peek()):
            if run := self._text.take_run(_IN_STRING[mark]):
                self._keep(run, parts)
            elif (yield from self._text.comes(end)):
                self._keep((yield from self._text.take_if(end)), parts)
                return
            elif not (yield from self._text.peek()):  # the text was cut in what may be the end
                return
            elif char in _ESCAPED:
                self._writer.hold(self._text.take())
                parts.append(_ESCAPED[char])
            elif self._keep(self._text.take(), parts) == "\\" and (yield from self._text.peek()):
                self._keep(self._text.take(), parts)

    def _keep(self, text: str, parts: list[str]) -> str:
        self._writer.hold(text)
        parts.append(text)
        return text

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


def _call_rules(tool: Tool, rule: str) -> list[str]:
    """Return the call of one tool: the arguments that it needs first, then the others, each in the schema's order."""
    schemas = _argument_schemas(tool)
    required = set(required_arguments(tool))
    names = sorted(schemas, key=lambda name: name not in required)
    rules = [f'{rule}: {quote(f"{tool.name}(")} {_arguments(rule, len(required), len(names))} ")"']
    for i, name in enumerate(names):
        rules.append(f"{rule}_{i}: {quote(f'{name}=')} {rule}_{i}_value")
        rules.append(f"{rule}_{i}_value: {inline_json(schemas[name], strict=tool.strict)}")
        rules.append(f'{rule}_{i}_on: (", " {rule}_{i})? {_following(rule, i + 1, len(names))}')
    return rules


def _any_call_rules(tool: Tool, rule: str) -> list[str]:
    """Return the call of a tool whose arguments may be any."""
    return [
        f'{rule}: {quote(f"{tool.name}(")} ({rule}_any (", " {rule}_any)*)? ")"',
        f'{rule}_any: /[A-Za-z_][A-Za-z0-9_]{{0,63}}/ "=" {rule}_value',
        f'{rule}_value: {inline_json({}, strict=True)} | "True" | "False" | "None" | {_PYTHON_STRING}',
    ]


def _arguments(rule: str, num_required: int, num_all: int) -> str:
    """Return rules: `<rule>_<i>` is an argument, `<rule>_<i>_on` it and those after it, with commas, each optional."""
    if num_required:
        required = ' ", " '.join(f"{rule}_{i}" for i in range(num_required))
        return f"{required} {_following(rule, num_required, num_all)}"
    firsts = [f"{rule}_{i} {_following(rule, i + 1, num_all)}" for i in range(num_all)]
    return f"{one_of(firsts)}?" if firsts else ""


def _following(rule: str, i: int, num_all: int) -> str:
    return f"{rule}_{i}_on" if i < num_all else ""


def _argument_schemas(tool: Tool) -> dict[str, Any]:
    """Return what a call can be written of: a schema for each argument that has a name in Python.

    Raises `InvalidRequestError` if that is not enough for a call.
    """
    shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    schemas = tool.parameters.get("properties", {})
    named = {name: schema for name, schema in schemas.items() if name.isidentifier() and not keyword.iskeyword(name)}
    if missing := [name for name in required_arguments(tool) if name not in named]:
        raise InvalidRequestError(
            f"this model calls tools in Python, and the argument {missing[0]!r} that {tool.name} requires "
            "is not listed in its properties or has no name of Python's",
            "tools",
        )
    return {name: {**schema, **shared} if isinstance(schema, dict) else shared for name, schema in named.items()}
