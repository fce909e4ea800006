"""Queries and documents to prompts for a model that judges, and its logits to scores: what /rerank and /score share.

Independent of HTTP. What the model reads is one of `server.requests.rerank_templates`, or its own chat template.
"""

import asyncio
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import SamplingParams
from orcinus.server.apis.pooled import PooledGeneration, naming, pooled_request
from orcinus.server.context import OutputStream, ServingContext, ServingEngine
from orcinus.server.requests.caller import Caller
from orcinus.server.requests.judging_body import JudgingBody
from orcinus.server.requests.prompts import EncodedPrompt
from orcinus.server.requests.rerank_templates import (
    DEFAULT_LABELS,
    RERANK_TEMPLATES,
    RerankTemplate,
    no_instructions,
    question,
    template_of,
)
from orcinus.server.requests.sampling import tokens_to_keep

Pair = tuple[str, str]  # a query and a document

_WITHOUT_THOUGHTS = {"enable_thinking": False, "thinking": False}  # as chat templates call it
_CUT_CHARACTER = "\ufffd"


@dataclass(frozen=True, slots=True)
class Judge:
    """Asks the served model: by a family's `template`, by a chat template that `reads_pairs`, or in a chat.

    `labels` are texts whose first tokens are its answers, that of a relevant document first.
    """

    engine: ServingEngine
    template: RerankTemplate | None
    reads_pairs: bool
    labels: tuple[str, ...]
    instruction: str | None

    async def encode(self, query: str, document: str) -> list[int]:
        """Return the prompt. Raises `InvalidRequestError`."""
        if self.template is not None:
            text = self.template.render(query, document, self.instruction)
            return await self.engine.encode(text, add_special_tokens=self.template.add_special_tokens)
        if not self.reads_pairs:
            text = question(query, document, self.instruction, self.labels)
            return await self._render([{"role": "user", "content": text}], _WITHOUT_THOUGHTS)
        pair = [{"role": "query", "content": query}, {"role": "document", "content": document}]
        if self.instruction is None:
            return await self._render(pair, {})
        # Templates have it in a message of the system, or in a variable.
        system = {"role": "system", "content": self.instruction}
        return await self._render([system, *pair], {"instruction": self.instruction})

    async def fit(self, query: str, document: str, num_tokens: int | None) -> list[int]:
        """Return the prompt with as much of the document's beginning as `num_tokens` have room for; None: all of it."""
        ids = await self.encode(query, document)
        if num_tokens is None or len(ids) <= num_tokens:
            return ids
        kept = await self.engine.encode(document, add_special_tokens=False)
        while (excess := len(ids) - num_tokens) > 0:
            if excess >= len(kept):
                raise InvalidRequestError(
                    f"truncate_prompt_tokens leaves nothing of the document: {num_tokens} tokens are allowed, and the"
                    f" prompt has {len(ids) - len(kept)} without it",
                    "truncate_prompt_tokens",
                )
            kept = kept[: len(kept) - excess]
            ids = await self.encode(query, self._text_of(kept, document))
        return ids

    async def cut(self, text: str, num_tokens: int) -> str:
        """Return the text's first `num_tokens` tokens; 0: all of it."""
        ids = await self.engine.encode(text, add_special_tokens=False) if num_tokens else []
        return text if len(ids) <= num_tokens else self._text_of(ids[:num_tokens], text)

    async def label_ids(self, declared: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens of the labels, which are `declared` already where there are any."""
        if declared:
            return tuple(declared)
        encoded = [await self.engine.encode(label, add_special_tokens=False) for label in self.labels]
        first = tuple(ids[0] for ids in encoded if ids)
        if len(set(first)) < len(self.labels):
            raise InvalidRequestError(
                f"this model cannot score texts: the labels {', '.join(self.labels)} do not begin with tokens of their"
                " own; start the server with other --rerank-labels",
                "model",
            )
        return first

    async def _render(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> list[int]:
        return await self.engine.render_and_encode(messages, **variables)

    def _text_of(self, ids: Sequence[int], whole: str) -> str:
        """Return the text of a beginning of a text's tokens, less a character that is cut in the middle."""
        text = self.engine.tokenizer.decode(ids, skip_special_tokens=False)
        return text if whole.startswith(text) else text.rstrip(_CUT_CHARACTER)


async def find_judge(ctx: ServingContext, instruction: str | None) -> Judge:
    """Return how the served model is asked. Raises `InvalidRequestError` where there is no prompt for it."""
    tokenizer, setting = ctx.engine.tokenizer, ctx.rerank_template
    is_auto = setting == "auto"
    template = RERANK_TEMPLATES.get(setting)
    reads_pairs = is_auto and await asyncio.to_thread(lambda: tokenizer.reads_pairs)
    if is_auto and not reads_pairs:
        template = template_of(ctx.engine.info.model)
    if template is None and not tokenizer.chat_template_source:
        raise InvalidRequestError(
            "this model is not known to be a reranker, and has no chat template to be asked by: start the server with"
            " --rerank-template or --chat-template",
            "model",
        )
    if reads_pairs and instruction is not None and not _has_place_for_instruction(tokenizer.chat_template_source):
        raise no_instructions()
    labels = ctx.rerank_labels or (DEFAULT_LABELS if template is None else template.labels)
    return Judge(ctx.engine, template, reads_pairs, labels, instruction)


def _has_place_for_instruction(source: str) -> bool:
    return "system" in source or "instruct" in source


async def submit_pairs(
    ctx: ServingContext, body: JudgingBody, pairs: Sequence[Pair], caller: Caller, *, id_prefix: str, field: str
) -> tuple[GenerationRequest, OutputStream]:
    """Make prompts of the pairs and submit them; nothing is awaited after the engine has admitted them.

    `field` is blamed for what the engine says of prompts. Raises what `server.errors.to_response` maps.
    """
    ctx.check_model(body.model)
    ctx.check_admitting()
    ctx.engine.info.check_generates()
    judge = await find_judge(ctx, body.instruction)
    declared = [] if ctx.rerank_labels else ctx.engine.info.label_token_ids
    labels = await judge.label_ids(declared)
    with naming(field):
        prompts = await _encode_pairs(judge, pairs, body, tokens_to_keep(ctx, body, max_tokens=0))
        sampling = SamplingParams(max_tokens=0, pooling="last", label_token_ids=labels)
        request = pooled_request(ctx, id_prefix, body, sampling=sampling, prompts=prompts, caller=caller)
        return request, ctx.engine.submit(request)


async def _encode_pairs(
    judge: Judge, pairs: Sequence[Pair], body: JudgingBody, num_kept: int | None
) -> list[EncodedPrompt]:
    """Return the prompts. Raises `ContextLengthError` at the first that does not fit."""
    prompts = []
    queries: dict[str, str] = {}
    for query, document in pairs:
        if query not in queries:
            queries[query] = await judge.cut(query, body.max_tokens_per_query)
        read = await judge.cut(document, body.max_tokens_per_doc)
        ids = await judge.fit(queries[query], read, num_kept)
        judge.engine.check_context(len(ids), 0)
        prompts.append(EncodedPrompt(ids))
        await asyncio.sleep(0)  # each may be short and all of them long
    return prompts


class JudgingGeneration(PooledGeneration):
    """An admitted request for scores."""

    def __init__(
        self, ctx: ServingContext, body: JudgingBody, request: GenerationRequest, stream: OutputStream
    ) -> None:
        super().__init__(ctx, request, stream)
        self._is_probability = body.use_activation

    def _score(self, index: int) -> float:
        """Return the score of a pair."""
        logits = array("f", self._numbers[index])
        return probability(log_odds(logits)) if self._is_probability else log_odds(logits)


def log_odds(logits: Sequence[float]) -> float:
    """Return how much likelier the first label is than all others together, as a logarithm; of one label its logit."""
    first, *others = logits
    if not others:
        return first
    highest = max(others)
    return first - highest - math.log(math.fsum(math.exp(other - highest) for other in others))


def probability(odds: float) -> float:
    """Return what log-odds stand for: of several labels the softmax's share of the first."""
    if odds >= 0:
        return 1 / (1 + math.exp(-odds))
    return math.exp(odds) / (1 + math.exp(odds))
