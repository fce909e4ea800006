"""The small routes: models, tokens, probes, version, the OpenAPI document; and the layer around all of them."""

import logging
import re
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import Model

from orcinus.server.apis.completions.body import CompletionBody
from tests.unit.engine.fakes import END_OF_TEXT
from tests.unit.server.serving import Serving, answer_of, error_of, serving, user


async def test_models_lists_every_served_name(tmp_path: Path) -> None:
    async with serving(tmp_path, served_model_name=("org/name", "alias")) as served:
        models = answer_of(await served.client.get("/v1/models"))
        assert models["object"] == "list"
        for entry in models["data"]:
            Model.model_validate(entry, strict=True)
            assert entry["max_model_len"] == 256
            assert answer_of(await served.client.get(f"/v1/models/{entry['id']}")) == entry
        assert [entry["id"] for entry in models["data"]] == ["org/name", "alias"]
        assert (await served.complete("x", model="alias"))["model"] == "org/name"


async def test_a_model_that_is_not_served_is_not_found(served: Serving) -> None:
    assert error_of(await served.client.get("/v1/models/no/such"), 404)["code"] == "model_not_found"


ANTHROPIC = {"anthropic-version": "2023-06-01"}


async def test_clients_of_anthropics_api_see_models_in_its_form(tmp_path: Path) -> None:
    async with serving(tmp_path, served_model_name=("org/name", "alias")) as served:
        models = answer_of(await served.client.get("/v1/models", headers=ANTHROPIC))
        assert (models["has_more"], models["first_id"], models["last_id"]) == (False, "org/name", "alias")
        for entry in models["data"]:
            assert entry["type"] == "model"
            assert entry["display_name"] == entry["id"]
            assert datetime.fromisoformat(entry["created_at"]).tzinfo is not None
            assert entry["max_input_tokens"] == 256
            assert answer_of(await served.client.get(f"/v1/models/{entry['id']}", headers=ANTHROPIC)) == entry


@pytest.mark.parametrize(("path", "status"), [("/v1/models/no", 404), ("/messages", 404), ("/v1/completions", 405)])
async def test_clients_of_anthropics_api_see_errors_in_its_form_on_every_path(
    served: Serving, path: str, status: int
) -> None:
    answer = await served.client.get(path, headers=ANTHROPIC)
    assert answer.status_code == status
    assert (answer.json()["type"], set(answer.json()["error"])) == ("error", {"type", "message"})
    assert answer.json()["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]


async def test_the_api_reference_refers_to_nothing_outside_this_server(tmp_path: Path) -> None:
    """Nor does any part of it ask for a key: Swagger UI asks for it itself, as the document says."""
    async with serving(tmp_path, api_key=("secret",)) as served:
        page = await served.client.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self';" in policy
        assert "://" not in page.text + policy
        files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert "data:," in files
        kinds = {"js": "text/javascript", "css": "text/css"}
        for file in files:
            if file != "data:,":
                answer = await served.client.get("/" + file)
                assert answer.headers["content-type"].startswith(kinds[file.rpartition(".")[2]])
                assert answer.content
        document = answer_of(await served.client.get("/openapi.json"))
        assert document["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
        assert "servers" not in document


async def test_tokenize_gives_ids_their_number_and_the_context(served: Serving) -> None:
    answer = answer_of(await served.post("/tokenize", prompt="hé"))
    assert answer == {"count": 3, "max_model_len": 256, "tokens": [104, 0xC3, 0xA9]}
    answer = answer_of(await served.post("/tokenize", prompt="", add_special_tokens=False, model=None))
    assert answer["count"] == 0


async def test_tokenize_gives_the_tokens_as_text_when_asked(served: Serving) -> None:
    answer = answer_of(await served.post("/tokenize", prompt="ab", return_token_strs=True))
    assert answer["token_strs"] == ["a", "b"]


async def test_tokenize_of_a_chat_counts_what_a_chat_completion_does(served: Serving) -> None:
    messages = [user("hello")]
    answer = answer_of(await served.post("/tokenize", messages=messages))
    completion = answer_of(await served.post("/v1/chat/completions", messages=messages, return_token_ids=True))
    assert answer["tokens"] == completion["prompt_token_ids"]
    assert answer["count"] == completion["usage"]["prompt_tokens"]


async def test_detokenize_is_the_way_back(served: Serving) -> None:
    assert answer_of(await served.post("/detokenize", tokens=[*"hé".encode()])) == {"prompt": "hé"}
    tokens = [97, END_OF_TEXT]
    assert answer_of(await served.post("/detokenize", tokens=tokens))["prompt"] == "a<|endoftext|>"
    assert answer_of(await served.post("/detokenize", tokens=tokens, skip_special_tokens=True))["prompt"] == "a"
    assert answer_of(await served.post("/detokenize", tokens=[]))["prompt"] == ""


async def test_long_token_lists_are_detokenized_too(served: Serving) -> None:
    assert answer_of(await served.post("/detokenize", tokens=[97] * 10_000))["prompt"] == "a" * 10_000


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": [user("x")]}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "promt": "x"}, "promt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [300]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**40]}, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "other"}, "model"),
    ],
)
async def test_wrong_token_requests_are_named(served: Serving, path: str, body: dict[str, Any], param: str) -> None:
    response = await served.post(path, **body)
    assert error_of(response, 404 if param == "model" else 400)["param"] == param


