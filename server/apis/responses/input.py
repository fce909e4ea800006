"""What a client of POST /v1/responses asks for, in the terms of a chat: messages, tools, and the other parameters.

Knows the forms of both APIs, and nothing of templates or tokens. Nothing is stored between two responses, so the input
is the whole conversation, with the items that earlier responses had as output.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.apis.chat.body import ChatBody
from orcinus.server.apis.offered_tools import (
    FUNCTION_FIELDS,
    OfferedTools,
    add_namespace,
    in_namespace,
    is_hosted,
    leave_out_hosted,
    tool_fields,
    without_type,
)
from orcinus.server.apis.responses.body import ResponseBody, TextFormat
from orcinus.server.errors import shown
from orcinus.server.json_values import read_object, read_string
from orcinus.server.reading.client_calls import INPUT
from orcinus.server.reading.tools.request import MAX_LONG_NAME_CHARS, MAX_NAME_CHARS
from orcinus.server.requests.bodies import SamplingBody
from orcinus.server.requests.left_out import known_fields
from orcinus.server.requests.schemas import MAX_MESSAGES

_ROLES = ("user", "assistant", "system", "developer")

_TEXT_PARTS = ("input_text", "output_text", "text")
# Calls that clients run, by the name of the tool and where the call has what the tool is to do.
_OWN_CALLS = {
    "local_shell_call": ("local_shell", "action"),
    "shell_call": ("shell", "action"),
    "apply_patch_call": ("apply_patch", "operation"),
}
_OWN_OUTPUTS = ("local_shell_call_output", "shell_call_output", "apply_patch_call_output")
_OTHERS_ITEMS = ("compaction", "compaction_summary", "context_compaction", "compaction_trigger", "ghost_snapshot")
_REASONING_PARTS = ("reasoning_text", "summary_text")

# Names of a chat's parameters in errors, and what they are called in this API.
PARAMETER_NAMES = (
    (re.compile(r"^tool_choice\.allowed_tools"), "tool_choice"),
    (re.compile(r"^(tool_choice.*)\.(function|custom)"), r"\1"),
    (re.compile(r"^response_format(\.json_schema)?"), "text.format"),
    (re.compile(r"^(messages|prompt)$"), "input"),
    (re.compile(r"^(max_tokens|max_completion_tokens)$"), "max_output_tokens"),
    (re.compile(r"^reasoning_effort$"), "reasoning.effort"),
)


def read_offered_tools(body: ResponseBody) -> OfferedTools:
    """Return the tools of the body. Raises `InvalidRequestError`."""
    offered = OfferedTools(max_name_chars=MAX_LONG_NAME_CHARS if _has_namespaces(body) else MAX_NAME_CHARS)
    for index, tool in enumerate(body.tools):
        _add_tool(offered, tool, f"tools[{index}]")
    return offered


def _has_namespaces(body: ResponseBody) -> bool:
    return any(tool.get("type") == "namespace" for tool in body.tools)


def to_chat_body(body: ResponseBody, offered: OfferedTools | None = None) -> ChatBody:
    """Return the same request as a chat completion; what it leaves to the model's defaults stays so.

    `offered` are its tools, where they were read already.

    Raises `InvalidRequestError`.
    """
    stated = {name: getattr(body, name) for name in SamplingBody.model_fields if name in body.model_fields_set}
    if body.truncation == "auto":
        stated["truncate_prompt_tokens"] = -1
    return ChatBody.model_construct(
        **stated,
        messages=read_input(body.input, body.instructions),
        max_completion_tokens=body.max_output_tokens,
        tools=(offered or read_offered_tools(body)).tools,
        tool_choice=_read_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_read_format(body.text.format if body.text else None),
        logprobs=body.has_logprobs,
        top_logprobs=body.top_logprobs,
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
        thinking_budget=body.thinking_budget,
        thinking_token_budget=body.thinking_token_budget,
        chat_template_kwargs=body.chat_template_kwargs,
    )


def read_input(given: Any, instructions: str | None = None) -> list[dict[str, Any]]:
    """Return the messages of a chat. Raises `InvalidRequestError` naming the item that is wrong."""
    conversation = _Conversation()
    if instructions is not None:
        conversation.add({"role": "system", "content": instructions})
    if isinstance(given, str):
        conversation.add({"role": "user", "content": given})
        return conversation.messages
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_MESSAGES:
        got = f"{len(given)} items" if isinstance(given, list) else shown(given)
        raise InvalidRequestError(f"input must be a string or a list of 1 to {MAX_MESSAGES} items, got {got}", "input")
    for i, item in enumerate(given):
        _read_item(conversation, item, f"input[{i}]")
    conversation.end_turn()
    if not conversation.messages:
        raise InvalidRequestError("input has no item that the model is shown: send a message", "input")
    return conversation.messages


class _Conversation:
    """Messages in the making. What the assistant thought, said and called in one turn is one message."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] = {}

    def add(self, message: dict[str, Any]) -> None:
        """Add a message of somebody other than the assistant."""
        self.end_turn()
        self.messages.append(message)

    def think(self, text: str) -> None:
        if self._has_acted:
            self.end_turn()
        earlier = self._turn.get("reasoning_content")
        self._turn["reasoning_content"] = text if earlier is None else f"{earlier}\n{text}"

    def say(self, content: Any) -> None:
        if self._has_acted:
            self.end_turn()
        self._turn["content"] = content

    def call(self, call_id: str, name: str, arguments: str) -> None:
        function = {"name": name, "arguments": arguments}
        self._turn.setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})

    def end_turn(self) -> None:
        """Add what the assistant did as one message, and leave thoughts out that led to nothing."""
        if self._has_acted:
            self.messages.append({"role": "assistant", **self._turn})
        self._turn = {}

    @property
    def _has_acted(self) -> bool:
        return "content" in self._turn or "tool_calls" in self._turn


