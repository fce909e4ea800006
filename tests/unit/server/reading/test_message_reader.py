"""Content, reasoning and calls out of one text, and what a request makes of a model's format."""

import pytest

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import Thinking
from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.message_reader import join_pieces
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from tests.unit.server.reading.tools import templates
from tests.unit.server.reading.tools.calling import (
    call,
    content,
    detect,
    read,
    read_all,
    read_parts,
    reasoning,
    tool_use,
    without_id,
)

THINKING_TOKENS = {"<think>": 7, "</think>": 8}


def thinker(template: str = templates.QWEN_3, tokens: dict[str, int] = THINKING_TOKENS) -> MessageFormat:
    return MessageFormat.detect(template, tokens.get)


def test_a_message_has_reasoning_content_and_calls() -> None:
    text = '<think>\nHm.\n</think>\n\nWait.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert read(templates.QWEN_3, text) == [*reasoning("Hm."), *content("Wait."), *call(0, "f", "{}")]


def test_a_call_inside_the_reasoning_is_no_call() -> None:
    thought = 'I could <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call> here.'
    text = f'<think>{thought}</think><tool_call>{{"name": "g"}}</tool_call>'
    assert read(templates.QWEN_3, text) == [*reasoning(thought), *call(0, "g", "{}")]


def test_a_call_inside_reasoning_that_is_never_ended_is_a_call() -> None:
    text = '<think>\nI should use <tool_call> here.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    pieces = [*reasoning("I should use <tool_call> here."), *call(0, "f", "{}")]
    assert read(templates.QWEN_3, text) == pieces
    assert read(templates.QWEN_3, text.removeprefix("<think>\n"), tail="<think>\n") == pieces
    both = text + '\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    assert read(templates.QWEN_3, both) == [*pieces, *call(1, "g", "{}")]
    assert read(templates.QWEN_3, text.partition("\n</tool")[0], is_cut=True) == pieces


def test_a_llama_call_inside_reasoning_that_is_never_ended_is_a_call() -> None:
    text = 'I think. <|python_tag|>{"name": "get_time", "parameters": {}}'
    form = detect(templates.LLAMA_3_1, special_tokens=["<|python_tag|>"], reasoning_parser="think")
    for parts in ([text], text):
        pieces = read_all(form, parts, tail="<think>\n", use=tool_use())
        assert pieces == [*reasoning("I think. "), *call(0, "get_time", "{}")]


@pytest.mark.parametrize("rest", ["<tool_call>", "<tool_call>\n{", "<tool_call> is how", "<tool_ca"])
def test_what_is_no_call_inside_reasoning_that_is_never_ended_is_reasoning(rest: str) -> None:
    assert read(templates.QWEN_3, "<think>\nI use " + rest) == reasoning("I use " + rest)


@pytest.mark.parametrize("rest", ["", "<tool_call>", '<tool_call>\n{"name": "g', "<tool_ca"])
def test_a_call_inside_reasoning_that_a_limit_cuts_before_its_name_is_left_out(rest: str) -> None:
    assert read(templates.QWEN_3, "<think>\nI use\n" + rest, is_cut=True) in (reasoning("I use"), reasoning("I use\n"))


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_thought_that_was_never_opened_is_one_where_the_answer_can_wait(is_streamed: bool) -> None:
    text = 'I see.\n</think>\n\nYes.\n<tool_call>{"name": "f"}</tool_call>'
    thought = [*reasoning("I see."), *content("Yes."), *call(0, "f", "{}")]
    passed_on = [*content("I see.\nYes."), *call(0, "f", "{}")]
    always_thinks = templates.QWEN_2_5 + "{% set content = message.content.split('</think>')[-1] %}"
    for template, pieces in ((templates.QWEN_3, passed_on if is_streamed else thought), (always_thinks, thought)):
        reader = detect(template).reader("", tool_use(), is_streamed=is_streamed)
        assert reader is not None
        given = [piece for part in text for piece in reader.feed(part)] + reader.finish()
        assert join_pieces([without_id(piece) for piece in given]) == pieces


def test_a_prompt_that_opens_the_thinking_makes_the_output_begin_with_it() -> None:
    text = 'Hm.\n</think>\n\n{"name": "get_time", "parameters": {}}'
    template = templates.LLAMA_3_1 + "<think>"
    assert read(template, text, tail="<think>\n") == [*reasoning("Hm."), *call(0, "get_time", "{}")]


