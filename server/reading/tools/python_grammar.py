"""The rules of a grammar for a tool's call in Python, with its arguments by name."""

import keyword
from typing import Any

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.reading.tools.lark import inline_json, listing_rules, quote, required_arguments, takes_anything
from orcinus.server.reading.tools.request import Tool

_PYTHON_STRING = r"/'([^'\\\r\n]|\\[\\'nt])*'/"  # with double quotes it is JSON


def call_rules(tool: Tool, rule: str) -> list[str]:
    """Return the call of one tool: the arguments that it needs first, then the others, each in the schema's order.

    Raises `InvalidRequestError` if Python has no name for an argument that is required.
    """
    if takes_anything(tool):
        return _any_call_rules(tool, rule)
    schemas = _argument_schemas(tool)
    required = set(required_arguments(tool))
    names = sorted(schemas, key=lambda name: name not in required)
    arguments, rules = listing_rules(rule, len(required), len(names), ", ")
    for i, name in enumerate(names):
        rules.append(f"{rule}_{i}: {quote(f'{name}=')} {rule}_{i}_value")
        rules.append(f"{rule}_{i}_value: {inline_json(schemas[name], strict=tool.strict)}")
    return [f'{rule}: {quote(f"{tool.name}(")} {arguments} ")"', *rules]


def _any_call_rules(tool: Tool, rule: str) -> list[str]:
    """Return the call of a tool whose arguments may be any."""
    return [
        f'{rule}: {quote(f"{tool.name}(")} ({rule}_any (", " {rule}_any)*)? ")"',
        f'{rule}_any: /[A-Za-z_][A-Za-z0-9_]{{0,63}}/ "=" {rule}_value',
        f'{rule}_value: {inline_json({}, strict=True)} | "True" | "False" | "None" | {_PYTHON_STRING}',
    ]


def _argument_schemas(tool: Tool) -> dict[str, Any]:
    """Return what a call can be written of: a schema for each argument that has a name in Python.

    Raises `InvalidRequestError` if that is not enough for a call.
    """
    shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    schemas = tool.parameters.get("properties", {})
    named = {name: schema for name, schema in schemas.items() if name.isidentifier() and not keyword.iskeyword(name)}
    if missing := [name for name in required_arguments(tool) if name not in named]:
        raise InvalidRequestError(
            f"this model calls tools in Python, and the argument {missing[0]!r} that {tool.name} requires "
            "is not listed in its properties or has no name of Python's",
            "tools",
        )
    return {name: {**schema, **shared} if isinstance(schema, dict) else shared for name, schema in named.items()}
