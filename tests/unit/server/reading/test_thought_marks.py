"""By which tokens thoughts begin and end, with tags that are tokens of their own and with tags that are text."""

from collections.abc import Sequence

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from orcinus.engine.sampling_params import Thinking
from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.thought_marks import (
    TRIAL_ANSWER,
    TRIAL_THOUGHT,
    ThoughtMarks,
    end_as_written,
    find_thought_marks,
    marks_before_answer,
)
from orcinus.server.reading.thought_tags import TAGS, THINK
from tests.unit.server.reading.tools import templates

MERGES = [("<", "/"), ("Ċ", "Ċ"), (">", "Ċ"), (">", "ĊĊ"), (".", "</")]


class ByteTokenizer:
    """Bytes, the added tokens that are asked for, and a few merges that tags take part in."""

    def __init__(self, *added: str) -> None:
        vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for left, right in MERGES:
            vocab[left + right] = len(vocab)
        self._tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        self._tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
        self._added = added

    def added_token_id(self, text: str) -> int | None:
        return self._tokenizer.token_to_id(text) if text in self._added else None

    def token_bytes(self, token_id: int) -> bytes:
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False)).encode()

    async def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def text(self, token_ids: Sequence[int] | None) -> str:
        return b"".join(map(self.token_bytes, token_ids or ())).decode()


async def marks_of(template: str, tokenizer: ByteTokenizer, shown: str = "", **options: str) -> ThoughtMarks | None:
    form = MessageFormat.detect(template, tokenizer.added_token_id, **options)
    return await find_thought_marks(form, tokenizer, tokenizer.encode, shown)


def shown(before: str, closing: str, after: str) -> str:
    return f"x<think>\n{TRIAL_THOUGHT}{before}{closing}{after}{TRIAL_ANSWER}"


def test_a_thought_is_ended_as_the_template_writes_it() -> None:
    assert end_as_written(shown("\n", "</think>", "\n\n"), THINK) == "\n</think>\n\n"
    assert end_as_written(shown("", "</think>", ""), THINK) == "</think>"
    assert end_as_written(shown("", "</think>", "\n<answer>"), TAGS["hunyuan"]) == "</think>\n"
    assert end_as_written(f"x{TRIAL_ANSWER}", THINK) == "\n</think>\n\n"
    assert end_as_written("", TAGS["mistral"]) == "[/THINK]"


async def test_a_model_with_tags_of_one_token_is_held_by_them() -> None:
    tokenizer = ByteTokenizer("<think>", "</think>")
    marks = await marks_of(templates.QWEN_3, tokenizer)
    assert marks is not None
    undecided = marks.within("<|im_start|>assistant\n", 7)
    start, end = tokenizer.added_token_id("<think>"), tokenizer.added_token_id("</think>")
    assert end is not None
    forced = tuple(await tokenizer.encode("\n</think>\n\n"))
    assert undecided == Thinking(end=(end,), start=start, budget=7, forced=forced)
    assert marks.within("assistant\n<think>\n", 0) == Thinking(end=(end,), budget=0, forced=forced)
    assert marks.within("assistant\n<think>\n\n</think>\n\n", 7) is None


async def test_space_that_the_tokenizer_adds_by_itself_is_not_forced() -> None:
    class Spaced(ByteTokenizer):
        async def encode(self, text: str) -> list[int]:
            return await super().encode(f" {text}")

    tokenizer = Spaced("<think>", "</think>")
    marks = await marks_of(templates.QWEN_3, tokenizer)
    assert marks is not None
    assert tokenizer.text(marks.thinking.forced) == "</think>"


async def test_tags_that_are_text_are_known_by_all_their_spellings() -> None:
    tokenizer = ByteTokenizer()
    marks = await marks_of(templates.QWEN_3, tokenizer)
    assert marks is not None
    thinking = marks.within("assistant\n", 5)
    assert thinking is not None
    assert thinking.start is None
    assert tokenizer.text(thinking.forced) == "\n</think>\n\n"
    assert sorted({tokenizer.text(end) for end in thinking.closing_tags}) == sorted(
        f"{before}</think>{after}" for before in ("", ".") for after in ("", "\n", "\n\n")
    )
    assert {tokenizer.text(opening) for opening in thinking.openings} == {"<think>", "<think>\n", "<think>\n\n"}
    opened = marks.within("assistant\n<think>\n", 5)
    assert opened is not None
    assert opened.opening_tags == ()


async def test_channels_are_ended_by_the_beginning_of_the_answers() -> None:
    tokenizer = ByteTokenizer("<|start|>", "<|end|>", "<|channel|>", "<|message|>")
    marks = await marks_of(templates.HARMONY, tokenizer)
    assert marks is not None
    thinking = marks.within("<|start|>assistant", 5)
    assert thinking is not None
    assert (thinking.budget, thinking.recurs, thinking.start) == (5, True, None)
    assert tokenizer.text(thinking.end) == "<|end|>"
    assert tokenizer.text(thinking.forced) == "<|end|><|start|>assistant<|channel|>final<|message|>"
    assert [tokenizer.text(opening) for opening in thinking.openings] == ["<|channel|>analysis<|message|>"]
    assert marks.within("<|start|>assistant<|channel|>final<|message|>It is", 5) is None


@pytest.mark.parametrize(
    ("template", "options"),
    [
        (templates.QWEN_2_5, {}),
        (templates.QWEN_3, {"reasoning_parser": "none"}),
        (templates.HARMONY, {}),  # without tokens for its markers
    ],
)
async def test_where_no_thoughts_are_known_there_is_nothing_to_hold(template: str, options: dict[str, str]) -> None:
    assert await marks_of(template, ByteTokenizer(), **options) is None


def test_what_lies_before_an_answer_is_known_where_it_is_tokens() -> None:
    tokenizer = ByteTokenizer("</think>", "<|end|>", "<|message|>")

    def marks(template: str, known: ByteTokenizer) -> list[str]:
        form = MessageFormat.detect(template, known.added_token_id)
        return [known.text([token_id]) for token_id in marks_before_answer(form, known.added_token_id)]

    assert marks(templates.QWEN_3, tokenizer) == ["</think>"]
    assert marks(templates.HARMONY, tokenizer) == ["<|end|>", "<|message|>"]
    assert marks(templates.QWEN_2_5, tokenizer) == []
    assert marks(templates.QWEN_3, ByteTokenizer()) == []
