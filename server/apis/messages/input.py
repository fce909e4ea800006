"""From a conversation as Anthropic's API writes it to the one chat body that the server renders and runs.

What the blocks are is read by `messages.blocks`. What else a block may say (`cache_control`, `citations`,
`signature`, `caller`) is for other models or for other servers, and is passed over. Knows nothing of answers.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.apis.chat.body import ChatBody, one_of, parse_chat
from orcinus.server.apis.messages.blocks import ASSISTANT, RESULT, TEXT, USER, Block, PlacedBlock, read_blocks
from orcinus.server.apis.messages.body import TURN_ROLES, MessagesBody, ThinkingOptions
from orcinus.server.apis.offered_tools import OfferedTools, is_hosted, tool_fields
from orcinus.server.apis.parameter_names import Renaming
from orcinus.server.errors import shown
from orcinus.server.json_values import read_string
from orcinus.server.reading.tools.request import MAX_LONG_NAME_CHARS, left_out_choice
from orcinus.server.requests.bodies import SamplingBody
from orcinus.server.requests.left_out import known_fields

CALL_ID_PREFIX = "toolu_"

# Names of a chat's parameters in errors, and what they are called in this API.
_PARAMETER_NAMES: tuple[Renaming, ...] = (
    (re.compile(r"^(tools\[\d+\])\.parameters"), r"\1.input_schema"),
    (re.compile(r"^tool_choice\.function\.name$"), "tool_choice.name"),
    (re.compile(r"^parallel_tool_calls$"), "tool_choice.disable_parallel_tool_use"),
    (re.compile(r"^reasoning_effort$"), "output_config.effort"),
    (re.compile(r"^continue_final_message$"), "messages"),
    (re.compile(r"^max_completion_tokens$"), "max_tokens"),
)

_THINKS = {"enabled": True, "adaptive": True, "disabled": False}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_TOOL_FIELDS = {
    "name": "name",
    "description": "description",
    "input_schema": "parameters",
    "strict": "strict",
    "input_examples": "input_examples",  # for the template, which shows the model the whole tool
}
_IGNORED_TOOL_FIELDS = {"type", "cache_control", "eager_input_streaming"}

ChatMessage = dict[str, Any]


def parameter_names(body: MessagesBody) -> tuple[Renaming, ...]:
    """Return what the parameters of a chat are called in this body."""
    form = "output_format" if body.output_format else "output_config.format"
    return (*_PARAMETER_NAMES, (re.compile(r"^response_format(\.json_schema)?"), form))


def read_offered_tools(body: MessagesBody) -> OfferedTools:
    """Return the tools of the body. Raises `InvalidRequestError`."""
    offered = OfferedTools(max_name_chars=MAX_LONG_NAME_CHARS)
    for index, tool in enumerate(body.tools):
        place = f"tools[{index}]"
        if is_hosted(kind := tool.get("type")):
            offered.leave_out(kind, place)
        else:
            offered.add(_read_tool(tool, place), place)
    return offered


def to_chat_body(body: MessagesBody, offered: OfferedTools | None = None) -> ChatBody:
    """Return the same request as a chat completion. `offered` are its tools, where they were read already.

    Raises `InvalidRequestError`, which may blame parameters of a chat: see `parameter_names`.
    """
    messages = _read_system(body.system) + _read_turns(body.messages)
    names = (SamplingBody.model_fields.keys() & body.model_fields_set) - {"stream", "stop"}
    return parse_chat(
        {
            **{name: getattr(body, name) for name in names},
            "max_tokens": body.max_tokens,
            "stop": body.stop_sequences or body.stop,
            "messages": messages,
            "continue_final_message": _is_prefilled(messages),
            "tools": (offered or read_offered_tools(body)).tools,
            "response_format": _read_format(body),
            "reasoning_effort": None if body.output_config is None else body.output_config.effort,
            "thinking_budget": _read_budget(body),
            "chat_template_kwargs": {**_read_thinking(body.thinking), **body.chat_template_kwargs},
            **_read_tool_choice(body),
        }
    )


def _read_system(system: Any) -> list[ChatMessage]:
    if system is None or system in ("", []):
        return []
    blocks = read_blocks(system, "system", TEXT)
    return _read_instructions(blocks) if blocks else []


def _read_turns(given: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """Return the messages of a chat. Messages of one role that follow one another are one turn, of all their blocks."""
    read = [_read_message(message, f"messages[{index}]") for index, message in enumerate(given)]
    messages: list[ChatMessage] = []
    shown_ones = [(role, blocks) for role, blocks in read if blocks]
    for role, turn in groupby(shown_ones, key=lambda message: message[0]):
        messages += _READERS[role]([block for _, blocks in turn for block in blocks])
    if not messages:
        raise InvalidRequestError("messages has no block that the model is shown: send a text", "messages")
    return messages


def _read_message(message: Mapping[str, Any], where: str) -> tuple[str, list[PlacedBlock]]:
    """Return the role and the blocks of a message, each with its place in the body."""
    known_fields(message, {"role", "content"}, where)
    role = message.get("role")
    if not isinstance(role, str) or role not in _KINDS:
        raise InvalidRequestError(
            f"{where}.role must be one of {', '.join(TURN_ROLES)}, got {shown(role)}", f"{where}.role"
        )
    return role, read_blocks(message.get("content"), f"{where}.content", _KINDS[role])


def _read_user(blocks: list[PlacedBlock]) -> list[ChatMessage]:
    """Make each result of a tool a message of its own; the text between them is the user's."""
    messages: list[ChatMessage] = []
    for kind, group in groupby(blocks, key=lambda placed: placed[0]["type"]):
        if kind == "tool_result":
            messages += [_read_result(block, where) for block, where in group]
        else:
            messages.append({"role": "user", "content": _join(group)})
    return messages


