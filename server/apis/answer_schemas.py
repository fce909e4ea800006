"""The forms of answers as the OpenAPI document shows them: what schemas are made of, and what several APIs share.

Each API keeps the schema of its own answer beside the code that writes it. Knows nothing of routes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
STRING_OR_NULL: Schema = {"type": ["string", "null"]}
OBJECT_OR_NULL: Schema = {"type": ["object", "null"]}


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """The form of an operation's answer. `name` is what the document calls it, and must be the only one."""

    name: str
    schema: Schema


def object_with(**properties: Schema) -> Schema:
    """Return the schema of objects that have these properties, and maybe others."""
    return {"type": "object", "required": [*properties], "properties": properties}


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def constant(value: str) -> Schema:
    return {"const": value}


# What completions and chat completions have in common: the fields around their choices, and those of a choice.
_USAGE = object_with(prompt_tokens=INTEGER, completion_tokens=INTEGER, total_tokens=INTEGER)
IDENTITY: Mapping[str, Schema] = {
    "id": STRING,
    "created": INTEGER,
    "model": STRING,
    "system_fingerprint": STRING,
    "usage": _USAGE,
}
CHOICE: Mapping[str, Schema] = {"index": INTEGER, "logprobs": OBJECT_OR_NULL, "finish_reason": STRING}
