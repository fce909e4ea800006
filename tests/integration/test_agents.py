"""Conversations of coding agents on real servers with tiny models, whose calls are written token by token."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from orcinus.config.settings import demo_model_path
from orcinus.server.http.answers import KEEP_ALIVE
from tests.agents import AGENTS, Agent, Turn
from tests.integration.tiny_models import build_model
from tests.server_process import ServerProcess
from tests.unit.engine.fakes import MESSAGE_END, VOCAB_SIZE, write_byte_tokenizer

pytestmark = pytest.mark.slow

NUM_TURNS = 10
BLOCK = 16
FLAGS = ("--block-size", str(BLOCK), "--max-num-seqs", "2", "--max-num-batched-tokens", "2048", "--dtype", "float32")


@pytest.fixture(scope="module", params=["llama", "qwen3_5"])
def agents_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose model reads 20,000 bytes as so many tokens; one has attention alone, the other keeps states."""
    directory = tmp_path_factory.mktemp(request.param)
    sizes = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 32_768, "eos_token_id": MESSAGE_END}
    build_model(request.param, directory, **sizes)
    template = (demo_model_path() / "chat_template.jinja").read_text()
    write_byte_tokenizer(directory, template.replace("<|im_start|>", "<|start|>").replace("<|im_end|>", "<|end|>"))
    server = ServerProcess(str(directory), *FLAGS)
    try:
        assert server.get("/ready").status_code == 200
        yield server
    finally:
        server.close()


def take_turn(server: ServerProcess, agent: Agent) -> Turn:
    body = {name: value for name, value in agent.body().items() if value != ""}
    response = server.http.post(agent.path, json={**body, "temperature": 0})
    assert response.status_code == 200, response.text
    return agent.take(response.text.replace(KEEP_ALIVE.decode(), ""))


def check_growth(before: Turn, turn: Turn) -> None:
    """Nothing that was computed before is computed again, but for the tokens of one block."""
    num_new = turn.num_prompt_tokens - (before.num_prompt_tokens + before.num_output_tokens - 1)
    assert turn.num_computed_tokens <= num_new + BLOCK, (before, turn)
    assert turn.cache_miss is None, (before, turn)


@pytest.mark.parametrize("kind", AGENTS)
def test_ten_turns_of_two_conversations_compute_what_is_new(kind: type[Agent], agents_server: ServerProcess) -> None:
    one, other = (kind(task, forces_calls=True) for task in ("Find the fault.", "Write a test."))
    turns = [take_turn(agents_server, one)]
    assert turns[0].num_prompt_tokens > 20_000
    turns += [take_turn(agents_server, one) for _ in range(3)]
    others = []
    for _ in range(NUM_TURNS - len(turns)):
        others.append(take_turn(agents_server, other))
        turns.append(take_turn(agents_server, one))
    for conversation in (turns, others):
        for before, turn in pairwise(conversation):
            check_growth(before, turn)
