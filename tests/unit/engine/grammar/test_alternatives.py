"""A `oneOf` whose alternatives exclude each other is served as `anyOf`; one that cannot be told apart is refused."""

import copy
import itertools
import json
from typing import Any

import jsonschema
import pytest

from orcinus.engine.grammar.gate import Trial
from orcinus.engine.grammar.neutral_keywords import drop_neutral_keywords
from orcinus.engine.grammar.trial_process import find_fault
from tests.growth import assert_linear
from tests.unit.engine.grammar.grammars import demo_compiler

DEFS: dict[str, Any] = {
    "one": {"const": 1},
    "two": {"enum": [2, "2"]},
    "number": {"$ref": "#/$defs/one"},
    "round": {"$ref": "#/$defs/round"},
}


def tagged(tag: Any, **keywords: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"t": tag, "x": {}}, "required": ["t"], **keywords}


def refer(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


APART: dict[str, dict[str, Any]] = {
    "numbers": {"oneOf": [{"const": 1}, {"const": 2}]},
    "lists": {"oneOf": [{"enum": [1, 2]}, {"enum": [3]}]},
    "a truth and a number": {"oneOf": [{"const": True}, {"const": 1}, {"const": "1"}, {"const": None}]},
    "values and a type": {"oneOf": [{"const": 1}, {"const": 2}, {"type": "string"}]},
    "types": {"oneOf": [{"type": ["null", "integer"]}, {"type": "string"}, {"type": "array"}]},
    "a type that a list is cut to": {"oneOf": [{"type": "string", "enum": ["a", 1]}, {"const": 1}]},
    "references": {"oneOf": [refer("one"), refer("two")]},
    "a reference to a reference": {"oneOf": [refer("number"), refer("two")]},
    "tags": {"oneOf": [tagged({"const": 1}), tagged({"const": 2}), {"type": "null"}]},
    "tags of several values": {"oneOf": [tagged({"enum": ["a", "b"]}), tagged({"enum": ["c"]})]},
    "tags of two types": {"oneOf": [tagged({"type": "string"}), tagged({"type": "number"})]},
    "tags by reference": {"oneOf": [tagged(refer("one")), tagged(refer("two"))]},
    "tags within": {"oneOf": [tagged(tagged({"const": 1})), tagged(tagged({"const": 2}))]},
    "a type around": {
        "type": "object",
        "required": ["t"],
        "oneOf": [{"properties": {"t": {"const": value}}} for value in "ab"],
    },
    "beside anyOf": {"anyOf": [{"type": "number"}], "oneOf": [{"const": 1}, {"const": 2}]},
    "none that is ever met": {"oneOf": [{"const": 1}, False]},
}
TOGETHER: dict[str, dict[str, Any]] = {
    "a value of both lists": {"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]},
    "one number, written twice": {"oneOf": [{"const": 1}, {"const": 1.0}]},
    "numbers": {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    "a value of the type": {"oneOf": [{"type": "number"}, {"const": 1}]},
    "a tag that is not required": {"oneOf": [tagged({"const": 1}, required=[]), tagged({"const": 2})]},
    "a tag of no schema": {"oneOf": [tagged({"const": 1}), {"type": "object", "required": ["t"]}]},
    "what need not be an object": {
        "oneOf": [{"properties": {"t": {"const": value}}, "required": ["t"]} for value in "ab"]
    },
    "the same reference": {"oneOf": [refer("two"), refer("two")]},
    "all and one": {"oneOf": [True, {"const": 1}]},
    "a pair of three": {"oneOf": [{"const": 1}, {"const": 2}, {"enum": [3, 1]}]},
    "beside anyOf": {"anyOf": [{"type": "number"}], "oneOf": [{"const": 1}, {"const": 1}]},
}
SCALARS = [None, True, False, 0, 1, 1.5, 2, 3, "", "a", "b", "c", "1", "2"]
OBJECTS = [{}, *({"t": value} for value in SCALARS), {"t": {}}, {"t": {"t": 1}}, {"t": {"t": 2}}, {"x": 1}]
VALUES: list[Any] = [*SCALARS, [], [1], *OBJECTS]


def plain(schema: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = copy.deepcopy({"$defs": DEFS, **schema})
    drop_neutral_keywords(made)
    return made


@pytest.mark.parametrize("name", APART)
def test_what_excludes_each_other_is_served_and_allows_the_same_values(name: str) -> None:
    schema = {"$defs": DEFS, **APART[name]}
    made = plain(APART[name])
    assert "oneOf" not in made
    before, after = (jsonschema.Draft202012Validator(each) for each in (schema, made))
    assert [before.is_valid(value) for value in VALUES] == [after.is_valid(value) for value in VALUES]
    used = {key: value for key, value in DEFS.items() if key != "round"}
    assert find_fault(demo_compiler(), Trial("json_schema", json.dumps({**schema, "$defs": used}))) is None


@pytest.mark.parametrize("name", TOGETHER)
def test_what_does_not_is_left_to_the_compiler_which_says_so(name: str) -> None:
    made = plain(TOGETHER[name])
    assert made["oneOf"] == TOGETHER[name]["oneOf"]
    used = {key: value for key, value in DEFS.items() if key != "round"}
    fault = find_fault(demo_compiler(), Trial("json_schema", json.dumps({"$defs": used, **TOGETHER[name]})))
    assert "oneOf cannot be told apart" in (fault or "")


ALTERNATIVES: list[Any] = [
    *({"const": value} for value in (1, 1.0, True, "a", None, {"t": 1}, [1])),
    *({"enum": values} for values in ([1, "a"], [2, 3], ["b", None], [{"t": 1}, 2])),
    *({"type": kind} for kind in ("number", "integer", "string", "object", ["object", "null"])),
    *(tagged(tag) for tag in ({"const": 1}, {"const": 2}, {"type": "string"}, {"enum": ["a", 2]}, True)),
    tagged({"const": 1}, required=[]),
    tagged({"const": "b"}, type=["object", "string"]),
    {"properties": {"t": {"const": 3}}, "required": ["t"]},
    *(refer(name) for name in DEFS if name != "round"),
    {"$ref": "#/$defs/one", "type": "string"},
    {},
    True,
    False,
]


@pytest.mark.parametrize("around", [{}, {"type": "object"}, {"required": ["t"], "type": ["object", "number"]}], ids=str)
def test_no_pair_that_shares_a_value_is_ever_taken_for_one_that_does_not(around: dict[str, Any]) -> None:
    for pair in itertools.combinations_with_replacement(ALTERNATIVES, 2):
        schema = {"$defs": DEFS, **around, "oneOf": list(pair)}
        before, after = (jsonschema.Draft202012Validator(each) for each in (schema, plain(schema)))
        for value in VALUES:
            assert before.is_valid(value) == after.is_valid(value), (pair, value)


@pytest.mark.parametrize(
    "alternatives",
    [
        [refer("round"), {"const": 1}],
        [{"$ref": "#"}, {"$ref": "#"}],
        [refer("none"), {"const": 1}],
        [{"$ref": 5}, {"type": 5}, {"enum": 5}, {"required": 5, "properties": 5, "type": "object"}, 5],
        [{"type": [[], {}]}, {"required": [[]], "properties": [], "type": ["object"]}],
    ],
)
def test_what_is_no_schema_breaks_nothing(alternatives: list[Any]) -> None:
    plain({"oneOf": alternatives})
    plain({"oneOf": alternatives, "anyOf": 5, "allOf": 5, "type": 5, "required": 5})


@pytest.mark.parametrize("alternatives", [{}, [], None, 5])
def test_what_is_no_list_of_alternatives_is_left(alternatives: Any) -> None:
    assert plain({"oneOf": alternatives})["oneOf"] == alternatives


def test_many_alternatives_that_name_the_same_long_lists_take_no_long_time() -> None:
    def work(size: int) -> None:
        definitions = {name: {"enum": [f"{name}{i}" for i in range(size)]} for name in "ab"}
        properties = {str(i): {"oneOf": [refer("a"), refer("b")]} for i in range(size)}
        drop_neutral_keywords({"$defs": definitions, "properties": properties})

    assert_linear(work, 4000)
