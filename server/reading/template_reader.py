"""The pieces of a message, read by the response template of the model's tokenizer.

What the fields of a template are called says what is in them: `content`, thoughts by the names that transformers has
for them, and `tool_calls`. The text of any other field is left out, as the message has no place for it. A field that
comes several times is given every time it comes; the library keeps the last, unless the template says otherwise.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orcinus.server.reading.incoming_text import IncomingText, TextReader
from orcinus.server.reading.regions import RegionSink, UnreadableAnswerError
from orcinus.server.reading.tools.template_calls import CallBody, calls_in
from orcinus.server.reading.tools.template_writer import CallSite, TemplateWriter
from orcinus.server.reading.tools.typed_arguments import as_json
from orcinus.server.reading.trimmed_text import TrimmedText

if TYPE_CHECKING:
    from orcinus.server.reading.region_parser import RegionParser

logger = logging.getLogger(__name__)

CONTENT, CALLS = "content", "tool_calls"
REASONING = ("reasoning_content", "thinking", "reasoning", "analysis")

MAX_PARSED_CHARS = 64 * 1024  # of a region that the library searches by patterns of the template, in quadratic time
_SEARCHED = ("xml-inline",)
_WRONG = (ValueError, TypeError, LookupError, AttributeError, RecursionError)  # what parsers of strangers' data raise


@dataclass(frozen=True, slots=True)
class TemplateRules:
    """Holds what a template says of each answer, found once. `template` and `fields` are the library's.

    `has_leftovers`: what stands in no region is content. `parse` is the library's parser of a field's text, with the
    names that were captured, and `parse_value` of a text by the name of a parser and its arguments.
    """

    template: Any
    call_body: CallBody | None
    call_shape: Mapping[str, str]  # "name" and "id": which captured group has it
    has_leftovers: bool
    markup: tuple[str, ...]  # special tokens that delimiters have
    parse: Callable[[Any, str, Mapping[str, str]], Any]
    parse_value: Callable[[str, str, Mapping[str, Any]], Any]

    @property
    def fields(self) -> Mapping[str, Any]:
        fields: Mapping[str, Any] = self.template.fields
        return fields


class TemplateReader:
    """Reads one answer, and writes its pieces down. A `RegionSink`.

    Without `may_call` what is in the region of a call is content.
    """

    def __init__(
        self,
        rules: TemplateRules,
        new_parser: "Callable[[RegionSink], RegionParser]",
        writer: TemplateWriter,
        *,
        may_call: bool,
    ) -> None:
        self._rules = rules
        self._writer = writer
        self._may_call = may_call
        self._texts = {name: self._text_of(field) for name, field in rules.fields.items()}
        self._content = self._texts.get(CONTENT) or TrimmedText(writer.content)
        self._call: _CallRegion | None = None
        self._has_region = False
        self._unclaimed = ""  # text before any region, where it is not known what it is
        self._is_answer = False  # whether that text turned out to be one
        self._parser: RegionParser | None = None  # once the answer cannot be read, either
        try:
            self._parser = new_parser(self)
        except UnreadableAnswerError as error:
            _warn(error)
        else:
            writer.cast = self._parser.cast_argument

    def feed(self, text: str) -> None:
        if self._parser is None:
            self._content.give(text)
            return
        try:
            self._parser.read(text)
        except UnreadableAnswerError as error:
            self._give_up(self._parser, error)

    def end(self, *, is_cut: bool = False) -> None:
        if self._parser is not None:
            try:
                self._parser.end(is_cut=is_cut)
            except UnreadableAnswerError as error:
                self._give_up(self._parser, error)
        if self._unclaimed and not is_cut:
            self._content.give(self._unclaimed)
        self._writer.end_call(is_cut=is_cut)

    def _give_up(self, parser: "RegionParser", error: Exception) -> None:
        """Give what was not read, and all that comes, as content."""
        _warn(error)
        self._parser = None
        if self._call is not None:
            self._call.close("", is_cut=True)
            self._call = None
        self._content.give(parser.rest)

    # --- regions --------------------------------------------------------------------------------------------

    def open(self, field: str, opening: str, captures: Mapping[str, str], *, is_prompt: bool) -> None:
        self._has_region = True
        self._unclaimed = ""
        if field == CALLS and self._may_call:
            self._call = self._new_call(captures, "" if is_prompt else opening)
        elif field in self._texts:
            self._texts[field].begin_part()

    def text(self, field: str | None, text: str, *, is_prompt: bool) -> None:
        if field is None:
            if not is_prompt:
                self._give_unclaimed(text)
        elif self._call is not None:
            self._call.feed(text, is_prompt=is_prompt)
        elif field == CALLS:
            self._content.give(text, is_prompt=is_prompt)
        else:
            self._texts[field].give(text, is_prompt=is_prompt)

    def close(self, field: str, closing: str, captures: Mapping[str, str], *, is_prompt: bool, is_cut: bool) -> None:
        call, self._call = self._call, None
        if call is None or is_prompt:
            return
        call.captures = captures
        call.close(closing, is_cut=is_cut)

    def _text_of(self, field: Any) -> TrimmedText:
        strip = field.content != "text" or field.content_args.get("strip", True)
        if field.name in REASONING:
            separator = field.join if field.join is not None else "\n"
            return TrimmedText(self._writer.reasoning, strip=strip, separator=separator)
        if field.name == CONTENT:
            return TrimmedText(self._writer.content, strip=strip, separator=field.join)
        return TrimmedText(_leave_out)

    def _give_unclaimed(self, text: str) -> None:
        """Take text of no region. Before the first one it is an answer without any, unless it is markup."""
        if self._has_region:
            return
        self._unclaimed += text
        start = self._unclaimed.lstrip()
        if not self._is_answer:
            if not start or any(token.startswith(start) for token in self._rules.markup):
                return
            if start.startswith(self._rules.markup):
                self._has_region = True  # what is between regions is none
                return
        self._is_answer = True
        self._content.give(self._unclaimed)
        self._unclaimed = ""

    # --- calls ----------------------------------------------------------------------------------------------

    def _new_call(self, captures: Mapping[str, str], opening: str) -> "_CallRegion":
        groups = self._rules.call_shape
        name = captures.get(groups.get("name", ""), "")
        call_id = captures.get(groups.get("id", ""))
        site = CallSite(
            name,
            call_id,
            self._writer.schemas.get(name, {}),
            lambda key, value: self._writer.cast(name, key, value),
            self._parse_argument,
        )
        body = self._rules.call_body if name or not groups.get("name") else None
        return _CallRegion(self, site, body, opening, captures)

    def _parse_argument(self, written: str) -> Any:
        try:
            return self._rules.parse_value(written, "json", {"allow_non_json": True})
        except RecursionError:
            return written.strip()

    def parse_calls(self, body: str, captures: Mapping[str, str]) -> bool:
        """Have the library parse a region, and write down its calls. Returns whether it has any."""
        field = self._rules.fields[CALLS]
        if len(body) > MAX_PARSED_CHARS and (field.content in _SEARCHED or field.content_args):
            return False
        if self._parser is None:
            return False
        try:
            calls = calls_in(self._parser.cast_calls(self._rules.parse(field, body, captures)))
            written = [(name, _written(arguments), call_id) for name, arguments, call_id in calls]
        except _WRONG:
            return False
        for name, arguments, call_id in written:
            self._writer.start_call(name, call_id)
            self._writer.arguments_as_they_are(arguments)
        return bool(written)

    def end_calls(self, *, is_cut: bool) -> None:
        self._writer.end_call(is_cut=is_cut)
        self._content.begin_again()

    def give_back(self, text: str, body: str) -> None:
        """Give the text of a region that is no call as content, with its markup only where that is no markup else."""
        self._content.give_untrimmed(text if self._rules.has_leftovers else body)

    @property
    def writer(self) -> TemplateWriter:
        return self._writer


class _CallRegion:
    """Reads a region of calls while it is written."""

    def __init__(
        self, reader: TemplateReader, site: CallSite, body: CallBody | None, opening: str, captures: Mapping[str, str]
    ) -> None:
        self.captures = captures
        self._reader = reader
        self._writer = reader.writer
        self._num_before = self._writer.num_started
        self._opening = opening
        self._of_prompt: list[str] = []
        self._body: list[str] = []  # until there is a call
        self._reading: TextReader | None = None
        if body is not None:
            text = IncomingText()
            self._reading = TextReader(text, body.read(text, self._writer, site))

    @property
    def _has_call(self) -> bool:
        return self._writer.num_started > self._num_before

    def feed(self, text: str, *, is_prompt: bool) -> None:
        if is_prompt:
            self._of_prompt.append(text)
            return
        if not self._has_call:
            self._body.append(text)
        if self._reading is not None:
            self._reading.feed(self._take_prompt() + text)

    def close(self, closing: str, *, is_cut: bool) -> None:
        of_prompt = "".join(self._of_prompt)
        if self._reading is not None:
            if self._of_prompt:
                self._reading.feed(self._take_prompt())
            self._reading.end(is_cut=is_cut)
        self._writer.drop()
        body = "".join(self._body)
        if self._has_call or (not is_cut and self._reader.parse_calls(of_prompt + body, self.captures)):
            self._reader.end_calls(is_cut=is_cut)
        elif not is_cut:
            self._reader.give_back(self._opening + body + closing, body)

    def _take_prompt(self) -> str:
        text = "".join(self._of_prompt)
        self._of_prompt.clear()
        return text


def _written(arguments: Any) -> str:
    """Return the arguments of a call as JSON. Raises `ValueError` for what is no object."""
    if arguments is None:
        return "{}"
    if isinstance(arguments, str) and arguments.lstrip().startswith("{"):
        return arguments
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are no object")
    return as_json(arguments)


def _warn(error: Exception) -> None:
    logger.warning("an answer is not read by the model's response_template: %s", error)


def _leave_out(text: str) -> None:
    """Take text that the message has no place for."""
