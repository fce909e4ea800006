"""Outputs that have to match something, whatever the model would say."""

import json
import re
from typing import Any

import jsonschema

from tests.conformance.api import Api
from tests.conformance.registry import row
from tests.conformance.rows.tools import QUESTION, WEATHER

COUNTRY = "Describe France in JSON with the keys country and capital."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"country": {"type": "string", "maxLength": 20}, "capital": {"enum": ["Paris", "Rome"]}},
    "required": ["country", "capital"],
    "additionalProperties": False,
}
NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "numbers": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        "kind": {"$ref": "#/$defs/kind"},
        "flag": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["numbers", "kind", "flag"],
    "additionalProperties": False,
    "$defs": {"kind": {"enum": ["cat", "dog"]}},
}


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@row("structured.json_schema", "`response_format` with a schema gives JSON that matches it, and that the model knows")
def json_schema(api: Api) -> None:
    [choice] = api.chat(COUNTRY, response_format=schema_format(SCHEMA))["choices"]
    assert json.loads(choice["message"]["content"]) == {"country": "France", "capital": "Paris"}
    assert choice["finish_reason"] == "stop"


@row("structured.drawn", "It matches when drawn at random too, with lists, references and alternatives in the schema")
def drawn(api: Api) -> None:
    choices = api.chat("x", response_format=schema_format(NESTED), temperature=2, seed=1, n=6, max_tokens=300)[
        "choices"
    ]
    complete = [choice for choice in choices if choice["finish_reason"] == "stop"]
    assert complete
    for choice in complete:
        jsonschema.validate(json.loads(choice["message"]["content"]), NESTED)


@row("structured.json_object", "`json_object` gives a JSON object")
def json_object(api: Api) -> None:
    [choice] = api.chat(COUNTRY, response_format={"type": "json_object"}, max_tokens=200)["choices"]
    assert choice["finish_reason"] == "stop"
    assert isinstance(json.loads(choice["message"]["content"]), dict)


@row("structured.choice", "`structured_outputs.choice` gives one of the strings")
def choice(api: Api) -> None:
    options = ["left", "right", "straight on"]
    for seed in range(4):
        answer = api.complete(structured_outputs={"choice": options}, temperature=2, seed=seed, max_tokens=20)
        assert answer["choices"][0]["text"] in options
        assert answer["choices"][0]["finish_reason"] == "stop"


@row("structured.regex", "`structured_outputs.regex` gives text that matches from beginning to end")
def regex(api: Api) -> None:
    pattern = r"[A-F]{2}-[0-9]{3}"
    for seed in range(4):
        answer = api.complete(structured_outputs={"regex": pattern}, temperature=2, seed=seed, max_tokens=30)
        assert re.fullmatch(pattern, answer["choices"][0]["text"])


@row("structured.json", "`structured_outputs.json` takes a schema as an object or as text")
def outputs_json(api: Api) -> None:
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        answer = api.chat(COUNTRY, structured_outputs={"json": schema})
        jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), SCHEMA)


@row("structured.grammar", "`structured_outputs.grammar` takes Lark and GBNF")
def grammar(api: Api) -> None:
    for source in ('start: "yes" | "no"', 'root ::= "yes" | "no"'):
        answer = api.complete(structured_outputs={"grammar": source}, temperature=2, seed=2)
        assert answer["choices"][0]["text"] in {"yes", "no"}


@row("structured.stream", "A stream of it joins to the whole answer")
def streamed(api: Api) -> None:
    chunks = api.chat_stream(COUNTRY, response_format=schema_format(SCHEMA))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert json.loads(text) == {"country": "France", "capital": "Paris"}


@row("structured.length", "An answer that `max_tokens` cuts says `length`, and is a beginning of one that matches")
def cut(api: Api) -> None:
    whole = api.chat(COUNTRY, response_format=schema_format(SCHEMA))["choices"][0]["message"]["content"]
    [choice] = api.chat(COUNTRY, response_format=schema_format(SCHEMA), max_tokens=5)["choices"]
    assert choice["finish_reason"] == "length"
    assert whole.startswith(choice["message"]["content"])


@row("structured.logprobs", "Log-probabilities of a constrained answer are the model's own, all finite")
def logprobs(api: Api) -> None:
    answer = api.complete(structured_outputs={"choice": ["Xylophone"]}, logprobs=1)
    assert all(-9999.0 <= value <= 0 for value in answer["choices"][0]["logprobs"]["token_logprobs"])


@row("structured.refused", "A schema, pattern or grammar that cannot be compiled is a 400 that names the parameter")
def refused(api: Api) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"response_format": schema_format({"type": "nonsense"})}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: ("}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "json_object"}}, "structured_outputs"),
    ]
    for body, place in wrong:
        for refuse in (api.refuse_completion, api.refuse_chat):
            assert (refuse(**body)["param"] or "").startswith(place), body


@row("structured.tools", "With tools at hand too, an answer is a call or text that matches, even if drawn at random")
def with_tools(api: Api) -> None:
    body: dict[str, Any] = {"response_format": schema_format(SCHEMA), "tools": [WEATHER], "max_tokens": 100}
    assert api.chat(QUESTION, **body)["choices"][0]["finish_reason"] == "tool_calls"
    for choice in api.chat(COUNTRY, **body, temperature=1, seed=1, n=4)["choices"]:
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
    silent = api.chat(COUNTRY, **body, tool_choice="none")["choices"][0]["message"]
    assert json.loads(silent["content"]) == {"country": "France", "capital": "Paris"}
