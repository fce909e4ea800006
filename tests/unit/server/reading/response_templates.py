"""Response templates in each publisher's form, for the tests that read answers by them."""

from collections.abc import Iterable
from typing import Any

from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.message_reader import join_pieces
from orcinus.server.reading.pieces import Piece
from orcinus.server.reading.tools.request import ToolUse
from tests.unit.server.reading.tools.calling import function, without_id

_FUNCTION = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
_WHOLE = {"type": "function", "function": "{content}"}


def template(start: str | list[str], **fields: Any) -> dict[str, Any]:
    return {"defaults": {"role": "assistant"}, "start_anchor": start, "fields": fields}


def _thoughts(opening: str, closing: str) -> dict[str, Any]:
    return {"open": opening, "close": closing, "content": "text"}


CHATML = "<|im_start|>assistant\n"
_CHATML_CONTENT = {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)", "content": "text"}

QWEN_3 = template(
    CHATML,
    reasoning_content=_thoughts("<think>", "</think>"),
    tool_calls={
        "open_pattern": r"\s*<tool_call>",
        "close": "</tool_call>",
        "repeats": True,
        "content": "json",
        "transform": _WHOLE,
    },
    content=_CHATML_CONTENT,
)
SMOLLM_3 = template(
    CHATML,
    thinking=_thoughts("<think>", "</think>"),
    tool_calls={
        "open": "<tool_call>",
        "close": "</tool_call>",
        "repeats": True,
        "content": "json",
        "transform": {
            "type": "function",
            "function": {"name": "{content.name}", "arguments": "{content.arguments}"},
        },
    },
    content={"close": "<|im_end|>", "content": "text"},
)
QWEN_3_CODER = template(
    CHATML,
    thinking={"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
    tool_calls={
        "open_pattern": r"<tool_call>\s*<function=(?P<name>[^\n>]+)>",
        "close_pattern": r"</tool_call>\s*",
        "repeats": True,
        "content": "xml-inline",
        "content_args": {
            "tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>",
            "value_parser": {"name": "json", "args": {"allow_non_json": True}},
        },
        "transform": _FUNCTION,
    },
    content={"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
)
GLM = template(
    "<|assistant|>",
    reasoning_content={"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
    tool_calls={
        "open_pattern": r"<tool_call>(?P<name>[^\n<]+)\n?",
        "close_pattern": r"</tool_call>\s*",
        "repeats": True,
        "content": "xml-inline",
        "content_args": {"tag_pattern": r"<arg_key>(?P<key>[^<]+)</arg_key>\s*\n<arg_value>(?P<value>.*?)</arg_value>"},
        "transform": _FUNCTION,
    },
    content={"close_pattern": r"<\|user\|>\s*|$", "content": "text"},
)
GEMMA_4 = template(
    ["<|turn>model\n", "<tool_response|>"],
    thinking=_thoughts("<|channel>thought\n", "<channel|>"),
    tool_calls={
        "open_pattern": r"<\|tool_call>call:(?P<name>\w+)",
        "close": "<tool_call|>",
        "repeats": True,
        "content": "json",
        "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
        "transform": _FUNCTION,
    },
    content={"close": ["<turn|>", "<|tool_response>", "<eos>"], "content": "text"},
)
GPT_OSS = template(
    "<|start|>assistant",
    thinking=_thoughts("<|channel|>analysis<|message|>", "<|end|>"),
    content={"open": "<|channel|>final<|message|>", "close": ["<|end|>", "<|return|>"], "content": "text"},
    tool_calls={
        "open_pattern": r"<\|channel\|>commentary to=functions\.(?P<name>\w+).*?<\|message\|>",
        "close": "<|call|>",
        "repeats": True,
        "content": "json",
        "transform": _FUNCTION,
    },
)
LFM_2 = template(
    CHATML,
    tool_calls={
        "open": "<|tool_call_start|>",
        "close": "<|tool_call_end|>",
        "content": "python-call-list",
        "transform_each": True,
        "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}},
    },
    content={"close": "<|im_end|>", "content": "text"},
)
COHERE = template(
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    content=_thoughts("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    thinking=_thoughts("<|START_THINKING|>", "<|END_THINKING|>"),
    tool_calls={
        "open": "<|START_ACTION|>",
        "close": "<|END_ACTION|>",
        "content": "json",
        "transform_each": True,
        "transform": {"type": "function", "function": {"name": "{tool_name}", "arguments": "{parameters}"}},
    },
)
DEEPSEEK = template(
    "<｜Assistant｜>",
    thinking=_thoughts("<think>", "</think>"),
    tool_calls={
        "open_pattern": r"(?:<｜tool▁calls▁begin｜>)?<｜tool▁call▁begin｜>(?P<name>[^<]+)<｜tool▁sep｜>",
        "close_pattern": r"<｜tool▁call▁end｜>(?:<｜tool▁calls▁end｜>)?",
        "repeats": True,
        "content": "json",
        "transform": _FUNCTION,
    },
    content={"close": "<｜end▁of▁sentence｜>", "content": "text"},
)
KIMI = template(
    "<|im_assistant|>assistant<|im_middle|>",
    tool_calls={
        "open_pattern": (
            r"(?:<\|tool_calls_section_begin\|>)?<\|tool_call_begin\|>"
            r"(?P<id>functions\.(?P<name>\w+):\d+)<\|tool_call_argument_begin\|>"
        ),
        "close_pattern": r"<\|tool_call_end\|>(?:<\|tool_calls_section_end\|>)?",
        "repeats": True,
        "content": "json",
        "transform": {**_FUNCTION, "id": "{id}"},
    },
    content={"close": "<|im_end|>", "content": "text"},
)
LLAMA_3 = template(
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    tool_calls={
        "open_pattern": r'\{"name":\s*"(?P<name>[^"]+)",\s*"parameters":\s*',
        "close_pattern": r"\}<\|eot_id\|>\s*",
        "repeats": True,
        "content": "json",
        "transform": _FUNCTION,
    },
    content={"close_pattern": r"<\|eot_id\|>\s*", "content": "text"},
)
ERNIE = template(
    "Assistant:",
    thinking={"open_pattern": r"(?:^|<think>\s*)", "close": "</think>", "content": "text"},
    content={"open": "<response>\n", "close_pattern": r"\n?</response>", "content": "text"},
    tool_calls={
        "open": "<tool_call>",
        "close": "</tool_call>",
        "repeats": True,
        "content": "json",
        "transform": _WHOLE,
    },
)
_ATOM = r"""[^\[\]{}'"]|'[^']*'|"[^"]*\""""
_NESTED = rf"{_ATOM}|[\[{{](?:{_ATOM})*[\]}}]"
LFM_2_5 = template(
    CHATML,
    thinking={"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
    tool_calls={
        "open_pattern": r"(?:<\|tool_call_start\|>\[|,\s*)(?P<name>\w+)\(",
        "close_pattern": r"\)(?:\]<\|tool_call_end\|>)?\s*",
        "repeats": True,
        "content": "xml-inline",
        "content_args": {
            "tag_pattern": rf"(?P<key>\w+)=(?P<value>'[^']*'|[\[{{](?:{_NESTED})*[\]}}]|[^,)]*)",
            "value_parser": {"name": "json", "args": {"string_delims": [["'", "'"]], "allow_non_json": True}},
        },
        "transform": _FUNCTION,
    },
    content={"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
)
# What no reader of ours knows: the library parses it once the region has ended.
SETTINGS = template(
    "BOT:",
    tool_calls={
        "open_pattern": r"CALL (?P<name>\w+)\n",
        "close": "\nEND",
        "repeats": True,
        "content": "kv-lines",
        "transform": _FUNCTION,
    },
    content={},
)

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


def no_token(text: str) -> int | None:
    return None


def form_of(template: Any, chat_template: str = "", special_tokens: tuple[str, ...] = ()) -> MessageFormat:
    form = MessageFormat.detect(chat_template, no_token, special_tokens=special_tokens, response_template=template)
    assert form.template is not None
    return form


def read(
    form: MessageFormat, parts: Iterable[str], *, tail: str = "", use: ToolUse | None = None, is_cut: bool = False
) -> list[Piece]:
    reader = form.reader(tail, use)
    assert reader is not None
    pieces = [piece for part in parts for piece in reader.feed(part)]
    return join_pieces([without_id(piece) for piece in (*pieces, *reader.finish(is_cut=is_cut))])
