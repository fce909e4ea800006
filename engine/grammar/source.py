"""What a request asks its text to match, written in the language of llguidance, within limits on its size and depth.

Everything that is refused before it is compiled is refused here, by name. Runs in the engine and in the process that
tries grammars out (`engine.grammar.gate`). Knows nothing of tokenizers and models.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.grammar.neutral_keywords import drop_neutral_keywords
from orcinus.engine.sampling_params import GrammarKind

MAX_DEPTH = 100
MAX_ENUM_VALUES = 10_000
MAX_PROPERTIES = 2_000
MAX_CHOICES = 10_000
MAX_GBNF_CHARS = 64 * 1024

# Between two pieces of JSON: nothing, a space, or a new line and its indentation. Bounded, or a model could write
# white space for ever.
_JSON_OPTIONS = {
    "whitespace_flexible": True,
    "whitespace_pattern": r"( |\n[ \t]{0,40})?",
    "lenient": False,
    "coerce_one_of": False,
}
_OWN_OPTIONS = "x-guidance"
_SUBSCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_LARK_IMPORT = re.compile(r"^\s*%import\s+(?!common\.)(\S+)", re.MULTILINE)
_LARK_SCHEMA = re.compile(r"%json\s*(?=\{)")
_decoder = json.JSONDecoder()
_LARK_OPTIONS = re.compile(r"^\s*%llguidance\b", re.MULTILINE)


def llguidance_grammar(kind: GrammarKind, source: str) -> str:
    """Return the grammar as llguidance reads it; `source` is as in `engine.sampling_params.Grammar`.

    Raises `InvalidRequestError`, which names what is wrong. A grammar that passes may still fail to compile.
    """
    match kind:
        case "json_object":
            return _json_grammar({"type": "object"})
        case "json_schema":
            return _json_grammar(_checked_schema(source))
        case "regex":
            return LLMatcher.grammar_from_regex(source)
        case "choice":
            return LLMatcher.grammar_from_regex("|".join(map(_escaped, _checked_choices(source))))
        case "grammar":
            return LLMatcher.grammar_from_lark(_checked_lark(source))


def _json_grammar(schema: Any) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON_OPTIONS)  # type: ignore[arg-type]


def parsed_schema(source: str) -> dict[str, Any]:
    """Return a schema of bounded depth. Raises `InvalidRequestError`."""
    schema = _parsed(source, "the schema")
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"the schema must be a JSON object, got {json.dumps(schema)[:100]}")
    if _OWN_OPTIONS in schema:
        raise InvalidRequestError(f"the schema has the key {_OWN_OPTIONS!r}, which is not supported")
    _check_at_most("the schema nests at most {} deep", _depth(schema), MAX_DEPTH)
    return schema


def _checked_schema(source: str) -> dict[str, Any]:
    schema = parsed_schema(source)
    parts = [*_objects(schema)]
    num_values = sum(len(part["enum"]) for part in parts if isinstance(part.get("enum"), list))
    _check_at_most("the enums of a schema have at most {} values", num_values, MAX_ENUM_VALUES)
    maps = [part[name] for part in parts for name in _SUBSCHEMA_MAPS if isinstance(part.get(name), dict)]
    _check_at_most("a schema has at most {} properties and definitions", sum(map(len, maps)), MAX_PROPERTIES)
    for part in parts:
        _check_reference(part.get("$ref"))
    drop_neutral_keywords(schema)
    return schema


def _checked_choices(source: str) -> list[str]:
    choices = _parsed(source, "the choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise InvalidRequestError("choices must be a list of strings, none of them empty")
    if not choices:
        raise InvalidRequestError("at least one choice is needed, got none")
    _check_at_most("at most {} choices are taken", len(choices), MAX_CHOICES)
    return choices


def _escaped(text: str) -> str:
    """Return a regular expression for exactly this text."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _checked_lark(source: str) -> str:
    if (outside := _LARK_IMPORT.search(source)) is not None:
        raise InvalidRequestError(f"a grammar can import from 'common' alone, not {outside[1][:100]!r}")
    if _LARK_OPTIONS.search(source) is not None:
        raise InvalidRequestError("a grammar cannot set options: it has %llguidance")
    if _GBNF_RULE.search(source) is None:
        return _with_plain_schemas(source)
    _check_at_most("a GBNF grammar has at most {} characters", len(source), MAX_GBNF_CHARS)
    try:
        return str(any_to_lark(source))
    except GbnfToLarkError as error:
        raise InvalidRequestError(f"the GBNF grammar has an error: {error}") from error
    except Exception as error:  # the converter's words for a rule that is missing, and for much else
        raise InvalidRequestError(f"the GBNF grammar cannot be read: {str(error)[:200]}") from error


def _with_plain_schemas(source: str) -> str:
    """Return a grammar in Lark's notation whose schemas have no neutral keywords."""
    parts, done = [], 0
    for found in _LARK_SCHEMA.finditer(source):
        if found.start() < done:
            continue  # within a schema
        try:
            schema, end = _decoder.raw_decode(source, found.end())
        except (ValueError, RecursionError):
            continue  # the compiler says what is wrong
        if isinstance(schema, dict):
            drop_neutral_keywords(schema)
            parts += [source[done : found.end()], json.dumps(schema, ensure_ascii=False)]
            done = end
    return "".join([*parts, source[done:]])


def _parsed(source: str, what: str) -> Any:
    try:
        return msgspec.json.decode(source)  # which takes no NaN
    except ValueError as error:
        raise InvalidRequestError(f"{what} must be JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequestError(f"{what} must nest at most {MAX_DEPTH} deep") from error


def _depth(value: Any) -> int:
    """Return how deep JSON nests. Not by recursion, which would end where the interpreter's stack does."""
    level, depth = [value], 0
    while level:
        depth += 1
        level = [child for parent in level for child in _children(parent)]
    return depth


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every JSON object in `value`, itself included."""
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            yield current
        pending.extend(_children(current))


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.values()]
    return value if isinstance(value, list) else []


def _check_at_most(message: str, value: int, limit: int) -> None:
    if value > limit:
        raise InvalidRequestError(f"{message.format(limit)}, got {value}")


def _check_reference(reference: Any) -> None:
    """Raise for a reference that points outside the schema. Nothing is ever fetched."""
    if isinstance(reference, str) and not reference.startswith("#"):
        raise InvalidRequestError(f"$ref must point into the schema itself ('#...'), got {reference[:100]!r}")
