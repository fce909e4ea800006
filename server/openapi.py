"""The OpenAPI document, made of the table of endpoints: what FastAPI cannot see of routes that read their own bodies.

It says what is checked: what a body may hold (null equals absent; parameters that are ignored, or accepted where they
ask for nothing), which headers count, which forms an answer has, and what every operation may say instead. What only
the model or several parameters together decide is a 400 that no schema can state.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from orcinus.server.apis.answer_schemas import STRING, STRING_OR_NULL, AnswerSchema, Schema, constant, object_with
from orcinus.server.errors import MAX_RETRY_AFTER_S, speaks_anthropic
from orcinus.server.operations import (
    AdminOperation,
    BodyOperation,
    GenerationOperation,
    Operation,
    OperationTable,
    PageOperation,
)
from orcinus.server.requests.bodies import MAX_TIMEOUT_S, Body
from orcinus.server.requests.caller import TIMEOUT_HEADER
from orcinus.server.requests.parameters import IGNORED, REFUSED, Endpoint

_REF = "#/components/schemas/{model}"

_WITH_ANSWER = (GenerationOperation, BodyOperation, AdminOperation)

_ERRORS = (
    AnswerSchema(
        "Error",
        object_with(error=object_with(message=STRING, type=STRING, param=STRING_OR_NULL, code=STRING_OR_NULL)),
    ),
    AnswerSchema("AnthropicError", object_with(type=constant("error"), error=object_with(type=STRING, message=STRING))),
)
_ABSENT: Schema = {"type": "null"}  # equals absent
_ASKING_NOTHING: Sequence[Any] = (False, True, 0, 1, "", "none", "auto", "float32", [], ["text"], {})

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
_RESTRICTED: Mapping[int, str] = {403: "The API key may not ask for this"}
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
    "schema": STRING,
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


def describe_operation(operation: Operation) -> dict[str, Any]:
    """Return what the table knows of an operation and its route does not: its body and its answer."""
    match operation:
        case GenerationOperation():
            return _describe_body(operation.body, operation.answer, is_streamed=operation.is_streamed)
        case BodyOperation():
            return _describe_body(operation.body, operation.answer, is_streamed=False)
        case AdminOperation():
            return {"responses": _describe_answer({"application/json": _reference(operation.answer.name)})}
        case PageOperation():
            return {"responses": _describe_answer(dict.fromkeys(operation.media_types, STRING))}
        case _:
            return {"responses": {"200": {"content": {"application/json": {"schema": {}}}}}}


def install_document(app: FastAPI, operations: OperationTable, *, is_key_needed: bool, root_path: str = "") -> None:
    """Make `app.openapi` give the document of these operations. It is made when first asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = _build(app, operations, is_key_needed)
            app.openapi_schema = {**document, "servers": [{"url": root_path}]} if root_path else document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe_body(body: type[Body], answer: AnswerSchema, *, is_streamed: bool) -> dict[str, Any]:
    content = {"application/json": _reference(answer.name), **({"text/event-stream": STRING} if is_streamed else {})}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _reference(body.__name__)}}},
        "responses": _describe_answer(content),
    }


def _describe_answer(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    """Return an answer of one of these media types."""
    content = {media_type: {"schema": schema} for media_type, schema in schemas.items()}
    return {"200": {"description": "The answer", "content": content}}


def _build(app: FastAPI, operations: OperationTable, is_key_needed: bool) -> dict[str, Any]:
    paths = {operation.path for operation in operations}
    routes = [route for route in app.routes if getattr(route, "path", "") in paths]
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=routes)
    document["components"] = {"schemas": {**_body_schemas(operations.bodies), **_answer_schemas(operations)}}
    if is_key_needed:
        document["components"]["securitySchemes"] = _KEYS
    for operation in operations:
        if operation.is_documented:
            for described in document["paths"][operation.shown_path].values():
                _complete(described, operation, is_guarded=is_key_needed and operation.is_guarded)
    return document