def _read_instructions(blocks: list[PlacedBlock]) -> list[ChatMessage]:
    return [{"role": "system", "content": _join(blocks)}]


def _read_result(block: Block, where: str) -> ChatMessage:
    content = block.get("content")
    text = _join(read_blocks(content, f"{where}.content", RESULT)) if content else ""
    if block.get("is_error"):
        text = f"Error: {text}"  # a chat template has no other place for it
    return {"role": "tool", "tool_call_id": _read_call_id(block, "tool_use_id", where), "content": text}


def _read_assistant(blocks: list[PlacedBlock]) -> list[ChatMessage]:
    """Return what the assistant thought, said and called as one message: without content where it only called."""
    texts = [placed for placed in blocks if placed[0]["type"] == "text"]
    thoughts = [block["thinking"] for block, _ in blocks if block["type"] == "thinking" and block["thinking"]]
    calls = [_read_use(block, where) for block, where in blocks if block["type"] == "tool_use"]
    message: ChatMessage = {"role": "assistant"}
    if texts or not calls:
        message["content"] = _join(texts)
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return [{**message, "tool_calls": calls} if calls else message]


_KINDS: Mapping[str, Collection[str]] = {"user": USER, "assistant": ASSISTANT, "system": TEXT}
_READERS = {"user": _read_user, "assistant": _read_assistant, "system": _read_instructions}


def _read_use(block: Block, where: str) -> dict[str, Any]:
    call_id, name = _read_call_id(block, "id", where), read_string(block, "name", where)
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise InvalidRequestError(f"{where}.input must be an object, got {shown(arguments)}", f"{where}.input")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _read_call_id(block: Block, name: str, where: str) -> str:
    """Return the id as the model's own format has it: without the prefix that it was given on its way out."""
    return read_string(block, name, where).removeprefix(CALL_ID_PREFIX)


def _join(blocks: Iterable[PlacedBlock]) -> str:
    return "\n".join(block["text"] for block, _ in blocks)


def _is_prefilled(messages: list[ChatMessage]) -> bool:
    """Return whether the assistant has begun its message already."""
    if messages[-1]["role"] != "assistant":
        return False
    if "tool_calls" in messages[-1]:
        raise InvalidRequestError("the last message uses tools: answer it with their tool_result blocks", "messages")
    return True


def _read_tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if (kind := tool.get("type")) not in (None, "custom"):
        raise InvalidRequestError(
            f"{where}.type {shown(kind)} is not supported: no tool is run here, and a tool of the client's has "
            "an input_schema and no type of its own",
            f"{where}.type",
        )
    if not isinstance(tool.get("input_schema"), dict):
        raise InvalidRequestError(f"{where}.input_schema must be a JSON schema, an object", f"{where}.input_schema")
    given = tool_fields(tool, {*_TOOL_FIELDS, *_IGNORED_TOOL_FIELDS}, where, keeps_nulls=True)
    return {"type": "function", "function": {_TOOL_FIELDS[name]: given[name] for name in given if name in _TOOL_FIELDS}}


def _read_tool_choice(body: MessagesBody) -> dict[str, Any]:
    choice = body.tool_choice
    if choice is None:
        return {}
    return {
        "tool_choice": _CHOICES.get(choice.type) or _forced_tool(choice.name, body),
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
    }


def _forced_tool(name: str | None, body: MessagesBody) -> dict[str, Any]:
    if name is None or name not in [tool.get("name") for tool in body.tools]:
        raise InvalidRequestError(f"tool_choice.name must name one of the tools, got {shown(name)}", "tool_choice.name")
    kinds = [tool.get("type") for tool in body.tools if tool.get("name") == name]
    if all(map(is_hosted, kinds)):
        raise left_out_choice([str(kind) for kind in kinds])
    return {"type": "function", "function": {"name": name}}


def _read_thinking(thinking: ThinkingOptions | None) -> dict[str, bool]:
    """Return the variable that most templates know."""
    return {} if thinking is None else {"enable_thinking": _THINKS[thinking.type]}


def _read_budget(body: MessagesBody) -> int | None:
    budgets = {
        "thinking.budget_tokens": body.budget_tokens,
        "thinking_budget": body.thinking_budget,
        "thinking_token_budget": body.thinking_token_budget,
    }
    budget: int | None = one_of(budgets)
    return budget


def _read_format(body: MessagesBody) -> dict[str, Any] | None:
    form = body.output_format or (body.output_config and body.output_config.format)
    if not form:
        return None
    where = "output_format" if body.output_format else "output_config.format"
    form = known_fields(form, {"type", "schema"}, where)
    if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise InvalidRequestError(f"{where} must be of type json_schema, with a schema that is an object", where)
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": form["schema"]}}
