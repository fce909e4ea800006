"""How the served model writes its messages, found out from its chat template: what reads them, and what makes it call.

A `MessageFormat` is found once per served model; it makes a `MessageReader` for each choice, and the grammar for a
request whose answer has to be a call. Knows nothing of HTTP and of any API's events.

Calls are recognized only where the request has tools and does not forbid them, and never inside the reasoning. What a
marker introduces is a call, even of a tool that the request does not have: a client can answer that there is no such
tool, and could do nothing with the text. Without a marker, only the names of the request's tools tell a call from an
answer.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import Grammar, Thinking
from orcinus.server.reading.message_reader import MessageReader
from orcinus.server.reading.reasoning import CLOSING, OPENING, Start, start_of_output, thinks
from orcinus.server.reading.tools.families import find_family, has_tools
from orcinus.server.reading.tools.formats import FORMAT_NAMES, ToolFormat, find_format, named_format
from orcinus.server.reading.tools.lark import inline_json, quote
from orcinus.server.reading.tools.request import ToolUse

TOOL_CALL_PARSERS = ("auto", "none", *FORMAT_NAMES)
REASONING_PARSERS = ("auto", "none", "think")

_TURNED_OFF = "--tool-call-parser is none"
_NO_TOOLS = "the model's chat template has no tools"
_UNKNOWN_FORMAT = "the model's chat template has tools, and no sign of a format of calls that is known here"

AddedTokenId = Callable[[str], int | None]


@dataclass(frozen=True, slots=True)
class MessageFormat:
    """Says how the served model writes.

    `special_tokens` are the texts of those tokens that a decoder leaves out unless told otherwise.
    """

    tool_format: ToolFormat | None
    has_reasoning: bool
    why_no_tools: str  # for messages; empty where there is a tool format
    special_tokens: frozenset[str]
    added_token_id: AddedTokenId

    @classmethod
    def detect(
        cls,
        template_source: str,
        added_token_id: AddedTokenId,
        *,
        special_tokens: Collection[str] = (),
        tool_call_parser: str = "auto",
        reasoning_parser: str = "auto",
    ) -> "MessageFormat":
        """Find the format in the source of the chat template, where the parsers are "auto".

        Raises `ValueError` for unknown names.
        """
        _check_name("tool_call_parser", tool_call_parser, TOOL_CALL_PARSERS)
        _check_name("reasoning_parser", reasoning_parser, REASONING_PARSERS)
        tool_format = _choose_tool_format(tool_call_parser, template_source)
        return cls(
            tool_format=tool_format,
            why_no_tools="" if tool_format else _why_no_tools(tool_call_parser, template_source),
            has_reasoning=reasoning_parser == "think" or (reasoning_parser == "auto" and thinks(template_source)),
            special_tokens=frozenset(special_tokens),
            added_token_id=added_token_id,
        )

    @property
    def summary(self) -> str:
        """Say in a few words what was recognized."""
        tools = self.tool_format.name if self.tool_format else f"none ({self.why_no_tools})"
        return f"tools: {tools}; reasoning: {'think' if self.has_reasoning else 'none'}"

    @property
    def has_unread_tools(self) -> bool:
        """Whether the model was made for tools, and nothing here reads the calls that it writes."""
        return self.why_no_tools not in ("", _TURNED_OFF, _NO_TOOLS)

    @property
    def needs_special_tokens(self) -> bool:
        """Whether text for a reader has to be decoded with its special tokens, for some of them are markers."""
        markers = self.tool_format.markers if self.tool_format else ()
        return not self.special_tokens.isdisjoint({*markers, *self._tags})

    @property
    def _tags(self) -> tuple[str, ...]:
        return (OPENING, CLOSING) if self.has_reasoning else ()

    def check(self, tool_use: ToolUse | None) -> None:
        """Raise `InvalidRequestError` if the request wants tools of a model that has none."""
        if self.tool_format is None and _can_call(tool_use):
            raise InvalidRequestError(
                f"tools cannot be used: {self.why_no_tools}; the setting --tool-call-parser names the format of the "
                f"model's calls ({', '.join(FORMAT_NAMES)})",
                "tools",
            )

    def reader(self, prompt_tail: str, tool_use: ToolUse | None) -> "MessageReader | None":
        """Return a reader for one choice; None where all of the text is content.

        `prompt_tail` is the end of the rendered prompt, some 200 characters of it.
        """
        tool_format = self.tool_format if _can_call(tool_use) else None
        start = self._start(prompt_tail)
        if tool_format is None and start == "over":
            return None
        return MessageReader(start, tool_format, tool_use, self._meaningless_tokens(tool_format))

    def grammar(
        self, prompt_tail: str, tool_use: ToolUse, answer_schema: Mapping[str, Any] | None = None
    ) -> Grammar | None:
        """Return what makes the model call a tool, or the tool that is named; None where it is left to the model.

        With `answer_schema` what is left to the model is a choice: calls, or an answer in JSON that matches it.
        Raises `InvalidRequestError` if there is no such grammar.
        """
        self.check(tool_use)
        if self.tool_format is None or (tool_use.choice != "required" and answer_schema is None):
            return None
        rules = self.tool_format.grammar_rules(tool_use, self._terminal)
        output = "calls"
        if tool_use.choice != "required" and answer_schema is not None:
            output = "(calls | answer)"
            rules += f"\nanswer: {inline_json(answer_schema, strict=True)}"
        thinking = self.thinking(prompt_tail)
        start = f"start: {quote(chr(10))}{{0,2}} {output}" if thinking else f"start: {output}"
        return Grammar(kind="grammar", source=f"{start}\n{rules}\n", thinking=thinking)

    def thinking(self, prompt_tail: str) -> Thinking | None:
        """Return the tokens that come before what a grammar is about.

        Raises `InvalidRequestError` if there are such tokens, but none that ends them.
        """
        start = self._start(prompt_tail)
        opening, closing = self.added_token_id(OPENING), self.added_token_id(CLOSING)
        if start == "open":
            if closing is None:
                raise InvalidRequestError(f"the model's output cannot be constrained: {CLOSING} is no token of its own")
            return Thinking(end=(closing,))
        if start == "over" or opening is None or closing is None:
            return None
        return Thinking(end=(closing,), start=opening)

    def _start(self, prompt_tail: str) -> Start:
        return start_of_output(prompt_tail) if self.has_reasoning else "over"

    def _meaningless_tokens(self, tool_format: ToolFormat | None) -> frozenset[str]:
        """Return the special tokens that would be in the text, and mean nothing for this request."""
        if not self.needs_special_tokens:
            return frozenset()
        return self.special_tokens.difference(tool_format.markers if tool_format else (), self._tags)

    def _terminal(self, marker: str) -> str:
        """Return a marker in a grammar: the token of its own, if it has one."""
        token_id = self.added_token_id(marker)
        return quote(marker) if token_id is None else f"<[{token_id}]>"


def _can_call(tool_use: ToolUse | None) -> bool:
    return tool_use is not None and tool_use.choice != "none"


def _choose_tool_format(parser: str, template: str) -> ToolFormat | None:
    if parser == "none":
        return None
    return find_format(template) if parser == "auto" else named_format(parser, template)


def _why_no_tools(parser: str, template: str) -> str:
    if parser == "none":
        return _TURNED_OFF
    if (family := find_family(template)) is not None:
        return f"the model's chat template writes calls in a format that is not read here, {family}"
    return _UNKNOWN_FORMAT if has_tools(template) else _NO_TOOLS


def _check_name(setting: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{setting} must be one of {', '.join(known)}, got {name!r}")