def _read_item(conversation: _Conversation, given: Any, where: str) -> None:
    item = read_object(given, where)
    match item.get("type", "message" if "role" in item else "item_reference"):
        case "message":
            _read_message(conversation, item, where)
        case "reasoning":
            if text := _read_reasoning(item, where):
                conversation.think(text)
        case "function_call":
            conversation.call(*_read_call(item, where), read_string(item, "arguments", where))
        case "custom_tool_call":
            conversation.call(*_read_call(item, where), json.dumps({INPUT: read_string(item, "input", where)}))
        case "function_call_output" | "custom_tool_call_output":
            call_id = read_string(item, "call_id", where)
            content = _read_content(item.get("output"), f"{where}.output")
            conversation.add({"role": "tool", "tool_call_id": call_id, "content": content})
        case "local_shell_call" | "shell_call" | "apply_patch_call" as kind:
            name, field = _OWN_CALLS[kind]
            arguments = json.dumps(read_object(item.get(field), f"{where}.{field}"), ensure_ascii=False)
            conversation.call(_read_own_id(item, where), name, arguments)
        case kind if kind in _OWN_OUTPUTS:
            output = item.get("output", "")
            text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
            conversation.add({"role": "tool", "tool_call_id": _read_own_id(item, where), "content": text})
        case kind if is_hosted(kind) or kind in _OTHERS_ITEMS:
            leave_out_hosted(kind, where)
        case "item_reference":
            raise InvalidRequestError(f"{where} refers to an item, and none is stored here: send the item", where)
        case other:
            raise InvalidRequestError(
                f"{where}.type must be message, reasoning, function_call, function_call_output, custom_tool_call or "
                f"custom_tool_call_output, got {shown(other)}",
                f"{where}.type",
            )


