"""Grammars of models that have a response template: what they make a model write is what the template reads."""

from collections.abc import Callable
from typing import Any

import pytest
from llguidance import LLMatcher

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import Thinking
from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.message_reader import join_pieces
from orcinus.server.reading.pieces import Piece
from tests.unit.server.reading import response_templates
from tests.unit.server.reading.tools import family_templates, templates
from tests.unit.server.reading.tools.calling import call, content, read_all, tool_use
from tests.unit.server.reading.tools.test_grammars import (
    CITY,
    PLACED,
    TIME,
    TOOLS,
    harmony,
    hermes,
    matching_tokenizer,
    tokenizer,
)
from tests.unit.server.reading.tools.writing import EVERY

Calls = tuple[tuple[str, str], ...]


def detect(chat_template: str, response_template: Any) -> MessageFormat:
    form = MessageFormat.detect(chat_template, tokenizer().token_to_id, response_template=response_template)
    assert form.template is not None
    return form


def accepts(form: MessageFormat, text: str, choice: Any = "required", answer: dict[str, Any] | None = None) -> bool:
    grammar = form.grammar("", tool_use(TOOLS, choice), answer)
    assert grammar is not None
    matcher = LLMatcher(matching_tokenizer(), LLMatcher.grammar_from_lark(grammar.source))
    assert not matcher.is_error(), matcher.get_error()
    token_ids = tokenizer().encode(text, add_special_tokens=False).ids
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


def bare(*calls: tuple[str, str]) -> str:
    return "\n".join(f'<tool_call>{{"name": "{name}", "arguments": {text}}}</tool_call>' for name, text in calls)


def listed(write: Callable[[Calls], str]) -> Callable[..., str]:
    return lambda *calls: write(calls)


@pytest.mark.parametrize(
    ("chat_template", "response_template", "own", "write"),
    [
        (templates.QWEN_3, response_templates.QWEN_3, "hermes", hermes),
        (
            family_templates.QWEN_3_CODER,
            response_templates.QWEN_3_CODER,
            "qwen3_coder",
            listed(EVERY["qwen3_coder"][1]),
        ),
        (family_templates.COMMAND_R7B, response_templates.COHERE, "cohere_command", listed(EVERY["cohere_command"][1])),
        (family_templates.DEEPSEEK_V3_1, response_templates.DEEPSEEK, "deepseek_v31", listed(EVERY["deepseek_v31"][1])),
        ("", response_templates.SMOLLM_3, "response template", bare),
        ("", response_templates.COHERE, "response template", listed(EVERY["cohere_command"][1])),
        (templates.LLAMA_3_1, response_templates.SMOLLM_3, "response template", bare),
    ],
)
@pytest.mark.parametrize("calls", [(TIME,), (CITY, TIME)])
def test_required_calls_are_written_as_the_template_reads_them(
    chat_template: str, response_template: Any, own: str, write: Any, calls: Calls
) -> None:
    form, use = detect(chat_template, response_template), tool_use(TOOLS, "required")
    assert form.tool_format is not None
    assert form.tool_format.name == own
    text = write(*calls)
    assert accepts(form, text)
    written: list[Piece] = [piece for i, (name, arguments) in enumerate(calls) for piece in call(i, name, arguments)]
    assert join_pieces(read_all(form, [text], use=use)) == written
    assert not accepts(form, "Hello.")


def test_a_harmony_call_is_read_by_its_template() -> None:
    form = detect(family_templates.GPT_OSS, response_templates.GPT_OSS)
    assert accepts(form, harmony(PLACED))
    assert read_all(form, [harmony(PLACED)], use=tool_use(TOOLS)) == call(0, *PLACED)
    answer = '<|channel|>final<|message|>{"a": 1}'
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert accepts(form, answer, "auto", schema)
    assert read_all(form, [answer], use=tool_use(TOOLS)) == content('{"a": 1}')


def test_a_call_or_an_answer_in_a_form_are_both_read() -> None:
    form = detect("", response_templates.SMOLLM_3)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert accepts(form, bare(TIME), "auto", schema)
    assert accepts(form, '{"a": 1}', "auto", schema)
    assert not accepts(form, "Hello.", "auto", schema)


@pytest.mark.parametrize(
    ("chat_template", "response_template"),
    [
        (templates.QWEN_3, response_templates.QWEN_3_CODER),  # the same marker, and something else after it
        ("", response_templates.LFM_2),
    ],
)
def test_calls_that_nothing_here_writes_cannot_be_required(chat_template: str, response_template: Any) -> None:
    form = detect(chat_template, response_template)
    assert form.summary.startswith("tools: response template; ")
    assert not form.has_unread_tools
    use = tool_use(TOOLS)
    form.check(use)
    assert form.grammar("", use) is None
    with pytest.raises(InvalidRequestError, match=r"cannot be enforced.*response_template") as caught:
        form.grammar("", tool_use(TOOLS, "required"))
    assert caught.value.param == "tool_choice"
    with pytest.raises(InvalidRequestError, match="beside an answer in a form") as caught:
        form.grammar("", use, {"type": "object"})
    assert caught.value.param == "response_format"


TOKENS = {"<think>": 7, "</think>": 8, "<|channel>": 9, "<channel|>": 10, "<r>": 11, "</r>": 12}


@pytest.mark.parametrize(
    ("chat_template", "response_template", "opening", "tokens"),
    [
        (templates.QWEN_3, response_templates.QWEN_3, "<think>\n", (7, 8)),
        ("", response_templates.QWEN_3_CODER, "<think>\n", (7, 8)),
        (family_templates.GEMMA_4, response_templates.GEMMA_4, "<|channel>thought\n", (9, 10)),
        (
            "",
            response_templates.template("A:", reasoning={"open": "<r>", "close": "</r>"}, content={}),
            "<r>",
            (11, 12),
        ),
    ],
)
def test_thoughts_come_before_what_a_grammar_is_about(
    chat_template: str, response_template: Any, opening: str, tokens: tuple[int, int]
) -> None:
    form = MessageFormat.detect(chat_template, TOKENS.get, response_template=response_template)
    assert form.summary.endswith("reasoning: response template")
    start, end = tokens
    assert form.thinking("assistant\n") == Thinking(end=(end,), start=start)
    assert form.thinking(f"assistant\n{opening}") == Thinking(end=(end,))


def test_thoughts_that_the_template_does_not_read_come_before_nothing() -> None:
    form = MessageFormat.detect(templates.QWEN_3, TOKENS.get, response_template=response_templates.LFM_2)
    assert form.summary == "tools: response template; reasoning: none"
    assert form.thinking("<think>\n") is None
