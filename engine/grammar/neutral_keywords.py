"""Drops from a JSON schema what says nothing of a value, and says in simpler words what can be said so.

A keyword that allows everything is an annotation, and so is a format that is not checked here: by the specification a
format is one anyway. What is left is enforced or refused, by whoever compiles the schema.
"""

from collections.abc import Iterator
from typing import Any

from orcinus.engine.grammar.alternatives import Alternatives

Schema = dict[str, Any]

_SINGLE = (
    *("items", "additionalProperties", "additionalItems", "contains", "not", "if", "then", "else", "propertyNames"),
    *("unevaluatedProperties", "unevaluatedItems"),
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
# What llguidance checks, of the formats that are written down anywhere.
_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"}
)
_DIALECTS = ("http://json-schema.org/", "https://json-schema.org/")
# With any of these, what is evaluated is decided elsewhere than in the keywords beside them.
_APPLICATORS = ("allOf", "anyOf", "oneOf", "if", "then", "else", "$ref", "$dynamicRef", "dependentSchemas", "not")
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment"}
)
_MANY = 10**9


def drop_neutral_keywords(schema: Schema) -> None:
    """Do so in place, in all schemas within it and in those that it refers to."""
    has_dynamic_references = any("$dynamicRef" in part or "$recursiveRef" in part for part in _all_objects(schema))
    alternatives = Alternatives(lambda reference: target_of(schema, reference)[1])
    pending: list[Any] = [schema]
    seen: set[int] = set()
    while pending:
        part = pending.pop()
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        if not has_dynamic_references:
            for name in ("$dynamicAnchor", "$recursiveAnchor"):
                part.pop(name, None)
        _drop(part)
        alternatives.rename_one_of(part)
        pending += [inner for _, inner in subschemas(part)]
        pending.append(target_of(schema, part.get("$ref"))[1])


def is_neutral(schema: Any) -> bool:
    """Return whether a schema plainly allows every value."""
    return schema is True or (isinstance(schema, dict) and schema.keys() <= _ANNOTATIONS)


def _drop(part: Schema) -> None:
    _drop_unknown_words(part)
    _drop_array_keywords(part)
    _drop_object_keywords(part)
    _drop_conditions(part)
    _close(part, "unevaluatedProperties", "additionalProperties")
    _close(part, "unevaluatedItems", "additionalItems" if isinstance(part.get("items"), list) else "items")


def _drop_unknown_words(part: Schema) -> None:
    form, dialect = part.get("format"), part.get("$schema")
    if isinstance(form, str) and form not in _FORMATS:
        del part["format"]
    if isinstance(dialect, str) and not dialect.startswith(_DIALECTS):
        del part["$schema"]


def _drop_array_keywords(part: Schema) -> None:
    if part.get("uniqueItems") is False or _number(part.get("maxItems"), _MANY) <= 1:
        part.pop("uniqueItems", None)
    if "contains" not in part:
        part.pop("minContains", None)
        part.pop("maxContains", None)
        return
    least = _number(part.get("minContains"), 1)
    if is_neutral(part["contains"]):  # then it counts all items
        part["minItems"] = max(least, _number(part.get("minItems"), 0))
        if "maxContains" in part:
            part["maxItems"] = min(_number(part["maxContains"], _MANY), _number(part.get("maxItems"), _MANY))
    elif least != 0 or "maxContains" in part:
        return
    for name in ("contains", "minContains", "maxContains"):
        part.pop(name, None)


def _drop_object_keywords(part: Schema) -> None:
    names = part.get("propertyNames")
    if is_neutral(names) or (isinstance(names, dict) and _is_any_string(names)):
        del part["propertyNames"]
    for name in ("dependentRequired", "dependentSchemas", "dependencies"):
        needed = part.get(name)
        if isinstance(needed, dict):
            rest = {key: value for key, value in needed.items() if value != [] and not is_neutral(value)}
            part[name] = rest
            if not rest:
                del part[name]


def _is_any_string(schema: Schema) -> bool:
    rest = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    kinds = rest.pop("type", "string")
    if rest.get("minLength") == 0:
        del rest["minLength"]
    return not rest and (kinds == "string" or (isinstance(kinds, list) and "string" in kinds))


def _drop_conditions(part: Schema) -> None:
    if part.get("not") is False:
        del part["not"]
    if "if" not in part:
        part.pop("then", None)
        part.pop("else", None)
        return
    if is_neutral(part["if"]) or part["if"] is False:
        taken = part.get("else" if part["if"] is False else "then", True)
        if not is_neutral(taken):
            both = part.get("allOf")
            part["allOf"] = [*(both if isinstance(both, list) else []), taken]
    elif not (is_neutral(part.get("then", True)) and is_neutral(part.get("else", True))):
        return
    for name in ("if", "then", "else"):
        part.pop(name, None)


def _close(part: Schema, unevaluated: str, additional: str) -> None:
    """Drop `unevaluated` where it allows everything, or can be said by `additional`, which leaves nothing to it."""
    if unevaluated not in part:
        return
    if is_neutral(part[unevaluated]) or (additional in part and not isinstance(part[additional], list)):
        del part[unevaluated]
    elif not any(name in part for name in _APPLICATORS):
        part[additional] = part.pop(unevaluated)


def _number(value: Any, otherwise: int) -> int:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return int(value) if is_number else otherwise


def subschemas(part: Schema) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield what stands where a part may have schemas, each with the way to it."""
    for name in _SINGLE:
        yield (name,), part.get(name)
    for name in _LISTS:
        if isinstance(inner := part.get(name), list):
            yield from (((name, index), value) for index, value in enumerate(inner))
    for name in _MAPS:
        if isinstance(inner := part.get(name), dict):
            yield from (((name, key), value) for key, value in inner.items())


def target_of(schema: Schema, reference: Any) -> tuple[tuple[str | int, ...], Any]:
    """Return the place of what a reference into the schema points to, and that; None for one that leads nowhere."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return (), None
    target: Any = schema
    place: list[str | int] = []
    for step in reference[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and name.isdigit() and int(name) < len(target):
            place.append(int(name))
            target = target[int(name)]
        elif isinstance(target, dict):
            place.append(name)
            target = target.get(name)
        else:
            return (), None
    return tuple(place), target


def _all_objects(value: Any) -> Iterator[Schema]:
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            yield current
            pending += current.values()
        elif isinstance(current, list):
            pending += current