def _body_schemas(bodies: Sequence[type[Body]]) -> dict[str, Schema]:
    """Return the schemas of bodies and of their parts, by name."""
    _, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    kinds = {body.__name__: body for body in bodies}
    return {name: _with_decisions(kinds.get(name, Body), schema) for name, schema in definitions["$defs"].items()}


def _answer_schemas(operations: OperationTable) -> dict[str, Schema]:
    answers = [row.answer for row in operations if isinstance(row, _WITH_ANSWER)]
    return {answer.name: answer.schema for answer in (*answers, *_ERRORS)}


def _complete(described: dict[str, Any], operation: Operation, *, is_guarded: bool) -> None:
    """Add what holds for all operations: path parameters, headers, keys and errors."""
    names = re.findall(r"{(\w+)}", operation.shown_path)
    headers = [_REQUEST_ID, _TIMEOUT] if operation.needs_room else [_REQUEST_ID]
    queries = operation.parameters if isinstance(operation, AdminOperation) else ()
    described["parameters"] = [*map(_path_parameter, names), *queries, *headers]
    if is_guarded:
        described["security"] = [{name: []} for name in _KEYS]
    has_body = "requestBody" in described
    statuses = {
        **_ANY,
        **(_GUARDED if is_guarded else {}),
        **(_NAMING_A_MODEL if has_body or "model" in names else {}),
        **(_RESTRICTED if is_guarded and (has_body or "model" in names or queries) else {}),
        **(_WITH_BODY if has_body else {}),
    }
    described["responses"] |= {
        str(status): _error(status, statuses[status], operation.path) for status in sorted(statuses)
    }


def _path_parameter(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {**STRING, "title": name.title()}}


def _error(status: int, description: str, path: str) -> dict[str, Any]:
    name = "AnthropicError" if speaks_anthropic(path) and status not in _OF_CONNECTIONS else "Error"
    answer = {"description": description, "content": {"application/json": {"schema": _reference(name)}}}
    return {**answer, "headers": {"retry-after": _RETRY_AFTER}} if status in (429, 503) else answer


def _reference(name: str) -> Schema:
    return {"$ref": _REF.format(model=name)}


def _with_decisions(kind: type[Body], schema: Schema) -> Schema:
    """Return the schema of a body or a part of one, with what pydantic is not asked about."""
    needed = kind.needed or schema.get("required", [])
    properties = {
        field: field_schema if field in needed else _or_null(field_schema)
        for field, field_schema in schema.get("properties", {}).items()
    }
    undecided = {field: rule for field, rule in _other_parameters(kind.endpoint).items() if field not in properties}
    decided = {
        **schema,
        "properties": {**properties, **undecided},
        "required": [*needed],
        "additionalProperties": _ABSENT,  # whatever its name
    }
    return {**decided, "anyOf": _choices(kind, schema["properties"])} if kind.choices else decided


def _choices(kind: type[Body], fields: Mapping[str, Schema]) -> list[Schema]:
    """Return a schema for each set of fields of which exactly one is given."""
    names = dict.fromkeys(name for choice in kind.choices for name in choice)
    return [
        {
            "required": [*choice],
            "properties": {name: fields[name] if name in choice else _ABSENT for name in names},
        }
        for choice in kind.choices
    ]


def _or_null(schema: Schema) -> Schema:
    """Allow null, which equals absent."""
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
        return {**schema, "anyOf": [*kinds, {"type": "null"}]}
    if "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**rest, "anyOf": [{"$ref": schema["$ref"]}, {"type": "null"}]}
    if "enum" in schema:
        schema = {**schema, "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else schema


def _other_parameters(endpoint: Endpoint | None) -> dict[str, Schema]:
    """Return the parameters that are ignored, and those that are refused unless they ask for nothing."""
    others: dict[str, Schema] = {
        field: {"description": f"Accepted and ignored: {ignored.why}."}
        for field, ignored in IGNORED.items()
        if endpoint in ignored.endpoints
    }
    for field, refused in REFUSED.items():
        if endpoint in refused.endpoints:
            harmless = [value for value in _ASKING_NOTHING if refused.asks_nothing(value)]
            others[field] = {"description": f"Not supported: {refused.why}.", "enum": [None, *harmless]}
    return others
