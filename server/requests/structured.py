"""From `response_format` and `structured_outputs` to the grammar that the output has to match.

Checks their shape; what a schema or a grammar may contain is checked where it is compiled (`engine.grammar.compiler`).
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import MAX_GRAMMAR_CHARS, Grammar
from orcinus.server.errors import shown
from orcinus.server.requests.bodies import GenerationBody
from orcinus.server.requests.left_out import known_fields
from orcinus.server.requests.schemas import MAX_CHOICE_STRINGS

_FORMATS = ("text", "json_object", "json_schema")
_FORMAT_FIELDS = ("type", "json_schema", "schema")
_SCHEMA_FIELDS = ("name", "description", "schema", "strict")
# Options of other servers' structured outputs, which are off where their value is false or empty.
_FOREIGN_OPTIONS = (
    *("disable_fallback", "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"),
    "structural_tag",
)


def read_grammar(body: GenerationBody) -> Grammar | None:
    """Return the grammar that a body asks for. Raises `InvalidRequestError`."""
    grammar = read_response_format(body.response_format)
    if body.structured_outputs is None:
        return grammar
    if grammar is not None:
        raise InvalidRequestError(
            "response_format and structured_outputs both say what to generate: give one", "structured_outputs"
        )
    return _read_structured_outputs(body.structured_outputs)


def grammar_param(body: GenerationBody) -> str:
    """Return the parameter to blame for the grammar that `read_grammar` gives."""
    return "response_format" if body.response_format else "structured_outputs"


def schema_place(body: GenerationBody) -> str:
    """Return where the schema stands in a body, or what is there in its place."""
    if not body.response_format:
        return f"structured_outputs.{next((name for name in body.structured_outputs or {} if name in _READERS), '')}"
    kind = body.response_format.get("type")
    return "response_format.schema" if kind == "json_object" else "response_format.json_schema.schema"


def is_loose(body: GenerationBody) -> bool:
    """Return whether the schema of a body need not be enforced: its `strict` is false, and not just absent."""
    described = (body.response_format or {}).get("json_schema")
    return isinstance(described, dict) and described.get("strict") is False


def read_response_format(response_format: Mapping[str, Any] | None) -> Grammar | None:
    """Return the grammar of OpenAI's form, which has the schema under `json_schema`."""
    if response_format is None:
        return None
    response_format = known_fields(response_format, _FORMAT_FIELDS, "response_format")
    kind = response_format.get("type")
    if kind in ("text", "json_object") and response_format.get("json_schema") is not None:
        raise InvalidRequestError(
            f'response_format.json_schema needs the type "json_schema", got {shown(kind)}',
            "response_format.json_schema",
        )
    if kind == "text" and response_format.get("schema") is not None:
        raise InvalidRequestError('response_format.schema needs the type "json_object"', "response_format.schema")
    match kind:
        case "text":
            return None
        case "json_object":
            schema = response_format.get("schema")  # as servers before this one take it
            return Grammar("json_object") if schema is None else schema_grammar(schema, "response_format.schema")
        case "json_schema":
            return _read_json_schema(response_format.get("json_schema"))
        case other:
            raise InvalidRequestError(
                f"response_format.type must be one of {', '.join(_FORMATS)}, got {shown(other)}", "response_format.type"
            )


def schema_grammar(schema: Any, param: str) -> Grammar:
    """Return the grammar of a schema in parsed JSON: an object, or true and false, which are schemas too."""
    if not isinstance(schema, (dict, bool)):
        raise InvalidRequestError(f"{param} must be a JSON schema, got {shown(schema)}", param)
    source = json.dumps(schema, ensure_ascii=False)
    try:
        source.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{param} has characters that cannot be written as UTF-8", param) from None
    return Grammar("json_schema", source)


def _read_json_schema(described: Any) -> Grammar:
    where = "response_format.json_schema"
    if not isinstance(described, dict):
        raise InvalidRequestError(f"{where} must be an object with name and schema, got {shown(described)}", where)
    if "schema" not in known_fields(described, _SCHEMA_FIELDS, where):
        raise InvalidRequestError(f"{where}.schema is required", f"{where}.schema")
    return schema_grammar(described["schema"], f"{where}.schema")


def _read_structured_outputs(asked: Mapping[str, Any]) -> Grammar:
    stated = {name: value for name, value in asked.items() if value or name not in _FOREIGN_OPTIONS}
    given = known_fields(stated, _READERS, "structured_outputs")
    if len(given) != 1:
        raise InvalidRequestError(
            f"structured_outputs takes exactly one of {', '.join(_READERS)}, got {len(given)}", "structured_outputs"
        )
    [(name, value)] = given.items()
    return _READERS[name](value)


def _read_json(value: Any) -> Grammar:
    """Return the grammar of a schema that is given as an object or as text."""
    where = "structured_outputs.json"
    if isinstance(value, str):
        value = _parse_schema(value, where)
    return schema_grammar(value, where)


def _parse_schema(text: str, where: str) -> Any:
    """Parse a schema, and check its length first: until it is parsed, nothing else is answered."""
    if len(text) > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(f"{where} has at most {MAX_GRAMMAR_CHARS} characters, got {len(text)}", where)
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        raise InvalidRequestError(f"{where} is not valid JSON", where) from None


def _read_json_object(value: Any) -> Grammar:
    if value is not True:
        raise InvalidRequestError("structured_outputs.json_object must be true", "structured_outputs.json_object")
    return Grammar("json_object")


def _read_choice(value: Any) -> Grammar:
    where = "structured_outputs.choice"
    if not isinstance(value, list) or not value or not all(isinstance(choice, str) and choice for choice in value):
        raise InvalidRequestError(f"{where} must be a list of strings that are not empty", where)
    if len(value) > MAX_CHOICE_STRINGS:
        raise InvalidRequestError(f"{where} takes at most {MAX_CHOICE_STRINGS} strings, got {len(value)}", where)
    return Grammar("choice", json.dumps(value, ensure_ascii=False))


def _read_regex(value: Any) -> Grammar:
    return Grammar("regex", _read_text(value, "structured_outputs.regex"))


def _read_grammar(value: Any) -> Grammar:
    return Grammar("grammar", _read_text(value, "structured_outputs.grammar"))


def _read_text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"{where} must be a string that is not empty", where)
    return value


_READERS: Mapping[str, Callable[[Any], Grammar]] = {
    "json": _read_json,
    "regex": _read_regex,
    "choice": _read_choice,
    "grammar": _read_grammar,
    "json_object": _read_json_object,
}