async def test_version_and_probes(served: Serving) -> None:
    assert answer_of(await served.client.get("/version"))["version"]
    for path in ("/live", "/ready", "/health"):
        assert (await served.client.get(path)).status_code == 200
        assert (await served.client.head(path)).status_code == 200


async def test_openapi_document_describes_the_bodies_with_their_bounds(served: Serving) -> None:
    document = answer_of(await served.client.get("/openapi.json"))
    body = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/CompletionBody"}
    schemas = document["components"]["schemas"]
    assert schemas["CompletionBody"]["properties"]["n"]["maximum"] == 128
    assert set(schemas["CompletionBody"]["properties"]) > set(CompletionBody.model_fields)
    assert {"ChatBody", "TokenizeBody", "DetokenizeBody", "StreamOptions", "Error"} <= set(schemas)


async def test_the_openapi_document_is_made_off_the_event_loop(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_in: list[int] = []
    make = served.app.openapi

    def noted() -> dict[str, Any]:
        made_in.append(threading.get_ident())
        return make()

    monkeypatch.setattr(served.app, "openapi", noted)
    assert answer_of(await served.client.get("/openapi.json"))["openapi"]
    assert made_in
    assert made_in[0] != threading.get_ident()


async def test_request_id_of_the_client_comes_back(served: Serving) -> None:
    response = await served.client.get("/live", headers={"x-request-id": "trace-1.a:b"})
    assert response.headers["x-request-id"] == "trace-1.a:b"


@pytest.mark.parametrize("request_id", ["a b", "x" * 129, "", "a\tb", "ü", '"'])
async def test_request_id_that_is_unfit_for_a_log_is_replaced(served: Serving, request_id: str) -> None:
    headers = [(b"x-request-id", request_id.encode("latin-1"))]
    response = await served.client.get("/live", headers=headers)
    assert len(response.headers["x-request-id"]) == 32


async def test_log_has_one_line_per_request_and_no_prompt(served: Serving, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    headers = {"x-request-id": "my-id"}
    response = await served.client.post("/v1/completions", json={"prompt": "my secret"}, headers=headers)
    [line] = [record.getMessage() for record in caplog.records if record.name == "orcinus.server.access"]
    assert line.startswith("POST /v1/completions 200 ")
    assert line.endswith(f" ms id=my-id answer={response.json()['id']} client=127.0.0.1")
    assert "secret" not in caplog.text


async def test_log_line_cannot_be_broken_by_a_path(served: Serving, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await served.client.get("/a%0d%0aPOST%20/forged")
    [line] = [record.getMessage() for record in caplog.records if record.name == "orcinus.server.access"]
    assert line.startswith("GET /a\\r\\nPOST /forged 404 ")


async def test_probes_are_not_logged_at_info(served: Serving, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await served.client.get("/ready")
    assert not [record for record in caplog.records if record.name == "orcinus.server.access"]


async def test_paths_that_end_in_a_slash_are_not_redirected(served: Serving) -> None:
    response: httpx.Response = await served.client.get("/v1/models/")
    assert response.status_code == 404
