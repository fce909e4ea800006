"""The types of fields that several bodies have, with their bounds and the JSON schemas that the OpenAPI document shows.

A schema is written by hand where pydantic is not asked, because it would collect an error for each of a million
entries, or where the check is another module's. Knows no body.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from orcinus.engine.sampling_params import (
    MAX_GRAMMAR_CHARS,
    MAX_LOGIT_BIAS,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
)

MAX_PROMPTS = 256
MAX_MESSAGES = 4096
MAX_TOKENS = 2**31 - 1
MAX_TEMPLATE_VARIABLES = 64
MAX_CHOICE_STRINGS = 4096
MAX_BAD_WORD_CHARS = 1024


def _string_to_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_STOP_STRING_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_CHARS}
_STOPS_SCHEMA = {"type": "array", "items": _STOP_STRING_SCHEMA, "maxItems": MAX_STOP_STRINGS}
_STOP_SCHEMA = {"anyOf": [_STOP_STRING_SCHEMA, _STOPS_SCHEMA]}
_TEXT_SCHEMA = {"type": "string", "minLength": 1}
_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def prompts_schema(limit: int) -> dict[str, Any]:
    return {
        "anyOf": [
            _TEXT_SCHEMA,
            _IDS_SCHEMA,
            {"type": "array", "items": {"anyOf": [_TEXT_SCHEMA, _IDS_SCHEMA]}, "minItems": 1, "maxItems": limit},
        ]
    }


Stop = Annotated[list[str], BeforeValidator(_string_to_list), WithJsonSchema(_STOP_SCHEMA)]
StopSequences = Annotated[list[str], WithJsonSchema(_STOPS_SCHEMA)]
Word = Annotated[str, WithJsonSchema({**_TEXT_SCHEMA, "maxLength": MAX_BAD_WORD_CHARS})]
TokenId = Annotated[int, Field(ge=0)]
TokenCount = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
_PARTS_SCHEMA = {
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


_CALL_SCHEMA = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": {"type": "string"}, "arguments": {"type": ["string", "object"]}},
        }
    },
}


def _message_schema(roles: Sequence[str], *content: dict[str, Any]) -> dict[str, Any]:
    calls = {"type": ["array", "null"], "items": _CALL_SCHEMA}
    properties = {"role": {"enum": roles}, "content": {"anyOf": [*content]}, "tool_calls": calls}
    return {"type": "object", "required": ["role", "content"], "properties": properties}


_ASSISTANT_SCHEMA = _message_schema(["assistant"], {"type": "string"}, _PARTS_SCHEMA, {"type": "null"})
_OTHERS_SCHEMA = _message_schema(["system", "developer", "user", "tool", "function"], {"type": "string"}, _PARTS_SCHEMA)
_MESSAGES_SCHEMA = {
    "type": "array",
    "items": {"anyOf": [_OTHERS_SCHEMA, {**_ASSISTANT_SCHEMA, "required": ["role"]}]},
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
}
_BIAS_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,10}$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    "maxProperties": MAX_LOGIT_BIAS,
}
LogitBias = Annotated[dict[str, float], WithJsonSchema(_BIAS_SCHEMA)]
_GRAMMAR_SCHEMA = {**_TEXT_SCHEMA, "maxLength": MAX_GRAMMAR_CHARS}
_STRUCTURED_SCHEMAS: dict[str, Any] = {
    "json": {"type": ["object", "boolean", "string"]},
    "regex": _GRAMMAR_SCHEMA,
    "choice": {"type": "array", "items": _TEXT_SCHEMA, "minItems": 1, "maxItems": MAX_CHOICE_STRINGS},
    "grammar": _GRAMMAR_SCHEMA,
    "json_object": {"const": True},
}
_STRUCTURED_SCHEMA = {
    "anyOf": [
        {"type": "object", "required": [name], "properties": {name: schema}, "additionalProperties": {"type": "null"}}
        for name, schema in _STRUCTURED_SCHEMAS.items()
    ]
}
StructuredOutputs = Annotated[dict[str, Any], WithJsonSchema(_STRUCTURED_SCHEMA)]
_FORMAT_SCHEMA = {
    "anyOf": [
        {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}},
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["schema"],
                    "properties": {"schema": {"type": ["object", "boolean"]}},
                },
            },
        },
    ]
}
ResponseFormat = Annotated[dict[str, Any], WithJsonSchema(_FORMAT_SCHEMA)]
Messages = Annotated[list[dict[str, Any]], WithJsonSchema(_MESSAGES_SCHEMA)]
