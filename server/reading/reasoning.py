"""Where a model's thinking ends and its answer begins: between tags such as `<think>` and `</think>`.

The prompt may have opened the thinking, the output may, or there is none. The newlines inside the tags and after them
belong to neither part. Only the beginning of the output can be thinking: tags further on are text like any other. Three
things models do wrong are put right:

- A thought that is ended and was never opened. Its beginning is known to be none of the answer only once its end is
  there: what waits for that is right, what does not has passed it on as an answer and leaves the tag out.
- A thought that is ended twice. The tag that follows at once is left out, and so are as many further on as tags inside
  the thought have opened one again; calls that stand in the answer are left alone.
- A call inside a thought that is never ended. Until the end is known, what could be that call is held back.

A prompt that ends in the midst of a thought (a continued message) is not seen as one.
"""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading, TextReader
from orcinus.server.reading.thought_tags import THINK, ThoughtTags

_NEWLINES = re.compile(r"\n+")

Give = Callable[[str], None]
IsCall = Callable[[str, bool], bool]
Start = Literal["open", "undecided", "over"]


def start_of_output(prompt_tail: str, tags: ThoughtTags = THINK) -> Start:
    """Return whether the prompt has opened the thinking, left it to the model, or ended it already."""
    end = prompt_tail.rstrip()
    if end.endswith(tags.opening):
        return "open"
    past = (tags.closing, tags.answer[0]) if tags.answer else (tags.closing,)
    return "over" if end.endswith(past) else "undecided"


def no_call(text: str, is_cut: bool) -> bool:
    return False


def split_reasoning(
    start: Start,
    give_reasoning: Give,
    give_answer: Give,
    tags: ThoughtTags = THINK,
    *,
    waits: bool = False,
    call_markers: Collection[str] = (),
    is_call: IsCall = no_call,
    silent_markers: Collection[str] = (),
) -> TextReader:
    """Return a reader that hands on the two parts of what it is fed.

    With `waits` an answer is given only once it is known that it is no thought. `call_markers` begin calls, and
    `is_call` says whether a text that begins with one is a call, or, with its second argument, the beginning of one.
    Those of `silent_markers` are no part of a thought where they begin none.
    """
    text = IncomingText()
    splitting = _Splitting(
        text,
        give_reasoning,
        give_answer,
        tags,
        waits=waits,
        call_markers=call_markers,
        is_call=is_call,
        silent_markers=silent_markers,
    )
    return TextReader(text, splitting.read(start))


