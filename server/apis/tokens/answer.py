"""POST /tokenize and /detokenize: text, chats and token ids, without the model."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.apis.answer_schemas import INTEGER, STRING, AnswerSchema, list_of, object_with
from orcinus.server.apis.json_pieces import LazyList
from orcinus.server.apis.offered_tools import read_chat_tools, with_function_calls
from orcinus.server.apis.tokens.body import TokenizeBody, parse_detokenize, parse_tokenize
from orcinus.server.context import ServingContext, ServingTokenizer
from orcinus.server.reading.tools.request import read_tool_use
from orcinus.server.requests.prompts import encode_chat

_OFF_LOOP_TOKENS = 4096
_STEP_TOKENS = 2048  # written at once

TOKENS = AnswerSchema("Tokens", object_with(count=INTEGER, max_model_len=INTEGER, tokens=list_of(INTEGER)))
TEXT = AnswerSchema("Text", object_with(prompt=STRING))


async def tokenize(ctx: ServingContext, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return token ids, their number, and the context they have to fit in. Raises `InvalidRequestError`."""
    request = parse_tokenize(body)
    ctx.check_model(request.model)
    info = ctx.engine.info
    token_ids = await _token_ids(ctx, request)
    answer = {"count": len(token_ids), "max_model_len": info.max_model_len, "tokens": _written(token_ids, list)}
    if request.return_token_strs:
        answer["token_strs"] = _written(token_ids, partial(_token_strs, ctx.engine.tokenizer))
    return answer


async def detokenize(ctx: ServingContext, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text of token ids. Raises `InvalidRequestError`."""
    request = parse_detokenize(body)
    ctx.check_model(request.model)
    last_id = ctx.engine.info.vocab_size - 1
    for token_id in (min(request.tokens, default=0), max(request.tokens, default=0)):
        if not 0 <= token_id <= last_id:
            raise InvalidRequestError(f"tokens has id {token_id}, outside the vocabulary (0 to {last_id})", "tokens")
    decode = partial(ctx.engine.tokenizer.decode, skip_special_tokens=request.skip_special_tokens)
    is_long = len(request.tokens) > _OFF_LOOP_TOKENS
    return {"prompt": await asyncio.to_thread(decode, request.tokens) if is_long else decode(request.tokens)}


def _written(token_ids: Sequence[int], describe: Callable[[Sequence[int]], list[Any]]) -> LazyList:
    """Return a list of what `describe` gives of the tokens, to be written some at a time."""
    starts = range(0, len(token_ids), _STEP_TOKENS)
    return LazyList(
        lambda: (msgspec.json.encode(describe(token_ids[start : start + _STEP_TOKENS]))[1:-1] for start in starts)
    )


def _token_strs(tokenizer: ServingTokenizer, token_ids: Sequence[int]) -> list[str]:
    return [tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in token_ids]


async def _token_ids(ctx: ServingContext, request: TokenizeBody) -> list[int]:
    if request.prompt is not None:
        add_special_tokens = request.add_special_tokens is not False
        return await ctx.engine.encode(request.prompt, add_special_tokens=add_special_tokens)
    offered = read_chat_tools(request.tools)
    tool_use = read_tool_use(offered.tools, None, places=offered.places)
    ctx.message_format.check(tool_use)
    chat = await encode_chat(
        ctx.engine,
        with_function_calls(request.messages or []),
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        add_special_tokens=request.add_special_tokens is True,
        variables=request.chat_template_kwargs,
        tools=None if tool_use is None else tool_use.raw,
    )
    return chat.token_ids
