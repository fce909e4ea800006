"""Texts and templates that would cost far more than they are worth: refused, and beside the event loop."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.frontend import text_frontend, turns
from orcinus.engine.text import template_sandbox
from orcinus.engine.text.tokenizer import Tokenizer
from orcinus.server.http.json_body import MAX_ENTRIES, parse_json_object
from tests.unit.server.serving import Serving, error_of, serving, user

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("text", ["hi", "hi " * 5000], ids=["short", "long"])
async def test_a_template_without_end_fails_its_request_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_RENDER_S", 1.0)
    async with serving(tmp_path, template=ENDLESS) as served:
        asking = asyncio.create_task(served.post("/v1/chat/completions", messages=[user(text)]))
        num_turns = 0
        while not asking.done():
            await asyncio.sleep(0.01)
            num_turns += 1
        assert "longer than 1 s" in error_of(await asking, 400)["message"]
    assert num_turns > 5


async def test_a_short_chat_is_rendered_without_a_thread(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns.FairThreads, "run", None)
    assert (await served.chat("hi"))["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a" * 2001}),
        ("/v1/completions", {"prompt": ["x", "a" * 2001]}),
        ("/v1/completions", {"prompt": "a" * 2001, "truncate_prompt_tokens": 1}),
        ("/v1/chat/completions", {"messages": [user("a" * 2001)]}),
        ("/v1/responses", {"input": "a" * 2001}),
        ("/v1/embeddings", {"input": "a" * 2001}),
        ("/tokenize", {"prompt": "a" * 2001}),
    ],
)
async def test_a_text_far_beyond_the_context_is_refused_before_it_is_tokenized(
    served: Serving, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    monkeypatch.setattr(text_frontend, "_TEXT_CHARS", 2000)
    monkeypatch.setattr(text_frontend, "_CHARS_PER_TOKEN", 1)
    tokenized: list[str] = []
    encode = Tokenizer.encode

    def recording(tokenizer: Tokenizer, text: str, **options: Any) -> list[int]:
        tokenized.append(text)
        return encode(tokenizer, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", recording)
    error = error_of(await served.client.post(path, json=body), 400)
    assert "texts of up to 2000 characters are read, got 20" in error["message"]
    assert max(map(len, tokenized), default=0) < 2000


async def test_a_longer_context_takes_longer_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_frontend, "_TEXT_CHARS", 100)
    async with serving(tmp_path, info={"max_model_len": 50, "num_kv_blocks": 100}) as served:
        most = text_frontend._CHARS_PER_TOKEN * 50
        assert (await served.post("/tokenize", prompt="a" * most)).status_code == 200
        error_of(await served.post("/tokenize", prompt="a" * (most + 1)), 400)


def test_entries_are_counted_wherever_they_are_but_not_in_texts() -> None:
    half = b"1," * (MAX_ENTRIES // 2)
    assert parse_json_object(b'{"a": "%b%b%b"}' % (half, half, half))
    assert parse_json_object(b'{"a": [%b1]}' % half)
    for body in (b'{"a": [%b%b1,1]}' % (half, half), b'{"a": [%b1], "b": [%b"x", 1]}' % (half, half)):
        with pytest.raises(Exception, match=f"more than {MAX_ENTRIES} entries"):
            parse_json_object(body)


@pytest.mark.parametrize("length", [65_534, 65_535, 65_536, 65_537, 131_072])
@pytest.mark.parametrize("end", [b"", b'\\"', b"\\\\", b'\\\\\\"'])
def test_a_text_is_read_in_steps_wherever_one_ends(length: int, end: bytes) -> None:
    body = b'{"a": "%b%b", "b": {"c": "[["}}' % (b"x" * (length - len(end)), end)
    assert set(parse_json_object(body)) == {"a", "b"}
