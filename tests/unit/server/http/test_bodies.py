"""Bodies that are no good: every one is a 4xx in the one shape of an error, and the server goes on."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.http import json_body
from orcinus.server.http.json_body import MAX_DEPTH, JsonReader, parse_json_object
from tests.growth import assert_linear, at_most_as_long_as_parsing
from tests.unit.server.serving import Serving, error_of, in_one_loop

JSON = {"content-type": "application/json"}

BROKEN = {
    "empty": b"",
    "cut off": b'{"prompt": "x',
    "cut off after a backslash": b'{"prompt": "x\\',
    "no JSON": b"hello",
    "two objects": b"{}{}",
    "a list": b"[1]",
    "a string": b'"x"',
    "null": b"null",
    "a number": b"5",
    "NaN": b'{"prompt": "x", "temperature": NaN}',
    "Infinity": b'{"prompt": "x", "temperature": Infinity}',
    "a number that overflows": b'{"prompt": "x", "temperature": 1e999}',
    "5,000 digits": b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    "a lone surrogate": b'{"prompt": "\\ud800"}',
    "a lone low surrogate": b'{"prompt": "\\udc00 and more"}',
    "a surrogate as bytes": b'{"prompt": "\xed\xa0\x80"}',
    "bytes that are not UTF-8": b'{"prompt": "\xff\xfe"}',
    "a raw NUL": b'{"prompt": "\x00"}',
    "two byte order marks": b'\xef\xbb\xbf\xef\xbb\xbf{"prompt": "x"}',
    "a byte order mark of UTF-16": b'\xff\xfe{"prompt": "x"}',
    "a comment": b'{"prompt": "x" /* y */}',
    "a comma too many": b'{"prompt": "x",}',
    "single quotes": b"{'prompt': 'x'}",
    "the same name twice": b'{"prompt": "x", "n": 1, "n": 5}',
    "the same name twice, written differently": b'{"prompt": "x", "n": 1, "\\u006e": 5}',
    "100,000 lists": b'{"prompt": ' + b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "nesting past the limit": b'{"prompt": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
}


@in_one_loop
@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
async def test_a_broken_body_is_refused(lasting: Serving, path: str, body: bytes) -> None:
    error = error_of(await lasting.client.post(path, content=body, headers=JSON), 400)
    assert error["type"] == "invalid_request_error"


async def test_a_body_may_begin_with_a_byte_order_mark(served: Serving) -> None:
    for text in ("x", "x" * 3000, "x" * 70_000):
        body = b"\xef\xbb\xbf" + json.dumps({"text": "x", "note": text}).encode()
        assert parse_json_object(body) == {"text": "x", "note": text}
    response = await served.client.post("/v1/completions", content=b'\xef\xbb\xbf{"prompt": "x"}', headers=JSON)
    assert response.status_code == 200


@pytest.mark.parametrize(
    "text", [r"\ud800", r"\uDBFF.", r"\ud800\n", r"\ud800\ud800", r"\udc00 and more", r"\ud800 and so on", r"\\\ud800"]
)
def test_half_a_surrogate_pair_is_called_so(text: str) -> None:
    for end in ('"}', '", "n": 1}'):
        with pytest.raises(InvalidRequestError, match="half a surrogate pair"):
            parse_json_object(b'{"prompt": "' + text.encode() + end.encode())


@pytest.mark.parametrize("text", [r"x", r"\ud800", r"\ud83d\ude0", r"\\ud800x", r"\ud83d\ude00x"])
def test_a_body_that_is_cut_off_is_called_so(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="truncated"):
        parse_json_object(b'{"prompt": "' + text.encode())


MANY = 150_000
BOMBS: dict[str, tuple[str, dict[str, Any]]] = {
    "ids that are none": ("/detokenize", {"tokens": ["a"] * MANY}),
    "biases that are none": (
        "/v1/completions",
        {"prompt": "x", "logit_bias": dict.fromkeys(map(str, range(MANY)), "x")},
    ),
    "stops": ("/v1/completions", {"prompt": "x", "stop": ["a"] * MANY}),
    "stop ids": ("/v1/completions", {"prompt": "x", "stop_token_ids": ["a"] * MANY}),
    "prompts": ("/v1/completions", {"prompt": ["x"] * MANY}),
    "messages": ("/v1/chat/completions", {"messages": [5] * MANY}),
    "parameters": ("/v1/completions", dict.fromkeys(map(str, range(MANY)), 1)),
    "token parameters": ("/tokenize", dict.fromkeys(map(str, range(MANY)), 1)),
    "options": ("/v1/completions", {"stream": True, "stream_options": dict.fromkeys(map(str, range(MANY)), 1)}),
    "variables": (
        "/v1/chat/completions",
        {"messages": [], "chat_template_kwargs": dict.fromkeys(map(str, range(MANY)), 1)},
    ),
    "parts": ("/v1/chat/completions", {"messages": [{}] * 2 * MANY}),
}


@pytest.mark.parametrize(("path", "body"), BOMBS.values(), ids=BOMBS.keys())
async def test_a_body_with_far_too_many_of_something_is_refused_in_no_time(
    served: Serving, path: str, body: dict[str, Any]
) -> None:
    content = json.dumps(body).encode()
    with at_most_as_long_as_parsing(content, times=1000):  # hundreds of thousands where each entry looks at all others
        error = error_of(await served.client.post(path, content=content, headers=JSON), 400)
    assert len(error["message"]) < 500


@pytest.mark.parametrize("part", [b'"', b'"\\', b'{"\\"', b'["",'])
def test_checking_the_depth_takes_linear_time(part: bytes) -> None:
    def refuse(length: int) -> None:
        with pytest.raises(InvalidRequestError):
            parse_json_object(part * (length // len(part)))

    assert_linear(refuse, 2_000_000)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_is_allowed_up_to_the_limit(opening: bytes, closing: bytes) -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' + opening * (depth - 2) + b"[]" + closing * (depth - 2) + b"}"

    assert parse_json_object(nested(MAX_DEPTH))
    with pytest.raises(InvalidRequestError, match=f"deeper than {MAX_DEPTH} levels"):
        parse_json_object(nested(MAX_DEPTH + 1))


@given(
    st.dictionaries(
        st.text(),
        st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
        max_size=5,
    ),
    st.booleans(),
    st.integers(3, 40),
)
def test_what_is_no_repetition_is_read_in_steps_of_any_length(value: Any, is_ascii: bool, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "_STEP_BYTES", step)
        assert parse_json_object(json.dumps(value, ensure_ascii=is_ascii).encode()) == value


@given(st.integers(3, 40), st.text(alphabet='\\"{}[]:,a', max_size=9))
def test_a_name_that_is_there_twice_is_found_in_steps_of_any_length(step: int, text: str) -> None:
    name, inside = json.dumps(text), json.dumps({text: [{text: text}]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "_STEP_BYTES", step)
        assert parse_json_object(f"{{{name}: {inside}}}".encode())
        with pytest.raises(InvalidRequestError, match="more than once"):
            parse_json_object(f"{{{name}: {inside}, {name}: 1}}".encode())


async def test_bodies_that_come_together_leave_others_their_turn() -> None:
    """Each takes milliseconds of the event loop: a hundred of them in a row would be felt by everybody."""
    order: list[str] = []

    async def read(reader: JsonReader) -> None:
        await reader.parse_object(json.dumps({"prompt": "x" * 10_000}).encode())
        order.append("body")

    async def do_something_else() -> None:
        for _ in range(30):
            order.append("else")
            await asyncio.sleep(0)

    reader = JsonReader()
    await asyncio.gather(*(read(reader) for _ in range(10)), do_something_else())
    bodies = [i for i, what in enumerate(order) if what == "body"]
    assert len(bodies) == 10
    assert all(later - earlier > 1 for earlier, later in itertools.pairwise(bodies))


def test_brackets_in_strings_do_not_nest() -> None:
    assert parse_json_object(b'{"a": "' + b"[{" * 500 + b'\\"[", "b": {"c": 1, "d": 2}}')["b"] == {"c": 1, "d": 2}


async def test_an_escaped_nul_is_text(served: Serving) -> None:
    response = await served.client.post("/v1/completions", content=b'{"prompt": "\\u0000"}', headers=JSON)
    assert response.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_a_body_of_another_type_is_refused(served: Serving, headers: dict[str, str]) -> None:
    error = error_of(await served.client.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers), 415)
    assert error["type"] == "invalid_request_error"


async def test_parameters_of_the_content_type_are_fine(served: Serving) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    response = await served.client.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers)
    assert response.status_code == 200


async def test_an_announced_body_that_is_too_large_is_refused_unread(served: Serving) -> None:
    limit = served.settings.max_body_bytes
    headers = {**JSON, "content-length": str(limit + 1)}
    response = await served.client.post("/v1/completions", content=b"{}", headers=headers)
    error = error_of(response, 413)
    assert str(limit) in error["message"]


async def test_a_chunked_body_that_grows_too_large_is_refused_as_soon_as_it_is(served: Serving) -> None:
    num_sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal num_sent
        for _ in range(1000):
            num_sent += 1
            yield b" " * 2**20
            await asyncio.sleep(0)

    error_of(await served.client.post("/v1/completions", content=chunks(), headers=JSON), 413)
    assert num_sent <= 20


async def test_the_server_goes_on_after_all_of_them(served: Serving) -> None:
    for body in BROKEN.values():
        await served.client.post("/v1/completions", content=body, headers=JSON)
    assert (await served.complete("x"))["choices"][0]["text"] == "Hello"
