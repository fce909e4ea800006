"""POST /v1/embeddings: every form of input and of vector, its limits, and what becomes of it on the way."""

import asyncio
import base64
import inspect
import json
import math
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.resources import Embeddings
from openai.types import CreateEmbeddingResponse

from orcinus.engine.messages import StepPlan, StepResult
from orcinus.server.apis.embeddings import answer as embeddings
from orcinus.server.apis.embeddings.body import EmbeddingBody, parse_embedding
from orcinus.server.requests.parameters import parameter_table
from tests.unit.engine.fakes import EMBEDDING_SIZE, FakeExecutor, embedding
from tests.unit.server.serving import Gate, Serving, answer_of, error_of, in_one_loop, listening, serving, until

URL = "/v1/embeddings"
CLIENT_ONLY = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as served:
        yield served


async def embed(served: Serving, given: Any, **body: Any) -> dict[str, Any]:
    return answer_of(await served.post(URL, input=given, **body))


def vectors_of(answer: dict[str, Any]) -> list[Any]:
    return [entry["embedding"] for entry in answer["data"]]


def expected(text: str, pooling: Any = "mean") -> Any:
    return pytest.approx(embedding(list(text.encode()), pooling), abs=1e-6)


async def test_an_embedding_has_the_shape_that_the_sdk_declares(served: Serving) -> None:
    answer = await embed(served, "hello", model="fake-model")
    CreateEmbeddingResponse.model_validate(answer, strict=True)
    assert list(answer) == ["object", "data", "model", "usage"]
    assert answer["object"] == "list"
    assert answer["model"] == "fake-model"
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    [entry] = answer["data"]
    assert (entry["object"], entry["index"]) == ("embedding", 0)
    assert entry["embedding"] == expected("hello")


@pytest.mark.parametrize(
    "given",
    [["ab", "c"], [[97, 98], [99]], ["ab", [99]]],
    ids=["texts", "token ids", "both"],
)
async def test_every_input_of_a_list_gets_its_own_vector_in_order(served: Serving, given: Any) -> None:
    answer = await embed(served, given)
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert vectors_of(answer) == [expected("ab"), expected("c")]
    assert answer["usage"]["prompt_tokens"] == 3


async def test_a_list_of_token_ids_is_one_input(served: Serving) -> None:
    assert vectors_of(await embed(served, [97, 98])) == [expected("ab")]


async def test_inputs_that_finish_out_of_order_keep_their_places(tmp_path: Path) -> None:
    async with serving(tmp_path, info={"max_num_batched_tokens": 4, "max_num_seqs": 2}) as served:
        texts = ["a" * 23, "b", "c" * 9, "d", "e"]
        assert vectors_of(await embed(served, texts)) == [expected(text) for text in texts]


async def test_base64_holds_the_same_numbers_as_little_endian_float32(served: Serving) -> None:
    [plain] = vectors_of(await embed(served, "hello"))
    [packed] = vectors_of(await embed(served, "hello", encoding_format="base64"))
    assert isinstance(packed, str)
    assert list(struct.unpack(f"<{EMBEDDING_SIZE}f", base64.b64decode(packed, validate=True))) == plain


async def test_bytes_are_swapped_where_the_machine_is_big_endian(monkeypatch: pytest.MonkeyPatch) -> None:
    native = struct.pack("=2f", 1.0, 2.0)
    swapped = struct.pack("=2f", 1.0, 2.0)[3::-1] + struct.pack("=f", 2.0)[::-1]
    monkeypatch.setattr("sys.byteorder", "big")
    body = parse_embedding({"input": "x", "encoding_format": "base64"})
    [written] = embeddings._write_entries([native], body)
    assert base64.b64decode(json.loads(written)["embedding"]) == swapped


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
async def test_dimensions_keep_the_first_numbers_at_length_one(served: Serving, encoding_format: str) -> None:
    [whole] = vectors_of(await embed(served, "hello"))
    [short] = vectors_of(await embed(served, "hello", dimensions=5, encoding_format=encoding_format))
    if encoding_format == "base64":
        short = list(struct.unpack("<5f", base64.b64decode(short)))
    length = math.hypot(*whole[:5])
    assert short == pytest.approx([number / length for number in whole[:5]], abs=1e-6)
    assert math.hypot(*short) == pytest.approx(1, abs=1e-6)


async def test_all_dimensions_are_the_vector_itself(served: Serving) -> None:
    assert vectors_of(await embed(served, "hello", dimensions=EMBEDDING_SIZE)) == [expected("hello")]


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20), st.data())
def test_any_vector_shortened_has_length_one_or_is_zero(numbers: list[float], data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, len(numbers)))
    vector = struct.pack(f"{len(numbers)}f", *numbers)
    body = parse_embedding({"input": "x", "dimensions": dimensions})
    [written] = embeddings._write_entries([vector], body)
    short = json.loads(written)["embedding"]
    assert len(short) == dimensions
    if dimensions < len(numbers):
        length = 1.0 if any(numbers[:dimensions]) else 0.0
        assert math.hypot(*short) == pytest.approx(length, abs=1e-5)
    else:
        assert short == numbers


