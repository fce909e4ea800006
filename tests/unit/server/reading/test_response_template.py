"""Answers read by a tokenizer's response template: the same however they are cut, and what the library reads in them."""

import json
import random
from typing import Any

import pytest
from transformers.utils.chat_parsing import parse_response

from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.message_reader import join_pieces
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from orcinus.server.reading.tools.request import ToolUse
from tests.unit.server.reading import response_templates as templates
from tests.unit.server.reading.tools.calling import call, content, cut, function, reasoning, tool_use, without_id

TOOLS = [
    function(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "exact": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
        },
    ),
    function("get_time"),
]


def form_of(template: Any, chat_template: str = "", special_tokens: tuple[str, ...] = ()) -> MessageFormat:
    form = MessageFormat.detect(chat_template, {}.get, special_tokens=special_tokens, response_template=template)
    assert form.template is not None
    return form


def read(
    form: MessageFormat, parts: Any, *, tail: str = "", use: ToolUse | None = None, is_cut: bool = False
) -> list[Piece]:
    reader = form.reader(tail, use)
    assert reader is not None
    pieces = [piece for part in parts for piece in reader.feed(part)]
    return join_pieces([without_id(piece) for piece in (*pieces, *reader.finish(is_cut=is_cut))])


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
    parsed = parse_response(text, template, prefix=prefix, tools=TOOLS)
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
        '<think>\n\n</think>\n\nI look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par\\u00eds", "days": '
        '"3", "exact": "true", "tags": ["x", {"y": null}]}}\n</tool_call>\n<tool_call>\n{"name": "get_time", "arguments": '
        "{}}\n</tool_call><|im_end|>\n<|endoftext|>",
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
        '<think>\nso < so\n</think>\n<tool_call>{"name": "get_weather", "arguments": {"city": "</tool_call"}}</tool_call>'
        "<|im_end|>",
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
        "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather"
        ' <|constrain|>json<|message|>{"city": "Bern", "days": 1}<|call|>',
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
        '<|START_THINKING|>I look.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather",'
        ' "parameters": {"city": "Oslo"}},\n {"tool_call_id": "1", "tool_name": "get_time", "parameters": {}}\n]'
        "<|END_ACTION|>",
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
