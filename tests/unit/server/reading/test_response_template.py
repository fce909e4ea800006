"""Answers read by a tokenizer's response template: the same however they are cut, and what the library reads."""

import json
import random
from typing import Any

import pytest
from transformers.utils.chat_parsing import parse_response

from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from tests.unit.server.reading import response_templates as templates
from tests.unit.server.reading.response_templates import CHATML, TOOLS, form_of, no_token, read
from tests.unit.server.reading.tools.calling import call, content, cut, reasoning, tool_use, without_id


def message_of(pieces: list[Piece]) -> dict[str, Any]:
    """Return the message that pieces make, as the library writes it."""
    message: dict[str, Any] = {"role": "assistant"}
    for piece in pieces:
        match piece:
            case Content(text):
                message["content"] = message.get("content", "") + text
            case Reasoning(text):
                message["reasoning"] = message.get("reasoning", "") + text
            case ToolCallStart(name=name):
                message.setdefault("tool_calls", []).append({"name": name, "arguments": ""})
            case ToolCallArguments(index=index, text=text):
                message["tool_calls"][index]["arguments"] += text
    for one in message.get("tool_calls", []):
        one["arguments"] = json.loads(one["arguments"] or "{}")
    return message


def library_message(template: Any, text: str, prefix: str = "") -> dict[str, Any]:
    parsed = parse_response(text, template, prefix=prefix, tools=[*TOOLS])
    message = {"role": "assistant"} | {key: parsed[key] for key in ("content",) if key in parsed}
    for name in ("reasoning_content", "thinking"):
        if name in parsed:
            message["reasoning"] = parsed[name]
    if "tool_calls" in parsed:
        message["tool_calls"] = [
            {"name": one["function"]["name"], "arguments": one["function"].get("arguments", {})}
            for one in parsed["tool_calls"]
        ]
    return message


