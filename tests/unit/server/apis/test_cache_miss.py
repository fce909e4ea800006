"""Why less of a prompt was cached than could have been: in the usage of every API, and in `Server-Timing`."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orcinus.server.apis.prompt_parts import Place, place_at
from tests.message_events import named_events, put_together
from tests.unit.engine.fakes import END_OF_TEXT, MESSAGE_END, FakeExecutor, says
from tests.unit.server.serving import Serving, answer_of, events_of, serving, user

BLOCK = 16
SIZES: dict[str, Any] = {"max_model_len": 4096, "num_kv_blocks": 256, "eos_token_ids": [MESSAGE_END]}
# In the manner of Qwen's: thoughts are shown of the turns since the user's last message alone.
TEMPLATE = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
    "{% set first = messages[0] if messages[0].role == 'system' else none %}"
    "<|start|>system\n{{ first.content if first else '' }}"
    "{% if tools %}\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    '<tool_call>{"name": ..., "arguments": ...}</tool_call>{% endif %}<|end|>\n'
    "{% for m in messages %}{% if m.role != 'system' %}<|start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.index0 > ns.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
RULES = "Follow these rules of the house, all of them, whatever else is said."
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"What {name} does is told here.", "parameters": {}}}
    for name in ("read", "write", "search")
]
CHAT = [{"role": "system", "content": RULES}, user("How long is a very long question?")]


@pytest.fixture
async def answering(tmp_path: Path) -> AsyncIterator[Serving]:
    thinks = says("<think>\nLonger than this.\n</think>\n\nAs long as it takes.")
    executor = FakeExecutor(
        lambda prompt, output: {END_OF_TEXT: MESSAGE_END}.get(token := thinks(prompt, output), token)
    )
    async with serving(tmp_path, executor, info=SIZES, template=TEMPLATE, api_key=("a", "b")) as running:
        running.client.headers["authorization"] = "Bearer a"
        yield running


async def ask(served: Serving, messages: Any = CHAT, **body: Any) -> tuple[int, Any, dict[str, Any]]:
    """Return how much was cached, the reason why it was no more, and the answer's message."""
    answer = answer_of(await served.post("/v1/chat/completions", messages=messages, **body))
    details = answer["usage"]["prompt_tokens_details"]
    return details["cached_tokens"], details.get("cache_miss"), answer["choices"][0]["message"]


async def test_nothing_is_said_of_a_prompt_that_was_cached(answering: Serving) -> None:
    assert (await ask(answering))[:2] == (0, {"reason": "new"})
    cached, miss, _ = await ask(answering)
    assert (cached > 100, miss) == (True, None)


async def test_a_changed_instruction_is_in_the_system_part(answering: Serving) -> None:
    await ask(answering)
    changed = RULES.replace("whatever", "whatsoever")
    cached, miss, _ = await ask(answering, [{"role": "system", "content": changed}, CHAT[1]])
    position = len("|system\n") + RULES.index("whatever") + len("what")  # of the first character that differs
    block = position // BLOCK
    where = {"part": "system", "message": 0, "role": "system"}
    assert miss == {"reason": "changed", "block": block, "token": block * BLOCK, **where}
    assert cached == block * BLOCK


async def test_tools_in_another_order_are_in_the_tools(answering: Serving) -> None:
    await ask(answering, tools=TOOLS)
    cached, miss, _ = await ask(answering, tools=[TOOLS[0], TOOLS[2], TOOLS[1]])
    assert (miss["reason"], miss["part"], miss["token"]) == ("changed", "tools", cached)
    assert miss["tool"] in ("read", "search")
    again = [{"function": tool["function"], "type": "function"} for tool in TOOLS]
    assert (await ask(answering, tools=again))[1]["part"] == "tools", "they are shown as they were written"


