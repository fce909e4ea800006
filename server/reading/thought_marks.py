"""By which tokens the served model begins and ends its thoughts: what holds them to a budget, and counts them.

Found out once per served model. Knows nothing of requests and of where budgets come from.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from orcinus.engine.sampling_params import Thinking
from orcinus.server.reading.harmony import CHANNEL, END, MESSAGE, START, header_in_prompt
from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.reasoning import start_of_output
from orcinus.server.reading.thought_tags import HARMONY, TAGS, THINK, ThoughtTags

# A conversation of which a template may show how thoughts are written.
TRIAL_THOUGHT, TRIAL_ANSWER = "orcinusthought", "orcinusanswer"
TRIAL_MESSAGES = (
    {"role": "user", "content": "orcinusquestion"},
    {"role": "assistant", "reasoning_content": TRIAL_THOUGHT, "content": TRIAL_ANSWER},
)

# Where a tag is text like any other, its tokens depend on what stands beside it.
_BEFORE = ("", "a", ".", "\n", "\n\n", " ")
_AFTER = ("", "a", "\n", "\n\n", " ", "<")

Encode = Callable[[str], Awaitable[list[int]]]


class MarkTokenizer(Protocol):
    """The part of a tokenizer that is used here."""

    def added_token_id(self, text: str) -> int | None: ...
    def token_bytes(self, token_id: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """`thinking` are the tokens of a thought that the output may open, without a budget. `tags` None: channels."""

    thinking: Thinking
    tags: ThoughtTags | None

    def within(self, prompt_tail: str, budget: int) -> Thinking | None:
        """Return what follows a prompt that ends so, held to a budget; None where no thought can."""
        if self.tags is None:
            return self._budgeted(budget) if header_in_prompt(prompt_tail) is not None else None
        start = start_of_output(prompt_tail, self.tags)
        if start == "over":
            return None
        thinking = self._budgeted(budget)
        return msgspec.structs.replace(thinking, start=None, openings=()) if start == "open" else thinking

    def _budgeted(self, budget: int) -> Thinking:
        return msgspec.structs.replace(self.thinking, budget=budget)


def marks_before_answer(form: MessageFormat, added_token_id: Callable[[str], int | None]) -> tuple[int, ...]:
    """Return the tokens that, found in this order, lie between a thought and the answer; empty if they are none."""
    tags = TAGS.get(form.reasoning or "")
    texts = (END, MESSAGE) if form.reasoning == HARMONY else (tags.closing,) if tags else ()
    ids = [added_token_id(text) for text in texts]
    known = tuple(token_id for token_id in ids if token_id is not None)
    return known if len(known) == len(ids) else ()


async def find_thought_marks(
    form: MessageFormat, tokenizer: MarkTokenizer, encode: Encode, shown: str
) -> ThoughtMarks | None:
    """Return the marks of the model's thoughts, None where it has none that are known.

    `shown` is what its chat template makes of `TRIAL_MESSAGES`. `encode` adds no special tokens.
    """
    if form.reasoning == HARMONY:
        return await _channel_marks(tokenizer, encode)
    tags = TAGS.get(form.reasoning or "")
    return None if tags is None else await _tag_marks(tags, tokenizer, encode, shown)


async def _channel_marks(tokenizer: MarkTokenizer, encode: Encode) -> ThoughtMarks | None:
    end, start = tokenizer.added_token_id(END), tokenizer.added_token_id(START)
    if end is None or start is None:
        return None
    thinking = Thinking(
        end=(end,),
        more_ends=((start,),),
        openings=(tuple(await encode(f"{CHANNEL}analysis{MESSAGE}")),),
        forced=tuple(await encode(f"{END}{START}assistant{CHANNEL}final{MESSAGE}")),
        recurs=True,
    )
    return ThoughtMarks(thinking, None)


async def _tag_marks(tags: ThoughtTags, tokenizer: MarkTokenizer, encode: Encode, shown: str) -> ThoughtMarks:
    forced = await _exact_tokens(end_as_written(shown, tags), tokenizer, encode)
    start, end = tokenizer.added_token_id(tags.opening_token or tags.opening), tokenizer.added_token_id(tags.closing)
    openings = () if start is not None else await _spellings(tags.opening, ("",), tokenizer, encode)
    if end is not None:
        if forced is None or forced.count(end) != 1:
            forced = (end,)
        return ThoughtMarks(Thinking(end=(end,), start=start, openings=openings, forced=forced), tags)
    alone = tuple(await encode(tags.closing))
    ends = await _spellings(tags.closing, _BEFORE, tokenizer, encode)
    more_ends = tuple(other for other in ends if other != alone)
    thinking = Thinking(end=alone, more_ends=more_ends, start=start, openings=openings, forced=forced or alone)
    return ThoughtMarks(thinking, tags)


def end_as_written(shown: str, tags: ThoughtTags) -> str:
    """Return how a thought is ended in `shown`, with the space around the tag; as most models do where it is not."""
    found = re.search(rf"{TRIAL_THOUGHT}(\s{{0,4}}){re.escape(tags.closing)}(\s{{0,4}})", shown)
    if found is not None:
        return f"{found[1]}{tags.closing}{found[2]}"
    return f"\n{tags.closing}\n\n" if tags.closing == THINK.closing else tags.closing


async def _exact_tokens(text: str, tokenizer: MarkTokenizer, encode: Encode) -> tuple[int, ...] | None:
    """Return the tokens of a text; None where they are not it alone: some tokenizers put a space before any text."""
    ids = await encode(text)
    return tuple(ids) if b"".join(_bytes_of(ids, tokenizer)) == text.encode() else None


async def _spellings(
    tag: str, before: Sequence[str], tokenizer: MarkTokenizer, encode: Encode
) -> tuple[tuple[int, ...], ...]:
    """Return the token sequences that have the tag in them, by what may stand beside it, each once."""
    found: dict[tuple[int, ...], None] = {}
    for text in (f"{left}{tag}{right}" for left in before for right in _AFTER):
        ids = await encode(text)
        covering = _covering(ids, tag.encode(), tokenizer)
        if covering:
            found[covering] = None
    return tuple(found)


def _covering(ids: Sequence[int], tag: bytes, tokenizer: MarkTokenizer) -> tuple[int, ...]:
    """Return the tokens that have a part of the tag."""
    parts = _bytes_of(ids, tokenizer)
    first = b"".join(parts).find(tag)
    if first < 0:
        return ()
    ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
    covering = [
        token_id
        for token_id, part, end in zip(ids, parts, ends, strict=True)
        if end > first and end - len(part) < first + len(tag)
    ]
    return tuple(covering)


def _bytes_of(ids: Sequence[int], tokenizer: MarkTokenizer) -> list[bytes]:
    return [tokenizer.token_bytes(token_id) for token_id in ids]
