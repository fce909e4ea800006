"""Pieces of grammars in Lark's notation, as llguidance reads it, for those that make a model write calls.

JSON is written with the separators that models were trained on and no other white space, of which a model could write
without end.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orcinus.server.reading.tools.request import Tool, ToolUse

MAX_CALLS = 16  # of a model that has to call tools and may call several

ANY_OBJECT: Mapping[str, Any] = {"type": "object", "additionalProperties": True}  # arguments of which nothing is held

Terminal = Callable[[str], str]  # how a marker is written in a grammar: as a token of its own, or as text

_WRITING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_OPTIONS = "x-guidance"  # llguidance's own key in a schema; nobody else is to set it
_COMPOSING = ("$ref", "allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "unevaluatedProperties")


def quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def inline_json(schema: Mapping[str, Any], *, strict: bool) -> str:
    """Return a rule for what matches the schema. Unless `strict`, keywords that cannot be enforced are left alone."""
    options = _WRITING if strict else {**_WRITING, "lenient": True}
    return "%json " + json.dumps({**schema, _OPTIONS: options}, ensure_ascii=False)


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """Return the schema of a call's arguments. One that lists properties and says nothing of others allows none."""
    schema = {"type": "object", "properties": {}, **tool.parameters}
    if leaves_room(schema) or not set(required_arguments(tool)) <= schema["properties"].keys():
        return schema
    return {"additionalProperties": False, **schema}


def leaves_room(schema: Mapping[str, Any]) -> bool:
    """Return whether a schema may speak of more arguments than it lists."""
    return any(key in schema for key in _COMPOSING)


def takes_anything(tool: Tool) -> bool:
    """Return whether the arguments may be any."""
    return tool.parameters == ANY_OBJECT


def without_options(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema without what only looks like a keyword of its own."""
    return {key: value for key, value in schema.items() if key != _OPTIONS}


def required_arguments(tool: Tool) -> list[str]:
    names = tool.parameters.get("required")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def properties_of(tool: Tool) -> dict[str, Any]:
    """Return a schema for each argument, with the definitions that it may refer to."""
    shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    schemas: dict[str, Any] = {name: {} for name in required_arguments(tool)}
    schemas.update(tool.parameters.get("properties", {}))
    return {name: {**schema, **shared} if isinstance(schema, dict) else shared for name, schema in schemas.items()}


def one_of(names: Iterable[str]) -> str:
    return "(" + " | ".join(names) + ")"


def repeated(rule: str, separator: str, tool_use: ToolUse) -> str:
    """Return a rule for one call, or for several where the request allows it. `separator` may be empty."""
    if tool_use.forced_name is not None or not tool_use.parallel:
        return rule
    more = f"{separator} {rule}" if separator else rule
    return f"{rule} ({more}){{0,{MAX_CALLS - 1}}}"


def json_call_rules(tool_use: ToolUse, arguments_key: str, name_key: str | None = "name") -> str:
    """Return the rule `object`: `{"name": ..., "arguments": {...}}` for each of the tools, or `{name: {...}}`."""
    tools = tool_use.callable_tools
    rules = ["object: " + " | ".join(f"object_{i}" for i in range(len(tools)))]
    for i, tool in enumerate(tools):
        name = "" if name_key is None else f'"{name_key}": "{tool.name}", '
        head = quote(f'{{{name}"{tool.name if name_key is None else arguments_key}": ')
        rules.append(f'object_{i}: {head} arguments_{i} "}}"')
        rules.append(f"arguments_{i}: {inline_json(arguments_schema(tool), strict=tool.strict)}")
    return "\n".join(rules)


def listing_rules(rule: str, num_required: int, num_all: int, comma: str) -> tuple[str, list[str]]:
    """Return what lists `<rule>_0`, `<rule>_1` and so on, in this order, and rules for it.

    The first `num_required` have to be there. `comma` stands between those that are.
    """
    rules = [f"{rule}_{i}_on: ({quote(comma)} {rule}_{i})? {_following(rule, i + 1, num_all)}" for i in range(num_all)]
    if num_required:
        required = f" {quote(comma)} ".join(f"{rule}_{i}" for i in range(num_required))
        return f"{required} {_following(rule, num_required, num_all)}", rules
    firsts = [f"{rule}_{i} {_following(rule, i + 1, num_all)}" for i in range(num_all)]
    return f"{one_of(firsts)}?" if firsts else "", rules


def _following(rule: str, i: int, num_all: int) -> str:
    return f"{rule}_{i}_on" if i < num_all else ""