async def test_an_edited_message_is_in_the_history(answering: Serving) -> None:
    history = [*CHAT, {"role": "assistant", "content": "It depends on who asks it, and when."}, user("Go on, please.")]
    await ask(answering, history)
    edited = [*history[:2], {"role": "assistant", "content": "It depends on who hears it, and when."}, history[3]]
    cached, miss, _ = await ask(answering, edited)
    where = {"part": "history", "message": 2, "role": "assistant"}
    assert miss == {"reason": "changed", "block": cached // BLOCK, "token": cached, **where}


async def test_thoughts_that_the_template_drops_are_told_of(answering: Serving) -> None:
    """What the model thought was computed, and the next turn's prompt has it no more."""
    _, _, message = await ask(answering)
    assert message["reasoning_content"]
    cached, miss, _ = await ask(answering, [*CHAT, message, user("And then?")])
    assert (miss["reason"], miss["part"], miss["message"], miss["role"]) == ("changed", "history", 2, "assistant")
    assert miss["token"] == cached > 100
    kept, miss, _ = await ask(answering, [*CHAT, message, {"role": "tool", "tool_call_id": "x", "content": "4"}])
    assert (kept > cached, miss) == (True, None)


async def test_evicted_blocks_are_called_so(answering: Serving) -> None:
    await ask(answering)
    await ask(answering, [user("x" * 3800)])  # takes all blocks but a few
    await ask(answering, [user("y" * 3800)])
    cached, miss, _ = await ask(answering)
    assert miss == {"reason": "evicted", "block": cached // BLOCK, "token": cached}


@pytest.mark.parametrize("scope", ["key", "all"])
async def test_prompts_of_others_are_not_compared_with(tmp_path: Path, scope: str) -> None:
    """A client learns nothing of what another one, or the same with another salt, has sent."""
    settings: dict[str, Any] = {"api_key": ("a", "b"), "prefix_cache_scope": scope}
    async with serving(tmp_path, FakeExecutor(says("Hi")), info=SIZES, template=TEMPLATE, **settings) as served:
        served.client.headers["authorization"] = "Bearer a"
        await ask(served)
        assert (await ask(served, cache_salt="s"))[1] == {"reason": "new"}
        served.client.headers["authorization"] = "Bearer b"
        changed = [{"role": "system", "content": RULES + "?"}, CHAT[1]]
        assert (await ask(served, changed))[1] == {"reason": "new"}


async def test_without_a_prefix_cache_nothing_is_said(tmp_path: Path) -> None:
    info = {**SIZES, "enable_prefix_caching": False}
    async with serving(tmp_path, FakeExecutor(says("Hi")), info=info, template=TEMPLATE) as served:
        for _ in range(2):
            assert (await ask(served))[:2] == (0, None)


async def test_every_api_says_it_whole_and_streamed(answering: Serving) -> None:
    new = {"reason": "new"}
    for salt, is_streamed in (("a", False), ("b", True)):
        options: dict[str, Any] = {"stream": is_streamed, "cache_salt": salt}
        answers = [
            await answering.post("/v1/messages", messages=[CHAT[1]], max_tokens=99, **options),
            await answering.post("/v1/responses", input="How long is a long question?", **options, top_k=1),
        ]
        options["cache_salt"] += "chat"
        usage = {"stream_options": {"include_usage": True}} if is_streamed else {}
        answers.append(await answering.post("/v1/chat/completions", messages=[CHAT[1]], **options, **usage))
        if is_streamed:
            message = put_together(named_events(answers[0].text))
            response = [*named_events(answers[1].text)][-1]["response"]
            chat = [*events_of(answers[2].text)][-1]
        else:
            message, response, chat = map(answer_of, answers)
        assert message["usage"]["cache_miss"] == new
        assert response["usage"]["input_tokens_details"].get("cache_miss") is not None
        assert chat["usage"]["prompt_tokens_details"]["cache_miss"] == new
        for answer, reason in zip(answers, ("new", "changed", "new"), strict=True):
            assert f'cache_miss;desc="{reason}' in answer.headers["server-timing"]
            assert "cached_tokens;desc=" in answer.headers["server-timing"]


async def test_no_name_that_a_client_chose_is_in_a_header(answering: Serving) -> None:
    tools = [{"type": "function", "function": {"name": f"t{n}", "parameters": {"x": "y" * 40}}} for n in range(3)]
    await answering.post("/v1/chat/completions", messages=CHAT, tools=tools)
    answer = await answering.post("/v1/chat/completions", messages=CHAT, tools=tools[::-1])
    assert "part=tools" in answer.headers["server-timing"]
    assert "t2" not in answer.headers["server-timing"]


# --- parts of a prompt ----------------------------------------------------------------------------------

PARTS = [
    {"role": "system", "content": "Be brief."},
    user([{"type": "text", "text": "First."}]),
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]},
    {"role": "tool", "content": "First."},
    {"role": "assistant", "content": "Done."},
    user(" Thanks. "),
]
TEXT = 'A: Be brief. T: {"name": "look"} U: First. C: look{} R: First. D: Done. U: Thanks. E'


@pytest.mark.parametrize(
    ("until", "place"),
    [
        ("A:", Place("system")),
        ("A: Be", Place("system", 0, "system")),
        ('T: {"name', Place("tools", tool="look")),
        ("U: First", Place("history", 1, "user")),
        ("C: look", Place("history", 2, "assistant")),
        ("R: First", Place("history", 3, "tool")),
        ("D: Done", Place("history", 4, "assistant")),
        ("Thanks. E", Place("history", 5, "user")),
    ],
)
def test_a_place_in_a_prompt_is_found_by_the_texts_in_it(until: str, place: Place) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert place_at(TEXT, TEXT.index(until) + len(until), PARTS, tools) == place


def test_what_is_not_shown_is_passed_over() -> None:
    unseen = [{"role": "user", "content": f"unseen {n}"} for n in range(3)]
    assert place_at("A: B.", 5, [*unseen, user("B.")], []) == Place("history", 3, "user")
    assert place_at("A: B.", 5, [*unseen, *unseen, user("B.")], [{}, {"function": 1}]) == Place("system")
    assert place_at("", 0, [], []) == Place("system")


BAKER = "You are a baker and answer what is asked about bread. " * 5
OVEN = {"type": "function", "function": {"name": "oven", "description": "Bake a loaf, at a heat. " * 5}}
AS_JSON = json.dumps(OVEN)


@pytest.mark.parametrize("num_shown", [90, 200, 10_000])
def test_short_messages_are_not_found_in_the_texts_before_them(num_shown: int) -> None:
    """The text may be cut off within the part that it ends in, as little more than a block's end is known."""
    messages = [{"role": "system", "content": BAKER}, user("a"), user(BAKER), {"role": "assistant", "content": "b"}]
    text = f"S: {BAKER}|T: {AS_JSON}|U: a|U: {BAKER}|A: b|"
    tools, turn = text.index("|T:"), text.index("|U: Y")
    for begin, place in (
        (0, Place("system", 0, "system")),
        (tools + 4, Place("tools", tool="oven")),
        (turn + 4, Place("history", 2, "user")),
    ):
        end = begin + 80
        assert place_at(text[: begin + num_shown], end, messages, [OVEN]) == place
    bare = text.replace(AS_JSON, json.dumps(OVEN["function"]))
    assert place_at(bare, bare.index("|U: a") - 9, messages, [OVEN]) == Place("tools", tool="oven")
