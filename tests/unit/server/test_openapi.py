"""What the OpenAPI document says beside the bodies: which headers count, and what every operation may answer."""

from pathlib import Path
from typing import Any

import pytest

from orcinus.server.requests.bodies import MAX_TIMEOUT_S
from tests.unit.server.serving import Serving, answer_of, error_of, serving

ASKED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/v1/embeddings": {"input": "a"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v1/score": {"text_1": "a", "text_2": "b"},
}
FORMS = {"/v1/messages", "/v1/messages/count_tokens", "/v1/responses/input_tokens", "/tokenize", "/detokenize", *ASKED}


async def operations_of(served: Serving) -> dict[str, dict[str, Any]]:
    document = answer_of(await served.client.get("/openapi.json"))
    return {path: operation for path, methods in document["paths"].items() for operation in methods.values()}


def header_of(operation: dict[str, Any], name: str) -> dict[str, Any] | None:
    schemas = [each["schema"] for each in operation["parameters"] if (each["in"], each["name"]) == ("header", name)]
    return schemas[0] if schemas else None


async def test_the_header_of_a_deadline_is_declared_where_it_counts_with_its_bounds(served: Serving) -> None:
    operations = await operations_of(served)
    assert {path for path in operations if header_of(operations[path], "x-request-timeout")} == ASKED.keys()
    for path, body in ASKED.items():
        schema = header_of(operations[path], "x-request-timeout")
        assert schema == {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S}
        for value, status in {"0": 400, str(MAX_TIMEOUT_S): 200, str(MAX_TIMEOUT_S + 1): 400, "x": 400}.items():
            response = await served.client.post(path, json=body, headers={"x-request-timeout": value})
            assert response.status_code == status


async def test_every_operation_says_what_it_may_answer(served: Serving) -> None:
    for path, operation in (await operations_of(served)).items():
        statuses = {"200", "400", "408", "414", "429", "431", "500", "503"}
        statuses |= {"404", "413", "415"} if path in FORMS else {"404"} if "{model}" in path else set()
        assert set(operation["responses"]) == statuses, path
        assert header_of(operation, "x-request-id") == {"type": "string"}
        with_retry = {status for status, answer in operation["responses"].items() if "headers" in answer}
        assert with_retry == {"429", "503"}
        assert operation["responses"]["503"]["headers"]["retry-after"]["schema"]["maximum"] == 120


@pytest.mark.parametrize("keys", [(), ("secret",)])
async def test_keys_are_declared_where_they_are_asked_for(tmp_path: Path, keys: tuple[str, ...]) -> None:
    async with serving(tmp_path, api_key=keys) as served:
        served.client.headers["authorization"] = "Bearer secret"
        for path, operation in (await operations_of(served)).items():
            is_guarded = bool(keys) and path not in ("/live", "/ready", "/health", "/metrics")
            assert ("security" in operation, "401" in operation["responses"]) == (is_guarded, is_guarded), path
        if keys:
            del served.client.headers["authorization"]
            error_of(await served.client.post("/tokenize"), 401)
