"""The tools of a request, whatever their type, as the functions that a model is told of.

A custom tool is a function of one text. A namespace is a prefix of names. Hosted tools, which a server would run
itself, are left out, and the answer says so. How calls come back to the client is told by `OfferedTools.calls`.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.errors import shown
from orcinus.server.json_values import read_object, read_string
from orcinus.server.reading.client_calls import INPUT, ClientTool
from orcinus.server.reading.tools.request import MAX_NAME_CHARS, left_out_choice
from orcinus.server.requests.left_out import known_fields, leave_out

_HOSTED = re.compile(
    "(web_search|web_fetch|file_search|code_interpreter|code_execution|computer|computer_use|image_generation|mcp"
    "|mcp_toolset|local_shell|shell|apply_patch|tool_search|tool_search_tool|programmatic_tool_calling|bash|text_editor"
    "|memory|browser|advisor|x_search|collections_search)(_.*)?|openrouter:.+|builtin_function"
)
_NAMESPACE_MARK = "__"
# Of a function where an API has its fields beside those of other tools.
FUNCTION_FIELDS = frozenset(
    {"name", "description", "parameters", "strict", "return", "returns", "output_schema", "input_examples"}
)
_CUSTOM_FIELDS = frozenset({"type", "name", "description", "format"})
_PROMISES = frozenset({"allowed_callers", "defer_loading"})


@dataclass(slots=True)
class OfferedTools:
    """`tools` are all functions, in the form of a chat; `places` say where the fields of each stand in the body.

    `calls` holds, by the name of the function, which of the client's tools is meant where that is another. `left_out`
    names the hosted ones, by place and type. `held` are the places of functions that the API takes for strict though
    they do not say so.
    """

    max_name_chars: int = MAX_NAME_CHARS
    tools: list[Any] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    calls: dict[str, ClientTool] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)

    def leave_out(self, kind: str, place: str) -> None:
        """Leave out a hosted tool."""
        leave_out_hosted(kind, place)
        self.left_out.append(f"{place}={kind}")

    def add(self, tool: Any, place: str) -> None:
        self.tools.append(tool)
        self.places.append(place)

    def add_response_function(self, function: Mapping[str, Any], place: str) -> None:
        """Add a function of the responses API, where those that do not say whether they are strict are."""
        self.add({"type": "function", "function": function}, place)
        if function.get("strict") is None:
            self.held.add(place)

    def add_custom(self, given: Mapping[str, Any], place: str, namespace: str | None = None) -> None:
        """Add a custom tool of which these are the fields."""
        given = tool_fields(given, _CUSTOM_FIELDS, place)
        own_name = read_string(given, "name", place)
        name = in_namespace(own_name, namespace)
        self.calls[name] = ClientTool(own_name, is_custom=True, namespace=namespace)
        description = "\n".join(filter(None, [given.get("description"), _describe_format(given.get("format"), place)]))
        function = {"name": name, "description": description, "parameters": _TEXT_PARAMETERS}
        self.add({"type": "function", "function": function}, place)


_TEXT_PARAMETERS = {
    "type": "object",
    "properties": {INPUT: {"type": "string", "description": "The whole input of the tool, as plain text."}},
    "required": [INPUT],
    "additionalProperties": False,
}


def read_chat_tools(given: Any) -> OfferedTools:
    """Return the tools of a chat. What is no tool at all is left for those who read functions to refuse."""
    offered = OfferedTools()
    for index, tool in enumerate(given or []):
        place = f"tools[{index}]"
        kind = tool.get("type") if isinstance(tool, dict) else None
        if is_hosted(kind):
            offered.leave_out(kind, place)
        elif kind == "custom":
            custom = read_object(known_fields(tool, {"type", "custom"}, place).get("custom"), f"{place}.custom")
            offered.add_custom(custom, f"{place}.custom")
        elif kind == "function":
            offered.add(_checked_function(tool, place), f"{place}.function")
        else:
            offered.add(tool, place)
    return offered


def _checked_function(tool: dict[str, Any], place: str) -> dict[str, Any]:
    """Return a function as it was given, less what is left out: the template shows the model the whole of it."""
    if not isinstance(function := tool.get("function"), dict):
        return tool
    _check_promises(function, f"{place}.function")
    if not function.get("defer_loading"):
        return tool
    return {**tool, "function": {name: value for name, value in function.items() if name != "defer_loading"}}


def tool_fields(
    given: Mapping[str, Any], known: Collection[str], place: str, *, keeps_nulls: bool = False
) -> dict[str, Any]:
    """Return what is known of a tool's fields. Raises `InvalidRequestError` for others, unless they may be left out."""
    _check_promises(given, place)
    passed_over = {*_PROMISES, "cache_control"} - {*known}
    fields = known_fields({key: value for key, value in given.items() if key not in passed_over}, known, place)
    return {key: value for key, value in given.items() if key in known} if keeps_nulls else fields


def _check_promises(given: Mapping[str, Any], place: str) -> None:
    """Leave out that the model be told of the tool later. Raises `InvalidRequestError` for what is not done."""
    deferred, callers = given.get("defer_loading"), given.get("allowed_callers")
    if not isinstance(deferred, bool | None):
        raise InvalidRequestError(
            f"{place}.defer_loading must be a boolean, got {shown(deferred)}", f"{place}.defer_loading"
        )
    if deferred:
        leave_out(f"{place}.defer_loading")
    if callers is not None and not (isinstance(callers, list) and "direct" in callers):
        raise InvalidRequestError(
            f'{place}.allowed_callers must have "direct", for tools are called by the model alone; '
            f"got {shown(callers)}",
            f"{place}.allowed_callers",
        )


