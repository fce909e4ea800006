"""Answers of any length: how much of one is written and sent in one turn of the event loop, and what is kept of it."""

import asyncio
import json
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from orcinus.engine.messages import TokenLogprobs
from orcinus.engine.outputs import RequestOutput
from orcinus.server.apis import json_pieces
from orcinus.server.apis.generation import Generation, StreamableGeneration
from orcinus.server.apis.json_pieces import (
    BLOCK_BYTES,
    TURN_BYTES,
    JsonList,
    JsonText,
    JsonValue,
    LazyList,
    blocks_of,
    pieces_of,
    write_blocks,
)
from orcinus.server.http.answers import EventStream, JsonAnswer, WholeAnswer
from orcinus.server.operations import OPERATIONS, GenerationOperation
from orcinus.server.requests.caller import ANONYMOUS
from tests.unit.server.serving import Serving, answer_of, error_of, serving, user

NUM_OUTPUTS = 60
TOKENS_AT_ONCE = 4
PROMPT_TOKENS = 1000
LEAST_BYTES_OF_A_TOKEN = 300  # with its 20 alternatives
MOST_TOKENS_IN_A_TURN = TURN_BYTES // LEAST_BYTES_OF_A_TOKEN
MOST_BYTES_IN_A_TURN = TURN_BYTES + 2 * BLOCK_BYTES


class Turns:
    """Counts how often the event loop goes round, and what is done in each turn."""

    def __init__(self) -> None:
        self.work = Counter[int]()
        self._number = 0
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._count)

    def _count(self) -> None:
        self._number += 1
        self._handle = self._loop.call_soon(self._count)

    def note(self, amount: int) -> None:
        self.work[self._number] += amount

    def stop(self) -> int:
        """Return the most that was done in one turn."""
        self._handle.cancel()
        return max(self.work.values())


class WatchedEntries(list[TokenLogprobs]):
    """Log-probabilities that note when they are read."""

    turns: Turns

    def __iter__(self) -> Iterator[TokenLogprobs]:
        for entry in super().__iter__():
            self.turns.note(1)
            yield entry


def entries(num_tokens: int, turns: Turns) -> WatchedEntries:
    top = [(97 + rank, -0.123456789 * rank) for rank in range(20)]
    watched = WatchedEntries(TokenLogprobs(token_id=97, logprob=-1.5, top=top) for _ in range(num_tokens))
    watched.turns = turns
    return watched


