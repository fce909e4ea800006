"""POST /v1/completions: from a body to an answer. Independent of HTTP; `server.operations` gives it a path."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from orcinus.engine.messages import TokenLogprobs
from orcinus.engine.outputs import GenerationRequest
from orcinus.server.apis.answer_schemas import CHOICE, IDENTITY, STRING, AnswerSchema, constant, list_of, object_with
from orcinus.server.apis.completions.body import CompletionBody, parse_completion
from orcinus.server.apis.forms import looser_schemas, settle_form
from orcinus.server.apis.generation import OpenAIGeneration, PendingChoice
from orcinus.server.apis.logprobs import TextLogprobs
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.requests.caller import ANONYMOUS, Caller
from orcinus.server.requests.contradictions import check_choices
from orcinus.server.requests.prompts import EncodedPrompt, encode_prompts
from orcinus.server.requests.sampling import encode_bad_words, to_request, to_sampling_params, tokens_to_keep
from orcinus.server.requests.structured import grammar_param, is_loose, read_grammar


async def start_completion(
    ctx: ServingContext, body: Mapping[str, Any], caller: Caller = ANONYMOUS
) -> "CompletionGeneration":
    """Check and tokenize the prompts, and submit them; nothing is awaited after the engine has admitted them.

    Raises what `server.errors.to_response` maps: `InvalidRequestError` and its kin, `QueueFullError`,
    `EngineUnavailableError`.
    """
    request = parse_completion(body)
    ctx.check_model(request.model)
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
        check_choices(grammar, request.min_tokens, request.bad_words)
        grammar = await settle_form(ctx, grammar, partial(looser_schemas, grammar) if is_loose(request) else None)
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
    return CompletionGeneration(ctx, request, generation, ctx.engine.submit(generation), prompts)


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
        prompts: Sequence[EncodedPrompt],
    ) -> None:
        super().__init__(ctx, body, request, stream)
        needs_text = body.echo or body.logprobs is not None
        self._prompt_texts = [prompt.read_text(self.tokenizer) for prompt in prompts] if needs_text else []
        self._logprobs: dict[int, TextLogprobs] = {}

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
            candidates = sorted(self._choices[first : first + num_candidates], key=_mean_logprob, reverse=True)
            best += candidates[: self.body.n]
        return best

    def _whole_choice(self, choice: PendingChoice) -> dict[str, Any]:
        first = {"prompt_token_ids": self._prompt_of(choice.index)} if self.body.return_token_ids else {}
        return {
            "index": choice.index,
            "text": self._echoed(choice) + "".join(choice.text),
            "logprobs": self._choice_logprobs(choice),
            "finish_reason": choice.finish_reason,
            **self._choice_extras(choice),
            **first,
        }

    def _events(self, choice: PendingChoice) -> bytes:
        entry = self._whole_choice(choice)
        if choice.has_begun:
            entry.pop("prompt_token_ids", None)
        return self._event(entry)

    def _echoed(self, choice: PendingChoice) -> str:
        return self._prompt_text(choice.index) if self.body.echo and not choice.has_begun else ""

    def _prompt_text(self, index: int) -> str:
        return self._prompt_texts[index // self.request.sampling.n]

    def _choice_logprobs(self, choice: PendingChoice) -> dict[str, list[Any]] | None:
        """Return the arrays of the gathered tokens, the first time after those of the prompt if it is echoed."""
        if self.body.logprobs is None:
            return None
        if choice.index not in self._logprobs:
            self._logprobs[choice.index] = self._new_builder(choice.index)
        token_ids: list[int] = choice.token_ids
        entries: list[TokenLogprobs | None] = [*choice.logprobs]
        if self.body.echo and not choice.has_begun:
            prompt = self._prompt_of(choice.index)
            token_ids = prompt + token_ids
            entries = (choice.prompt_logprobs or [None] * len(prompt)) + entries
        return self._logprobs[choice.index].add(token_ids, entries)

    def _new_builder(self, index: int) -> TextLogprobs:
        return TextLogprobs(
            self.tokenizer,
            num_top=self.body.logprobs or 0,
            offset=0 if self.body.echo else len(self._prompt_text(index)),
            skip_special_tokens=self.body.skip_special_tokens,
        )

    def _choice_extras(self, choice: PendingChoice) -> dict[str, Any]:
        extras = super()._choice_extras(choice)
        if (ranked := self._ranked_prompt_logprobs(choice)) is not None:
            extras["prompt_logprobs"] = ranked
        return extras


def _mean_logprob(choice: PendingChoice) -> float:
    return sum(entry.logprob for entry in choice.logprobs) / max(len(choice.logprobs), 1)