def add_namespace(offered: OfferedTools, namespace: Mapping[str, Any], place: str) -> None:
    """Add the tools of a namespace of the responses API, which prefixes their names."""
    known_fields(namespace, {"type", "name", "description", "tools"}, place)
    space = read_string(namespace, "name", place)
    members = namespace.get("tools")
    if not isinstance(members, list):
        raise InvalidRequestError(f"{place}.tools must be a list, got {shown(members)}", f"{place}.tools")
    for index, given in enumerate(members):
        inside = f"{place}.tools[{index}]"
        member = read_object(given, inside)
        if member.get("type") == "custom":
            offered.add_custom(member, inside, space)
        elif member.get("type") == "function":
            own_name = read_string(member, "name", inside)
            name = in_namespace(own_name, space)
            offered.calls[name] = ClientTool(own_name, is_custom=False, namespace=space)
            function = tool_fields(without_type(member), FUNCTION_FIELDS, inside)
            offered.add_response_function({**function, "name": name}, inside)
        else:
            raise InvalidRequestError(
                f'{inside}.type must be "function" or "custom", got {shown(member.get("type"))}', f"{inside}.type"
            )


def function_choice(choice: Any, place: str = "tool_choice") -> Any:
    """Return a choice of tools in which custom tools are functions, and hosted ones are left out of those allowed."""
    match choice:
        case {"type": "function" | "custom" as kind}:
            known_fields(choice, {"type", kind}, place)
            named = choice.get(kind)
            if isinstance(named, dict):
                named = known_fields(named, {*FUNCTION_FIELDS, *_CUSTOM_FIELDS}, f"{place}.{kind}")  # it may be whole
            return {"type": "function", "function": named}
        case {"type": "allowed_tools", "allowed_tools": {"tools": [*tools]}}:
            known_fields(choice, {"type", "allowed_tools"}, place)
            inside = f"{place}.allowed_tools"
            allowed = known_fields(choice["allowed_tools"], {"mode", "tools"}, inside)
            kept = _allowed_functions(tools, inside)
            if tools and not kept:
                return _choice_of_none(allowed.get("mode"), tools, inside)
            return {"type": "allowed_tools", "allowed_tools": {**allowed, "tools": kept}}
        case {"type": kind} if is_hosted(kind):
            raise left_out_choice([kind])
    return choice


def _choice_of_none(mode: Any, tools: Sequence[Any], inside: str) -> Any:
    """Return the choice where all tools that are allowed are left out. Raises `InvalidRequestError` if one must be."""
    if mode == "auto":
        return "none"
    kinds = ", ".join(dict.fromkeys(tool["type"] for tool in tools))
    raise InvalidRequestError(
        f"{inside}.tools has none that can be called: left out are {shown(kinds)}", f"{inside}.tools"
    )


def _allowed_functions(tools: Sequence[Any], inside: str) -> list[Any]:
    """Return those of the allowed tools that are the client's, as functions."""
    kept = []
    for index, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if is_hosted(kind):
            leave_out_hosted(kind, f"{inside}.tools[{index}]")
        else:
            kept.append(function_choice(tool, f"{inside}.tools[{index}]"))
    return kept


def with_function_calls(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose calls of custom tools are those of the functions that stand for them."""
    return [
        {**message, "tool_calls": [*map(_of_function, calls)]}
        if isinstance(calls := message.get("tool_calls"), list)
        else message
        for message in messages
    ]


def _of_function(call: Any) -> Any:
    if not isinstance(call, dict) or call.get("type") != "custom":
        return call
    custom = call.get("custom")
    if not isinstance(custom, dict) or not isinstance(custom.get("input"), str):
        return call
    function = {"name": custom.get("name"), "arguments": json.dumps({INPUT: custom["input"]}, ensure_ascii=False)}
    return {"id": call.get("id"), "type": "function", "function": function}


def in_namespace(name: str, namespace: str | None) -> str:
    """Return the name by which the model knows a tool of this namespace."""
    return name if namespace is None else namespace.removesuffix(_NAMESPACE_MARK) + _NAMESPACE_MARK + name


def is_hosted(kind: Any) -> TypeGuard[str]:
    """Return whether tools of this type are run by the servers that have them."""
    return isinstance(kind, str) and _HOSTED.fullmatch(kind) is not None


def leave_out_hosted(kind: str, place: str) -> None:
    leave_out(f"{place}={kind}")


def without_type(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "type"}


def _describe_format(given: Any, place: str) -> str | None:
    """Return what the model is told of the grammar of an input, which is not enforced."""
    if given is None:
        return None
    form = read_object(given, f"{place}.format")
    if form.get("type") == "text":
        known_fields(form, {"type"}, f"{place}.format")
        return None
    grammar, inside, known = form, f"{place}.format", {"type", "syntax", "definition"}
    if "grammar" in form:
        known_fields(form, {"type", "grammar"}, inside)
        grammar, inside, known = (
            read_object(form["grammar"], f"{inside}.grammar"),
            f"{inside}.grammar",
            known - {"type"},
        )
    known_fields(grammar, known, inside)
    if form.get("type") != "grammar" or grammar.get("syntax") not in ("lark", "regex"):
        raise InvalidRequestError(
            f'{place}.format must be of type "text", or "grammar" with syntax "lark" or "regex", got {shown(given)}',
            f"{place}.format",
        )
    definition = read_string(grammar, "definition", f"{place}.format")
    kind = "Lark grammar" if grammar["syntax"] == "lark" else "regular expression"
    return f"The input matches this {kind}:\n{definition}"
