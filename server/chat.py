"""POST /v1/chat/completions: from a body to an answer. Independent of HTTP; `server.app` puts it on a route."""

from collections.abc import Mapping
from typing import Any

import msgspec

from engine.outputs import GenerationRequest
from server.context import OutputStream, ServingContext
from server.generation import Choice, Generation
from server.logprobs import chat_logprobs
from server.prompts import encode_chat
from server.protocol import ChatBody, parse_chat
from server.sampling import to_request, to_sampling_params, tokens_to_keep

_encode = msgspec.json.encode


async def create_chat_completion(ctx: ServingContext, body: Mapping[str, Any]) -> dict[str, Any]:
    """The whole answer to a parsed body, as the API returns it (`stream` in the body is the caller's business).

    Raises what `server.errors.to_response` maps: `InvalidRequestError` and its kin, `QueueFullError`,
    `EngineUnavailableError`, `RequestTimeoutError`, `RequestFailedError`.
    """
    return await (await start_chat_completion(ctx, body)).whole()


async def start_chat_completion(ctx: ServingContext, body: Mapping[str, Any]) -> "ChatGeneration":
    """Check, render, tokenize and submit; nothing is awaited after the engine has admitted it. Raises as above."""
    request = parse_chat(body)
    ctx.check_model(request.model)
    ctx.check_ready()
    max_tokens = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    prompt = await encode_chat(
        ctx.engine,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        add_special_tokens=request.add_special_tokens,
        variables=_template_variables(request),
    )
    prompt = prompt.keep_last(tokens_to_keep(ctx, request, max_tokens))
    sampling = to_sampling_params(
        request,
        ctx.engine.info.sampling_defaults,
        max_tokens=max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
    )
    generation = to_request(ChatGeneration.new_id(), request, sampling, [prompt])
    ctx.check_ready()
    return ChatGeneration(ctx, request, generation, ctx.engine.submit(generation))


def _template_variables(body: ChatBody) -> dict[str, Any]:
    if body.reasoning_effort is None:
        return body.chat_template_kwargs
    return {"reasoning_effort": body.reasoning_effort, **body.chat_template_kwargs}


class ChatGeneration(Generation):
    """A chat completion. A stream's first event of each choice holds the role, and comes with its first text."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    body: ChatBody

    def __init__(self, ctx: ServingContext, body: ChatBody, request: GenerationRequest, stream: OutputStream) -> None:
        super().__init__(ctx, body, request, stream)
        self._text_heads = [
            b'data: %b,"choices":[{"index":%d,"delta":{"content":' % (self._head, index)
            for index in range(request.num_choices)
        ]

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
            "logprobs": self._choice_logprobs(choice),
            "finish_reason": choice.finish_reason,
            **self._choice_extras(choice),
        }

    def _response_extras(self) -> dict[str, Any]:
        """The prompt is one for all choices, so what is said about it stands beside them."""
        return self._prompt_extras(self._choices[0])

    def _events(self, choice: Choice) -> bytes:
        opening = b"" if choice.has_begun else self._opening_event(choice)
        text = "".join(choice.text)
        if not (text or choice.finish_reason or choice.token_ids):
            return opening
        delta = {"content": text} if text else {}
        return opening + self._event(
            {
                "index": choice.index,
                "delta": delta,
                "logprobs": self._choice_logprobs(choice),
                "finish_reason": choice.finish_reason,
                **self._choice_extras(choice),
            }
        )

    def _opening_event(self, choice: Choice) -> bytes:
        entry = {
            "index": choice.index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return self._event(entry, **self._prompt_extras(choice))

    def _text_event(self, index: int, text: str) -> bytes:
        return b'%b%b},"logprobs":null,"finish_reason":null}]%b' % (
            self._text_heads[index],
            _encode(text),
            self._tail(),
        )

    def _choice_logprobs(self, choice: Choice) -> dict[str, Any] | None:
        return chat_logprobs(self.tokenizer, choice.logprobs) if self.body.logprobs else None

    def _prompt_extras(self, choice: Choice) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if self.body.return_token_ids:
            extras["prompt_token_ids"] = self._prompt_of(choice.index)
        if (ranked := self._ranked_prompt_logprobs(choice)) is not None:
            extras["prompt_logprobs"] = ranked
        return extras
