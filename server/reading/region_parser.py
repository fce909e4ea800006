"""The regions of an answer, found by transformers' `ResponseParser` and handed on while they are written.

The library decides where a region begins and ends. It keeps all of the text, though, and tells what is in a region only
once it ends; here its hooks hand on the names that an opening has captured, and the text as it comes. What is held back
because a delimiter may begin there is looked at again only when it has grown by a quarter, and is no delimiter when it
is longer than `MAX_HELD_CHARS`: an answer costs time in proportion to its length.

This module imports transformers. Import it only where a model has a template.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers.utils.chat_parsing.response_parser import ResponseParser
from transformers.utils.chat_parsing.response_templates import ResponseTemplate, load_response_template

from orcinus.server.reading.regions import RegionSink, UnreadableAnswerError
from orcinus.server.reading.tools.tagged_arguments import literal

MAX_HELD_CHARS = 1024
SEARCH_TIMEOUT_S = 0.2  # of a search in little more than `MAX_HELD_CHARS`; a sane pattern takes microseconds

_FEED_CHARS = 256
_KEPT_CHARS = 1024  # of what has been read: what lookbehinds may look at
_TEXT = re.compile(r"(?<!\\)(?:[^\\.^$*+?{}\[\]|()]|\\[^\w\s]|\\n)+")
_GROUP = re.compile(r"\(\?(?:P<\w+>|[:=!>]|<[=!])")
_HOOKS = ("_process", "_scan", "_can_grow", "_accumulate", "_open_explicit", "_close_current", "_coerce_tool_calls")
_STATE = ("_buffer", "_pos", "_current", "_captures", "_opened", "_implicit_name")


class TimedPattern:
    """Searches by a pattern of the `regex` package, and ends each search, with `UnreadableAnswerError`."""

    def __init__(self, pattern: Any) -> None:
        self._pattern = pattern
        texts = (literal(match[0]) for match in _TEXT.finditer(_GROUP.sub("(", pattern.pattern)))
        self.texts = tuple(text for text in texts if text is not None)  # that it consists of, among other things

    @property
    def pattern(self) -> str:
        return str(self._pattern.pattern)

    @property
    def groupindex(self) -> Mapping[str, int]:
        groups: Mapping[str, int] = self._pattern.groupindex
        return groups

    def search(self, text: str, start: int = 0, *, partial: bool = False) -> Any:
        return self._timed(self._pattern.search, text, start, partial=partial)

    def match(self, text: str, start: int = 0, *, partial: bool = False) -> Any:
        return self._timed(self._pattern.match, text, start, partial=partial)

    def _timed(self, find: Any, text: str, start: int, *, partial: bool) -> Any:
        try:
            return find(text, start, partial=partial, timeout=SEARCH_TIMEOUT_S)
        except TimeoutError as error:
            raise UnreadableAnswerError(f"the pattern {self.pattern!r} took over {SEARCH_TIMEOUT_S} s") from error


def load_template(spec: Mapping[str, Any]) -> ResponseTemplate:
    """Return the template with searches that end. Raises what the library does for what is wrong, mostly `ValueError`.

    Raises `RuntimeError` where the library is built otherwise than what this module hooks into.
    """
    parser = ResponseParser({"start_anchor": "x", "fields": {"content": {}}}, prefix="")
    missing = [name for name in (*_HOOKS, *_STATE) if not hasattr(parser, name)]
    if missing:
        raise RuntimeError(f"this version of transformers parses answers in another way: it has no {missing[0]}")
    template = load_response_template(dict(spec))
    fields = {
        name: replace(
            field,
            open_re=field.open_re and TimedPattern(field.open_re),
            close_re=field.close_re and TimedPattern(field.close_re),
        )
        for name, field in template.fields.items()
    }
    return replace(template, fields=fields)


def with_leftovers(template: ResponseTemplate, name: str) -> ResponseTemplate:
    """Return the template with a field for what is in no other."""
    field = load_response_template({"start_anchor": "x", "fields": {name: {}}}).fields[name]
    return replace(template, fields={**template.fields, name: field}, implicit=name)


def without_field(template: ResponseTemplate, name: str) -> ResponseTemplate:
    return replace(template, fields={key: field for key, field in template.fields.items() if key != name})


class RegionParser(ResponseParser):
    """Parses one answer, and hands its regions to `sink`.

    `message_start` is what the prompt has of the message already. `read` and `end` raise `UnreadableAnswerError`;
    `rest` is then what was not read.
    """

    def __init__(
        self, template: ResponseTemplate, message_start: str, sink: RegionSink, tools: Sequence[dict[str, Any]] = ()
    ) -> None:
        super().__init__(template, prefix="", tools=list(tools))
        self._sink = sink
        self._unread = ""
        self._taken = 0  # in the buffer, as all positions: the end of what was handed on or opened a region
        self._num_dropped = 0  # characters that were in front of the buffer
        self._empty_opening = -1  # where in the answer a region was opened last by a match of nothing
        self._is_forced = False
        self._is_cut = False
        self._num_prompt = len(message_start)  # counted from the beginning of the buffer
        self.read(message_start)
        self._advance()

    @property
    def rest(self) -> str:
        start = max(self._pos, self._num_prompt)
        return str(self._buffer[start:]) + self._unread

    def cast_argument(self, tool: str, name: str, value: Any) -> Any:
        """Return the value as the schema of the tool's argument has it, as far as the library casts it."""
        call = {"function": {"name": tool, "arguments": {name: value}}}
        try:
            return self.cast_calls(call)["function"]["arguments"][name]
        except (TypeError, ValueError, RecursionError):  # a schema that is none, or JSON in a string, without end
            return value

    def cast_calls(self, value: Any) -> Any:
        return self._coerce_tool_calls(value) if self._tool_params else value

    def read(self, text: str) -> None:
        """Read more of the answer."""
        for start in range(0, len(text), _FEED_CHARS):
            self._unread += text[start : start + _FEED_CHARS]
            num_held = len(self._buffer) - self._pos
            if num_held <= _FEED_CHARS or len(self._unread) * 4 >= num_held:
                self._advance()

    def end(self, *, is_cut: bool) -> None:
        """Read what was held back. With `is_cut` the beginning of a delimiter is left out."""
        self._advance()
        self._is_cut = is_cut
        self._process([], eos=True)

    def _advance(self) -> None:
        self._drop_read()
        self._buffer += self._unread
        self._unread = ""
        self._process([], eos=False)
        if len(self._buffer) - self._pos > MAX_HELD_CHARS:
            self._is_forced = True
            self._process([], eos=False)
            self._is_forced = False

    def _drop_read(self) -> None:
        dropped = min(self._pos, self._taken) - _KEPT_CHARS
        if dropped > _KEPT_CHARS:
            self._buffer = self._buffer[dropped:]
            self._pos -= dropped
            self._taken -= dropped
            self._num_prompt = max(0, self._num_prompt - dropped)
            self._num_dropped += dropped

    def _may_go_on(self, pattern: TimedPattern, match: Any) -> bool:
        """Return whether what follows a match may begin a text of the pattern with which it would be longer.

        The library waits for no optional end of which something is there already.
        """
        after = self._buffer[match.end() : match.end() + MAX_HELD_CHARS].lstrip()
        return any(
            len(after) < len(text)
            and text.startswith(after)
            and pattern.match(self._buffer + text[len(after) :], match.start()).end() > match.end()
            for text in pattern.texts
        )

    # --- the library's hooks --------------------------------------------------------------------------------

    def _scan(self, watch: Any, eos: bool) -> Any:
        """Look for delimiters. What has been held back for too long is looked at as if nothing came after it."""
        return super()._scan(watch, eos or self._is_forced)

    def _can_grow(self, kind: str, field: Any, m: Any) -> bool:
        if super()._can_grow(kind, field, m):
            return True
        return m.end() < len(self._buffer) and self._may_go_on(field.open_re if kind == "open" else field.close_re, m)

    def _accumulate(self, events: list[dict[str, Any]], text: str) -> None:
        start = self._pos
        self._taken = start + len(text)
        if not text or self._is_cut:
            return
        if not self._opened and self._current is not None:
            self._opened = True
            self._sink.open(self._current, "", {}, is_prompt=self._is_in_prompt(start))
        of_prompt = min(max(self._num_prompt - start, 0), len(text))
        if of_prompt:
            self._sink.text(self._current, text[:of_prompt], is_prompt=True)
        if of_prompt < len(text):
            self._sink.text(self._current, text[of_prompt:], is_prompt=False)

    def _open_explicit(self, events: list[dict[str, Any]], field: Any, m: Any) -> None:
        place = self._num_dropped + m.end()
        if m.start() == m.end():
            if place == self._empty_opening:
                raise UnreadableAnswerError(f"the field {field.name!r} is opened and closed without end by nothing")
            self._empty_opening = place
        super()._open_explicit([], field, m)
        self._taken = m.end()
        self._sink.open(field.name, m.group(0), dict(self._captures), is_prompt=self._is_in_prompt(m.end()))

    def _close_current(self, events: list[dict[str, Any]]) -> None:
        if self._current is not None and self._opened:
            closing = self._buffer[self._taken : self._pos] if self._current != self._implicit_name else ""
            is_prompt = self._is_in_prompt(self._pos)
            self._sink.close(self._current, closing, dict(self._captures), is_prompt=is_prompt, is_cut=self._is_cut)
        self._taken = self._pos
        self._reset_to_implicit()

    def _is_in_prompt(self, end: int) -> bool:
        """Return whether all that was read so far is the prompt's."""
        return self._num_prompt > 0 and end <= self._num_prompt