XML_CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nNew <b>York\n</b>\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n<parameter=exact>\ntrue\n</parameter>\n"
    '<parameter=tags>\n["a", "b"]\n</parameter>\n<parameter=note>\ntruly "so"\n</parameter>\n</function>\n</tool_call>'
)
ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "qwen, a thought and an answer": (templates.QWEN_3, "<think>\nHm, <b>4</b>.\n</think>\n\n It is 4.\n <|im_end|>"),
    "qwen, calls after a text": (
        templates.QWEN_3,
        '<think>\n\n</think>\n\nI look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par\\u00eds", '
        '"days": "3", "exact": "true", "tags": ["x", {"y": null}]}}\n</tool_call>\n<tool_call>\n{"name": "get_time", '
        '"arguments": {}}\n</tool_call><|im_end|>\n<|endoftext|>',
    ),
    "qwen, arguments before the name": (
        templates.QWEN_3,
        '<tool_call>{"arguments": {"days": " 7 ", "city": "7"}, "name": "get_weather"}</tool_call>',
    ),
    "qwen, a tool that there is not": (
        templates.QWEN_3,
        '<tool_call>{"name": "fly", "arguments": {"a": "1"}}</tool_call>',
    ),
    "smollm": (
        templates.SMOLLM_3,
        '<think>\nso < so\n</think>\n<tool_call>{"name": "get_weather", "arguments": {"city": "</tool_call"}}'
        "</tool_call><|im_end|>",
    ),
    "qwen coder": (templates.QWEN_3_CODER, f"<think>\nx\n</think>\n\n{XML_CALL}\n{XML_CALL}<|im_end|>"),
    "qwen coder, no argument": (
        templates.QWEN_3_CODER,
        "Well.<tool_call>\n<function=get_time>\n</function>\n</tool_call>",
    ),
    "glm": (
        templates.GLM,
        "<think>x</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value> Rome </arg_value>\n"
        "<arg_key>days</arg_key>\n\n<arg_value>2</arg_value>\n</tool_call>",
    ),
    "gemma": (
        templates.GEMMA_4,
        '<|channel>thought\nHm\n<channel|><|tool_call>call:get_weather{city:<|"|>Par"is\\ {a,b:c}<|"|>,days:3, '
        'more:[{deep:true,other:-1.5e3}, "plain, key: x"]}<tool_call|><|tool_response>',
    ),
    "gemma, an answer": (templates.GEMMA_4, "<|channel>thought\nHm\n<channel|>It is <|4|>.<turn|>"),
    "gpt-oss, a call": (
        templates.GPT_OSS,
        "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.get_weather <|constrain|>json<|message|>{"city": "Bern", "days": 1}<|call|>',
    ),
    "gpt-oss, an answer": (
        templates.GPT_OSS,
        "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>It is <|b|>.<|return|>",
    ),
    "lfm": (
        templates.LFM_2,
        "I call. <|tool_call_start|>[get_weather(city='Par\\'is, (x)', days=3, exact=True, tags=[\"a\"]), get_time()]"
        "<|tool_call_end|><|im_end|>",
    ),
    "cohere": (
        templates.COHERE,
        '<|START_THINKING|>I look.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": '
        '"get_weather", "parameters": {"city": "Oslo"}},\n {"tool_call_id": "1", "tool_name": "get_time", '
        '"parameters": {}}\n]<|END_ACTION|>',
    ),
    "cohere, an answer": (
        templates.COHERE,
        "<|START_THINKING|>x<|END_THINKING|><|START_RESPONSE|> Hello. <|END_RESPONSE|>",
    ),
    "deepseek": (
        templates.DEEPSEEK,
        "<think>x</think>One moment.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Łódź 🌧", "days": "2"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
    ),
    "kimi": (
        templates.KIMI,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Riga"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>',
    ),
    "llama": (templates.LLAMA_3, '{"name": "get_weather", "parameters": {"city": "Lima"}}<|eot_id|>'),
    "ernie": (
        templates.ERNIE,
        'Let me see.\n</think>\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Xi\'an"}}\n'
        "</tool_call>\n",
    ),
    "ernie, an answer": (templates.ERNIE, "Hm.\n</think>\n\n<response>\nIt is 4.\n</response>\n"),
    "lfm, by a pattern": (
        templates.LFM_2_5,
        "<think>x</think><|tool_call_start|>[get_weather(city='Paris', days=3, tags=['a', 'b']), get_time()]"
        "<|tool_call_end|><|im_end|>",
    ),
    "lines": (templates.SETTINGS, "Now: CALL get_weather\ncity: Kyiv\ndays: 4\nEND"),
    "plain": (templates.SMOLLM_3, "  < Just <text> & </think> \n\n<tool_cal\n"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answer_cut_anywhere_is_what_the_library_reads_in_the_whole(name: str) -> None:
    template, text = ANSWERS[name]
    form, use = form_of(template), tool_use(TOOLS)
    whole = read(form, [text], use=use)
    assert message_of(whole) == library_message(template, text)
    assert read(form, text, use=use) == whole
    for place in range(1, len(text)):
        assert read(form, [text[:place], text[place:]], use=use) == whole
    chance = random.Random(text)
    for _ in range(20):
        assert read(form, cut(text, [chance.randrange(len(text)) for _ in range(9)]), use=use) == whole


def test_content_and_thoughts_are_given_as_they_come() -> None:
    reader = form_of(templates.QWEN_3).reader("", tool_use(TOOLS))
    assert reader is not None
    parts = ["<think>\n", "I see", " it.", "\n</think>", "\n\nIt", " is", " 4."]
    given = [reader.feed(part) for part in parts]
    assert given == [
        [],
        reasoning("I see"),
        reasoning(" it."),
        [],
        content("It"),
        content(" is"),
        content(" 4."),
    ]
    assert reader.finish() == []


@pytest.mark.parametrize(
    ("template", "before", "strings"),
    [
        (templates.QWEN_3, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "', ["one", " two", " three"]),
        (templates.SMOLLM_3, '<tool_call>{"name": "get_weather", "arguments": {"city": "', ["one", " two", " three"]),
        (
            templates.GPT_OSS,
            '<|channel|>commentary to=functions.get_weather json<|message|>{"city": "',
            ["one", " two"],
        ),
        (templates.COHERE, '<|START_ACTION|>[{"tool_name": "get_weather", "parameters": {"city": "', ["one", " two"]),
        (templates.DEEPSEEK, '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "', ["one", " two"]),
        (templates.GEMMA_4, '<|tool_call>call:get_weather{city:<|"|>', ["one", " two"]),
        (templates.QWEN_3_CODER, "<tool_call><function=get_weather><parameter=city>\n", ["one", " two", " three"]),
        (templates.GLM, "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>", ["one", " two"]),
    ],
)
def test_arguments_are_given_while_they_are_written(template: Any, before: str, strings: list[str]) -> None:
    reader = form_of(template).reader("", tool_use(TOOLS))
    assert reader is not None
    start = reader.feed(before + strings[0])
    assert without_id(start[0]) == ToolCallStart(0, "", "get_weather")
    written = "".join(piece.text for piece in start[1:] if isinstance(piece, ToolCallArguments))
    for string in strings[1:]:
        for piece in reader.feed(string):
            assert isinstance(piece, ToolCallArguments)
            written += piece.text
    assert written.replace('": "', '":"') == '{"city":"' + "".join(strings)


def test_each_argument_of_a_python_call_is_given_when_it_is_complete() -> None:
    reader = form_of(templates.LFM_2).reader("", tool_use(TOOLS))
    assert reader is not None
    assert [without_id(one) for one in reader.feed("<|tool_call_start|>[get_weather(city='a', d")] == call(
        0, "get_weather", '{"city": "a"'
    )


# --- what the prompt has of the message -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "tail", "text", "pieces"),
    [
        (templates.QWEN_3, f"{CHATML}<think>\n", "Hm.\n</think>\n\nYes.", [*reasoning("Hm."), *content("Yes.")]),
        (templates.QWEN_3, f"{CHATML}<think>\n\n</think>\n\n", "<b>Yes.", content("<b>Yes.")),
        (templates.QWEN_3, f"{CHATML}old</think>new <tool_call><|im_end|>\n{CHATML}", "Yes.", content("Yes.")),
        (templates.QWEN_3, f"{CHATML}The answer is", " 4.", content(" 4.")),
        (templates.QWEN_3, f"{CHATML}The answer is \n", " 4.", content(" 4.")),
        (templates.QWEN_3, f"{CHATML}<think>I think ", "so.</think>", reasoning("so.")),
        (
            templates.QWEN_3,
            f'{CHATML}<tool_call>\n{{"name": "get_time", ',
            '"arguments": {}}\n</tool_call>',
            call(0, "get_time", "{}"),
        ),
        (templates.QWEN_3, f"{CHATML}<tool_call>\n", "no JSON</tool_call>", content("no JSON</tool_call>")),
        (templates.QWEN_3, f'{CHATML}<tool_call>{{"name": "f"}}</tool_call>\n', "Done.", content("Done.")),
        (templates.QWEN_3, f"{CHATML}Cut in a <tool_", "belt.", content("belt.")),
        (templates.QWEN_3, f"{CHATML}<tool_", 'call>{"name": "f", "arguments": {}}</tool_call>', call(0, "f", "{}")),
        (templates.QWEN_3, "<think>\n no message begins here", "Yes.", content("Yes.")),
        (
            templates.GEMMA_4,
            "<|turn>model\n<|tool_call>call:f{}<tool_call|><|tool_response>x<tool_response|>",
            "It.",
            content("It."),
        ),
        (templates.COHERE, "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>", "It.", content("It.")),
    ],
)
def test_message_goes_on_from_what_the_prompt_has_of_it(
    template: Any, tail: str, text: str, pieces: list[Piece]
) -> None:
    form, use = form_of(template), tool_use(TOOLS)
    assert read(form, [text], tail=tail, use=use) == pieces
    assert read(form, text, tail=tail, use=use) == pieces


def test_more_of_the_prompt_is_needed_until_the_message_begins_in_it() -> None:
    form = form_of(templates.QWEN_3)
    assert form.needs_more_of("start|>assistant\nThe answer is")
    assert not form.needs_more_of(f"{CHATML}The answer is")
    assert not MessageFormat.detect("", no_token).needs_more_of("")


# --- what is no call, no thought, or ends too early -----------------------------------------------------


@pytest.mark.parametrize(
    ("template", "text", "pieces"),
    [
        (
            templates.QWEN_3,
            "So: <tool_call>\nnot JSON\n</tool_call> ok",
            content("So: <tool_call>\nnot JSON\n</tool_call> ok"),
        ),
        (templates.QWEN_3, '<tool_call>{"city": "x"}</tool_call>', content('<tool_call>{"city": "x"}</tool_call>')),
        (templates.QWEN_3, "<tool_call>[1, 2", content("<tool_call>[1, 2")),
        (templates.QWEN_3, '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}', call(0, "f", '{"a": "x\\ny"}')),
        (templates.QWEN_3, "<think>never ended", reasoning("never ended")),
        (templates.QWEN_3, "a\n<think>b</think>\nc", [*content("a"), *reasoning("b"), *content("\n\nc")]),
        (templates.QWEN_3, "<think>a</think><think>b</think>c", [*reasoning("a\nb"), *content("c")]),
        (templates.GPT_OSS, "<|channel|>commentary to=functions.f json<|message|>no<|call|>", content("no")),
        (templates.GPT_OSS, ' {"an": "answer without a channel"}', content('{"an": "answer without a channel"}')),
        (templates.GPT_OSS, "<|channel|>final<|message|>a<|end|>left out", content("a")),
        (templates.COHERE, "[<|START_ACTION|>[]<|END_ACTION|>]", content("[[]")),
        (
            templates.LFM_2,
            "<|tool_call_start|>[f(1)]<|tool_call_end|>",
            content("<|tool_call_start|>[f(1)]<|tool_call_end|>"),
        ),
        (templates.SETTINGS, "CALL f\nEND", call(0, "f", "{}")),
        (templates.GEMMA_4, "<|tool_call>call:f{a:nan,b:NaN,<tool_call|>", call(0, "f", '{"a":nan,"b":NaN,')),
        (
            templates.KIMI,
            "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|><|tool_call_end|>",
            call(0, "f", "{}"),
        ),
    ],
)
def test_text_that_does_not_fit_is_content(template: Any, text: str, pieces: list[Piece]) -> None:
    form, use = form_of(template), tool_use(TOOLS)
    assert read(form, [text], use=use) == pieces
    assert read(form, text, use=use) == pieces


@pytest.mark.parametrize("name", ANSWERS)
def test_cut_answer_is_a_beginning_of_the_whole(name: str) -> None:
    """Nothing is told that the whole answer would not have, and no call before its name is known."""
    template, text = ANSWERS[name]
    form, use = form_of(template), tool_use(TOOLS)
    whole = read(form, [text], use=use)
    for place in range(len(text)):
        pieces = read(form, [text[:place]], use=use, is_cut=True)
        for piece, of_whole in zip(pieces, whole, strict=False):
            if isinstance(piece, ToolCallStart):
                assert piece == of_whole
            else:
                assert type(piece) is type(of_whole)
                assert of_whole.text.startswith(piece.text)
        assert len(pieces) <= len(whole)


def test_calls_are_content_where_the_request_has_no_tools() -> None:
    text = '<think>x</think>a <tool_call>{"name": "f", "arguments": {}}</tool_call>'
    form = form_of(templates.QWEN_3)
    wanted = [*reasoning("x"), *content('a <tool_call>{"name": "f", "arguments": {}}</tool_call>')]
    assert read(form, text) == wanted
    assert read(form, text, use=tool_use(TOOLS, "none")) == wanted
    assert read(form_of(templates.GPT_OSS), "<|channel|>commentary to=functions.f<|message|>{}<|call|>") == content(
        "{}"
    )


def test_second_call_is_left_out_where_calls_are_not_parallel() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>' * 2
    assert read(form_of(templates.QWEN_3), text, use=tool_use(TOOLS, parallel=False)) == call(0, "f", '{"a": 1}')


def test_ids_of_calls_are_the_models_own_where_the_template_has_them() -> None:
    reader = form_of(templates.KIMI).reader("", tool_use(TOOLS))
    assert reader is not None
    text = "<|tool_call_begin|>functions.get_time:7<|tool_call_argument_begin|>{}<|tool_call_end|>"
    [start, _] = reader.feed(text)
    assert start == ToolCallStart(0, "functions.get_time:7", "get_time")


def test_reasoning_is_left_out_on_request() -> None:
    for form in (form_of(templates.GPT_OSS), MessageFormat.detect("<|channel|>", no_token)):
        reader = form.reader("<|start|>assistant", None)
        assert reader is not None
        reader.leave_out_reasoning()
        text = "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y"
        assert [*reader.feed(text), *reader.finish()] == content("y")


def test_special_tokens_stay_in_the_text_only_where_the_template_speaks_of_them() -> None:
    special = ("<|im_end|>", "<tool_call>", "<|fim|>", "<think>")
    form = form_of(templates.QWEN_3, special_tokens=special)
    assert form.needs_special_tokens
    assert read(form, ["<think>a</think>b<|fim|>c<|im_end|>"]) == [*reasoning("a"), *content("bc")]
    assert read(form, ["<tool_call>x"]) == content("x")
    assert read(form, ["<tool_call>x"], use=tool_use(TOOLS)) == content("<tool_call>x")
    assert not form_of(templates.QWEN_3, special_tokens=("</s>",)).needs_special_tokens
    gemma = form_of(templates.GEMMA_4, special_tokens=('<|"|>', "<pad>"))
    assert read(gemma, ['<|tool_call>call:f{a:<|"|>b<pad><|"|>}'], use=tool_use(TOOLS)) == call(0, "f", '{"a":"b"}')


# --- fields ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning", "analysis"])
def test_thoughts_are_found_by_every_name_that_there_is_for_them(name: str) -> None:
    form = form_of(templates.template("A:", **{name: {"open": "<", "close": ">"}, "content": {}}))
    assert read(form, "<x>y") == [*reasoning("x"), *content("y")]


def test_other_fields_are_no_part_of_the_message() -> None:
    spec = templates.template("A:", citations={"open": "<c>", "close": "</c>", "content": "json"}, content={})
    assert read(form_of(spec), "a <c>[1]</c>b <c>not JSON</c>c") == content("a b c")


def test_what_no_field_claims_is_content_where_no_field_is() -> None:
    spec = templates.template("A:", thinking={"open": "<t>", "close": "</t>"})
    assert read(form_of(spec), " <t>x</t> y ") == [*reasoning("x"), *content("y")]


def test_white_space_stays_where_the_template_keeps_it() -> None:
    spec = templates.template("A:", content={"content_args": {"strip": False}})
    assert read(form_of(spec), " a \n") == content(" a \n")


def test_parts_are_joined_as_the_template_says() -> None:
    spec = templates.template(
        "A:",
        thinking={"open": "<t>", "close": "</t>", "repeats": True, "join": "; "},
        content={"open": "<a>", "close": "</a>", "repeats": True, "join": " | "},
    )
    text = "<t> x </t><a> 1 </a><t>y</t><a>2</a>"
    pieces = read(form_of(spec), text)
    assert pieces == [*reasoning("x"), *content("1"), *reasoning("; y"), *content(" | 2")]
    parsed = parse_response(text, spec, prefix="")
    assert (parsed["thinking"], parsed["content"]) == ("x; y", "1 | 2")
