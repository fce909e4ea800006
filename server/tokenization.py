"""POST /tokenize and /detokenize: text, chats and token ids, without the model."""

import asyncio
from collections.abc import Mapping
from typing import Any

from engine.errors import InvalidRequestError
from server.context import ServingContext
from server.prompts import encode_chat
from server.protocol import TokenizeBody, parse_detokenize, parse_tokenize
from server.tools.request import read_tool_use

_OFF_LOOP_TOKENS = 4096


async def tokenize(ctx: ServingContext, body: Mapping[str, Any]) -> dict[str, Any]:
    """Token ids, their number, and the context they have to fit in. Raises `InvalidRequestError`."""
    request = parse_tokenize(body)
    ctx.check_model(request.model)
    info = ctx.engine.info
    token_ids = await _token_ids(ctx, request)
    answer = {"count": len(token_ids), "max_model_len": info.max_model_len, "tokens": token_ids}
    if request.return_token_strs:
        token_bytes = map(ctx.engine.tokenizer.token_bytes, token_ids)
        answer["token_strs"] = [raw.decode("utf-8", "replace") for raw in token_bytes]
    return answer


async def detokenize(ctx: ServingContext, body: Mapping[str, Any]) -> dict[str, Any]:
    """The text of token ids. Raises `InvalidRequestError`."""
    request = parse_detokenize(body)
    ctx.check_model(request.model)
    last_id = ctx.engine.info.vocab_size - 1
    for token_id in (min(request.tokens, default=0), max(request.tokens, default=0)):
        if not 0 <= token_id <= last_id:
            raise InvalidRequestError(f"tokens has id {token_id}, outside the vocabulary (0 to {last_id})", "tokens")
    decode = ctx.engine.tokenizer.decode
    skip = request.skip_special_tokens
    if len(request.tokens) <= _OFF_LOOP_TOKENS:
        return {"prompt": decode(request.tokens, skip_special_tokens=skip)}
    return {"prompt": await asyncio.to_thread(decode, request.tokens, skip_special_tokens=skip)}


async def _token_ids(ctx: ServingContext, request: TokenizeBody) -> list[int]:
    if request.prompt is not None:
        add_special_tokens = request.add_special_tokens is not False
        return await ctx.engine.encode(request.prompt, add_special_tokens=add_special_tokens)
    tool_use = read_tool_use(request.tools, None)
    ctx.message_format.check(tool_use)
    chat = await encode_chat(
        ctx.engine,
        request.messages or [],
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        add_special_tokens=request.add_special_tokens is True,
        variables=request.chat_template_kwargs,
        tools=None if tool_use is None else tool_use.raw,
    )
    return chat.token_ids