def test_the_end_of_the_thinking_and_the_answer_may_come_in_one_part() -> None:
    parts = ["<think>a", "b</think>c"]
    assert read_parts(thinker(), parts) == [reasoning("a"), [*reasoning("b"), *content("c")], []]


@pytest.mark.parametrize("text", ["<thin", "<think", " a <tool_c", "\n</s"])
def test_what_was_held_back_at_any_stage_comes_out_at_the_end(text: str) -> None:
    message_format = detect(templates.QWEN_3, special_tokens=["</s>", "<tool_call>"])
    assert read_all(message_format, [text], use=tool_use()) == content(text)


def test_reasoning_is_read_without_tools() -> None:
    assert read_all(thinker(), ["<think>a</think>b <tool_call>"]) == [*reasoning("a"), *content("b <tool_call>")]


def test_there_is_no_reader_where_all_is_content() -> None:
    assert detect(templates.QWEN_2_5).reader("", None) is None
    assert detect(templates.GEMMA).reader("", None) is None
    assert detect(templates.GEMMA).reader("", tool_use(choice="none")) is None
    assert thinker().reader("<think>\n\n</think>\n\n", None) is None
    assert thinker().reader("", None) is not None


def test_special_tokens_that_are_no_markers_never_reach_the_content() -> None:
    special = ["<s>", "</s>", "<unk>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[INST]"]
    message_format = detect(templates.MISTRAL_V11, special_tokens=special)
    text = "<s>a<unk> </s [INST]b[TOOL_CALLS]f[ARGS]{}</s>"
    for parts in ([text], text):
        assert read_all(message_format, parts, use=tool_use()) == [*content("a </s b"), *call(0, "f", "{}")]


def test_a_marker_that_means_nothing_for_the_request_is_left_out_with_the_special_tokens() -> None:
    message_format = detect(
        templates.MISTRAL_V11, special_tokens=["[TOOL_CALLS]", "</s>", "</think>"], reasoning_parser="think"
    )
    assert read_all(message_format, ["<think>a</think>b[TOOL_CALLS]</s>"]) == [*reasoning("a"), *content("b")]


def test_text_that_reads_like_a_special_token_stays_where_decoding_leaves_them_out() -> None:
    message_format = detect(templates.QWEN_2_5, special_tokens=["</s>"])
    assert read_all(message_format, ["a</s>b"], use=tool_use()) == content("a</s>b")


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_nothing_is_enforced_where_the_model_may_choose(choice: str) -> None:
    assert thinker().grammar("", tool_use(choice=choice)) is None


def test_a_grammar_begins_after_the_thinking() -> None:
    use = tool_use(choice="required")
    opened, undecided, over = (thinker().grammar(tail, use) for tail in ("<think>\n", "\n", "</think>\n\n"))
    assert opened is not None
    assert undecided is not None
    assert over is not None
    assert (opened.thinking, undecided.thinking) == (Thinking(end=(8,)), Thinking(end=(8,), start=7))
    assert over.thinking is None
    assert over.source.startswith("start: calls\n")
    assert opened.source == undecided.source == over.source.replace("start:", 'start: "\\n"{0,2}', 1)


def test_a_model_that_does_not_think_has_no_thinking_before_a_grammar() -> None:
    assert thinker(templates.QWEN_2_5).thinking("<think>") is None


def test_thinking_that_no_token_ends_cannot_come_before_a_grammar() -> None:
    unmarked = thinker(tokens={})
    assert unmarked.thinking("") is None
    with pytest.raises(InvalidRequestError, match="</think> is no token of its own"):
        unmarked.thinking("<think>\n")


def test_a_call_cannot_be_enforced_where_there_are_no_calls() -> None:
    with pytest.raises(InvalidRequestError, match="no tools"):
        thinker(templates.GEMMA).grammar("", tool_use(choice="required"))


def test_neighbours_of_one_kind_are_joined() -> None:
    start, arguments = ToolCallStart(0, "id", "f"), ToolCallArguments(0, "e")
    pieces: list[Piece] = [Reasoning("a"), Reasoning("b"), Content("c"), Content("d"), start, arguments, arguments]
    assert join_pieces(pieces) == [Reasoning("ab"), Content("cd"), start, ToolCallArguments(0, "ee")]


def test_the_calls_of_a_message_are_not_joined() -> None:
    pieces = [*call(0, "f", "{}"), *call(1, "f", "{}"), *content("a")]
    assert join_pieces(pieces) == pieces
