"""Finds the keywords of a JSON schema that cannot be enforced, and what is left of the schema without them.

Whether a schema can be enforced is asked of whoever compiles it, of parts of the schema too: a part that can be is left
as it is, and in one that cannot its keywords are tried one after another. Knows no keyword that is never enforced.
"""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

from orcinus.engine.errors import UnenforceableKeyword
from orcinus.engine.grammar.neutral_keywords import Schema, subschemas, target_of

FaultOf = Callable[[Any], str | None]
Place = tuple[str | int, ...]

_MAX_CHARS = 4_000_000  # of all schemas that are tried, together
_MAX_REASON_CHARS = 160
_DEFINITIONS = ("$defs", "definitions")
_ROOT = "root"  # the name of the whole schema, where a part of it is tried that refers to it

# Of the keywords that say something of a value, those first that the others are about.
_FIRST = (
    *(*_DEFINITIONS, "$ref", "type", "properties", "items", "prefixItems", "additionalItems"),
    *("patternProperties", "additionalProperties", "required", "allOf", "anyOf", "oneOf"),
)
_OTHERS = (
    *("const", "enum", "format", "pattern", "minLength", "maxLength", "multipleOf", "minimum", "maximum"),
    *("exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems", "uniqueItems", "contains", "minContains"),
    *("maxContains", "minProperties", "maxProperties", "propertyNames", "dependentRequired", "dependentSchemas"),
    *("dependencies", "unevaluatedProperties", "unevaluatedItems", "not", "if", "then", "else"),
    *("$dynamicRef", "$recursiveRef"),
)
_KEYWORDS = (*_FIRST, *_OTHERS)
_UNKNOWN_KEYS = re.compile(r"not supported: \[(.*)\]")


def find_unenforceable(
    schema: Any, fault_of: FaultOf, *, max_trials: int = 2_000
) -> tuple[list[UnenforceableKeyword], Any]:
    """Return the keywords without which a schema can be enforced, and the schema without them.

    `fault_of` tells what is wrong with a schema, None of one that can be enforced; it is asked `max_trials` times at
    most. Where no such keywords are found, there are none in the list.
    """
    search = _Search(schema, fault_of, max_trials)
    try:
        search.mend((), search.schema)
        is_mended = search.fault(search.schema) is None
    except _TooLongError:
        is_mended = False
    return (search.found if is_mended else []), search.schema


class _TooLongError(Exception):
    """The search has tried as much as it may."""


class _Search:
    """Mends a copy of a schema, part by part from within, and notes in `found` what it takes away."""

    def __init__(self, schema: Any, fault_of: FaultOf, max_trials: int) -> None:
        self.schema = copy.deepcopy(schema)
        self.found: list[UnenforceableKeyword] = []
        self._fault_of = fault_of
        self._has_references = '"$ref"' in json.dumps(schema)
        self._seen: set[int] = set()
        self._mending: set[int] = set()  # the parts within which the search is
        self._trials_left, self._chars_left = max_trials, _MAX_CHARS

    def mend(self, place: Place, part: Any) -> None:
        """Take from a part what cannot be enforced. What no value matches is left to the part around it."""
        if not isinstance(part, dict) or id(part) in self._seen:
            return
        self._seen.add(id(part))
        fault = self.fault(part)
        if fault is None or (place and _allows_nothing(fault)):
            return
        self._mending.add(id(part))
        self._drop_unknown(place, part, fault)
        for step, inner in subschemas(part):
            if step[0] not in _DEFINITIONS:  # of which those count that something refers to
                self.mend((*place, *step), inner)
        target_place, target = target_of(self.schema, part.get("$ref"))
        self.mend(target_place, target)
        self._drop_others(place, part, refers_to_itself=id(target) in self._mending)
        self._mending.discard(id(part))

    def fault(self, part: Any) -> str | None:
        """Return what is wrong with a part of the schema, None if nothing is."""
        tried = part
        if self._has_references and part is not self.schema:
            tried = {"allOf": [_moved(part)], "$defs": {_ROOT: _moved(self.schema)}}
        self._trials_left -= 1
        self._chars_left -= len(json.dumps(tried))
        if min(self._trials_left, self._chars_left) < 0:
            raise _TooLongError
        return self._fault_of(tried)

    def _drop_unknown(self, place: Place, part: Schema, fault: str) -> None:
        """Take away the part's own keywords that are not known at all, and with them all that they hold."""
        match = _UNKNOWN_KEYS.search(fault)
        names = [] if match is None else [name for name in re.findall(r'"([^"]+)"', match[1]) if name in part]
        if names and self.fault({name: part[name] for name in names}) is not None:
            for name in names:
                self._note(place, name, fault)
                del part[name]

    def _drop_others(self, place: Place, part: Schema, *, refers_to_itself: bool) -> None:
        """Take away each keyword that cannot be enforced beside those before it.

        A reference to a part that is being mended is no fault of this one, and left alone.
        """
        own = {name: value for name, value in part.items() if not (refers_to_itself and name == "$ref")}
        if self.fault(own if refers_to_itself else part) is None:
            return
        kept = {name: value for name, value in own.items() if name not in _KEYWORDS}
        for name in sorted(own.keys() - kept.keys(), key=_KEYWORDS.index):
            fault = self.fault({**kept, name: part[name]})
            if fault is None:
                kept[name] = part[name]
            else:
                self._note(place, name, fault)
                del part[name]

    def _note(self, place: Place, keyword: str, fault: str) -> None:
        self.found.append(UnenforceableKeyword(place, keyword, _reason(fault)))


def _moved(part: Any) -> Any:
    """Return a part whose references into the schema point to where the schema stands in a trial."""
    if isinstance(part, list):
        return [_moved(value) for value in part]
    if not isinstance(part, dict):
        return part
    moved = {name: _moved(value) for name, value in part.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = f"#/$defs/{_ROOT}{reference[1:]}"
    return moved


def _allows_nothing(fault: str) -> bool:
    return "Unsatisfiable" in fault or "no text" in fault


def _reason(fault: str) -> str:
    """Return why a keyword cannot be enforced, in a few words; nothing where the keyword alone tells."""
    reason = fault.removeprefix("the schema cannot be used: ").replace(f"/$defs/{_ROOT}", "")
    if _UNKNOWN_KEYS.search(reason):
        return ""
    if "Regex is empty" in reason:
        return "no text matches it"
    if reason.startswith("the grammar"):
        return "it is too complex"
    if reason.startswith("lookarounds"):
        return "look-around is not supported"
    if "regex parse error" in reason:
        reason = reason.rpartition("error: ")[2]
    return reason.removeprefix("Unsatisfiable schema: ")[:_MAX_REASON_CHARS]
