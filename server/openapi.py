"""The OpenAPI document of routes that read their bodies themselves: their schemas, put in by hand.

It says what is checked: what a body may hold (null equals absent; parameters that are ignored, or accepted where they
ask for nothing), which headers count, which forms an answer has, and what every operation may say instead. What only
the model or several parameters together decide is a 400 that no schema can state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from orcinus.server.errors import MAX_RETRY_AFTER_S, speaks_anthropic
from orcinus.server.operations import ENGINE_PATHS, PUBLIC_PATHS
from orcinus.server.requests.bodies import MAX_TIMEOUT_S
from orcinus.server.requests.caller import TIMEOUT_HEADER
from orcinus.server.requests.parameters import IGNORED, REFUSED, Endpoint

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

# What a body cannot be without, and by which name its other parameters are decided (`server.requests.parameters`).
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


# What else an operation may answer.
_ANY: Mapping[int, str] = {
    400: "What was sent is not valid; the message gives the limit and the value",
    408: "It did not come, or was not done, in its time",
    414: "The URL is too long",
    429: "There is no room for it now",
    431: "The headers are too large or too many",
    500: "The server failed",
    503: "The server loads its model, restarts its engine or ends, or there are too many connections",
}
_GUARDED: Mapping[int, str] = {401: "The API key is missing or wrong"}
_NAMING_A_MODEL: Mapping[int, str] = {404: "No model is served by this name"}
_WITH_BODY: Mapping[int, str] = {413: "The body is too large", 415: "The body is not JSON, or is compressed"}
_OF_CONNECTIONS = frozenset({414, 431})  # said before it is known which API is spoken
_RETRY_AFTER: Schema = {
    "description": "Seconds to wait before the next try",
    "required": True,
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_RETRY_AFTER_S},
}

_REQUEST_ID: Schema = {
    "name": "x-request-id",
    "in": "header",
    "description": "What the answer and the log call the request, if it is 1 to 128 letters, digits and ._:/+=@-",
    "schema": _STRING,
}
_TIMEOUT: Schema = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Seconds in which the answer must be complete; where `timeout` is given too, the earlier counts",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
}
_KEYS: Mapping[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def describe_body(model: type[BaseModel], answer: str, *, is_streamed: bool = False) -> dict[str, Any]:
    """What a route that parses `model` itself adds to its entry; `answer` is of `ANSWERS`."""
    content = {"application/json": {"schema": _reference(answer)}}
    if is_streamed:
        content["text/event-stream"] = {"schema": _STRING}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _reference(model.__name__)}}},
        "responses": {"200": {"description": "The answer", "content": content}},
    }


def describe_text(*media_types: str) -> dict[str, Any]:
    """What a route adds that answers with text of one of these types."""
    content = {media_type: {"schema": _STRING} for media_type in media_types}
    return {"responses": {"200": {"description": "The answer", "content": content}}}


def install_schemas(app: FastAPI, models: Sequence[type[BaseModel]], *, is_key_needed: bool) -> None:
    """Make `app.openapi` include the schemas of these bodies. The document is made when first asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app, models, is_key_needed)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _build(app: FastAPI, models: Sequence[type[BaseModel]], is_key_needed: bool) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    bodies = {name: _with_decisions(name, schema) for name, schema in definitions["$defs"].items()}
    document["components"] = {"schemas": {**bodies, **ANSWERS}}
    if is_key_needed:
        document["components"]["securitySchemes"] = _KEYS
    for path, methods in document["paths"].items():
        for operation in methods.values():
            _complete(operation, path, is_guarded=is_key_needed and path not in PUBLIC_PATHS)
    return document


def _complete(operation: dict[str, Any], path: str, *, is_guarded: bool) -> None:
    """Add what the routes do not say themselves: headers, keys and errors."""
    headers = [_REQUEST_ID, _TIMEOUT] if path in ENGINE_PATHS else [_REQUEST_ID]
    operation["parameters"] = [*operation.get("parameters", []), *headers]
    if is_guarded:
        operation["security"] = [{name: []} for name in _KEYS]
    operation["responses"].pop("422", None)  # FastAPI's own, which is never sent
    has_body = "requestBody" in operation
    statuses = {
        **_ANY,
        **(_GUARDED if is_guarded else {}),
        **(_NAMING_A_MODEL if has_body or "{model}" in path else {}),
        **(_WITH_BODY if has_body else {}),
    }
    operation["responses"] |= {str(status): _error(status, statuses[status], path) for status in sorted(statuses)}


def _error(status: int, description: str, path: str) -> dict[str, Any]:
    name = "AnthropicError" if speaks_anthropic(path) and status not in _OF_CONNECTIONS else "Error"
    answer = {"description": description, "content": {"application/json": {"schema": _reference(name)}}}
    return {**answer, "headers": {"retry-after": _RETRY_AFTER}} if status in (429, 503) else answer


def _reference(name: str) -> Schema:
    return {"$ref": _REF.format(model=name)}


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
