"""Requests that a server must refuse, and how: what is wrong with each, and the statuses that are right for it.

Data alone. What goes over the socket without being HTTP is bytes in `GARBAGE`.
"""

import gzip
import json
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.bodies import CHAT, COMPLETIONS, EMBEDDINGS, MAX_MODEL_LEN, MESSAGES, RESPONSES

_JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class BadInput:
    """`num_refused` is how many sequences count as rejected: none where no endpoint was asked, or no key was right."""

    name: str
    content: bytes
    statuses: frozenset[int] = frozenset({400})
    path: str = COMPLETIONS
    headers: dict[str, str] = field(default_factory=lambda: dict(_JSON))
    num_refused: int = 1
    has_key: bool = True


def _body(name: str, path: str = COMPLETIONS, **body: Any) -> BadInput:
    given = {"prompt": "x", **body} if path == COMPLETIONS else body
    return BadInput(name, json.dumps(given).encode(), path=path)


_USER = [{"role": "user", "content": "x"}]
_IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}]}]
_OUTSIDE = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {"$ref": "http://127.0.0.1:9/schema.json"}},
}

BAD_INPUTS: tuple[BadInput, ...] = (
    BadInput("cut off", b'{"prompt": "x"'),
    BadInput("not an object", b"[1, 2, 3]"),
    BadInput("nothing", b""),
    BadInput("deep", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    BadInput("NaN", b'{"prompt": "x", "temperature": NaN}'),
    BadInput("5,000 digits", b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}"),
    BadInput("surrogate", rb'{"prompt": "\ud800"}'),
    BadInput("not UTF-8", b'{"prompt": "\xff\xfe"}'),
    BadInput("other type", b"prompt=x", frozenset({400, 415}), headers={"content-type": "text/plain"}),
    BadInput("compressed", gzip.compress(b"{}"), frozenset({400, 415}), headers={**_JSON, "content-encoding": "gzip"}),
    BadInput("no key", b'{"prompt": "x"}', frozenset({401}), num_refused=0, has_key=False),
    BadInput(
        "wrong key",
        b'{"prompt": "x"}',
        frozenset({401}),
        headers={**_JSON, "authorization": "Bearer no"},
        num_refused=0,
    ),
    BadInput("unknown model", b'{"prompt": "x", "model": "gpt-9"}', frozenset({404})),
    BadInput("unknown path", b"{}", frozenset({404}), path="/v1/nothing", num_refused=0),
    _body("many choices", n=100_000_000),
    _body("many prompts", prompt=["x"] * 10_000),
    _body("many stops", stop=["x"] * 10_000),
    _body("bias out of range", logit_bias={"5": 1000}),
    _body("bias unknown", logit_bias={"999999": 1}),
    _body("token unknown", prompt=[1, 999_999]),
    _body("empty prompt", prompt=""),
    _body("wrong type", max_tokens="many"),
    _body("unknown parameter", wisdom=11),
    _body("too long", prompt="word " * (2 * MAX_MODEL_LEN), max_tokens=4),
    _body("regex bomb", structured_outputs={"regex": "x(a{1000}){1000}"}),
    _body("schema bomb", path=CHAT, messages=_USER, response_format={"type": "json_schema", "json_schema": {}}),
    _body("outside reference", path=CHAT, messages=_USER, response_format=_OUTSIDE),
    _body("template", path=CHAT, messages=_USER, chat_template="{% for i in range(10**9) %}x{% endfor %}"),
    _body("image", path=CHAT, messages=_IMAGE),
    _body("no messages", path=CHAT, messages=[]),
    _body("empty input", path=EMBEDDINGS, input=[""]),
    _body("no input", path=RESPONSES, max_output_tokens=4),
    _body("no limit", path=MESSAGES, messages=_USER),
    _body("tool unknown", path=CHAT, messages=_USER, tools=[], tool_choice="required"),
    BadInput("deadline that is none", b'{"prompt": "x"}', headers={**_JSON, "x-request-timeout": "soon"}),
)

GARBAGE: tuple[bytes, ...] = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x00" * 4096,
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET " + b"/a" * 50_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
)
