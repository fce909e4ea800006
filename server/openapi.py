"""The OpenAPI document of routes that read their bodies themselves: their schemas, put in by hand.

It says what is checked: what a body may hold (null equals absent; parameters that are ignored, or accepted where they
ask for nothing), which forms an answer has, and what every operation may say instead. What only the model or several
parameters together decide is a 400 that no schema can state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.parameters import IGNORED, REFUSED, Endpoint

Schema = dict[str, Any]

_REF = "#/components/schemas/{model}"

_STRING: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer"}
_NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
_STRING_OR_NULL: Schema = {"type": ["string", "null"]}
_OBJECT: Schema = {"type": "object"}
_OBJECT_OR_NULL: Schema = {"type": ["object", "null"]}


def _object(**properties: Schema) -> Schema:
    """Which has these, and maybe others."""
    return {"type": "object", "required": [*properties], "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _constant(value: str) -> Schema:
    return {"const": value}


_ERROR = _object(error=_object(message=_STRING, type=_STRING, param=_STRING_OR_NULL, code=_STRING_OR_NULL))
_ANTHROPIC_ERROR = _object(type=_constant("error"), error=_object(type=_STRING, message=_STRING))
_USAGE = _object(prompt_tokens=_INTEGER, completion_tokens=_INTEGER, total_tokens=_INTEGER)
_IDENTITY = {"id": _STRING, "created": _INTEGER, "model": _STRING, "system_fingerprint": _STRING, "usage": _USAGE}
_CHOICE = {"index": _INTEGER, "logprobs": _OBJECT_OR_NULL, "finish_reason": _STRING}
_REPLY = _object(role=_constant("assistant"), content=_STRING_OR_NULL, refusal=_STRING_OR_NULL)

# What the operations answer with, by the name that `describe_body` gives.
ANSWERS: Mapping[str, Schema] = {
    "Completion": _object(
        object=_constant("text_completion"), choices=_list(_object(text=_STRING, **_CHOICE)), **_IDENTITY
    ),
    "ChatCompletion": _object(
        object=_constant("chat.completion"), choices=_list(_object(message=_REPLY, **_CHOICE)), **_IDENTITY
    ),
    "Response": _object(
        id=_STRING,
        object=_constant("response"),
        status={"enum": ["completed", "incomplete", "failed"]},
        output=_list(_object(type=_STRING)),
        usage=_OBJECT_OR_NULL,
        temperature=_NUMBER_OR_NULL,
    ),
    "Message": _object(
        id=_STRING,
        type=_constant("message"),
        role=_constant("assistant"),
        content=_list(_object(type=_STRING)),
        stop_reason=_STRING,
        usage=_object(input_tokens=_INTEGER, output_tokens=_INTEGER),
    ),
    "MessageTokens": _object(input_tokens=_INTEGER),
    "Embeddings": _object(
        object=_constant("list"),
        data=_list(
            _object(
                object=_constant("embedding"),
                index=_INTEGER,
                embedding={"anyOf": [_list({"type": "number"}), _STRING]},
            )
        ),
        model=_STRING,
        usage=_object(prompt_tokens=_INTEGER, total_tokens=_INTEGER),
    ),
    "Tokens": _object(count=_INTEGER, max_model_len=_INTEGER, tokens=_list(_INTEGER)),
    "Text": _object(prompt=_STRING),
    "Error": _ERROR,
    "AnthropicError": _ANTHROPIC_ERROR,
}

# What a body cannot be without, and by which name its other parameters are decided (`server.parameters`).
_NEEDED: Mapping[str, Sequence[str]] = {
    "CompletionBody": ["prompt"],
    "ChatBody": ["messages"],
    "ResponseBody": ["input"],
    "MessagesBody": ["messages"],
    "EmbeddingBody": ["input"],
    "DetokenizeBody": ["tokens"],
}
_ENDPOINTS: Mapping[str, Endpoint] = {
    "CompletionBody": "completions",
    "ChatBody": "chat",
    "ResponseBody": "responses",
    "MessagesBody": "messages",
    "EmbeddingBody": "embeddings",
}
_ASKING_NOTHING: Sequence[Any] = (False, 0, 1, "", "none", "auto", [], ["text"], {})


def describe_body(
    model: type[BaseModel], answer: str, *, error: str = "Error", is_streamed: bool = False
) -> dict[str, Any]:
    """What a route that parses `model` itself adds to its entry; `answer` and `error` are of `ANSWERS`."""
    content = {"application/json": {"schema": _reference(answer)}}
    if is_streamed:
        content["text/event-stream"] = {"schema": _STRING}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _reference(model.__name__)}}},
        "responses": {"200": {"description": "The answer", "content": content}, **_errors(error)},
    }


def describe_text(*media_types: str) -> dict[str, Any]:
    """What a route adds that answers with text of one of these types."""
    content = {media_type: {"schema": _STRING} for media_type in media_types}
    return {"responses": {"200": {"description": "The answer", "content": content}}}


def install_schemas(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    """Make `app.openapi` include the schemas of these bodies. The document is made when first asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app, models)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _build(app: FastAPI, models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    bodies = {name: _with_decisions(name, schema) for name, schema in definitions["$defs"].items()}
    document["components"] = {"schemas": {**bodies, **ANSWERS}}
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)  # FastAPI's own, which is never sent
            operation["responses"] = {**_errors("Error"), **operation["responses"]}
    return document


def _reference(name: str) -> Schema:
    return {"$ref": _REF.format(model=name)}


def _errors(name: str) -> dict[str, Any]:
    error = {"description": "An error", "content": {"application/json": {"schema": _reference(name)}}}
    return {"4XX": error, "5XX": error}


def _with_decisions(name: str, schema: Schema) -> Schema:
    """The schema of a body or a part of one, with what pydantic is not asked about."""
    needed = _NEEDED.get(name, schema.get("required", []))
    properties = {
        field: field_schema if field in needed else _or_null(field_schema)
        for field, field_schema in schema.get("properties", {}).items()
    }
    undecided = {field: rule for field, rule in _other_parameters(name).items() if field not in properties}
    unknown = {"type": "null"}  # equals absent, whatever its name
    return {
        **schema,
        "properties": {**properties, **undecided},
        "required": [*needed],
        "additionalProperties": unknown,
    }


def _or_null(schema: Schema) -> Schema:
    """Null equals absent."""
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
        return {**schema, "anyOf": [*kinds, {"type": "null"}]}
    if "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**rest, "anyOf": [{"$ref": schema["$ref"]}, {"type": "null"}]}
    if "enum" in schema:
        schema = {**schema, "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else schema


def _other_parameters(name: str) -> dict[str, Schema]:
    """Those that are ignored, and those that are refused unless they ask for nothing."""
    endpoint = _ENDPOINTS.get(name)
    others: dict[str, Schema] = {
        field: {"description": f"Accepted and ignored: {ignored.why}."}
        for field, ignored in IGNORED.items()
        if endpoint in ignored.endpoints
    }
    for field, refused in REFUSED.items():
        if endpoint in refused.endpoints:
            harmless = [value for value in _ASKING_NOTHING if refused.asks_nothing(value, {})]
            others[field] = {"description": f"Not supported: {refused.why}.", "enum": [None, *harmless]}
    return others
