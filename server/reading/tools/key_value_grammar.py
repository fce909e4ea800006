"""The rules of a grammar for calls in the way of Gemma 4: JSON schemas, written without JSON's quotation marks.

A schema is followed through objects, lists, references and alternatives. What it says beyond that is left alone, and
taken down as `unwritten`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orcinus.server.reading.tools.argument_values import any_string_rule, any_string_terminal
from orcinus.server.reading.tools.lark import (
    Terminal,
    inline_json,
    listing_rules,
    one_of,
    properties_of,
    quote,
    required_arguments,
    takes_anything,
)
from orcinus.server.reading.tools.request import Tool

Place = tuple[str | int, ...]

_BARE_TYPES = frozenset({"integer", "number", "boolean", "null"})
_PLAIN_KEY = re.compile(r"[\w.-]+")
_NOTES = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema"}
)
_SHARED = ("$defs", "definitions")
_WRITTEN: Mapping[str, frozenset[str]] = {
    "string": frozenset({"type"}),
    "object": frozenset({"type", "properties", "required", "additionalProperties"}),
    "array": frozenset({"type", "items"}),
}


class KeyValueGrammar:
    """Rules for tools whose calls have `mark` around strings."""

    def __init__(self, mark: str, terminal: Terminal) -> None:
        self.unwritten: list[tuple[Place, str]] = []
        self._mark = terminal(mark)
        self._terminals = [any_string_terminal(mark)] if self._mark != quote(mark) else []
        self._string_end = any_string_rule(mark, terminal)
        self._rules: list[str] = []
        self._shared: Mapping[str, Any] = {}
        self._shared_rules: dict[str, str] = {}
        self._is_strict = False

    def call_rules(self, tool: Tool, rule: str) -> list[str]:
        """Return the call of one tool: the arguments that it needs first, then the others, in the schema's order."""
        self._rules = []
        self._shared_rules = {}
        self._shared = {
            f"#/{key}/{name}": part for key in _SHARED for name, part in _dict(tool.parameters, key).items()
        }
        self._is_strict = tool.strict
        self._note((), tool.parameters, _WRITTEN["object"])
        if takes_anything(tool):
            return [f"{rule}: {quote(tool.name)} kv_object"]
        arguments = self._object(properties_of(tool), required_arguments(tool), rule, ())
        return [f"{rule}: {quote(tool.name)} {arguments}", *self._rules]

    def shared_rules(self) -> list[str]:
        """Return the rules for strings, and for any value."""
        scalar = inline_json({"type": ["number", "boolean", "null"]}, strict=True)
        return [
            *self._terminals,
            f"kv_string: {self._mark} {self._string_end}",
            "kv_any: kv_string | kv_scalar | kv_list | kv_object",
            f"kv_scalar: {scalar}",
            'kv_list: "[" (kv_any ("," kv_any)*)? "]"',
            'kv_object: "{" (kv_member ("," kv_member)*)? "}"',
            r'kv_member: /[A-Za-z_][A-Za-z0-9_.-]*/ ":" kv_any',
        ]

    def _object(self, schemas: Mapping[str, Any], required: Sequence[str], rule: str, place: Place) -> str:
        names = sorted(schemas, key=lambda name: name not in required)
        members, rules = listing_rules(rule, len(set(required)), len(names), ",")
        self._rules += rules
        for i, name in enumerate(names):
            value = self._value(schemas[name], f"{rule}_{i}", (*place, "properties", name))
            self._rules.append(f"{rule}_{i}: {self._key(name)} {value}")
        return f'"{{" {members} "}}"'

    def _key(self, name: str) -> str:
        if _PLAIN_KEY.fullmatch(name):
            return quote(f"{name}:")
        return f'{self._mark} {quote(name)} {self._mark} ":"'

    def _value(self, schema: Any, rule: str, place: Place) -> str:
        """Return what writes a value that matches the schema, as far as that can be said."""
        if not isinstance(schema, dict):
            return "kv_any"
        if isinstance(options := _options(schema), list):
            return one_of(
                self._value(option, f"{rule}_{i}", (*place, *where)) for i, (where, option) in enumerate(options)
            )
        target = schema.get("$ref")
        if isinstance(target, str) and target in self._shared and not _said_beside(schema, {"$ref"}):
            return self._referred(target, f"{rule.partition('_ref')[0]}_ref{len(self._shared_rules)}")
        allowed = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(allowed, list) and allowed:
            return one_of(" ".join(self._literal(value)) for value in allowed)
        return self._typed(schema, rule, place)

    def _referred(self, target: str, rule: str) -> str:
        """Return the rule of a schema that others refer to, which may refer to itself."""
        if target not in self._shared_rules:
            self._shared_rules[target] = rule
            value = self._value(self._shared[target], rule, tuple(target[2:].split("/")))
            self._rules.append(f"{rule}_all: {value}")
        return f"{self._shared_rules[target]}_all"

    def _typed(self, schema: Mapping[str, Any], rule: str, place: Place) -> str:
        kind = schema.get("type")
        if kind in _BARE_TYPES:
            self._rules.append(f"{rule}_value: {inline_json(schema, strict=self._is_strict)}")
            return f"{rule}_value"
        self._note(place, schema, _WRITTEN.get(str(kind), frozenset()))
        if kind == "string":
            return "kv_string"
        if kind == "object":
            if not (inner := _dict(schema, "properties")):
                return "kv_object"
            required = [name for name in schema.get("required") or () if name in inner]
            return self._object(inner, required, f"{rule}_in", place)
        if kind == "array":
            item = self._value(schema.get("items"), f"{rule}_item", (*place, "items"))
            self._rules.append(f"{rule}_each: {item}")
            return f'"[" ({rule}_each ("," {rule}_each)*)? "]"'
        return "kv_any"

    def _note(self, place: Place, schema: Mapping[str, Any], written: frozenset[str]) -> None:
        """Take down what is said beside what is written."""
        self.unwritten += [(place, keyword) for keyword in schema if keyword in _said_beside(schema, written)]

    def _literal(self, value: Any) -> Iterator[str]:
        """Yield what writes one value, in parts."""
        if isinstance(value, str):
            yield from (self._mark, *([quote(value)] if value else []), self._mark)
        elif isinstance(value, dict):
            yield quote("{")
            for i, (key, item) in enumerate(value.items()):
                yield from (*([quote(",")] if i else []), self._key(key), *self._literal(item))
            yield quote("}")
        elif isinstance(value, list):
            yield quote("[")
            for i, item in enumerate(value):
                yield from (*([quote(",")] if i else []), *self._literal(item))
            yield quote("]")
        else:
            yield quote(json.dumps(value))


def _dict(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    return part if isinstance(part := schema.get(key), dict) else {}


def _said_beside(schema: Mapping[str, Any], written: set[str] | frozenset[str]) -> set[str]:
    """Return the keywords that say something of a value, but for those that are written."""
    return {
        key for key in schema if key not in written and key not in _NOTES and key not in _SHARED and key != "x-guidance"
    }


def _options(schema: Mapping[str, Any]) -> list[tuple[Place, Any]] | None:
    """Return the schemas of which a value has to match one, and where they stand; None where there is but one."""
    if isinstance(kinds := schema.get("type"), list) and kinds and "enum" not in schema and "const" not in schema:
        return [((), {**schema, "type": kind}) for kind in kinds]
    if isinstance(parts := schema.get("anyOf"), list) and parts and not _said_beside(schema, {"anyOf"}):
        return [(("anyOf", i), part) for i, part in enumerate(parts)]
    return None
