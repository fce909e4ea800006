"""Conversations of coding agents, turn by turn: each computes what is new, and one block more at most."""

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orcinus.config.settings import demo_model_path
from tests.agents import AGENTS, BILLING_HEADER, Agent, ClaudeCode, Codex, OpenCode, Turn
from tests.unit.engine.fakes import MESSAGE_END, FakeExecutor
from tests.unit.server.serving import Serving, serving

BLOCK = 16
NUM_TURNS = 10
SIZES: dict[str, Any] = {
    "max_model_len": 65_536,
    "num_kv_blocks": 16_384,
    "max_num_batched_tokens": 8192,
    "eos_token_ids": [MESSAGE_END],
    "block_size": BLOCK,
}
TEMPLATE = (
    (demo_model_path() / "chat_template.jinja")
    .read_text()
    .replace("<|im_start|>", "<|start|>")
    .replace("<|im_end|>", "<|end|>")
)


class CallsTools:
    """A model that says what it does and calls the first tool that it is told of, in every answer."""

    def __init__(self) -> None:
        self._answers: dict[bytes, bytes] = {}

    def __call__(self, prompt: Sequence[int], output: Sequence[int]) -> int:
        key = str(len(prompt)).encode() + bytes(token for token in prompt[-64:] if token < 256)
        if key not in self._answers:
            text = bytes(token for token in prompt if token < 256).decode()
            name = next(name for name in ("Tool0", "tool_0") if f'"name": "{name}"' in text)
            number = text.count("<tool_call>\n{")
            call = f'{{"name": "{name}", "arguments": {{"step": "step 0"}}}}'
            self._answers[key] = f"Step {number}.\n<tool_call>\n{call}\n</tool_call>".encode()
        answer = self._answers[key]
        return answer[len(output)] if len(output) < len(answer) else MESSAGE_END


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path, FakeExecutor(CallsTools()), info=SIZES, template=TEMPLATE) as running:
        yield running


async def take_turn(served: Serving, agent: Agent) -> Turn:
    body = {name: value for name, value in agent.body().items() if value != ""}
    response = await served.client.post(agent.path, json=body, headers={"anthropic-beta": "effort-2025-11-24"})
    assert response.status_code == 200, response.text
    return agent.take(response.text)


def check_growth(before: Turn, turn: Turn) -> None:
    """Of what was computed before, all is cached but for the tokens of one block."""
    num_known = before.num_prompt_tokens + before.num_output_tokens - 1  # nothing is computed of the last one
    num_new = turn.num_prompt_tokens - num_known
    assert 0 < num_new < 600
    assert turn.num_computed_tokens <= num_new + BLOCK
    assert turn.cache_miss is None


@pytest.mark.parametrize("kind", AGENTS)
async def test_ten_turns_compute_what_is_new(kind: type[Agent], caller: Serving) -> None:
    agent = kind("Find the fault.")
    turns = [await take_turn(caller, agent) for _ in range(NUM_TURNS)]
    assert turns[0].num_prompt_tokens > 20_000
    assert (turns[0].num_cached_tokens, turns[0].cache_miss) == (0, {"reason": "new"})
    for before, turn in pairwise(turns):
        check_growth(before, turn)


@pytest.mark.parametrize("kind", AGENTS)
async def test_two_conversations_do_not_disturb_each_other(kind: type[Agent], caller: Serving) -> None:
    one, other = kind("Find the fault."), kind("Write a test.")
    last: dict[Agent, Turn] = {}
    for number in range(NUM_TURNS):
        for agent in (one, other):
            turn = await take_turn(caller, agent)
            if number:
                check_growth(last[agent], turn)
            last[agent] = turn


async def test_a_second_conversation_begins_behind_instructions_and_tools(caller: Serving) -> None:
    await take_turn(caller, ClaudeCode("Find the fault."))
    second = await take_turn(caller, ClaudeCode("Write a test."))
    assert second.num_cached_tokens > 20_000
    assert second.cache_miss == {
        "reason": "changed",
        "block": second.num_cached_tokens // BLOCK,
        "token": second.num_cached_tokens,
        "part": "history",
        "message": 1,
        "role": "user",
    }


async def test_what_is_left_out_of_an_agents_request_is_named(caller: Serving) -> None:
    for agent, named in (
        (ClaudeCode("x"), f"tools[20]=web_search_20250305, {BILLING_HEADER}"),
        (Codex("x"), "tools[21]=local_shell, tools[22]=web_search"),
        (OpenCode("x"), None),
    ):
        body = {name: value for name, value in agent.body().items() if value != ""}
        response = await caller.client.post(agent.path, json=body)
        assert response.headers.get("x-orcinus-left-out") == named
