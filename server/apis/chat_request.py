"""From the body of a chat to what is asked of the engine, and how its answer is to be read.

Shared by every API that speaks in messages: each makes a `ChatBody` of its own form, and writes the answer in it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.frontend.chat_ends import ending_chats
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import Grammar
from orcinus.server.apis.call_forms import AnswerForm, CallForm
from orcinus.server.apis.chat.body import ChatBody, template_variables
from orcinus.server.apis.chat.prefix import without_prefix
from orcinus.server.apis.forms import settle_form
from orcinus.server.apis.offered_tools import OfferedTools, function_choice, read_chat_tools, with_function_calls
from orcinus.server.apis.thinking_budget import held_to_budget, thinking_budget
from orcinus.server.context import ServingContext
from orcinus.server.reading.client_calls import ClientCallReader
from orcinus.server.reading.message_reader import MessageReader
from orcinus.server.reading.pieces import PieceReader
from orcinus.server.reading.tools.lark import ANY_OBJECT
from orcinus.server.reading.tools.request import ToolUse, read_tool_use
from orcinus.server.requests.caller import ANONYMOUS, Caller
from orcinus.server.requests.contradictions import check_choices
from orcinus.server.requests.prompts import encode_chat
from orcinus.server.requests.routing import check_models
from orcinus.server.requests.sampling import encode_bad_words, to_request, to_sampling_params, tokens_to_keep
from orcinus.server.requests.structured import grammar_param, is_loose, read_grammar, schema_place

_TAIL_TOKENS = 64  # of the prompt: enough to see whether the template has opened the model's thinking
_MAX_TAIL_TOKENS = 16384  # of the prompt, where the message began long before its end


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat that the engine can take. `new_reader` gives the reader of one choice; None: all text is content."""

    body: ChatBody
    generation: GenerationRequest
    tool_use: ToolUse | None
    new_reader: Callable[[], PieceReader | None]


async def prepare_chat(
    ctx: ServingContext,
    body: ChatBody,
    request_id: str,
    caller: Caller = ANONYMOUS,
    offered: OfferedTools | None = None,
    *,
    is_streamed: bool | None = None,
    format_name: str = "response_format",
) -> ChatRequest:
    """Check, render and tokenize a chat. `offered` are its tools, of an API that has them in another form.

    `is_streamed` tells how the answer is given, where the body does not; `format_name` is what the client calls its
    `response_format`.

    Raises `InvalidRequestError`, `ModelNotFoundError`, `EngineUnavailableError`.
    """
    check_models(ctx, body.model, body.models)
    ctx.check_admitting()
    ctx.engine.info.check_generates()
    form = ctx.message_format
    offered = offered or read_chat_tools(body.tools)
    tool_use = _usable_tools(ctx, body, offered)
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    messages, is_prefix = without_prefix(body.messages)
    budget = thinking_budget(ctx, body)
    prompt = await encode_chat(
        ctx.engine,
        with_function_calls(messages),
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message or is_prefix,
        add_special_tokens=body.add_special_tokens,
        variables=_variables(ctx, body, budget),
        tools=None if tool_use is None else tool_use.raw,
    )
    tail = _tail(ctx, prompt.token_ids)
    sampling = to_sampling_params(
        body,
        ctx.engine.info.sampling_defaults,
        max_tokens=max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        bad_words=await encode_bad_words(ctx.engine, body.bad_words),
        grammar=await _grammar(ctx, body, tool_use, tail, format_name),
    )
    sampling = await held_to_budget(ctx, sampling, tail, budget)
    if form.needs_special_tokens and form.reader(tail, tool_use) is not None:
        sampling = msgspec.structs.replace(sampling, skip_special_tokens=False)
    sampling = ending_chats(sampling, ctx.engine.tokenizer.eos_token_id, ctx.engine.info)
    prompt = prompt.keep_last(tokens_to_keep(ctx, body, max_tokens))
    generation = to_request(ctx, request_id, body, sampling=sampling, prompts=[prompt], caller=caller)
    streamed = body.stream if is_streamed is None else is_streamed

    def new_reader() -> PieceReader | None:
        return _reader(form.reader(tail, tool_use, is_streamed=streamed), body, offered)

    return ChatRequest(body, generation, tool_use, new_reader)


def _variables(ctx: ServingContext, body: ChatBody, budget: int | None) -> dict[str, Any]:
    """Return the variables of the chat template, the budget among them where it would tell the model."""
    told = {} if budget is None or not ctx.template_reads("thinking_budget") else {"thinking_budget": budget}
    return told | template_variables(body, budget)


def _tail(ctx: ServingContext, token_ids: Sequence[int]) -> str:
    """Return the end of the prompt, as much of it as the readers of answers need."""
    num_tokens = _TAIL_TOKENS
    while True:
        tail = ctx.engine.tokenizer.decode(token_ids[-num_tokens:], skip_special_tokens=False)
        if num_tokens >= min(len(token_ids), _MAX_TAIL_TOKENS) or not ctx.message_format.needs_more_of(tail):
            return tail
        num_tokens *= 4


def _reader(reader: MessageReader | None, body: ChatBody, offered: OfferedTools) -> PieceReader | None:
    """Return the reader of a choice as the client asks for it: without reasoning, with calls of its own tools."""
    if reader is None:
        return None
    if not body.include_reasoning or (body.reasoning is not None and body.reasoning.exclude):
        reader.leave_out_reasoning()
    return ClientCallReader(reader, offered.calls) if offered.calls else reader


def _usable_tools(ctx: ServingContext, body: ChatBody, offered: OfferedTools) -> ToolUse | None:
    """Return the tools that the model is told of: none where it must not call any."""
    tool_use = read_tool_use(
        offered.tools,
        function_choice(body.tool_choice),
        body.parallel_tool_calls,
        places=offered.places,
        max_name_chars=offered.max_name_chars,
        left_out=offered.left_out,
        held=offered.held,
    )
    if tool_use is None or tool_use.choice == "none":
        return None
    ctx.message_format.check(tool_use)
    return tool_use


async def _grammar(
    ctx: ServingContext, body: ChatBody, tool_use: ToolUse | None, tail: str, format_name: str
) -> Grammar | None:
    """Return the grammar that the output has to match. One of a call that must be made leaves no room for an answer."""
    asked = read_grammar(body)
    param = format_name if body.response_format else grammar_param(body)
    if tool_use is not None:
        answer: AnswerForm | None = None
        if asked is not None and tool_use.choice != "required":
            answer = AnswerForm(_answer_schema(asked), param, schema_place(body), is_loose(body))
        return await CallForm(ctx, tail, tool_use, answer).settle()
    if asked is None:
        return None
    grammar = msgspec.structs.replace(asked, thinking=ctx.message_format.thinking(tail), param=param)
    check_choices(grammar, body.min_tokens)
    return await settle_form(ctx, grammar, schema_place(body), is_loose=is_loose(body))


def _answer_schema(asked: Grammar) -> Mapping[str, Any]:
    """Return the schema of an answer that the model may give instead of calling a tool."""
    match asked.kind:
        case "json_object":
            return ANY_OBJECT
        case "json_schema":
            schema = json.loads(asked.source)
            return schema if isinstance(schema, dict) else {}
        case _:
            raise InvalidRequestError(
                "where the model may call tools or not, the form of its answer can only be JSON: "
                'set tool_choice to "none" or "required"',
                "structured_outputs",
            )
