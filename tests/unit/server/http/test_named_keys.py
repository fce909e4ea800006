"""Keys with names: what each may ask for, until when, and where its name is shown."""

import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orcinus.server.http import auth
from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import Serving, answer_of, error_of, serving

FILE = """\
keys:
- {name: batch, key: one, models: [small], max_tokens: 3}
- {name: boss, key: two, admin: true, max_tokens_per_minute: 40}
- {name: gone, key: three, expires: 2020-01-01}
- {name: slow, key: five, max_requests_per_minute: 1}
- {name: idle, key: four, models: [none]}
"""


@pytest.fixture
async def named(tmp_path: Path) -> AsyncIterator[Serving]:
    (tmp_path / "keys").write_text(FILE)
    settings: dict[str, Any] = {
        "api_key_file": str(tmp_path / "keys"),
        "api_key": ("plain",),
        "served_model_name": ("large", "small"),
    }
    executor = FakeExecutor(says("Hello there, you"))
    async with serving(tmp_path, executor, usage_db=str(tmp_path / "usage.db"), **settings) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def ask(served: Serving, key: str, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    return await served.client.post(path, json={"prompt": "abc", "model": "small", **body}, headers=bearer(key))


async def test_a_key_may_use_its_models_and_sees_no_others(named: Serving) -> None:
    for path, body in (("/v1/completions", {}), ("/tokenize", {}), ("/v1/embeddings", {"input": "a", "prompt": None})):
        answer_of(await ask(named, "one", path, **body))
        error = error_of(await ask(named, "one", path, model="large", **body), 403)
        assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
        assert error["message"] == "the key batch may not use the model 'large'; it may use 'small'"
        assert "'small'" in error_of(await ask(named, "one", path, model="other", **body), 404)["message"]
        answer_of(await ask(named, "two", path, model="large", **body))
    answer_of(await ask(named, "one", model=None))
    assert error_of(await ask(named, "four", model=None), 403)["code"] == "model_not_found"
    listed = {
        key: [entry["id"] for entry in answer_of(await named.client.get("/v1/models", headers=bearer(key)))["data"]]
        for key in ("one", "two", "four", "plain")
    }
    assert listed == {"one": ["small"], "two": ["large", "small"], "four": [], "plain": ["large", "small"]}
    error_of(await named.client.get("/v1/models/large", headers=bearer("one")), 403)
    anthropic = {**bearer("four"), "anthropic-version": "2023-06-01"}
    page = answer_of(await named.client.get("/v1/models", headers=anthropic))
    assert page == {"data": [], "has_more": False, "first_id": None, "last_id": None}


async def test_a_clients_error_of_anthropics_api_is_a_missing_permission(named: Serving) -> None:
    body = {"model": "large", "max_tokens": 2, "messages": [{"role": "user", "content": "a"}]}
    answer = await named.client.post("/v1/messages", json=body, headers={"x-api-key": "one"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")


async def test_a_key_is_valid_until_it_expires(named: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_of(await ask(named, "three"), 401)["message"] == "the API key has expired"
    monkeypatch.setattr(time, "time", lambda: 1_577_836_799.0)  # the last second of 2019
    answer_of(await ask(named, "three"))
    monkeypatch.setattr(time, "time", lambda: 1_577_836_800.0)
    error_of(await ask(named, "three"), 401)


async def test_a_key_may_have_so_many_tokens_and_gets_no_more_where_it_does_not_say(named: Serving) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}], "prompt": None}
    message = r"max_tokens may be at most 3 (max_tokens of key batch), got 4"
    error = error_of(await ask(named, "one", max_tokens=4), 400)
    assert (error["message"], error["param"]) == (message, "max_tokens")
    error = error_of(await ask(named, "one", "/v1/chat/completions", max_completion_tokens=4, **chat), 400)
    assert (error["message"], error["param"]) == (message.replace("max", "max_completion", 1), "max_completion_tokens")
    asked = {"prompt": None, "input": "a", "max_output_tokens": 4}
    assert error_of(await ask(named, "one", "/v1/responses", **asked), 400)["param"] == "max_output_tokens"
    for path, body in (("/v1/completions", {}), ("/v1/chat/completions", chat)):
        for given in ({}, {"max_tokens": None}, {"max_tokens": 3}):
            answer = answer_of(await ask(named, "one", path, **body, **given))
            assert answer["usage"]["completion_tokens"] == 3
    answer_of(await ask(named, "two", max_tokens=4))


async def test_a_key_may_send_so_many_requests_a_minute_and_so_many_tokens(named: Serving) -> None:
    answer_of(await ask(named, "five"))
    refused = await ask(named, "five")
    error = error_of(refused, 429)
    assert error["message"] == "a client may send 1 requests a minute (max_requests_per_minute of key slow)"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    answer_of(await ask(named, "two", max_tokens=37, ignore_eos=True))
    assert "40 tokens a minute (max_tokens_per_minute of key boss)" in error_of(await ask(named, "two"), 429)["message"]
    for _ in range(10):
        answer_of(await ask(named, "plain", max_tokens=30))


async def test_names_of_keys_are_in_the_metrics_the_log_and_the_events_and_keys_are_nowhere(
    named: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with named.app.state.watch.open() as watcher:
        for key in ("plain", "two", "one"):
            answer_of(await ask(named, key, max_tokens=2))
            named.app.state.watch.names.number(named.app.state.keys.check(f"Bearer {key}".encode()).client)
        assert watcher.event()["keys"] == ["key 1", "boss", "batch"]
    assert await named.metric("orcinus_key_requests_total", key="batch", outcome="length") == 1
    assert await named.metric("orcinus_key_generation_tokens_total", key="boss") == 2
    records = [record for record in caplog.records if record.name == "orcinus.server.access"]
    lines = [record.getMessage() for record in records if "/v1/completions" in record.getMessage()]
    fields = [record.__dict__["fields"] for record in records if "/v1/completions" in record.getMessage()]
    assert [each.get("key") for each in fields] == [None, "boss", "batch"]
    assert ["key=" in line for line in lines] == [False, True, True]
    assert lines[1].endswith(" key=boss")
    text = (await named.client.get("/metrics")).text
    assert "plain" not in text
    assert not [key for key in ("one", "two") if f'"{key}"' in text or f"={key}" in caplog.text]


async def test_limits_and_names_are_those_of_the_file_as_it_is_now(
    named: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(auth, "WAIT_S", 30.0)
    error_of(await ask(named, "one", max_tokens=4), 400)
    (tmp_path / "keys").write_text("keys:\n- {name: other, key: one, max_requests: 1}\n")
    os.utime(tmp_path / "keys", ns=(1, 1))
    answer_of(await ask(named, "one", max_tokens=4, model="large"))
    error_of(await ask(named, "two"), 401)
    assert await named.metric("orcinus_key_requests_total", key="other", outcome="length") == 1
    error = error_of(await ask(named, "one", n=2), 400)
    assert "(max_requests of key other)" in error["message"]
    (tmp_path / "keys").write_text("keys:\n- {name: other}\n")
    os.utime(tmp_path / "keys", ns=(2, 2))
    answer_of(await ask(named, "one", max_tokens=4))


async def test_an_administrator_is_told_what_was_used_and_nobody_else(named: Serving) -> None:
    for key, n in (("one", 1), ("one", 2), ("two", 1), ("plain", 1)):
        answer_of(await ask(named, key, max_tokens=2, n=n))
    table = answer_of(await named.client.get("/v1/usage", headers=bearer("two")))
    row = {"requests": 2, "prompt_tokens": 6, "cached_tokens": 0, "generated_tokens": 6, "errors": 0}
    assert [entry["key"] for entry in table["data"]] == ["batch", "boss"]
    assert table["data"][0] == {"key": "batch", **row}
    by_all = answer_of(await named.client.get("/v1/usage?by=day,model&by=key&since=2020-01-01", headers=bearer("two")))
    assert by_all["by"] == ["day", "model", "key"]
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert by_all["data"][0] == {"day": today, "model": "large", "key": "batch", **row}
    assert answer_of(await named.client.get("/v1/usage?since=2999-01-01", headers=bearer("two")))["data"] == []
    for key in ("one", "plain"):
        error = error_of(await named.client.get("/v1/usage", headers=bearer(key)), 403)
        assert (error["code"], error["message"]) == (
            "admin_key_needed",
            "this needs a key that has 'admin: true' in the key file",
        )
    head = await named.client.head("/v1/usage", headers=bearer("two"))
    assert head.status_code == 200
    assert (await named.client.post("/v1/usage", headers=bearer("two"))).status_code == 405


@pytest.mark.parametrize(
    ("query", "param", "message"),
    [
        ("by=week", "by", "by must be one or more of day, key, model, with commas, got 'week'"),
        ("since=soon", "since", "since must be a day such as 2027-01-31, got 'soon'"),
        ("until=1", "until", "unknown parameter 'until'; known are by, since"),
    ],
)
async def test_a_wrong_question_about_usage_is_a_400(named: Serving, query: str, param: str, message: str) -> None:
    error = error_of(await named.client.get(f"/v1/usage?{query}", headers=bearer("two")), 400)
    assert (error["param"], error["message"]) == (param, message)


async def test_what_may_be_refused_to_a_key_is_in_the_document(named: Serving) -> None:
    paths = answer_of(await named.client.get("/openapi.json"))["paths"]
    usage = paths["/v1/usage"]["get"]
    assert [each["name"] for each in usage["parameters"]] == ["by", "since", "x-request-id"]
    with_403 = {path for path, methods in paths.items() for each in methods.values() if "403" in each["responses"]}
    assert {"/v1/usage", "/v1/completions", "/v1/models/{model}", "/tokenize"} <= with_403
    assert not with_403 & {"/live", "/metrics", "/version", "/v1/models"}


async def test_without_a_file_of_usage_there_is_no_such_path(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        assert error_of(await served.client.get("/v1/usage"), 404)["code"] == "unknown_url"
        assert "/v1/usage" not in answer_of(await served.client.get("/openapi.json"))["paths"]
