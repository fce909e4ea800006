"""POST /v1/chat/completions: messages in, the shapes of answers out."""

from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.unit.engine.fakes import END_OF_TEXT, MESSAGE_END, MESSAGE_START, FakeExecutor, NextToken, echoes, says
from tests.unit.server.serving import Serving, answer_of, error_of, events_of, in_one_loop, serving, user


async def prompt_of(served: Serving, messages: Any, **body: Any) -> str:
    """The prompt that the template made, read back from the token ids."""
    body = {"messages": messages, "return_token_ids": True, **body}
    answer = answer_of(await served.post("/v1/chat/completions", **body))
    return bytes(token_id for token_id in answer["prompt_token_ids"] if token_id < 256).decode()


async def test_whole_answer_has_every_field_of_the_specification(served: Serving) -> None:
    answer = await served.chat("hi")
    ChatCompletion.model_validate(answer, strict=True)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


async def test_without_a_limit_the_rest_of_the_context_is_used(tmp_path: Path) -> None:
    async with serving(tmp_path, info={"max_model_len": 64}) as served:
        answer = await served.chat("hi")
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["total_tokens"] == 64


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_both_names_of_the_limit_work(served: Serving, name: str) -> None:
    answer = await served.chat("hi", **{name: 2})
    assert answer["choices"][0]["message"]["content"] == "He"
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_two_different_limits_are_refused(served: Serving) -> None:
    body = {"messages": [user("hi")], "max_tokens": 2, "max_completion_tokens": 3}
    assert error_of(await served.post("/v1/chat/completions", **body), 400)["param"] == "max_tokens"


async def test_stream_has_exactly_these_bytes(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hi"))) as served:
        response = await served.post(
            "/v1/chat/completions", messages=[user("x")], stream=True, max_tokens=1, model="fake-model"
        )
        head = response.text.split(',"choices":', 1)[0]
        assert response.text == (
            head + ',"choices":[{"index":0,"delta":{"role":"assistant","content":""},'
            '"logprobs":null,"finish_reason":null}]}\n\n'
            + head
            + ',"choices":[{"index":0,"delta":{"content":"H"},"logprobs":null,"finish_reason":null}]}\n\n'
            + head
            + ',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]}\n\n'
            "data: [DONE]\n\n"
        )
        assert head.startswith('data: {"id":"chatcmpl-')
        assert ',"object":"chat.completion.chunk","created":' in head


async def test_first_chunk_of_each_choice_has_the_role_and_empty_content(served: Serving) -> None:
    response = await served.post("/v1/chat/completions", messages=[user("x")], stream=True, n=3)
    first: dict[int, dict[str, Any]] = {}
    texts = {0: "", 1: "", 2: ""}
    for chunk in events_of(response.text):
        ChatCompletionChunk.model_validate(chunk, strict=True)
        choice = chunk["choices"][0]
        first.setdefault(choice["index"], choice["delta"])
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert [first[index] for index in range(3)] == [{"role": "assistant", "content": ""}] * 3
    assert texts == dict.fromkeys(range(3), "Hello")


async def test_logprobs_carry_the_raw_bytes_of_each_token(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("é"))) as served:
        answer = await served.chat("x", logprobs=True, top_logprobs=1, max_tokens=2)
        content = answer["choices"][0]["logprobs"]["content"]
        assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9]]
        assert content[0] == {
            "token": "\ufffd",
            "logprob": -0.5,
            "bytes": [0xC3],
            "top_logprobs": [{"token": "\ufffd", "logprob": -0.5, "bytes": [0xC3]}],
        }
        assert answer["choices"][0]["message"]["content"] == "é"


async def test_streamed_logprobs_join_to_the_whole(served: Serving) -> None:
    asked = {"logprobs": True, "top_logprobs": 2, "max_tokens": 4}
    whole = (await served.chat("x", **asked))["choices"][0]["logprobs"]["content"]
    response = await served.post("/v1/chat/completions", messages=[user("x")], stream=True, **asked)
    chunks = list(events_of(response.text))
    assert [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {}).get("content", [])] == whole
    assert all(len(entry["top_logprobs"]) == 2 for entry in whole)