class Outputs:
    """All that an engine says, there at once, as it is for a reader that comes late. Nothing of it may be kept."""

    def __init__(self, num_choices: int, turns: Turns, *, num_prompt_tokens: int = 0) -> None:
        self._all = (
            self._output(number // num_choices, number % num_choices) for number in range(num_choices * NUM_OUTPUTS)
        )
        self._turns = turns
        self._num_prompt_tokens = num_prompt_tokens
        self._given: list[weakref.ref[WatchedEntries]] = []

    def _output(self, number: int, index: int) -> RequestOutput:
        said = entries(TOKENS_AT_ONCE, self._turns)
        self._given.append(weakref.ref(said))
        prompt: Any = entries(self._num_prompt_tokens, self._turns) if self._num_prompt_tokens and not number else None
        return RequestOutput(
            index=index,
            text="a" * TOKENS_AT_ONCE,
            token_ids=[97] * TOKENS_AT_ONCE,
            logprobs=said,
            prompt_logprobs=prompt,
            finish_reason="length" if number == NUM_OUTPUTS - 1 else None,
        )

    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        return self

    async def __anext__(self) -> RequestOutput:
        for output in self._all:
            assert sum(ref() is not None for ref in self._given) <= 2, "nothing but bytes is kept of what was read"
            return output
        raise StopAsyncIteration

    def abort(self) -> None: ...


@pytest.fixture
async def roomy(tmp_path: Path) -> AsyncIterator[Serving]:
    """An app whose model takes long prompts."""
    async with serving(tmp_path, info={"max_model_len": 2048, "num_kv_blocks": 2048}) as running:
        yield running


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def started(served: Serving, path: str, body: dict[str, Any]) -> Generation:
    operation = OPERATIONS.at(path)
    assert isinstance(operation, GenerationOperation)
    generation = await operation.start(served.app.state.context, body, ANONYMOUS)
    generation.stream.abort()
    return generation


async def sent(response: Any, turns: Turns) -> bytes:
    """The body of a response, each of whose parts is noted in its turn."""
    body = bytearray()

    async def send(message: Message) -> None:
        body.extend(message.get("body", b""))
        turns.note(len(message.get("body", b"")))

    await response({"type": "http", "state": {"request_id": "x"}, "path": "/"}, never, send)
    return bytes(body)


CHAT = {"messages": [user("x")], "logprobs": True, "top_logprobs": 20, "max_tokens": 200}
COMPLETION = {"prompt": [97] * PROMPT_TOKENS, "logprobs": 20, "max_tokens": 40}
RESPONSE = {"input": "x", "top_logprobs": 20, "include": ["message.output_text.logprobs"], "max_output_tokens": 200}

ASKED: dict[str, tuple[str, dict[str, Any], int]] = {
    "a chat": ("/v1/chat/completions", CHAT, 1),
    "a chat of many choices": ("/v1/chat/completions", {**CHAT, "n": 8}, 8),
    "a chat whose prompt is told of": ("/v1/chat/completions", {**CHAT, "prompt_logprobs": 20}, 1),
    "a completion": ("/v1/completions", {**COMPLETION, "n": 3}, 3),
    "a completion with its prompt": ("/v1/completions", {**COMPLETION, "echo": True, "n": 2}, 2),
    "a completion whose prompt is told of": ("/v1/completions", {**COMPLETION, "prompt_logprobs": 20}, 1),
    "a response": ("/v1/responses", RESPONSE, 1),
}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", ASKED)
async def test_no_turn_of_the_event_loop_has_much_of_an_answer(roomy: Serving, name: str, is_streamed: bool) -> None:
    path, body, num_choices = ASKED[name]
    generation = await started(roomy, path, {**body, "stream": is_streamed})
    reading, sending = Turns(), Turns()
    has_prompt = "echo" in body or "prompt_logprobs" in body
    generation.stream = Outputs(num_choices, reading, num_prompt_tokens=PROMPT_TOKENS if has_prompt else 0)
    if is_streamed:
        assert isinstance(generation, StreamableGeneration)
        text = (await sent(EventStream(generation, 10.0), sending)).decode()
    else:
        text = (await sent(WholeAnswer(generation), sending)).decode()
        json.loads(text)
    assert reading.stop() <= MOST_TOKENS_IN_A_TURN
    assert sending.stop() <= MOST_BYTES_IN_A_TURN
    num_tokens = num_choices * (NUM_OUTPUTS * TOKENS_AT_ONCE + (PROMPT_TOKENS if has_prompt else 0))
    assert len(text) > LEAST_BYTES_OF_A_TOKEN * num_tokens, "all of it came"


async def test_embeddings_are_written_and_sent_in_turns() -> None:
    turns = Turns()
    written: list[int] = []

    def write() -> Iterator[bytes]:
        for number in range(100):
            turns.note(1)
            written.append(number)
            yield b'"%b"' % (b"x" * 4096)

    blocks = await write_blocks({"data": LazyList(write)})
    assert turns.stop() <= TURN_BYTES // 4096 + BLOCK_BYTES // 4096 + 1
    assert max(map(len, blocks)) <= 2 * BLOCK_BYTES
    assert len(json.loads(b"".join(blocks))["data"]) == 100


async def test_a_block_that_is_long_by_itself_is_sent_in_parts() -> None:
    turns = Turns()
    text = "x" * 10 * TURN_BYTES
    body = await sent(JsonAnswer(await write_blocks({"text": text})), turns)
    assert json.loads(body) == {"text": text}
    assert turns.stop() <= MOST_BYTES_IN_A_TURN


# --- documents with long values ----------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def as_list(values: list[Any]) -> JsonList:
    written = JsonList()
    for value in values:
        written.extend([value])
    return written


def as_text(text: str, beginning: str = "") -> JsonText:
    written = JsonText(json_pieces.written_text(beginning))
    for character in text:
        written.add(character)
    return written


WAYS: list[Callable[[Any], Any]] = [
    lambda value: as_list(value) if isinstance(value, list) else value,
    lambda value: LazyList(lambda: as_parts(value)) if isinstance(value, list) else value,
    lambda value: as_text(value) if isinstance(value, str) else value,
    lambda value: as_text(value[1:], value[:1]) if isinstance(value, str) else value,
    lambda value: JsonValue(json.dumps(value).encode()) if isinstance(value, (int, type(None))) else value,
]


def as_parts(values: list[Any]) -> Iterator[bytes]:
    return (json.dumps(value).encode() for value in values)


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=5), st.data())
def test_a_document_is_the_same_however_its_values_are_written(document: dict[str, Any], data: st.DataObject) -> None:
    given = {name: data.draw(st.sampled_from(WAYS))(value) for name, value in document.items()}
    assert json.loads(b"".join(pieces_of({"in": [given, given]}))) == {"in": [document, document]}


