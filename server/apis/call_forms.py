"""The grammar of calls: what makes a model call tools with the arguments that they are to have.

A strict tool is enforced or refused, as `server.apis.forms` says of every form. Of the schema of another, what cannot
be enforced is left out; where calls are left to the model, and a tool is strict, those that are not take any object. No
error shows the grammar, which is none of the client's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from orcinus.engine.errors import InvalidRequestError, UnenforceableSchemaError
from orcinus.engine.sampling_params import Grammar
from orcinus.server.apis.forms import can_be_enforced, keyword_places, refusal_of, settle_form
from orcinus.server.context import ServingContext
from orcinus.server.reading.tools.lark import ANY_OBJECT, arguments_schema, leaves_room, without_options
from orcinus.server.reading.tools.request import Tool, ToolUse
from orcinus.server.reading.tools.unwritten import unwritten_keywords
from orcinus.server.requests.left_out import leave_out

_TOO_COMPLEX = "the grammar is too complex"


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """Holds what an answer has to match that the model may give instead of calling a tool.

    `param` is the parameter that asked for it, and `place` where its schema stands in the body.
    """

    schema: Mapping[str, Any]
    param: str
    place: str
    is_loose: bool


@dataclass(slots=True)
class CallForm:
    """Settles the grammar of one request, whose prompt ends in `tail`."""

    ctx: ServingContext
    tail: str
    tool_use: ToolUse
    answer: AnswerForm | None
    _left_out: list[str] = field(default_factory=list)

    async def settle(self) -> Grammar | None:
        """Return the grammar in force, None where all is left to the model. Raises `InvalidRequestError`."""
        if self.tool_use.choice == "required" or self.answer is not None:
            return await self._settle()
        if not self.tool_use.holds_calls:
            return None
        self.tool_use = held_to_strict(self.tool_use)
        try:
            return await self._settle()
        except InvalidRequestError:
            if any(tool.strict for tool in self.tool_use.tools):
                raise
            return None  # nobody has asked for it

    async def _settle(self) -> Grammar | None:
        grammar = self._grammar(self.tool_use, self.answer)
        if grammar is None:
            return None
        for tool in self.tool_use.callable_tools:
            self._pass_over_unwritten(tool)
        try:
            await self.ctx.engine.check_grammar(grammar, grammar.param)
        except InvalidRequestError as error:
            grammar = await self._enforceable(error)
        for place in self._left_out:
            leave_out(place)
        return grammar

    def _grammar(self, tool_use: ToolUse, answer: AnswerForm | None) -> Grammar | None:
        """Return the grammar of calls in which nothing of the schemas is passed over."""
        use = replace(tool_use, tools=tuple(replace(tool, strict=True) for tool in tool_use.tools))
        grammar = self.ctx.message_format.grammar(self.tail, use, None if answer is None else answer.schema)
        param = "tools" if answer is None else answer.param
        return None if grammar is None else msgspec.structs.replace(grammar, param=param)

    def _pass_over_unwritten(self, tool: Tool) -> None:
        """Take note of keywords that calls in the model's format cannot be held to."""
        form = self.ctx.message_format.tool_format
        keywords = [] if form is None else unwritten_keywords(form, tool)
        if keywords and tool.strict:
            raise refusal_of(keywords, _place_of(tool))
        self._left_out += keyword_places(keywords, _place_of(tool))

    async def _enforceable(self, error: InvalidRequestError) -> Grammar:
        """Return a grammar without what cannot be enforced. `error` is what is wrong with the whole."""
        told = len(self._left_out)
        answer = None if self.answer is None else await self._enforceable_answer(self.answer)
        tools = [await self._enforceable_tool(tool) for tool in self.tool_use.callable_tools]
        grammar = self._grammar(replace(self.tool_use, tools=tuple(tools)), answer)
        assert grammar is not None
        if await can_be_enforced(self.ctx, grammar):
            return grammar
        loose = {tool.name: tool for tool in self.tool_use.callable_tools if not tool.strict}
        if not loose:
            raise _refusal(error) from error
        del self._left_out[told:]
        self._left_out += map(_place_of, loose.values())
        tools = [replace(tool, parameters=ANY_OBJECT) if tool.name in loose else tool for tool in tools]
        grammar = self._grammar(replace(self.tool_use, tools=tuple(tools)), answer)
        assert grammar is not None
        if not await can_be_enforced(self.ctx, grammar):
            raise _refusal(error) from error
        return grammar

    async def _enforceable_answer(self, answer: AnswerForm) -> AnswerForm:
        schema = Grammar("json_schema", json.dumps(answer.schema, ensure_ascii=False), param=answer.param)
        settled = await settle_form(self.ctx, schema, answer.place, is_loose=answer.is_loose)
        return replace(answer, schema=json.loads(settled.source) if settled.source else ANY_OBJECT)

    async def _enforceable_tool(self, tool: Tool) -> Tool:
        """Return the tool with what can be enforced of its schema. Raises `InvalidRequestError` for a strict one."""
        place = _place_of(tool)
        schema = without_options(arguments_schema(tool))
        try:
            await self.ctx.engine.check_grammar(Grammar("json_schema", json.dumps(schema)), place)
        except UnenforceableSchemaError as error:
            if tool.strict:
                raise refusal_of(error.keywords, place) from error
            self._left_out += keyword_places(error.keywords, place)
            rest = json.loads(error.rest)
            return replace(tool, parameters=rest if leaves_room(rest) else {"additionalProperties": True, **rest})
        except InvalidRequestError as error:
            if tool.strict:
                raise InvalidRequestError(f"{place} cannot be enforced: it is too complex", place) from error
            self._left_out.append(place)
            return replace(tool, parameters=ANY_OBJECT)
        return tool


def held_to_strict(tool_use: ToolUse) -> ToolUse:
    """Return the tools of which those that are not held to their schemas may be called with any object."""
    tools = (tool if tool.strict or tool.is_held else replace(tool, parameters=ANY_OBJECT) for tool in tool_use.tools)
    return replace(tool_use, tools=tuple(tools))


def _place_of(tool: Tool) -> str:
    return f"{tool.place}.parameters"


def _refusal(error: InvalidRequestError) -> InvalidRequestError:
    """Return the error over tools that can be enforced one by one, and not together."""
    why = (
        str(error).removeprefix(f"{_TOO_COMPLEX}: ") if str(error).startswith(_TOO_COMPLEX) else "they are too complex"
    )
    return InvalidRequestError(f"the calls of these tools cannot be enforced together: {why}", "tools")
