"""How the served model writes its messages, found out from its tokenizer: what reads them, and what makes it call.

Where the tokenizer has a `response_template`, answers are read by it (`server.reading.response_template`). Otherwise,
or where the settings name a parser, signs in the chat template tell. A `MessageFormat` is found once per served model;
it makes a `MessageReader` for each choice, and the grammar for a request whose answer has to be a call. Knows nothing
of HTTP and of any API's events.

Calls are recognized only where the request has tools and does not forbid them, and never inside the reasoning. What a
marker introduces is a call, even of a tool that the request does not have: a client can answer that there is no such
tool, and could do nothing with the text. Without a marker, only the names of the request's tools tell a call from an
answer.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import Grammar, Thinking
from orcinus.server.reading.harmony import CHANNEL, END, MARKERS, MESSAGE, START
from orcinus.server.reading.message_reader import MessageReader, channel_reader, tagged_reader
from orcinus.server.reading.reasoning import Start, start_of_output
from orcinus.server.reading.response_template import (
    NAME,
    ResponseTemplate,
    ResponseTemplateError,
    load_response_template,
)
from orcinus.server.reading.template_agreement import reads_calls_of, reads_thoughts_of
from orcinus.server.reading.thought_tags import HARMONY, REASONING_NAMES, TAGS, ThoughtTags, find_reasoning
from orcinus.server.reading.tools.begun_calls import TokenId, terminal_by
from orcinus.server.reading.tools.families import find_family, has_tools
from orcinus.server.reading.tools.formats import FORMAT_NAMES, FRAMING, ToolFormat, find_format, named_format
from orcinus.server.reading.tools.lark import inline_json, quote
from orcinus.server.reading.tools.request import NO_TOOLS, ToolUse

logger = logging.getLogger(__name__)

TOOL_CALL_PARSERS = ("auto", "none", *FORMAT_NAMES)
REASONING_PARSERS = ("auto", "none", *REASONING_NAMES)

_TURNED_OFF = "--tool-call-parser is none"
_NO_TOOLS = "the model's chat template has no tools"
_NO_GRAMMAR = (
    "calls cannot be enforced, nor left to the model beside an answer in a form: the tokenizer's response_template "
    "says how this model's calls are read, and none of the ways of writing them that are known here is the same; leave "
    'tool_choice at "auto" without response_format, or have the server started with --tool-call-parser'
)
_UNKNOWN_FORMAT = "the model's chat template has tools, and no sign of a format of calls that is known here"


@dataclass(frozen=True, slots=True)
class MessageFormat:
    """Says how the served model writes.

    With a `template` that reads, and `tool_format` and `reasoning` are ways of ours that write the same.
    `special_tokens` are the texts of those tokens that a decoder leaves out unless told otherwise.
    """

    tool_format: ToolFormat | None
    reasoning: str | None  # one of `REASONING_NAMES`
    why_no_tools: str  # for messages; empty where there is a tool format
    template_opens_thoughts: bool
    special_tokens: frozenset[str]
    added_token_id: TokenId
    template: ResponseTemplate | None = None

    @classmethod
    def detect(
        cls,
        template_source: str,
        added_token_id: TokenId,
        *,
        special_tokens: Collection[str] = (),
        tool_call_parser: str = "auto",
        reasoning_parser: str = "auto",
        response_template: Any = None,
    ) -> "MessageFormat":
        """Find the format in the tokenizer's data, where the parsers are "auto".

        A `response_template` that cannot be used is told in a warning. Raises `ValueError` for unknown names.
        """
        _check_name("tool_call_parser", tool_call_parser, TOOL_CALL_PARSERS)
        _check_name("reasoning_parser", reasoning_parser, REASONING_PARSERS)
        tool_format = _choose_tool_format(tool_call_parser, template_source)
        reasoning = _choose_reasoning(reasoning_parser, template_source)
        template: ResponseTemplate | None = None
        if tool_call_parser == reasoning_parser == "auto" and response_template is not None:
            template = _usable_template(response_template, special_tokens, tool_format)
        if template is not None:
            agrees = tool_format is not None and reads_calls_of(template, tool_format)
            tool_format = tool_format if agrees else template.tool_format()
            reasoning = reasoning if reasoning is not None and reads_thoughts_of(template, reasoning) else None
        return cls(
            template=template,
            tool_format=tool_format,
            why_no_tools="" if tool_format else _why_no_tools(tool_call_parser, template_source),
            reasoning=reasoning,
            template_opens_thoughts=_opens_thoughts(TAGS.get(reasoning or ""), template_source),
            special_tokens=frozenset(special_tokens),
            added_token_id=added_token_id,
        )

    @property
    def summary(self) -> str:
        """Say in a few words what was recognized."""
        if self.template is not None:
            tools = NAME if self.template.has_calls else f"none ({NAME})"
            return f"tools: {tools}; reasoning: {NAME if self.template.has_reasoning else 'none'}"
        tools = self.tool_format.name if self.tool_format else f"none ({self.why_no_tools})"
        return f"tools: {tools}; reasoning: {self.reasoning or 'none'}"

    @property
    def has_unread_tools(self) -> bool:
        """Whether the model was made for tools, and nothing here reads the calls that it writes."""
        return not self._reads_calls and self.why_no_tools not in ("", _TURNED_OFF, _NO_TOOLS)

    @property
    def has_reasoning(self) -> bool:
        return self.reasoning is not None

    @property
    def _reads_calls(self) -> bool:
        return self.tool_format is not None if self.template is None else self.template.has_calls

    @property
    def needs_special_tokens(self) -> bool:
        """Whether text for a reader has to be decoded with its special tokens, for some of them are markers."""
        if self.template is not None:
            return self.template.needs_special_tokens
        return not self.special_tokens.isdisjoint(self._markers(self.tool_format))

    @property
    def _tags(self) -> ThoughtTags | None:
        if self.template is not None and self.reasoning is None:
            return self.template.thought_tags()
        return TAGS.get(self.reasoning or "")

    @property
    def _has_channels(self) -> bool:
        """Whether what the model writes is in Harmony's channels."""
        return HARMONY in (self.reasoning, self.tool_format and self.tool_format.name)

    @property
    def _has_frames(self) -> bool:
        """Whether what the model writes is framed by the format of its calls, with tools or without."""
        return self.tool_format is not None and self.tool_format.name in FRAMING

    def _markers(self, tool_format: ToolFormat | None) -> frozenset[str]:
        channels = MARKERS if self._has_channels else ()
        return frozenset({*channels, *(self._tags.markers if self._tags else ()), *_markers_of(tool_format)})

    def check(self, tool_use: ToolUse | None) -> None:
        """Raise `InvalidRequestError` if the request wants tools of a model that has none."""
        if not self._reads_calls and _can_call(tool_use):
            raise InvalidRequestError(
                f"tools cannot be used: {self.why_no_tools}; the setting --tool-call-parser names the format of the "
                f"model's calls, one of {len(FORMAT_NAMES)} that `orcinus serve --help` lists",
                "tools",
            )

    def needs_more_of(self, prompt_tail: str) -> bool:
        """Whether the reader has to know more of the prompt than this end: the message begins before it."""
        return self.template is not None and not self.template.has_start(prompt_tail)

    def reader(self, prompt_tail: str, tool_use: ToolUse | None, *, is_streamed: bool = True) -> "MessageReader | None":
        """Return a reader for one choice; None where all of the text is content.

        `prompt_tail` is the end of the rendered prompt, some 200 characters unless it `needs_more_of` it. A stream gets
        content as soon as possible; a whole answer, or one of a model that always thinks, can wait until it is known to
        be no thought.
        """
        usable = tool_use if _can_call(tool_use) else None
        if self.template is not None:
            return self.template.reader(prompt_tail, usable if self.template.has_calls else None)
        tool_format = self.tool_format if usable or self._has_frames else None
        meaningless = self._meaningless_tokens(tool_format)
        if self._has_channels:
            return channel_reader(
                prompt_tail,
                None if tool_format is None else usable,
                has_reasoning=self.has_reasoning,
                meaningless_tokens=meaningless,
            )
        start = self._start(prompt_tail)
        if tool_format is None and (self._tags is None or (start == "over" and not self._tags.answer)):
            return None
        return tagged_reader(
            start,
            self._tags,
            tool_format,
            usable or (NO_TOOLS if self._has_frames else None),
            meaningless_tokens=meaningless,
            waits=not (is_streamed and self.template_opens_thoughts),
        )

    def grammar(
        self, prompt_tail: str, tool_use: ToolUse, answer_schema: Mapping[str, Any] | None = None
    ) -> Grammar | None:
        """Return what makes the model call a tool, or the tool that is named; None where it is left to the model.

        Where it is left to the model and a tool is strict, the grammar counts from the opening of a call on.
        With `answer_schema` what is left to the model is a choice: calls, or an answer in JSON that matches it.
        Raises `InvalidRequestError` if there is no such grammar.
        """
        self.check(tool_use)
        is_left = tool_use.choice != "required" and answer_schema is None
        if self.tool_format is None:
            if is_left or self.template is None:  # nothing is to be called, either
                return None
            raise InvalidRequestError(_NO_GRAMMAR, "tool_choice" if answer_schema is None else "response_format")
        if is_left:
            return self._held_calls(prompt_tail, tool_use) if tool_use.holds_calls else None
        rules = self.tool_format.grammar_rules(tool_use, self._terminal)
        output = "calls"
        if tool_use.choice != "required" and answer_schema is not None:
            output = "(calls | answer)"
            rules += f"\nanswer: {self._answer_head()}{inline_json(answer_schema, strict=True)}"
        thinking = self.thinking(prompt_tail)
        before = f"{quote(chr(10))}{{0,2}} " if thinking else self._analysis()
        return Grammar(kind="grammar", source=f"start: {before}{output}\n{rules}\n", thinking=thinking)

    def _held_calls(self, prompt_tail: str, tool_use: ToolUse) -> Grammar:
        """Return what the model's calls are to be, if it makes any."""
        assert self.tool_format is not None
        calls = self.tool_format.begun_calls(tool_use, self.added_token_id, prompt_tail)
        markers = tuple(sorted(self._markers(self.tool_format)))
        try:
            thinking = self.thinking(prompt_tail)
        except InvalidRequestError:  # no token ends the thought, in which openings count then
            thinking = None
        return Grammar(
            kind="grammar",
            source=f"start: calls\n{calls.rules}\n",
            thinking=thinking,
            openings=msgspec.structs.replace(calls.openings, markers=markers),
        )

    def _analysis(self) -> str:
        """Return what Harmony's models may think before, in a grammar: where its markers are tokens of their own."""
        if not self._has_channels or any(self.added_token_id(marker) is None for marker in MARKERS):
            return ""
        channel, message, end, start = map(self._terminal, (CHANNEL, MESSAGE, END, START))
        return f'({channel} "analysis" {message} /(.|\\n)*/ {end} {start} "assistant")? '

    def _answer_head(self) -> str:
        return f'{self._terminal(CHANNEL)} "final" {self._terminal(MESSAGE)} ' if self._has_channels else ""

    def thinking(self, prompt_tail: str) -> Thinking | None:
        """Return the tokens that come before what a grammar is about.

        Raises `InvalidRequestError` if there are such tokens, but none that ends them.
        """
        start, tags = self._start(prompt_tail), self._tags
        if tags is None:
            return None
        opening, closing = self.added_token_id(tags.opening_token or tags.opening), self.added_token_id(tags.closing)
        if start == "open":
            if closing is None:
                raise InvalidRequestError(
                    f"the model's output cannot be constrained: {tags.closing} is no token of its own"
                )
            return Thinking(end=(closing,))
        if start == "over" or opening is None or closing is None:
            return None
        return Thinking(end=(closing,), start=opening)

    def _start(self, prompt_tail: str) -> Start:
        return start_of_output(prompt_tail, self._tags) if self._tags else "over"

    def _meaningless_tokens(self, tool_format: ToolFormat | None) -> frozenset[str]:
        """Return the special tokens that would be in the text, and mean nothing for this request."""
        if not self.needs_special_tokens:
            return frozenset()
        return self.special_tokens - self._markers(tool_format)

    def _terminal(self, marker: str) -> str:
        """Return a marker in a grammar: the token of its own, if it has one."""
        return terminal_by(self.added_token_id)(marker)


def _can_call(tool_use: ToolUse | None) -> bool:
    return tool_use is not None and tool_use.choice != "none"


def _markers_of(tool_format: ToolFormat | None) -> tuple[str, ...]:
    return tool_format.markers if tool_format else ()


def _usable_template(
    spec: Any, special_tokens: Collection[str], tool_format: ToolFormat | None
) -> ResponseTemplate | None:
    """Return the tokenizer's template, unless it is broken, or reads no calls and a format of ours does."""
    try:
        template = load_response_template(spec, special_tokens)
    except ResponseTemplateError as error:
        logger.warning("the tokenizer's response_template is not used: %s", error)
        return None
    if template.has_calls or tool_format is None:
        return template
    logger.warning("the tokenizer's response_template is not used: it has no field tool_calls, and the model has calls")
    return None


def _choose_reasoning(parser: str, template: str) -> str | None:
    if parser == "none":
        return None
    return find_reasoning(template) if parser == "auto" else parser


def _opens_thoughts(tags: ThoughtTags | None, template: str) -> bool:
    return tags is not None and tags.opening in template


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
