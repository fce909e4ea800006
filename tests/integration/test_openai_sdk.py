"""The official `openai` package against a real server process on the demo model.

What the model says is not the point, so nothing depends on its wording, but for one question that it must know.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

from tests.server_process import ServerProcess, StartServer, until

pytestmark = pytest.mark.slow  # the contract, and clients of others, are checked elsewhere, too

MODEL = "orcinus-demo"
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
GO_ON = {"ignore_eos": True}


def client_of(server: ServerProcess, api_key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=0, timeout=60)


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with client_of(server) as client:
        yield client


def check_types(answer: Completion | ChatCompletion | ChatCompletionChunk) -> None:
    """The SDK builds its objects without checking them; this does."""
    type(answer).model_validate(answer.to_dict(), strict=True)


def test_the_demo_model_knows_the_capital_of_france(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_chat_completion_has_the_types_that_the_sdk_declares(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, n=2, logprobs=True, top_logprobs=3)
    check_types(answer)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content
        assert all(len(entry.top_logprobs) == 3 for entry in choice.logprobs.content)


def test_streamed_chat_joins_to_the_whole_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=20)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    for chunk in chunks:
        check_types(chunk)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == whole.choices[0].finish_reason
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_the_streaming_helper_of_the_sdk_works(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, temperature=0) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content


def test_streamed_completion_joins_to_the_whole_answer(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "The capital of", "temperature": 0, "max_tokens": 12}
    whole = client.completions.create(**asked)
    check_types(whole)
    chunks = list(client.completions.create(**asked, stream=True))
    for chunk in chunks:
        assert chunk.object == "text_completion"
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_a_seed_repeats_an_answer_and_another_changes_it(client: OpenAI) -> None:
    def answer(seed: int) -> str:
        completion = client.completions.create(
            model=MODEL, prompt="Once", max_tokens=40, temperature=2, seed=seed, extra_body=GO_ON
        )
        return completion.choices[0].text

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_extensions_go_through_extra_body(client: OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL,
        prompt="Hello",
        max_tokens=9,
        extra_body={"top_k": 1, "min_tokens": 9, "repetition_penalty": 1.1, "return_token_ids": True, **GO_ON},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9
    assert len(answer.choices[0].model_extra["token_ids"]) == 9  # type: ignore[index]


def test_several_prompts_and_choices_are_numbered_prompt_by_prompt(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["One", "Two", "Three"], n=2, max_tokens=3, echo=True)
    assert [choice.index for choice in answer.choices] == list(range(6))
    starts = [choice.text.split()[0][:3] for choice in answer.choices]
    assert starts == ["One", "One", "Two", "Two", "Thr", "Thr"]


def test_scoring_a_prompt_as_evaluation_harnesses_do(client: OpenAI, server: ServerProcess) -> None:

    ids = server.http.post("/tokenize", json={"prompt": "The capital of France is Paris."}).json()["tokens"]
    answer = client.completions.create(
        model=MODEL, prompt=[ids, ids], echo=True, logprobs=1, max_tokens=0, temperature=0
    )
    for choice in answer.choices:
        assert choice.text == "The capital of France is Paris."
        logprobs = choice.logprobs
        assert logprobs is not None
        lengths = {
            len(logprobs.tokens or []),
            len(logprobs.token_logprobs or []),
            len(logprobs.top_logprobs or []),
            len(logprobs.text_offset or []),
        }
        assert lengths == {len(ids)}
        first, *others = [*(logprobs.token_logprobs or [])]
        assert str(first) == "None"  # which the SDK's types do not foresee
        assert all(-9999.0 <= logprob <= 0 for logprob in others)
        assert "".join(logprobs.tokens or []) == choice.text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_a_second_identical_prompt_comes_from_the_cache(client: OpenAI) -> None:
    prompt = " ".join(str(number) for number in range(300))
    usages = [client.completions.create(model=MODEL, prompt=prompt, max_tokens=1).usage for _ in range(2)]
    details = usages[1].prompt_tokens_details if usages[1] is not None else None
    assert details is not None
    assert details.cached_tokens


def test_models_can_be_listed_and_retrieved(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such-model")


def test_errors_are_those_that_the_sdk_knows(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="gpt-5", messages=QUESTION)
    assert (not_found.value.code, not_found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=MODEL, prompt="Hi", max_tokens=100_000, stream=True)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.completions.create(model=MODEL, prompt="Hi", suffix="there")
    assert unsupported.value.param == "suffix"
    with pytest.raises(openai.APIStatusError) as late:
        client.completions.create(model=MODEL, prompt="Hi", max_tokens=1500, extra_body={**GO_ON, "timeout": 0.05})
    assert late.value.status_code == 408


def test_the_request_id_is_where_the_sdk_looks_for_it(client: OpenAI) -> None:
    response = client.completions.with_raw_response.create(
        model=MODEL, prompt="Hi", max_tokens=1, extra_headers={"x-request-id": "my-id"}
    )
    assert response.headers["x-request-id"] == "my-id"
    assert response.parse()._request_id == "my-id"


async def test_32_streams_at_once_over_8_slots_all_complete(start_server: StartServer) -> None:
    server = start_server("--max-num-seqs", "8")

    async def run(client: AsyncOpenAI, number: int) -> int:
        stream = await client.completions.create(
            model=MODEL,
            prompt=f"Request {number}",
            max_tokens=8 + number,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=GO_ON,
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-2].choices[0].finish_reason == "length"
        assert chunks[-1].usage is not None
        return chunks[-1].usage.completion_tokens

    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        counts = await asyncio.gather(*(run(client, number) for number in range(32)))
    assert counts == [8 + number for number in range(32)]
    assert server.metric("orcinus_slots") == 8
    assert server.metric('orcinus_requests_total{outcome="length"}') == 32
    assert server.metric("orcinus_generation_tokens_total") == sum(counts)


async def test_leaving_a_stream_early_ends_its_request(server: ServerProcess) -> None:
    aborted = server.metric('orcinus_requests_total{outcome="abort"}')
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = await client.completions.create(
            model=MODEL, prompt="On and on", max_tokens=2000, stream=True, extra_body=GO_ON
        )
        async for _ in stream:
            break
        await stream.close()
    async with asyncio.timeout(60):
        while server.metric('orcinus_requests_total{outcome="abort"}') == aborted:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def _is_accepted(server: ServerProcess, key: str) -> bool:
    with client_of(server, key) as client, contextlib.suppress(openai.AuthenticationError):
        return bool(client.models.list().data)
    return False


def test_api_keys_are_checked_and_read_again_from_their_file(start_server: StartServer, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# keys of the team\nfrom-file\n")
    server = start_server("--api-key", "given", "--api-key-file", str(file))
    for key in ("given", "from-file"):
        with client_of(server, key) as client:
            assert client.models.retrieve(MODEL).id == MODEL
    for key in ("wrong", "given2"):
        with client_of(server, key) as client, pytest.raises(openai.AuthenticationError) as refused:
            client.chat.completions.create(model=MODEL, messages=QUESTION)
        assert refused.value.code == "invalid_api_key"
    file.write_text("a-newer-one\n")
    until(lambda: _is_accepted(server, "a-newer-one") or None, "the file was not read again")
    with client_of(server, "from-file") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert server.get("/ready").status_code == 200
    assert "given" not in server.log