async def test_logprobs_without_alternatives_have_an_empty_list(served: Serving) -> None:
    answer = await served.chat("x", logprobs=True, max_tokens=1)
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_top_logprobs_without_logprobs_are_refused(served: Serving) -> None:
    body = {"messages": [user("x")], "top_logprobs": 2}
    assert error_of(await served.post("/v1/chat/completions", **body), 400)["param"] == "top_logprobs"


async def test_messages_reach_the_template(served: Serving) -> None:
    messages = [{"role": "developer", "content": "Be kind."}, user([{"type": "text", "text": "Hi"}])]
    assert await prompt_of(served, messages) == "system\nBe kind.\nuser\nHi\nassistant\n"


async def test_nulls_in_messages_are_as_absent(served: Serving) -> None:
    messages = [user("a"), {"role": "assistant", "content": "b", "name": None, "tool_calls": None}, user("c")]
    assert await prompt_of(served, messages) == "user\na\nassistant\nb\nuser\nc\nassistant\n"


async def test_continue_final_message_leaves_it_open(served: Serving) -> None:
    messages = [user("a"), {"role": "assistant", "content": "The answer"}]
    assert await prompt_of(served, messages, continue_final_message=True) == "user\na\nassistant\nThe answer"


async def test_prefix_of_the_last_message_continues_it(served: Serving) -> None:
    begun = {"role": "assistant", "content": "The answer"}
    messages = [{**user("a"), "prefix": False}, {**begun, "prefix": True}]
    assert await prompt_of(served, messages) == "user\na\nassistant\nThe answer"
    assert (await prompt_of(served, [user("a"), {**begun, "prefix": False}])).endswith("assistant\n")


@pytest.mark.parametrize("last", [{"role": "assistant", "content": "b"}, user("b")])
@pytest.mark.parametrize("prefix", [True, "yes", 1])
async def test_prefix_of_another_message_is_refused_by_its_place(served: Serving, last: Any, prefix: Any) -> None:
    messages = [user("a"), {"role": "assistant", "content": "b", "prefix": prefix}, last]
    error = error_of(await served.post("/v1/chat/completions", messages=messages), 400)
    assert error["param"] == "messages[1].prefix"
    messages = [{"role": "user", "content": "a", "prefix": prefix}]
    assert error_of(await served.post("/v1/chat/completions", messages=messages), 400)["param"] == "messages[0].prefix"


async def test_usage_may_be_asked_for_as_openrouter_has_it(served: Serving) -> None:
    body = {"messages": [user("a")], "usage": {"include": True}}
    *_, last = events_of((await served.post("/v1/chat/completions", stream=True, **body)).text)
    assert last["usage"]["total_tokens"]
    assert (await served.post("/v1/chat/completions", **body)).json()["usage"]["total_tokens"]
    body["usage"] = {"include": False}
    assert "usage" not in [*events_of((await served.post("/v1/chat/completions", stream=True, **body)).text)][-1]


async def test_add_generation_prompt_can_be_turned_off(served: Serving) -> None:
    assert await prompt_of(served, [user("a")], add_generation_prompt=False) == "user\na\n"


async def test_add_special_tokens_is_off_unless_asked_for(served: Serving) -> None:
    plain = await served.chat("a", return_token_ids=True)
    assert END_OF_TEXT not in plain["prompt_token_ids"]


async def test_truncation_keeps_the_end_of_the_chat(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(echoes)) as served:
        assert await prompt_of(served, [user("a")], truncate_prompt_tokens=6) == "stant\n"


THOUGHT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content }}{% endfor %}"
)


def text_part(text: str, kind: str = "text") -> dict[str, Any]:
    return {"type": kind, "text": text}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (user([text_part("a", "input_text"), text_part("b")]), "<user>a\nb"),
        ({"role": "assistant", "content": [text_part("a", "output_text")]}, "<assistant>a"),
        (
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, text_part("a")]},
            "<assistant>(t)a",
        ),
        ({"role": "assistant", "content": [text_part("t", "reasoning"), text_part("a")]}, "<assistant>(t)a"),
        (
            {"role": "assistant", "content": [{"type": "thinking", "thinking": [text_part("t")]}, text_part("a")]},
            "<assistant>(t)a",
        ),
        (
            {
                "role": "assistant",
                "reasoning_content": "r",
                "content": [{"type": "reasoning", "reasoning": "t"}, {"type": "redacted_thinking"}, text_part("a")],
            },
            "<assistant>(r)a",
        ),
        ({"role": "tool", "tool_call_id": "c", "content": None}, "<tool>"),
    ],
)
async def test_parts_by_other_names_reach_the_template(tmp_path: Path, message: Any, shown: str) -> None:
    async with serving(tmp_path, FakeExecutor(says("x")), template=THOUGHT_TEMPLATE) as served:
        assert await prompt_of(served, [user("hi"), message]) == f"<user>hi{shown}"


