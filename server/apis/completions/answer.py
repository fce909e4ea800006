"""POST /v1/completions: from a body to an answer. Independent of HTTP; `server.operations` gives it a path."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from orcinus.engine.messages import TokenLogprobs
from orcinus.engine.outputs import GenerationRequest, RequestOutput
from orcinus.server.apis.answer_schemas import CHOICE, IDENTITY, STRING, AnswerSchema, constant, list_of, object_with
from orcinus.server.apis.completions.body import CompletionBody, parse_completion
from orcinus.server.apis.forms import settle_form
from orcinus.server.apis.generation import OpenAIGeneration, PendingChoice
from orcinus.server.apis.json_pieces import JsonList, JsonText, JsonValue, written_text
from orcinus.server.apis.logprobs import Entries, TextLogprobs
from orcinus.server.context import OutputStream, ServingContext, ServingTokenizer
from orcinus.server.requests.caller import ANONYMOUS, Caller
from orcinus.server.requests.contradictions import check_choices
from orcinus.server.requests.prompts import EncodedPrompt, encode_prompts
from orcinus.server.requests.routing import check_models
from orcinus.server.requests.sampling import encode_bad_words, to_request, to_sampling_params, tokens_to_keep
from orcinus.server.requests.structured import grammar_param, is_loose, read_grammar, schema_place

_OFF_LOOP_TOKENS = 4096


async def start_completion(
    ctx: ServingContext, body: Mapping[str, Any], caller: Caller = ANONYMOUS
) -> "CompletionGeneration":
    """Check and tokenize the prompts, and submit them; nothing is awaited after the engine has admitted them.

    Raises what `server.errors.to_response` maps: `InvalidRequestError` and its kin, `QueueFullError`,
    `EngineUnavailableError`.
    """
    request = parse_completion(body)
    check_models(ctx, request.model, request.models)
    ctx.check_admitting()
    ctx.engine.info.check_generates()
    prompts = await encode_prompts(
        ctx.engine,
        request.prompt,
        add_special_tokens=request.add_special_tokens,
        num_kept=tokens_to_keep(ctx, request, request.max_tokens),
        max_tokens=request.max_tokens,
    )
    grammar = read_grammar(request)
    if grammar is not None:
        grammar = msgspec.structs.replace(grammar, param=grammar_param(request))
        check_choices(grammar, request.min_tokens)
        grammar = await settle_form(ctx, grammar, schema_place(request), is_loose=is_loose(request))
    sampling = to_sampling_params(
        request,
        ctx.engine.info.sampling_defaults,
        max_tokens=request.max_tokens,
        logprobs=_num_logprobs(request),
        prompt_logprobs=_num_prompt_logprobs(request),
        bad_words=await encode_bad_words(ctx.engine, request.bad_words),
        grammar=grammar,
    )
    sampling = msgspec.structs.replace(sampling, n=request.best_of or request.n)
    generation = to_request(
        ctx, CompletionGeneration.new_id(), request, sampling=sampling, prompts=prompts, caller=caller
    )
    needs_text = request.echo or request.logprobs is not None
    texts = await _texts_of(prompts, ctx.engine.tokenizer) if needs_text else []
    return CompletionGeneration(ctx, request, generation, ctx.engine.submit(generation), texts)


async def _texts_of(prompts: Sequence[EncodedPrompt], tokenizer: ServingTokenizer) -> list[str]:
    """Return the texts of prompts, off the event loop where many tokens have to be decoded."""
    num_decoded = sum(len(prompt.token_ids) for prompt in prompts if prompt.text is None)
    if num_decoded <= _OFF_LOOP_TOKENS:
        return [prompt.read_text(tokenizer) for prompt in prompts]
    return await asyncio.to_thread(lambda: [prompt.read_text(tokenizer) for prompt in prompts])


def _num_logprobs(body: CompletionBody) -> int | None:
    """Return how many alternatives the engine gives: the best of several are found by their log-probabilities."""
    return 0 if body.logprobs is None and body.has_candidates else body.logprobs


def _num_prompt_logprobs(body: CompletionBody) -> int | None:
    """Return how many alternatives it gives of the prompt's tokens, which `echo` with `logprobs` needs too."""
    asked = [body.prompt_logprobs, body.logprobs if body.echo else None]
    return max((number for number in asked if number is not None), default=None)


COMPLETION = AnswerSchema(
    "Completion",
    object_with(object=constant("text_completion"), choices=list_of(object_with(text=STRING, **CHOICE)), **IDENTITY),
)


