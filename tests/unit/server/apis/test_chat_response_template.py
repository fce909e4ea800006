"""Chats with a model whose tokenizer says how its answers are read: whole, streamed, and begun by the client."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.reading import response_templates
from tests.unit.server.serving import Serving, events_of, serving, user

CHAT_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich", "days": "2"}}\n</tool_call>'
ROOM = {"max_model_len": 2048, "num_kv_blocks": 512}


async def streamed(served: Serving, **body: Any) -> tuple[str, str, str]:
    """Return the content, the thoughts and the arguments of a stream."""
    response = await served.post("/v1/chat/completions", stream=True, **body)
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events_of(response.text)]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    return (
        "".join(delta.content or "" for delta in deltas),
        "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas),
        "".join(call.function.arguments or "" for call in calls if call.function),
    )


async def test_answer_is_read_by_the_tokenizers_template(tmp_path: Path) -> None:
    text = f"<think>\nHm.\n</think>\n\nI look.\n{CALL}"
    settings: dict[str, Any] = {"template": CHAT_TEMPLATE, "response_template": response_templates.QWEN_3, "info": ROOM}
    async with serving(tmp_path, FakeExecutor(says(text)), **settings) as served:
        answer = ChatCompletion.model_validate(await served.chat(tools=[TOOL]), strict=True)
        [choice] = answer.choices
        assert (choice.message.content, choice.finish_reason) == ("I look.", "tool_calls")
        assert getattr(choice.message, "reasoning_content", None) == "Hm."
        [call] = choice.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments) == {"city": "Zürich", "days": 2}
        whole = ("I look.", "Hm.", call.function.arguments)
        assert await streamed(served, messages=[user("hi")], tools=[TOOL]) == whole
        assert await streamed(served, messages=[user("hi")]) == (f"I look.\n{CALL}", "Hm.", "")


@pytest.mark.parametrize("num_words", [1, 200])
async def test_thought_that_the_client_began_goes_on(tmp_path: Path, num_words: int) -> None:
    """However long it is: the reader is told of the prompt from where the message begins."""
    settings: dict[str, Any] = {"template": CHAT_TEMPLATE, "response_template": response_templates.QWEN_3, "info": ROOM}
    begun = {"role": "assistant", "content": "<think>Well" + ", well" * num_words}
    asked = {"messages": [user("hi"), begun], "continue_final_message": True, "add_generation_prompt": False}
    async with serving(tmp_path, FakeExecutor(says(", so.</think>Yes.")), **settings) as served:
        assert await streamed(served, **asked) == ("Yes.", ", so.", "")