class _Splitting:
    def __init__(
        self,
        text: IncomingText,
        give_reasoning: Give,
        give_answer: Give,
        tags: ThoughtTags,
        *,
        waits: bool,
        call_markers: Collection[str],
        is_call: IsCall,
        silent_markers: Collection[str],
    ) -> None:
        self._text = text
        self._reasoning = _Trimmed(give_reasoning)
        self._give_answer = give_answer
        self._tags = tags
        self._waits = waits
        self._call_markers = call_markers
        self._is_call = is_call
        self._silent_markers = silent_markers
        self._space = ""  # at the beginning of the output
        self._num_opened_again = 0  # inside the thought

    def read(self, start: Start) -> Reading[None]:
        if start == "over":
            yield from self._read_answer()
        elif (yield from self._is_opened(start)):
            yield from self._read_reasoning()
        else:
            yield from self._read_unopened()

    def _is_opened(self, start: Start) -> Reading[bool]:
        self._space = yield from self._text.take_space()
        if (yield from self._text.take_if(self._tags.opening)):
            yield from self._text.take_all(_NEWLINES)
            return True
        if start == "open":
            self._reasoning.give(self._space.lstrip("\n"))
        return start == "open"

    def _read_reasoning(self) -> Reading[None]:
        inside = Markers([self._tags.closing, *self._call_markers])
        marker = yield from self._read_to_marker()
        if marker in self._call_markers:
            marker = yield from self._read_from_call(marker, inside)
        if marker:
            yield from self._read_past_thought()
        else:
            self._reasoning.flush()

    def _read_to_marker(self) -> Reading[str]:
        """Read the thought up to its end or what may be a call, and count the tags that open one again."""
        inside = Markers([self._tags.opening, self._tags.closing, *self._call_markers])
        while (marker := (yield from self._text.read_until(inside, self._reasoning.give))) == self._tags.opening:
            self._num_opened_again += 1
            self._reasoning.give(marker)
        return marker

    def _read_past_thought(self) -> Reading[None]:
        """Read what follows the tag that ends the thought, which models write again."""
        self._reasoning.trim()
        yield from self._text.take_all(_NEWLINES)
        space = yield from self._text.take_space()
        while (yield from self._text.take_if(self._tags.closing)):
            self._num_opened_again = max(0, self._num_opened_again - 1)
            yield from self._text.take_all(_NEWLINES)
            space = yield from self._text.take_space()
        yield from self._read_answer(space)

    def _read_from_call(self, marker: str, inside: Markers) -> Reading[str]:
        """Read what may be a call, or part of the thought. Returns the tag that ends the thought, if there is one."""
        parts = [[marker]]  # each begins as calls do
        while marker := (yield from self._text.read_until(inside, parts[-1].append)):
            if marker == self._tags.closing:
                break
            parts.append([marker])
        texts = ["".join(part) for part in parts]
        num_thought = len(texts) if marker else self._first_call(texts)
        self._num_opened_again += sum(text.count(self._tags.opening) for text in texts[:num_thought])
        self._reasoning.give("".join(self._thought_in(part) for part in parts[:num_thought]))
        if num_thought < len(texts):
            self._reasoning.trim()
            self._give_answer("".join(texts[num_thought:]))
        return marker

    def _thought_in(self, part: Sequence[str]) -> str:
        """Return what is said in a part that begins with a marker, and is no call."""
        return "".join(part[1:] if part[0] in self._silent_markers else part)

    def _first_call(self, texts: Sequence[str]) -> int:
        """Return where the first call begins, with the markers before it that belong to it; the end if none does."""
        last = len(texts) - 1
        calls = (i for i, text in enumerate(texts) if self._is_call(text, self._text.is_cut and i == last))
        call = start = next(calls, len(texts))
        while 0 < start < len(texts) and texts[start - 1].strip() in self._call_markers:
            start -= 1
        is_cut = self._text.is_cut and call == last
        return start if start < call and self._is_call("".join(texts[start : call + 1]), is_cut) else call

    def _read_unopened(self) -> Reading[None]:
        """Read an answer, unless it turns out to have been a thought."""
        if self._tags.answer and (yield from self._text.comes(self._tags.answer[0])):
            yield from self._read_answer()
            return
        parts: list[str] = []
        give = parts.append if self._waits else self._give_answer
        if self._space:
            give(self._space)
        marker = yield from self._text.read_until(
            Markers([self._tags.opening, self._tags.closing, *self._call_markers]), give
        )
        if marker == self._tags.closing:
            self._reasoning.give("".join(parts).lstrip("\n"))
            yield from self._read_past_thought()
        else:
            if parts or marker:
                self._give_answer("".join(parts) + marker)
            yield from self._text.read_rest(self._give_answer)

    def _read_answer(self, space: str = "") -> Reading[None]:
        """Read the answer, of which the space at its beginning has been read."""
        if self._tags.answer:
            opening, closing = self._tags.answer
            space += yield from self._text.take_space()
            answer = _Trimmed(self._give_answer)
            if (yield from self._text.take_if(opening)):
                yield from self._text.take_all(_NEWLINES)
            else:
                answer.give(space)
            if (yield from self._text.read_until(Markers([closing]), answer.give)):
                answer.trim()
                yield from self._text.take_space()
            answer.flush()
        elif space:
            self._give_answer(space)
        yield from self._drop_closings()
        yield from self._text.read_rest(self._give_answer)

    def _drop_closings(self) -> Reading[None]:
        """Leave out the tags that end what was opened again, up to the first call."""
        tags = Markers([self._tags.opening, self._tags.closing, *self._call_markers])
        depth = 0
        while self._num_opened_again:
            marker = yield from self._text.read_until(tags, self._give_answer)
            if marker == self._tags.closing and not depth:
                self._num_opened_again -= 1
                continue
            if not marker:
                return
            self._give_answer(marker)
            if marker in self._call_markers:
                return
            depth += 1 if marker == self._tags.opening else -1


class _Trimmed:
    """Gives text on but for newlines at its end, which are held back: a tag may follow."""

    def __init__(self, give: Give) -> None:
        self._give = give
        self._newlines: list[str] = []

    def give(self, text: str) -> None:
        body = text.rstrip("\n")
        if body:
            self._give("".join(self._newlines) + body)
            self._newlines.clear()
        if len(body) < len(text):
            self._newlines.append(text[len(body) :])

    def trim(self) -> None:
        self._newlines.clear()

    def flush(self) -> None:
        if self._newlines:
            self._give("".join(self._newlines))
            self._newlines.clear()
