"""Tells whether the alternatives of a `oneOf` plainly exclude each other, so that `anyOf` says the same of a value.

Looks at their types, at `const` and `enum`, and at these of a property that all of them require. What it cannot tell,
it denies. Knows nothing of what else a schema may contain.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Schema = dict[str, Any]

_KINDS = frozenset({"null", "boolean", "number", "string", "array", "object"})
_MAX_DEPTH = 4  # of properties within properties
_MAX_REFERENCES = 8  # one after the other
_MAX_WORK = 50_000  # schemas and values looked at: references let few characters name the same ones often


class Alternatives:
    """Compares the alternatives of one schema. `resolve` returns what a reference points to, None where it cannot."""

    def __init__(self, resolve: Callable[[Any], Any]) -> None:
        self._resolve = resolve
        self._work_left = _MAX_WORK

    def rename_one_of(self, part: Schema) -> None:
        """Make `oneOf` `anyOf` where no value matches two of its alternatives."""
        schemas = part.get("oneOf")
        if not isinstance(schemas, list) or not schemas or not self._exclude_each_other(schemas, part):
            return
        any_of = {"anyOf": part.pop("oneOf")}
        if "anyOf" not in part:
            part |= any_of
        elif isinstance(both := part.get("allOf", []), list):
            part["allOf"] = [*both, any_of]
        else:
            part["oneOf"] = schemas

    def _exclude_each_other(self, schemas: Sequence[Any], around: Schema, depth: int = 0) -> bool:
        """Return whether no value that `around` allows matches two of the schemas."""
        parts = [self._target_of(schema) for schema in schemas]
        kinds = [self._kinds(part) for part in parts]
        return all(
            self._differ([part for part, of in zip(parts, kinds, strict=True) if kind in of], kind, around, depth)
            for kind in self._kinds(around)
        )

    def _differ(self, parts: Sequence[Any], kind: str, around: Schema, depth: int) -> bool:
        """Return whether no value of one kind, which all the parts allow, matches two of them."""
        if len(parts) < 2:
            return True
        if self._work_left < 0 or not all(isinstance(part, dict) for part in parts):
            return False
        if kind in ("array", "object"):
            return kind == "object" and depth < _MAX_DEPTH and self._have_a_tag(parts, around, depth)
        values = [self._values(part) for part in parts]
        return all(of is not None for of in values) and _are_disjoint(filter(None, values), kind)

    def _have_a_tag(self, parts: Sequence[Schema], around: Schema, depth: int) -> bool:
        """Return whether all parts require a property whose schemas exclude each other."""
        always = _required(around)
        names = set.intersection(*(_required(part) | always for part in parts))
        return any(
            self._exclude_each_other([_properties(part).get(name, True) for part in parts], {}, depth + 1)
            for name in names & _properties(parts[0]).keys()
        )

    def _target_of(self, schema: Any) -> Any:
        """Return what a schema stands for. Beside a reference, what else it says may not count."""
        for _ in range(_MAX_REFERENCES):
            self._work_left -= 1
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            schema = self._resolve(schema["$ref"])
        return True

    def _kinds(self, part: Any) -> frozenset[str]:
        """Return the kinds of values that a part may allow."""
        if not isinstance(part, dict):
            return frozenset() if part is False else _KINDS
        named = part.get("type")
        types = [named] if isinstance(named, str) else named
        kinds = frozenset(map(_kind_named, types)) if isinstance(types, list) else _KINDS
        values = self._values(part)
        return kinds if values is None else kinds & frozenset(map(_kind_of, values))

    def _values(self, part: Schema) -> list[Any] | None:
        """Return the only values that a part allows, None where it does not list them."""
        values = [part["const"]] if "const" in part else part.get("enum")
        if not isinstance(values, list) or self._work_left < 0:
            return None
        self._work_left -= len(values)
        return values


def _are_disjoint(lists: Iterable[list[Any]], kind: str) -> bool:
    """Return whether no two of the lists share a value of this kind, whose values can be hashed."""
    seen: set[Any] = set()
    for values in lists:
        own = {value for value in values if _kind_of(value) == kind}
        if own & seen:
            return False
        seen |= own
    return True


def _kind_named(name: Any) -> str:
    return "number" if name == "integer" else str(name)


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _required(part: Schema) -> set[str]:
    names = part.get("required")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _properties(part: Schema) -> Schema:
    properties = part.get("properties")
    return properties if isinstance(properties, dict) else {}