@in_one_loop
@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([user([{"type": "thinking", "thinking": "t"}])], "messages[0].content[0]"),
        ([{"role": "assistant", "content": [{"type": "thinking"}]}], "messages[0].content[0].text"),
        ([user([{"type": "input_text"}])], "messages[0].content[0].text"),
        ([{"role": "king", "content": "x"}], "messages[0].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([user("x"), {"role": "user"}], "messages[1].content"),
        ([user(5)], "messages[0].content"),
        ([user(["x"])], "messages[0].content[0]"),
        ([user([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}])], "messages[0].content[0]"),
        ([user([{"type": "text", "text": 5}])], "messages[0].content[0].text"),
        ([{"role": "assistant", "tool_calls": [5]}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].function"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        ("hello", "messages"),
        ([5], "messages[0]"),
    ],
)
async def test_a_wrong_message_is_named(lasting: Serving, messages: Any, param: str) -> None:
    error = error_of(await lasting.post("/v1/chat/completions", messages=messages), 400)
    assert error["param"] == param


@pytest.mark.parametrize("name", ["messages", "self", "add_generation_prompt", "tools", "add_special_tokens"])
async def test_template_variables_cannot_replace_what_the_server_sets(served: Serving, name: str) -> None:
    body = {"messages": [user("x")], "chat_template_kwargs": {name: True}}
    error = error_of(await served.post("/v1/chat/completions", **body), 400)
    assert error["param"] == "chat_template_kwargs"
    assert name in error["message"]


async def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path, template=None) as served:
        error = error_of(await served.post("/v1/chat/completions", messages=[user("x")]), 400)
        assert "chat template" in error["message"]


def writes(*tokens: int) -> NextToken:
    return lambda prompt, output: [*tokens, END_OF_TEXT][min(len(output), len(tokens))]


async def test_a_chat_ends_at_the_tokenizers_end_token_too(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(writes(*b"Hi", MESSAGE_END, *b"more"))) as served:
        [choice] = (await served.chat("x"))["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hi", "stop")
        assert "stop_reason" not in choice
        [choice] = (await served.chat("x", ignore_eos=True, max_tokens=7))["choices"]
        assert choice["message"]["content"] == "Himore"
        [choice] = (await served.complete("x"))["choices"]
        assert choice["text"] == "Himore"  # as transformers' `generate`
        answer = answer_of(await served.post("/v1/messages", messages=[user("x")], max_tokens=9))
        assert (answer["content"][0]["text"], answer["stop_reason"]) == ("Hi", "end_turn")
        answer = answer_of(await served.post("/v1/responses", input="x"))
        assert answer["output"][0]["content"][0]["text"] == "Hi"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_stop_string_may_be_a_special_token(tmp_path: Path, is_streamed: bool) -> None:
    async with serving(tmp_path, FakeExecutor(writes(*b"Hi", MESSAGE_START, *b"more"))) as served:
        body = {"messages": [user("x")], "stop": "<|start|>", "stream": is_streamed}
        response = await served.post("/v1/chat/completions", **body)
        choices = (
            [event["choices"][0] for event in events_of(response.text)]
            if is_streamed
            else answer_of(response)["choices"]
        )
        assert "more" not in response.text
        assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", "<|start|>")
        assert (await served.complete("x", stop=["<|start|>"]))["choices"][0]["text"] == "Hi"
        body = {"messages": [user("x")], "max_tokens": 9, "stop_sequences": ["<|start|>"]}
        assert answer_of(await served.post("/v1/messages", **body))["stop_sequence"] == "<|start|>"
