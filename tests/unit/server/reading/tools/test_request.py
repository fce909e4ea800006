"""`tools` and `tool_choice` of a request: what they mean, and every way to get them wrong."""

import json
from typing import Any

import pytest

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.reading.tools.request import MAX_TOOLS_CHARS, Tool, read_tool_use
from tests.unit.server.reading.tools.calling import WEATHER, WEATHER_AND_TIME, function, tool_use

NO_PARAMETERS = {"type": "object", "properties": {}}


def refusal(tools: Any, choice: Any = None, parallel: Any = None) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequestError) as caught:
        read_tool_use(tools, choice, parallel)
    return caught.value.param, str(caught.value)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"a": schema}
    return schema


def test_tools_are_read() -> None:
    use = read_tool_use([function("f", WEATHER, description="Weather.", strict=True), function("g")], None)
    assert use is not None
    assert use.tools == (Tool("f", "Weather.", WEATHER, True), Tool("g", None, NO_PARAMETERS, False))
    assert (use.choice, use.forced_name, use.parallel) == ("auto", None, True)


def test_the_template_gets_tools_as_the_client_wrote_them() -> None:
    function_ = {"description": None, "strict": None, "returns": "x", "name": "f", "parameters": {"title": "T"}}
    tools: list[dict[str, Any]] = [
        {"x-extra": [1], "function": function_, "type": "function"},
        {"type": "function", "function": {"name": "g"}},
    ]
    assert json.dumps(tool_use(tools).raw) == json.dumps(tools)


@pytest.mark.parametrize("choice", [None, "none", "auto"])
@pytest.mark.parametrize("tools", [None, []])
def test_without_tools_there_is_no_use_of_them(tools: Any, choice: Any) -> None:
    assert read_tool_use(tools, choice) is None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_call_cannot_be_asked_for_without_tools(choice: Any) -> None:
    assert refusal(None, choice) == ("tool_choice", "tool_choice needs tools, and the request has none")


def test_with_choice_none_the_template_sees_no_tools() -> None:
    use = tool_use(choice="none")
    assert use.choice == "none"
    assert use.raw == []
    assert len(use.tools) == 2


def test_a_named_tool_is_required_and_the_others_are_still_shown() -> None:
    use = tool_use(choice={"type": "function", "function": {"name": "get_time"}})
    assert (use.choice, use.forced_name) == ("required", "get_time")
    assert [tool.name for tool in use.callable_tools] == ["get_time"]
    assert len(use.raw) == 2


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_are_the_only_ones(mode: str) -> None:
    allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    use = tool_use(choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert (use.choice, use.forced_name) == (mode, None)
    assert [tool.name for tool in use.tools] == ["get_time"]
    assert [tool["function"]["name"] for tool in use.raw] == ["get_time"]


def test_parallel_calls_can_be_turned_off() -> None:
    assert not tool_use(parallel=False).parallel


@pytest.mark.parametrize(
    ("tools", "param", "message"),
    [
        ("f", "tools", "must be a list"),
        ([function(f"f{i}") for i in range(129)], "tools", "at most 128 entries, got 129"),
        ([function("f"), 5], "tools[1]", "must be an object, got 5"),
        ([{"function": {"name": "f"}}], "tools[0].type", 'must be "function", got null'),
        ([{"type": "custom", "custom": {"name": "f"}}], "tools[0].type", 'must be "function", got "custom"'),
        ([{"type": "function"}], "tools[0].function", "must be an object, got null"),
        ([{"type": "function", "function": {}}], "tools[0].function.name", "got null"),
        ([function("a b")], "tools[0].function.name", '1 to 64 letters, digits, underscores and dashes, got "a b"'),
        ([function("a" * 65)], "tools[0].function.name", "1 to 64"),
        ([function("f\n")], "tools[0].function.name", "1 to 64"),
        ([function("f"), function("f")], "tools[1].function.name", "two functions named 'f'"),
        ([function("f", description=5)], "tools[0].function.description", "must be a string"),
        ([function("f", strict="yes")], "tools[0].function.strict", 'must be a boolean, got "yes"'),
        ([{"type": "function", "function": {"name": "f", "parameters": "x"}}], "tools[0].function.parameters", '"x"'),
        ([function("f", {"type": "array"})], "tools[0].function.parameters.type", 'must be "object", got "array"'),
        ([function("f", {"type": ["array", "null"]})], "tools[0].function.parameters.type", 'got ["array", "null"]'),
        ([function("f", {"properties": []})], "tools[0].function.parameters.properties", "must be an object"),
        ([function("f", nested(33))], "tools[0].function.parameters", "nests deeper than 32 levels"),
        ([function("f", {"title": "é" * MAX_TOOLS_CHARS})], "tools", f"at most {MAX_TOOLS_CHARS} characters, got 131"),
    ],
)
def test_tools_that_are_wrong_are_refused_by_name(tools: Any, param: str, message: str) -> None:
    refused_param, refused_message = refusal(tools)
    assert refused_param == param
    assert message in refused_message


@pytest.mark.parametrize("kind", [["object"], ["object", "null"], ["null", "object"], None])
def test_parameters_that_may_be_an_object_are_one(kind: Any) -> None:
    schema = {"type": kind, "properties": {"a": {"type": "null"}}}
    use = tool_use([function("f", schema)])
    assert use.tools[0].parameters.get("type", "object") == "object"
    assert use.tools[0].parameters["properties"] == schema["properties"]
    assert use.raw == [function("f", schema)], "the template gets what the client wrote"


def test_a_keyword_of_parameters_that_is_null_is_absent() -> None:
    names = ("type", "properties", "required", "additionalProperties", "$defs", "description")
    assert tool_use([function("f", dict.fromkeys(names))]).tools[0].parameters == {}
    values = {"default": None, "const": None}
    assert tool_use([function("f", values)]).tools[0].parameters == values


def test_what_is_just_within_the_limits_is_taken() -> None:
    tool_use([function(f"f{i}") for i in range(127)] + [function("a-B_9" * 12 + "abcd", nested(31))])


@pytest.mark.parametrize(
    ("choice", "param", "message"),
    [
        ("any", "tool_choice", 'must be "none", "auto", "required", or an object'),
        (True, "tool_choice", "got true"),
        ({"type": "custom", "custom": {"name": "f"}}, "tool_choice", 'got {"type": "custom"'),
        ({"type": "function"}, "tool_choice.function", "must be an object"),
        ({"type": "function", "function": {}}, "tool_choice.function.name", "must name one of the tools, got null"),
        ({"type": "function", "function": {"name": "x"}}, "tool_choice.function.name", 'got "x"'),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools", "must be an object"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": []}},
            "tool_choice.allowed_tools.mode",
            'must be "auto" or "required", got "none"',
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
            "tool_choice.allowed_tools.tools",
            "a list of 1 to 128 tools",
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function("x")]}},
            "tool_choice.allowed_tools.tools[0].function.name",
            'must name one of the tools, got "x"',
        ),
    ],
)
def test_a_choice_that_is_wrong_is_refused_by_name(choice: Any, param: str, message: str) -> None:
    refused_param, refused_message = refusal(WEATHER_AND_TIME, choice)
    assert refused_param == param
    assert message in refused_message


def test_parallel_tool_calls_is_a_boolean() -> None:
    assert refusal(WEATHER_AND_TIME, None, 1) == ("parallel_tool_calls", "parallel_tool_calls must be a boolean, got 1")