async def test_the_models_pooling_is_what_the_engine_is_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path, info={"pooling": "last"}) as served:
        assert vectors_of(await embed(served, "hello")) == [expected("hello", "last")]


@in_one_loop
@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "input", "required"),
        ({"input": None}, "input", "required"),
        ({"input": ""}, "input", "empty"),
        ({"input": ["a", ""]}, "input", "input[1] is empty"),
        ({"input": []}, "input", "an empty list"),
        ({"input": [[]]}, "input", "input[0] is empty"),
        ({"input": [[1], []]}, "input", "input[1] is empty"),
        ({"input": 5}, "input", "must be a string"),
        ({"input": {"text": "a"}}, "input", "must be a string"),
        ({"input": [1.5]}, "input", "must be a string"),
        ({"input": [True]}, "input", "must be a string"),
        ({"input": [["a"]]}, "input", "must be a string"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"input": [[1, 300]]}, "input", "258"),
        ({"input": [-1]}, "input", "258"),
        ({"input": "a" * 257}, "input", "256"),
        ({"input": "a", "dimensions": 9}, "dimensions", "at most 8"),
        ({"input": "a", "dimensions": 10**9}, "dimensions", "1000000000"),
        ({"input": "a", "dimensions": 0}, "dimensions", "1"),
        ({"input": "a", "dimensions": "4"}, "dimensions", "integer"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "base64"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-1"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "input", "at least one token"),
        ({"input": "a", "timeout": 0}, "timeout", "0"),
        ({"input": "a", "temperature": 1}, "temperature", "unknown"),
        ({"input": "a", "stream": True}, "stream", "unknown"),
        ({"input": "a", "dimension": 4}, "dimension", "unknown"),
    ],
)
async def test_what_is_wrong_is_named_with_its_limit(
    lasting: Serving, body: dict[str, Any], param: str, said: str
) -> None:
    error = error_of(await lasting.post(URL, **body), 400)
    assert error["param"] == param
    assert said in error["message"]


async def test_an_input_beyond_the_context_says_so_in_its_code(served: Serving) -> None:
    error = error_of(await served.post(URL, input=["a", "a" * 300]), 400)
    assert error["code"] == "context_length_exceeded"
    assert "300" in error["message"]
    assert "256" in error["message"]
    assert len(vectors_of(await embed(served, "a" * 256))) == 1


@pytest.mark.parametrize("asked", [("/v1/embeddings", "input"), ("/v1/completions", "prompt")])
async def test_no_more_is_tokenized_once_one_is_too_long(
    served: Serving, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, str]
) -> None:
    path, field = asked
    encode, encoded = served.engine.encode, []

    async def note(text: str, **options: Any) -> list[int]:
        encoded.append(text)
        return await encode(text, **options)

    monkeypatch.setattr(served.engine, "encode", note)
    error = error_of(await served.post(path, **{field: ["a", "b" * 300, *"c" * 200]}), 400)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == field
    assert encoded == ["a", "b" * 300]


async def test_long_inputs_are_cut_to_their_end_where_that_is_asked_for(served: Serving) -> None:
    answer = await embed(served, ["a" * 300 + "b", "c"], truncate_prompt_tokens=3)
    assert vectors_of(answer) == [expected("aab"), expected("c")]
    assert answer["usage"]["prompt_tokens"] == 4
    assert (await embed(served, "a" * 300, truncate_prompt_tokens=-1))["usage"]["prompt_tokens"] == 256


async def test_an_unknown_model_is_a_404(served: Serving) -> None:
    assert error_of(await served.post(URL, input="a", model="gpt-5"), 404)["code"] == "model_not_found"


async def test_the_user_is_ignored_and_nulls_are_absent(served: Serving) -> None:
    nulls = dict.fromkeys(set(EmbeddingBody.model_fields) - {"input"})
    assert vectors_of(await embed(served, "hello", **nulls)) == [expected("hello")]
    assert vectors_of(await embed(served, "hello", user="me")) == [expected("hello")]


def test_every_parameter_of_the_sdk_has_a_decision() -> None:
    decided = {row.name for row in parameter_table({"embeddings": EmbeddingBody}) if "embeddings" in row.endpoints}
    assert set(inspect.signature(Embeddings.create).parameters) - CLIENT_ONLY <= decided
    assert all(field.description for field in EmbeddingBody.model_fields.values())


async def test_the_openapi_document_has_the_bounds_of_the_body(served: Serving) -> None:
    document = answer_of(await served.client.get("/openapi.json"))
    body = document["paths"][URL]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/EmbeddingBody"}
    properties = document["components"]["schemas"]["EmbeddingBody"]["properties"]
    assert [form.get("maxItems") for form in properties["input"]["anyOf"]] == [None, None, 2048]
    assert set(properties) == {*EmbeddingBody.model_fields, "user", "normalize", "truncate", "embed_dtype"}
    assert "float32" in properties["embed_dtype"]["enum"]
    assert True in properties["normalize"]["enum"]


