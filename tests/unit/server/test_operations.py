"""The table of endpoints: a row is all that an endpoint needs to be served like any other."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from orcinus.server.apis.answer_schemas import INTEGER, STRING, AnswerSchema, object_with
from orcinus.server.apis.completions.answer import start_completion
from orcinus.server.apis.generation import Generation
from orcinus.server.commands.generate import _DESCRIPTION, batch_operations
from orcinus.server.context import ServingContext
from orcinus.server.operations import OPERATIONS, BodyOperation, GenerationOperation, LookupOperation, OperationTable
from orcinus.server.requests.bodies import Body, read_body
from orcinus.server.requests.caller import Caller
from tests.unit.engine.fakes import FakeExecutor, alphabet
from tests.unit.server.serving import Gate, answer_of, error_of, generation_request, serving

KEY = {"authorization": "Bearer secret"}


class TaleBody(Body):
    """POST /v1/tales."""

    needed = ("beginning",)
    beginning: str = Field("", max_length=20, description="How the tale begins.")


async def start_tale(ctx: ServingContext, body: Mapping[str, Any], caller: Caller) -> Generation:
    return await start_completion(ctx, {"prompt": read_body(TaleBody, body).beginning, "max_tokens": 3}, caller)


async def measure_tale(ctx: ServingContext, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"length": len(read_body(TaleBody, body).beginning)}


def find_teller(ctx: ServingContext, teller: str) -> dict[str, Any]:
    return {"teller": teller}


TALE = AnswerSchema("Tale", object_with(id=STRING))
LENGTH = AnswerSchema("Length", object_with(length=INTEGER))
TALES = GenerationOperation(
    "/v1/tales", name="tales", tag="tales", start=start_tale, body=TaleBody, answer=TALE, is_streamed=False
)
LENGTHS = BodyOperation("/v1/tales/length", name="length", tag="tales", work=measure_tale, body=TaleBody, answer=LENGTH)
TELLERS = LookupOperation(
    "/v1/tellers/{teller:path}", name="teller", tag="tales", look_up=find_teller, is_guarded=False
)
MORE_OPERATIONS = OperationTable([*OPERATIONS, TALES, LENGTHS, TELLERS])


async def test_a_row_is_routed_guarded_and_counted_under_its_own_label(tmp_path: Path) -> None:
    async with serving(tmp_path, operations=MORE_OPERATIONS, api_key=("secret",)) as served:
        for path in ("/v1/tales", "/v1/tales/length"):
            error_of(await served.client.post(path, json={"beginning": "a"}), 401)
        body = {"beginning": "a"}
        tale = answer_of(await served.client.post("/v1/tales", json=body, headers=KEY))
        assert tale["usage"]["completion_tokens"] == 3
        assert answer_of(await served.client.post("/v1/tales/length", json=body, headers=KEY)) == {"length": 1}
        assert answer_of(await served.client.get("/v1/tellers/a/b")) == {"teller": "a/b"}
        counted = [
            ("/v1/tales", "POST", "200"),
            ("/v1/tales", "POST", "401"),
            ("/v1/tales/length", "POST", "200"),
            ("/v1/tellers/{teller}", "GET", "200"),
        ]
        for route, method, status in counted:
            name = "orcinus_http_requests_total"
            assert await served.metric(name, method=method, route=route, status=status) == 1, route


async def test_a_row_is_documented_as_what_it_is(tmp_path: Path) -> None:
    async with serving(tmp_path, operations=MORE_OPERATIONS, api_key=("secret",)) as served:
        document = answer_of(await served.client.get("/openapi.json", headers=KEY))
    tale, length = document["paths"]["/v1/tales"]["post"], document["paths"]["/v1/tales/length"]["post"]
    for described, answer in ((tale, "Tale"), (length, "Length")):
        schemas = described["requestBody"], described["responses"]["200"]
        references = [part["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2] for part in schemas]
        assert references == ["TaleBody", answer]
        assert described["security"]
        assert {"401", "404", "413", "415", "429"} <= described["responses"].keys()
    assert [header["name"] for header in tale["parameters"]] == ["x-request-id", "x-request-timeout"]
    assert [header["name"] for header in length["parameters"]] == ["x-request-id"]
    assert (tale["operationId"], tale["tags"]) == ("tales_v1_tales_post", ["tales"])
    components = document["components"]["schemas"]
    assert components["Tale"] == TALE.schema
    assert components["TaleBody"]["required"] == ["beginning"]
    assert components["TaleBody"]["properties"]["beginning"]["maxLength"] == 20
    teller = document["paths"]["/v1/tellers/{teller}"]["get"]
    assert (teller["parameters"][0]["name"], teller["parameters"][0]["in"]) == ("teller", "path")
    assert "security" not in teller


async def test_a_row_that_needs_room_is_refused_where_there_is_none_before_its_body_is_read(tmp_path: Path) -> None:
    gate = Gate()
    executor = FakeExecutor(alphabet, before_step=gate)
    was_read = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        was_read.set()
        yield b'{"beginning": "a"}'

    async with serving(
        tmp_path, executor, info={"max_num_seqs": 1}, operations=MORE_OPERATIONS, max_queue_len=1
    ) as served:
        stream = served.engine.submit(generation_request("first", 2))
        headers = {"content-type": "application/json"}
        error_of(await served.client.post("/v1/tales", content=chunks(), headers=headers), 429)
        assert not was_read.is_set()
        assert answer_of(await served.client.post("/v1/tales/length", content=chunks(), headers=headers))
        stream.abort()
        gate.open()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/one/two"])
def test_a_row_must_not_stand_twice_or_behind_another(path: str) -> None:
    row = LookupOperation(path, name="again", look_up=find_teller)
    with pytest.raises(AssertionError):
        OperationTable([*OPERATIONS, row])


def test_what_a_file_of_requests_may_ask_for_is_what_generates_in_openai_s_api_and_its_help_says_so() -> None:
    urls = [operation.path for operation in batch_operations()]
    assert urls == [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/responses",
        "/v1/score",
    ]
    for url in urls:
        assert url in _DESCRIPTION
