"""`tools` and `tool_choice` of a chat completion, checked and made one value. Knows no model and no format of calls.

Null equals absent, at every level. The chat template gets the tools as the client wrote them, key for key: it may show
the model whatever they have.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.errors import shown
from orcinus.server.json_values import read_object

MAX_TOOLS = 128
MAX_TOOLS_CHARS = 128 * 1024  # of all of them together, as JSON
MAX_PARAMETERS_DEPTH = 32

MAX_NAME_CHARS = 64
MAX_LONG_NAME_CHARS = 128  # in Anthropic's API

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_NULL_IS_A_VALUE = ("const", "default")  # of all keywords of a schema
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}

ToolChoice = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is the JSON schema of its arguments, an object.

    `place` is where its fields stand in the body. `is_held`: its API takes a tool for strict that says nothing of it,
    which is held to its schema as far as that can be enforced.
    """

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    strict: bool
    place: str = field(default="tools", compare=False)
    is_held: bool = False


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request and what the model is to do with them.

    `forced_name` is the one tool to call, with `choice` "required". `raw` is for the chat template; with `choice`
    "none" it is empty, so that the model knows of no tools.
    """

    tools: tuple[Tool, ...]
    choice: ToolChoice
    forced_name: str | None
    parallel: bool
    raw: list[dict[str, Any]]

    @property
    def holds_calls(self) -> bool:
        """Whether the model may call or not, and what it calls is held to the schemas of its tools."""
        return self.choice == "auto" and any(tool.strict or tool.is_held for tool in self.tools)

    def holds(self, tool: Tool) -> bool:
        """Return whether calls of a tool are made under a grammar."""
        return self.choice == "required" or tool.strict or tool.is_held

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """Those that an enforced call may name."""
        return tuple(tool for tool in self.tools if self.forced_name in (None, tool.name))


NO_TOOLS = ToolUse(tools=(), choice="none", forced_name=None, parallel=True, raw=[])


def read_tool_use(
    tools: Any,
    tool_choice: Any,
    parallel_tool_calls: Any = None,
    *,
    places: Sequence[str] | None = None,
    max_name_chars: int = MAX_NAME_CHARS,
    left_out: Sequence[str] = (),
    held: Collection[str] = (),
) -> ToolUse | None:
    """Return the tools and their use, None where there are none. `places` are those of their functions in the body.

    `held` are the places of those that are held to their schemas as far as that can be.
    `left_out` names other tools of the request, for the error where a call is asked for and there is none to make.
    Raises `InvalidRequestError` naming the part that is wrong.
    """
    raw = _read_list(tools)
    if not raw:
        _check_choice_without_tools(tool_choice, left_out)
        return None
    inside = places or [f"tools[{i}].function" for i in range(len(raw))]
    functions = [_read_function(tool, place.removesuffix(".function")) for tool, place in zip(raw, inside, strict=True)]
    known = tuple(
        _read_tool(function, place, max_name_chars, is_held=place in held)
        for function, place in zip(functions, inside, strict=True)
    )
    _check_unique(known, inside)
    _check_size(functions)
    choice, forced_name, allowed = _read_choice(tool_choice, {tool.name for tool in known})
    return ToolUse(
        tools=tuple(tool for tool in known if tool.name in allowed),
        choice=choice,
        forced_name=forced_name,
        parallel=_read_parallel(parallel_tool_calls),
        raw=[tool for tool, of in zip(raw, known, strict=True) if choice != "none" and of.name in allowed],
    )


def _read_list(tools: Any) -> list[Any]:
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise InvalidRequestError("tools must be a list", "tools")
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(f"tools takes at most {MAX_TOOLS} entries, got {len(tools)}", "tools")
    return tools


def _read_function(tool: Any, path: str) -> dict[str, Any]:
    """Return the `function` of a tool, less what is null."""
    tool = read_object(tool, path)
    if tool.get("type") != "function":
        raise InvalidRequestError(f'{path}.type must be "function", got {shown(tool.get("type"))}', f"{path}.type")
    return read_object(tool.get("function"), f"{path}.function")


def _read_tool(function: Mapping[str, Any], path: str, max_name_chars: int, *, is_held: bool) -> Tool:
    strict = function.get("strict", False)
    if not isinstance(strict, bool):
        raise InvalidRequestError(f"{path}.strict must be a boolean, got {shown(strict)}", f"{path}.strict")
    description = function.get("description")
    if not isinstance(description, str | None):
        raise InvalidRequestError(f"{path}.description must be a string", f"{path}.description")
    name = _read_name(function.get("name"), f"{path}.name", max_name_chars)
    parameters = _read_parameters(function.get("parameters"), f"{path}.parameters")
    return Tool(name, description, parameters, strict, path, is_held)


def _read_name(name: Any, path: str, max_chars: int) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > max_chars:
        raise InvalidRequestError(
            f"{path} must be 1 to {max_chars} letters, digits, underscores and dashes, got {shown(name)}", path
        )
    return name


def _read_parameters(schema: Any, path: str) -> Mapping[str, Any]:
    if schema is None:
        return _NO_PARAMETERS
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"{path} must be a JSON schema, an object, got {shown(schema)}", path)
    schema = {key: value for key, value in schema.items() if value is not None or key in _NULL_IS_A_VALUE}
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise InvalidRequestError(f'{path}.type must be "object", got {shown(kind)}', f"{path}.type")
    if not isinstance(schema.get("properties", {}), dict):
        raise InvalidRequestError(f"{path}.properties must be an object", f"{path}.properties")
    _check_depth(schema, path)
    return schema if kind == "object" else {**schema, "type": "object"}  # arguments are never anything else


def _check_depth(schema: Any, path: str) -> None:
    """Check the depth level by level, so that none overflows the stack."""
    level = [schema]
    for _ in range(MAX_PARAMETERS_DEPTH):
        level = [part for value in level for part in _parts(value)]
        if not level:
            return
    raise InvalidRequestError(f"{path} nests deeper than {MAX_PARAMETERS_DEPTH} levels", path)


def _parts(value: dict[str, Any] | list[Any]) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value
    return [part for part in inner if isinstance(part, dict | list)]


def _check_unique(tools: tuple[Tool, ...], places: Sequence[str]) -> None:
    seen: set[str] = set()
    for tool, place in zip(tools, places, strict=True):
        if tool.name in seen:
            raise InvalidRequestError(f"{place}.name: tools has two functions named {tool.name!r}", f"{place}.name")
        seen.add(tool.name)


def _check_size(functions: list[dict[str, Any]]) -> None:
    num_chars = len(msgspec.json.encode(functions).decode())
    if num_chars > MAX_TOOLS_CHARS:
        raise InvalidRequestError(f"tools takes at most {MAX_TOOLS_CHARS} characters, got {num_chars}", "tools")


def _check_choice_without_tools(tool_choice: Any, left_out: Sequence[str]) -> None:
    if tool_choice in (None, "none", "auto"):
        return
    if not left_out:
        raise InvalidRequestError("tool_choice needs tools, and the request has none", "tool_choice")
    raise left_out_choice(left_out)


def left_out_choice(names: Sequence[str]) -> InvalidRequestError:
    """Return the error over a choice that only tools could satisfy that are left out."""
    found = shown(", ".join(names))
    return InvalidRequestError(f"tool_choice needs tools of the client's own; left out are {found}", "tool_choice")


def _read_choice(value: Any, known: set[str]) -> tuple[ToolChoice, str | None, set[str]]:
    """Return what is chosen, the tool that is forced, and the names of the tools that may be called."""
    match value:
        case None:
            return "auto", None, known
        case "none" | "auto" | "required":
            return value, None, known
        case {"type": "function"}:
            return "required", _read_choice_name(value, "tool_choice", known), known
        case {"type": "allowed_tools"}:
            return _read_allowed(value, known)
    raise InvalidRequestError(
        'tool_choice must be "none", "auto", "required", or an object of type "function" or "allowed_tools", '
        f"got {shown(value)}",
        "tool_choice",
    )


def _read_choice_name(value: Any, path: str, known: set[str]) -> str:
    """Return the name in `{"type": "function", "function": {"name": ...}}`."""
    name = read_object(read_object(value, path).get("function"), f"{path}.function").get("name")
    if not isinstance(name, str) or name not in known:
        raise InvalidRequestError(
            f"{path}.function.name must name one of the tools, got {shown(name)}", f"{path}.function.name"
        )
    return name


def _read_allowed(value: Any, known: set[str]) -> tuple[ToolChoice, None, set[str]]:
    path = "tool_choice.allowed_tools"
    allowed = read_object(value.get("allowed_tools"), path)
    mode, tools = allowed.get("mode"), allowed.get("tools")
    if mode not in ("auto", "required"):
        raise InvalidRequestError(f'{path}.mode must be "auto" or "required", got {shown(mode)}', f"{path}.mode")
    if not isinstance(tools, list) or not 1 <= len(tools) <= MAX_TOOLS:
        raise InvalidRequestError(f"{path}.tools must be a list of 1 to {MAX_TOOLS} tools", f"{path}.tools")
    return mode, None, {_read_choice_name(tool, f"{path}.tools[{i}]", known) for i, tool in enumerate(tools)}


def _read_parallel(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, bool):
        raise InvalidRequestError(f"parallel_tool_calls must be a boolean, got {shown(value)}", "parallel_tool_calls")
    return value
