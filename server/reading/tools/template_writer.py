"""The pieces of a message that a response template tells apart: content as it is, and calls with typed arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orcinus.server.reading.incoming_text import IncomingText, TextReader
from orcinus.server.reading.pieces import Content
from orcinus.server.reading.tools.argument_values import is_plain_string
from orcinus.server.reading.tools.call_writer import CallWriter
from orcinus.server.reading.tools.lark import properties_of
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.typed_arguments import read_typed_arguments

CastArgument = Callable[[str, str, Any], Any]  # of a tool's name, an argument's name, and its value


@dataclass(frozen=True, slots=True)
class CallSite:
    """Holds what a region knows of its calls from the outside: the captured name and id, and how to cast arguments."""

    name: str = ""
    call_id: str | None = None
    schemas: Mapping[str, Any] = field(default_factory=dict)  # of the arguments of the tool of that name
    cast: Callable[[str, Any], Any] = lambda name, value: value
    parse: Callable[[str], Any] = lambda written: written  # an argument, by its `value_parser`


class TemplateWriter(CallWriter):
    """Takes content without looking at its white space, and casts arguments by the tools' schemas."""

    def __init__(self, tool_use: ToolUse | None) -> None:
        super().__init__(parallel=tool_use is None or tool_use.parallel)
        self.num_started = 0  # calls, those that are left out included
        self.schemas = {tool.name: properties_of(tool) for tool in tool_use.tools} if tool_use else {}
        self.cast: CastArgument = lambda tool, name, value: value
        self._casting: TextReader | None = None

    def content(self, text: str) -> None:
        if text:
            self._pieces.append(Content(text))

    def start_call(self, name: str, call_id: str | None = None) -> None:
        self.end_call()
        super().start_call(name, call_id)
        self.num_started += 1
        casts = {key for key, schema in self.schemas.get(name, {}).items() if schema and not is_plain_string(schema)}
        if casts:
            text = IncomingText()
            cast = self.cast
            reading = read_typed_arguments(
                text, self.arguments_as_they_are, lambda key, value: cast(name, key, value), casts
            )
            self._casting = TextReader(text, reading)

    def arguments(self, text: str) -> None:
        if self._casting is None:
            self.arguments_as_they_are(text)
        elif text:
            self._casting.feed(text)

    def arguments_as_they_are(self, text: str) -> None:
        super().arguments(text)

    def end_call(self, *, is_cut: bool = False) -> None:
        """Give out what of the arguments was held to be cast."""
        if self._casting is not None:
            self._casting.end(is_cut=is_cut)
            self._casting = None