async def test_priority_salt_and_special_tokens_reach_the_engine(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        requests = []
        submit = served.engine.submit

        def recording(request: Any) -> Any:
            requests.append(request)
            return submit(request)

        served.engine.submit = recording  # type: ignore[method-assign]
        await embed(served, "a", priority=-3, cache_salt="salt", timeout=2.5, add_special_tokens=False)
        [request] = requests
        assert (request.priority, request.cache_salt, request.timeout_s) == (-3, "salt", 2.5)
        assert (request.sampling.pooling, request.sampling.max_tokens) == ("mean", 0)


async def test_more_inputs_than_fit_slots_and_queue_are_refused_with_both_numbers(tmp_path: Path) -> None:
    async with serving(tmp_path, info={"max_num_seqs": 4}, max_queue_len=3) as served:
        assert len(vectors_of(await embed(served, ["a"] * 7))) == 7
        error = error_of(await served.post(URL, input=["a"] * 8), 400)
        assert error["param"] == "input"
        assert "7" in error["message"]
        assert "8" in error["message"]


async def test_inputs_that_find_the_queue_full_are_refused_as_a_whole(tmp_path: Path) -> None:
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(before_step=gate), info={"max_num_seqs": 1}, max_queue_len=3) as served:
        first = asyncio.create_task(served.post(URL, input=["a"] * 3))
        await until(lambda: served.engine.num_queued)
        refused = await served.post(URL, input=["b"] * 3)
        assert error_of(refused, 429)["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        gate.open()
        assert len(vectors_of(answer_of(await first))) == 3


async def test_two_thousand_inputs_are_one_answer(tmp_path: Path) -> None:
    async with serving(tmp_path, max_queue_len=2048) as served:
        texts = [f"{number}" for number in range(2048)]
        vectors = vectors_of(await embed(served, texts))
        assert vectors[::500] == [expected(text) for text in texts[::500]]
        assert len(vectors) == 2048


async def test_an_input_that_fails_fails_its_request_alone(tmp_path: Path) -> None:
    class Broken(FakeExecutor):
        def execute(self, plan: StepPlan) -> StepResult:
            result = super().execute(plan)
            broken = [new.request_id for new in plan.new_requests if new.token_ids == [0]]
            for request_id in broken:
                result.embeddings.pop(request_id)
                result.errors[request_id] = "the model's embedding is not finite"
            return result

    async with serving(tmp_path, Broken()) as served:
        error = error_of(await served.post(URL, input=["a", "\0", "b"]), 500)
        assert error["message"] == "the model's embedding is not finite"
        assert vectors_of(await embed(served, "a")) == [expected("a")]


async def test_a_deadline_that_passes_is_a_408(tmp_path: Path) -> None:
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(before_step=gate)) as served:
        assert error_of(await served.post(URL, input="a", timeout=0.05), 408)["type"] == "timeout"
        gate.open()


async def test_leaving_ends_the_request_and_frees_its_slots(tmp_path: Path) -> None:
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(before_step=gate)) as served, listening(served) as (_, port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            asking = asyncio.create_task(client.post(URL, json={"input": ["a", "b"]}))
            await until(lambda: served.engine.num_queued)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: served.engine.num_running + served.engine.num_queued == 0)
        assert await served.metric("orcinus_requests_total", outcome="abort") == 2
        gate.open()


async def test_metrics_count_prompts_and_no_generated_token(served: Serving) -> None:
    await embed(served, ["abc", "de"])
    assert await served.metric("orcinus_prompt_tokens_total") == 5
    assert await served.metric("orcinus_generation_tokens_total") == 0
    assert await served.metric("orcinus_requests_total", outcome="stop") == 2
    assert await served.metric("orcinus_time_to_first_token_seconds_count") == 0


async def test_a_model_without_a_head_embeds_and_refuses_to_write_by_every_api(tmp_path: Path) -> None:
    async with serving(tmp_path, info={"has_head": False, "architecture": "MistralModel"}) as served:
        assert vectors_of(await embed(served, "hello")) == [expected("hello")]
        messages = [{"role": "user", "content": "hi"}]
        for path, body in (
            ("/v1/completions", {"prompt": "hi"}),
            ("/v1/completions", {"prompt": "hi", "max_tokens": 0, "echo": True, "logprobs": 1}),
            ("/v1/chat/completions", {"messages": messages}),
            ("/v1/responses", {"input": "hi"}),
            ("/v1/messages", {"messages": messages, "max_tokens": 1}),
        ):
            response = await served.post(path, **body)
            assert response.status_code == 400, path
            assert "(MistralModel) has no language-model head" in response.text
