"""The types of fields that several bodies have, with their bounds and the JSON schemas that the OpenAPI document shows.

A schema is written by hand where pydantic is not asked, because it would collect an error for each of a million
entries, or where the check is another module's. Knows no body.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Interval
from pydantic import BeforeValidator, Field, WithJsonSchema

from orcinus.engine.sampling_params import (
    LOGIT_BIAS_RANGE,
    MAX_GRAMMAR_CHARS,
    MAX_LOGIT_BIAS,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    RANGES,
)

MAX_PROMPTS = 256
MAX_INPUTS = 2048  # prompts that are not continued
MAX_MESSAGES = 4096
MAX_TOKENS = 2**31 - 1
MAX_TEMPLATE_VARIABLES = 64
MAX_CHOICE_STRINGS = 4096
MAX_BAD_WORD_CHARS = 1024
UNLIMITED = -1  # as a budget of thinking
ROLES = ["system", "developer", "user", "assistant", "tool", "function"]


def bounds_of(name: str) -> Interval:
    """Return what holds a field within the engine's range of that parameter, to annotate its type with."""
    bounds = RANGES[name]
    return Interval(ge=bounds.ge, gt=bounds.gt, le=bounds.le)


TokenId = Annotated[int, Field(ge=0)]
TokenCount = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
ThinkingBudget = Annotated[int, Field(ge=UNLIMITED, le=MAX_TOKENS)]

# --- texts, and lists of them -----------------------------------------------------------------------------

_TEXT = {"type": "string", "minLength": 1}
_TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_STOP_STRING = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_CHARS}
_STOP_STRINGS = {"type": "array", "items": _STOP_STRING, "maxItems": MAX_STOP_STRINGS}


def prompts_schema(limit: int) -> dict[str, Any]:
    """Return the schema of a prompt: a text, token ids, or a list of up to `limit` of either."""
    return {
        "anyOf": [
            _TEXT,
            _TOKEN_IDS,
            {"type": "array", "items": {"anyOf": [_TEXT, _TOKEN_IDS]}, "minItems": 1, "maxItems": limit},
        ]
    }


def _string_to_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[list[str], BeforeValidator(_string_to_list), WithJsonSchema({"anyOf": [_STOP_STRING, _STOP_STRINGS]})]
StopSequences = Annotated[list[str], WithJsonSchema(_STOP_STRINGS)]
Word = Annotated[str, WithJsonSchema({**_TEXT, "maxLength": MAX_BAD_WORD_CHARS})]

# --- numbers by token -------------------------------------------------------------------------------------

_BIAS = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,10}$"},
    "additionalProperties": {"type": "number", "minimum": LOGIT_BIAS_RANGE.ge, "maximum": LOGIT_BIAS_RANGE.le},
    "maxProperties": MAX_LOGIT_BIAS,
}
LogitBias = Annotated[dict[str, float], WithJsonSchema(_BIAS)]

# --- the messages of a chat -------------------------------------------------------------------------------

_PARTS = {
    "type": "array",
    "items": {
        "anyOf": [
            {
                "type": "object",
                "required": ["type", kind],
                "properties": {"type": {"const": kind}, kind: {"type": "string"}},
            }
            for kind in ("text", "refusal")
        ]
    },
}


def _call(kind: str, argument: str, *types: str) -> dict[str, Any]:
    properties = {"name": {"type": "string"}, argument: {"type": [*types]}}
    called = {"type": "object", "required": ["name", argument], "properties": properties}
    return {"type": "object", "required": [kind], "properties": {kind: called}}


_CALL = {"anyOf": [_call("function", "arguments", "string", "object"), _call("custom", "input", "string")]}


def _message(roles: Sequence[str], required: Sequence[str], *content: dict[str, Any]) -> dict[str, Any]:
    calls = {"type": ["array", "null"], "items": _CALL}
    properties = {"role": {"enum": roles}, "content": {"anyOf": [*content]}, "tool_calls": calls}
    return {"type": "object", "required": required, "properties": properties}


_OTHERS = _message([role for role in ROLES if role != "assistant"], ["role", "content"], {"type": "string"}, _PARTS)
_ASSISTANTS = _message(["assistant"], ["role"], {"type": "string"}, _PARTS, {"type": "null"})
_MESSAGES = {"type": "array", "items": {"anyOf": [_OTHERS, _ASSISTANTS]}, "minItems": 1, "maxItems": MAX_MESSAGES}
Messages = Annotated[list[dict[str, Any]], WithJsonSchema(_MESSAGES)]

# --- the form of the output -------------------------------------------------------------------------------

_GRAMMAR = {**_TEXT, "maxLength": MAX_GRAMMAR_CHARS}
_CONSTRAINTS: dict[str, Any] = {
    "json": {"type": ["object", "boolean", "string"]},
    "regex": _GRAMMAR,
    "choice": {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_CHOICE_STRINGS},
    "grammar": _GRAMMAR,
    "json_object": {"const": True},
}
_STRUCTURED_OUTPUTS = {
    "anyOf": [
        {"type": "object", "required": [name], "properties": {name: schema}, "additionalProperties": {"type": "null"}}
        for name, schema in _CONSTRAINTS.items()
    ]
}
StructuredOutputs = Annotated[dict[str, Any], WithJsonSchema(_STRUCTURED_OUTPUTS)]
_SCHEMA: dict[str, Any] = {"type": ["object", "boolean"]}
_NAMED_SCHEMA = {
    "type": "object",
    "required": ["schema"],
    "properties": {"schema": _SCHEMA, "name": {}, "description": {}, "strict": {}},
    "additionalProperties": {"type": "null"},
}


def _format(kind: str, required: Sequence[str] = (), **properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", *required],
        "properties": {"type": {"const": kind}, **properties},
        "additionalProperties": {"type": "null"},
    }


_RESPONSE_FORMAT = {
    "anyOf": [
        _format("text"),
        _format("json_object", schema={"type": ["object", "boolean", "null"]}),
        _format("json_schema", ["json_schema"], json_schema=_NAMED_SCHEMA, schema={}),
    ]
}
ResponseFormat = Annotated[dict[str, Any], WithJsonSchema(_RESPONSE_FORMAT)]