@given(st.lists(st.integers(0, 5 * BLOCK_BYTES // 2), max_size=5))
def test_blocks_are_the_pieces_in_other_sizes(sizes: list[int]) -> None:
    pieces = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    blocks = [*blocks_of(pieces)]
    assert b"".join(blocks) == b"".join(pieces)
    assert all(0 < len(block) < 2 * BLOCK_BYTES for block in blocks)


def test_what_is_kept_of_a_long_list_is_blocks() -> None:
    written = JsonList()
    for number in range(BLOCK_BYTES):
        written.extend([number])
    pieces = [*written.pieces()]
    assert max(map(len, pieces)) < 2 * BLOCK_BYTES
    assert json.loads(b"".join(pieces)) == [*range(BLOCK_BYTES)]


def test_a_value_that_is_no_json_is_an_error() -> None:
    with pytest.raises(TypeError, match="complex"):
        [*pieces_of({"x": 1j})]


# --- the bound on what one request may ask ----------------------------------------------------------------

TOO_MUCH: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": [user("x")], "logprobs": True, "top_logprobs": 4, "max_tokens": 21}, "105"),
    ("/v1/chat/completions", {"messages": [user("x")], "logprobs": True, "n": 2, "max_completion_tokens": 51}, "102"),
    ("/v1/chat/completions", {"messages": [user("x" * 90)], "prompt_logprobs": 0, "max_tokens": 1}, ""),
    ("/v1/completions", {"prompt": "x", "logprobs": 4, "max_tokens": 21}, "105"),
    ("/v1/completions", {"prompt": ["x", "y"], "logprobs": 0, "max_tokens": 51}, "102"),
    ("/v1/completions", {"prompt": "x" * 60, "logprobs": 1, "echo": True, "max_tokens": 0}, "120"),
    ("/v1/completions", {"prompt": "x" * 60, "prompt_logprobs": 1, "max_tokens": 0}, "120"),
    ("/v1/completions", {"prompt": "x", "best_of": 11, "max_tokens": 10}, "110"),
    ("/v1/responses", {**RESPONSE, "top_logprobs": 4, "max_output_tokens": 21}, "105"),
]


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("path", "body", "number"), TOO_MUCH)
async def test_more_log_probabilities_than_a_request_may_ask_for_are_a_400_with_limit_and_number(
    tmp_path: Path, path: str, body: dict[str, Any], number: str, is_streamed: bool
) -> None:
    if is_streamed and "best_of" in body:
        pytest.skip("what is best of several is known at the end")
    async with serving(tmp_path, max_logprobs_per_request=100) as served:
        error = error_of(await served.post(path, **body, stream=is_streamed), 400)
        assert "at most 100 log-probabilities (max_logprobs_per_request)" in error["message"]
        assert f"asks for {number}" in error["message"]
        assert "logprobs" in error["param"]
        less = {name: value for name, value in body.items() if name in ("messages", "prompt", "input")}
        answer_of(await served.post(path, **less))