class CompletionGeneration(OpenAIGeneration):
    """A text completion; its chunks have the shape of the whole."""

    id_prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"
    text_fields = (b'"text":', b"")
    body: CompletionBody

    def __init__(
        self,
        ctx: ServingContext,
        body: CompletionBody,
        request: GenerationRequest,
        stream: OutputStream,
        prompt_texts: Sequence[str],
    ) -> None:
        super().__init__(ctx, body, request, stream)
        self._prompt_texts = prompt_texts
        self._logprobs: dict[int, TextLogprobs] = {}
        self._written_prompts: dict[int, JsonValue] = {}
        self._scores = [_Score() for _ in range(request.num_choices)] if body.has_candidates else []
        if body.echo:
            written = [written_text(text) for text in prompt_texts]
            for choice in self._choices:
                choice.text = JsonText(written[choice.index // request.sampling.n])

    def _whole(self) -> dict[str, Any]:
        if not self.body.has_candidates:
            return super()._whole()
        self._choices = self._best_choices()
        answer = super()._whole()
        for index, choice in enumerate(answer["choices"]):
            choice["index"] = index
        return answer

    def _best_choices(self) -> list[PendingChoice]:
        """Return of each prompt's candidates the `n` with the highest log-probability per token, best first."""
        num_candidates = self.request.sampling.n
        best: list[PendingChoice] = []
        for first in range(0, len(self._choices), num_candidates):
            candidates = self._choices[first : first + num_candidates]
            candidates.sort(key=lambda choice: self._scores[choice.index].mean, reverse=True)
            best += candidates[: self.body.n]
        return best

    def _whole_choice(self, choice: PendingChoice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": self._take_logprobs(choice.index),
            "finish_reason": choice.finish_reason,
            **self._stop_extras(choice),
            **self._token_extras(choice),
            **self._prompt_extras(choice),
        }

    def _events(self, choice: PendingChoice, news: str) -> Iterator[bytes]:
        """Return a chunk with what was gathered, if there is anything, and one that says why the choice ended."""
        extras = {} if choice.has_begun else self._prompt_extras(choice)
        if choice.text or (choice.num_tokens and self._has_details) or not choice.finish_reason:
            entry = {"index": choice.index, "text": choice.text, "logprobs": self._take_logprobs(choice.index)}
            yield from self._event({**entry, "finish_reason": None, **self._token_extras(choice), **extras})
            choice.token_ids, extras = JsonList(), {}
        if choice.finish_reason:
            entry = {"index": choice.index, "text": "", "logprobs": self._take_logprobs(choice.index)}
            why = {"finish_reason": choice.finish_reason, **self._stop_extras(choice)}
            yield from self._event({**entry, **why, **self._token_extras(choice), **extras})

    def _prompt_extras(self, choice: PendingChoice) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if (ranked := self._ranked_prompt_logprobs(choice)) is not None:
            extras["prompt_logprobs"] = ranked
        if self.body.return_token_ids:
            extras["prompt_token_ids"] = self._written_prompt(choice.index)
        return extras

    def _written_prompt(self, index: int) -> JsonValue:
        """Return the ids of a choice's prompt, which are written once for all choices of the prompt."""
        number = index // self.request.sampling.n
        if number not in self._written_prompts:
            self._written_prompts[number] = JsonValue(msgspec.json.encode(self._prompt_of(index)))
        return self._written_prompts[number]

    def _add(self, choice: PendingChoice, output: RequestOutput) -> Iterator[int]:
        if self._scores:
            self._scores[choice.index].add(output.logprobs or ())
        yield from super()._add(choice, output)

    def _add_logprobs(self, choice: PendingChoice, output: RequestOutput) -> Iterator[int]:
        """Write the arrays of an output's tokens, the first time after those of the prompt if it is echoed."""
        if self.body.logprobs is None:
            return
        if choice.index not in self._logprobs:
            self._logprobs[choice.index] = self._new_logprobs(choice.index)
            if self.body.echo:
                prompt = self._prompt_of(choice.index)
                given = output.prompt_logprobs
                entries: Entries = [None] * len(prompt) if given is None else given
                yield from self._logprobs[choice.index].add(prompt, entries)
        yield from self._logprobs[choice.index].add(output.token_ids, output.logprobs or ())

    def _take_logprobs(self, index: int) -> dict[str, JsonList] | None:
        return self._logprobs[index].take() if index in self._logprobs else None

    def _new_logprobs(self, index: int) -> TextLogprobs:
        return TextLogprobs(
            self.tokenizer,
            num_top=self.body.logprobs or 0,
            offset=0 if self.body.echo else len(self._prompt_texts[index // self.request.sampling.n]),
            skip_special_tokens=self.body.skip_special_tokens,
        )


class _Score:
    """Holds how likely the tokens of a candidate are."""

    __slots__ = ("_num_tokens", "_sum")

    def __init__(self) -> None:
        self._sum = 0.0
        self._num_tokens = 0

    @property
    def mean(self) -> float:
        return self._sum / max(self._num_tokens, 1)

    def add(self, entries: Iterable[TokenLogprobs]) -> None:
        for entry in entries:
            self._sum += entry.logprob
            self._num_tokens += 1