def _read_call(item: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Return a call's id and the name by which the model knows the tool."""
    namespace = read_string(item, "namespace", where) if "namespace" in item else None
    return read_string(item, "call_id", where), in_namespace(read_string(item, "name", where), namespace)


def _read_own_id(item: Mapping[str, Any], where: str) -> str:
    """Return the id that a call and its output have in common: `call_id`, and of some `id` alone."""
    return read_string(item, "call_id" if "call_id" in item or "id" not in item else "id", where)


def _read_message(conversation: _Conversation, item: Mapping[str, Any], where: str) -> None:
    role = item.get("role")
    if role not in _ROLES:
        raise InvalidRequestError(
            f"{where}.role must be one of {', '.join(_ROLES)}, got {shown(role)}", f"{where}.role"
        )
    content = _read_content(item.get("content"), f"{where}.content")
    if role == "assistant":
        conversation.say(content)
    else:
        conversation.add({"role": role, "content": content})


def _read_content(content: Any, where: str) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [_read_part(part, f"{where}[{i}]") for i, part in enumerate(_read_list(content, where))]


def _read_part(given: Any, where: str) -> dict[str, str]:
    part = read_object(given, where)
    kind = part.get("type")
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": read_string(part, "text", where)}
    if kind == "refusal":
        return {"type": "refusal", "refusal": read_string(part, "refusal", where)}
    raise InvalidRequestError(f"{where}: this model takes text only, got a part of type {shown(kind)}", where)


def _read_reasoning(item: Mapping[str, Any], where: str) -> str:
    """Return the thoughts if the item has them, otherwise their summary. What is encrypted was not encrypted here."""
    for name in ("content", "summary"):
        parts = [
            _read_thought(part, f"{where}.{name}[{i}]")
            for i, part in enumerate(_read_list(item.get(name, []), f"{where}.{name}"))
        ]
        if parts:
            return "\n".join(parts)
    return ""


def _read_thought(given: Any, where: str) -> str:
    part = read_object(given, where)
    if part.get("type") not in _REASONING_PARTS:
        raise InvalidRequestError(
            f"{where}.type must be one of {', '.join(_REASONING_PARTS)}, got {shown(part.get('type'))}", f"{where}.type"
        )
    return read_string(part, "text", where)


def _add_tool(offered: OfferedTools, tool: Mapping[str, Any], place: str) -> None:
    """Add a tool in the form of a chat, where a function's fields lie one level deeper."""
    kind = tool.get("type")
    if kind == "function":
        function = tool_fields(without_type(tool), FUNCTION_FIELDS, place)
        offered.add_response_function(function, place)
    elif kind == "custom":
        offered.add_custom(tool, place)
    elif kind == "namespace":
        add_namespace(offered, tool, place)
    elif is_hosted(kind):
        offered.leave_out(kind, place)
    else:
        raise InvalidRequestError(
            f'{place}.type must be "function", "custom" or "namespace", got {shown(kind)}', f"{place}.type"
        )


def _read_tool_choice(choice: Any, place: str = "tool_choice") -> Any:
    match choice:
        case {"type": "function" | "custom" as kind}:
            named = without_type(known_fields(choice, {*FUNCTION_FIELDS, "type", "format", "namespace"}, place))
            namespace = named.pop("namespace", None)
            if isinstance(named.get("name"), str) and isinstance(namespace, str):
                named["name"] = in_namespace(named["name"], namespace)
            return {"type": kind, kind: named}
        case {"type": "allowed_tools"}:
            tools = known_fields(choice, {"type", "mode", "tools"}, place).get("tools")
            if isinstance(tools, list):
                tools = [_read_tool_choice(tool, f"{place}.tools[{index}]") for index, tool in enumerate(tools)]
            return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": tools}}
    return choice


def _read_format(form: TextFormat | None) -> dict[str, Any] | None:
    if form is None:
        return None
    if form.type != "json_schema":
        return {"type": form.type}
    return {
        "type": "json_schema",
        "json_schema": {"name": form.name, "schema": form.json_schema, "strict": form.strict},
    }


def _read_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{where} must be a string or a list of parts, got {shown(value)}", where)
    return value
