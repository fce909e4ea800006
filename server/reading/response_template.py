"""How the served model writes its messages, as its tokenizer's `response_template` says.

That is transformers' data format for it: delimiters of fields, and what is in them.
https://huggingface.co/docs/transformers/chat_response_parsing

`load_response_template` tries a template before it is used: a pattern that holds back any text could not be streamed,
and one that takes too long would hold up everybody.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orcinus.engine.errors import reason_of
from orcinus.server.reading.message_reader import MessageReader
from orcinus.server.reading.regions import UnreadableAnswerError
from orcinus.server.reading.template_reader import CALLS, CONTENT, REASONING, TemplateReader, TemplateRules
from orcinus.server.reading.thought_tags import ThoughtTags
from orcinus.server.reading.tools.formats import ToolFormat
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.tagged_arguments import literal
from orcinus.server.reading.tools.template_calls import CallShape, JsonCalls, find_call_body
from orcinus.server.reading.tools.template_format import TemplateJson
from orcinus.server.reading.tools.template_writer import TemplateWriter

logger = logging.getLogger(__name__)

NAME = "response template"
_SAMPLES = ("one two three " * 120, " " * 1280, "\n" * 1280, "{[<|\"'" * 220)
_EMPTY = {"json": "{}", "xml-inline": "", "kv-lines": "", "python-call-list": "[]", "text": ""}  # texts of no content
_NUM_HELD = 256  # characters of a sample, at most, that a pattern may take for the beginning of its match


class ResponseTemplateError(ValueError):
    """The template cannot be used, and why."""


@dataclass(frozen=True)
class ResponseTemplate:
    """Reads answers by a template that was tried.

    `rules_without_calls` are for requests in which the model must not call.
    """

    rules: TemplateRules
    rules_without_calls: TemplateRules
    special_tokens: frozenset[str]
    start: Any  # the pattern after which, in a prompt, the message begins

    @property
    def has_calls(self) -> bool:
        return CALLS in self.rules.fields

    @property
    def has_reasoning(self) -> bool:
        return any(name in self.rules.fields for name in REASONING)

    @property
    def needs_special_tokens(self) -> bool:
        """Whether the text has to be decoded with its special tokens."""
        return bool(self.rules.markup)

    def has_start(self, prompt_tail: str) -> bool:
        return self._message_start(prompt_tail) is not None

    def reader(self, prompt_tail: str, tool_use: ToolUse | None) -> MessageReader:
        """Return a reader for one choice, in which calls are recognized if there are tools to use.

        `prompt_tail` reaches back to the beginning of the message (`has_start`), where the prompt has one.
        """
        from orcinus.server.reading.region_parser import RegionParser

        may_call = tool_use is not None
        rules = self.rules if may_call else self.rules_without_calls
        writer = TemplateWriter(tool_use)
        tools = [_plain_tool(tool.name, tool.parameters) for tool in tool_use.tools] if tool_use else []
        start = self._message_start(prompt_tail) or ""
        reader = MessageReader(writer)
        reader.read_calls(
            TemplateReader(
                rules, lambda sink: RegionParser(rules.template, start, sink, tools), writer, may_call=may_call
            )
        )
        if self.needs_special_tokens:
            reader.leave_out(self.special_tokens.difference(rules.markup))
        return reader

    def tool_format(self) -> ToolFormat | None:
        """Return how to make a model call, where calls are JSON between two texts."""
        field, body = self.rules.fields.get(CALLS), self.rules.call_body
        if field is None or not isinstance(body, JsonCalls) or not field.open_literals:
            return None
        closing = _closing(field)
        return TemplateJson(NAME, field.open_literals[0], closing, body) if closing else None

    def thought_tags(self) -> ThoughtTags | None:
        """Return the tags around thoughts, where they are two texts."""
        for name in REASONING:
            field = self.rules.fields.get(name)
            if field is not None and field.open_literals and (closing := _closing(field)):
                return ThoughtTags(NAME, field.open_literals[0].rstrip(), closing)
        return None

    def _message_start(self, prompt_tail: str) -> str | None:
        from orcinus.server.reading.region_parser import SEARCH_TIMEOUT_S

        end: int | None = None
        try:
            for match in self.start.finditer(prompt_tail, timeout=SEARCH_TIMEOUT_S):
                end = match.end()
        except TimeoutError:
            return None
        return None if end is None else prompt_tail[end:]


def load_response_template(spec: Any, special_tokens: Collection[str] = ()) -> ResponseTemplate:
    """Return the template of a tokenizer, tried. Raises `ResponseTemplateError` saying what is wrong with it."""
    try:
        from orcinus.server.reading.region_parser import SEARCH_TIMEOUT_S, load_template, without_field
    except ImportError as error:
        raise ResponseTemplateError(f"it takes a later version of transformers ({reason_of(error)})") from error
    try:
        template = load_template(spec)
        rules = _rules(template)
        for sample in _SAMPLES:
            list(template.start_anchor_re.finditer(sample, timeout=SEARCH_TIMEOUT_S))
        _try_patterns(rules)
        _try_contents(rules)
    except UnreadableAnswerError as error:
        raise ResponseTemplateError(str(error)) from error
    except TimeoutError as error:
        raise ResponseTemplateError("its start_anchor_pattern takes too long") from error
    except ResponseTemplateError:
        raise
    except Exception as error:  # a stranger's data, in code that expects what its authors wrote
        raise ResponseTemplateError(reason_of(error)) from error
    without_calls = rules
    if CALLS in rules.fields and rules.has_leftovers:
        without_calls = replace(rules, template=without_field(rules.template, CALLS))
    return ResponseTemplate(
        _with_markup(rules, special_tokens),
        _with_markup(without_calls, special_tokens),
        frozenset(special_tokens),
        template.start_anchor_re,
    )


def _rules(template: Any) -> TemplateRules:
    from transformers.utils.chat_parsing.content_parsers import parse_content, process_field

    from orcinus.server.reading.region_parser import with_leftovers

    if CONTENT not in template.fields:
        if template.implicit is not None:
            raise ResponseTemplateError(f"no field is named content, and what is left over is {template.implicit!r}")
        template = with_leftovers(template, CONTENT)
    calls = template.fields.get(CALLS)
    shape = CallShape.of(calls.transform) if calls else CallShape("", "")
    captured = frozenset(calls.open_re.groupindex) if calls and calls.open_re else frozenset()
    return TemplateRules(
        template=template,
        call_body=find_call_body(calls, captured) if calls else None,
        call_shape={
            "name": shape.name if shape.name in captured else "",
            "id": shape.call_id if shape.call_id in captured else "",
        },
        has_leftovers=template.implicit == CONTENT,
        markup=(),
        parse=lambda field, body, captures: process_field(body, field, dict(captures)),
        parse_value=lambda written, name, args: parse_content(written, name, dict(args)),
    )


def _try_patterns(rules: TemplateRules) -> None:
    """Raise `ResponseTemplateError` where a delimiter could be anything, or takes too long to find."""
    for name, field in rules.fields.items():
        for key, pattern in (("open_pattern", field.open_re), ("close_pattern", field.close_re)):
            for sample in _SAMPLES if pattern is not None else ():
                match = pattern.search(sample, partial=True)
                is_open = match is not None and (match.partial or match.end() == len(sample))
                if is_open and sample is _SAMPLES[0] and len(sample) - match.start() > _NUM_HELD:
                    raise ResponseTemplateError(
                        f"the {key} of {name!r} ({pattern.pattern!r}) may begin anywhere: nothing could be streamed"
                    )


def _try_contents(rules: TemplateRules) -> None:
    """Raise `ResponseTemplateError` where the arguments of a field's parser are wrong."""
    for name, field in rules.fields.items():
        try:
            if field.content in _EMPTY:
                rules.parse_value(_EMPTY[field.content], field.content, field.content_args)
        except Exception as error:  # the library's code, and strangers' data
            raise ResponseTemplateError(f"the content_args of {name!r} are wrong: {reason_of(error)}") from error
        if field.content == "xml-inline" and "(?P<key>" not in field.content_args["tag_pattern"]:
            raise ResponseTemplateError(f"the tag_pattern of {name!r} has no group named key")


def _with_markup(rules: TemplateRules, special_tokens: Collection[str]) -> TemplateRules:
    return replace(rules, markup=tuple(sorted(token for token in special_tokens if any(_speaks_of(rules, token)))))


def _closing(field: Any) -> str | None:
    """Return the text that closes a field, where it is one; white space may follow."""
    if field.close_literals:
        return str(field.close_literals[0])
    return literal(field.close_re.pattern.removesuffix(r"\s*")) if field.close_re is not None else None


def _speaks_of(rules: TemplateRules, token: str) -> Sequence[bool]:
    """Return for each part of the template whether a token may be part of what it matches."""
    found = []
    for field in rules.fields.values():
        for pattern in (field.open_re, field.close_re):
            if pattern is not None:
                match = pattern.search(token, partial=True)
                begins = match is not None and match.start() < len(token) and match.end() > match.start()
                found.append(begins or token in pattern.pattern.replace("\\", ""))
        found.append(token in json.dumps(field.content_args, ensure_ascii=False).replace("\\", ""))
    return found


def _plain_tool(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}
