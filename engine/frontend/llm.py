"""Offline use: `LLM("model").generate(prompts, SamplingParams(...))`, in this process, without an event loop.

The same core and the same text side as the server's, driven directly. Knows nothing of files and HTTP.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from orcinus.engine.admission.request_checks import ChoiceRequest, check_request, seed_source, split_request
from orcinus.engine.core import EngineCore, Executor
from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.frontend.output_processor import OutputProcessor, merge_output
from orcinus.engine.messages import AddRequest, EngineInfo, FinishReason, TokenLogprobs
from orcinus.engine.outputs import GenerationRequest, RequestOutput
from orcinus.engine.platform.device import limit_spinning
from orcinus.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from tqdm import tqdm

    from orcinus.config.engine_config import EngineConfig
    from orcinus.engine.supervision.engine_process import BuildExecutor

_T = TypeVar("_T")

Prompt = str | Sequence[int]
Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One choice. `stop_reason` is the stop string or token id that ended it, None for end of sequence.

    `finish_reason` is "error", with the reason in `error`, where the engine failed on it.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """What became of one prompt. `prompt` is None if it was given as token ids; of a chat it is the rendered text."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None


@dataclass(slots=True)
class _Job:
    """One prompt on its way through: its choices by index, as far as they are."""

    text: str | None
    token_ids: list[int]
    sampling: SamplingParams
    outputs: dict[int, RequestOutput] = field(default_factory=dict)

    def result(self) -> GenerationResult:
        first = self.outputs[0]
        return GenerationResult(
            prompt=self.text,
            prompt_token_ids=self.token_ids,
            outputs=[_completion(self.outputs[index]) for index in range(self.sampling.n)],
            num_cached_tokens=first.num_cached_tokens or 0,
            prompt_logprobs=first.prompt_logprobs,
        )


class LLM:
    """A model in this process. Used by one thread.

    `model` is a directory, a hub id or a GGUF file; without one it is the demo model. `settings` are the server's
    (`max_num_seqs=8`, `dtype="float32"`, …), and `ORCINUS_*` variables apply.
    Raises `config.settings.SettingsError` and `ModelLoadError`.
    """

    def __init__(self, model: str | None = None, *, build: "BuildExecutor | None" = None, **settings: Any) -> None:
        """`build` replaces what loads and runs the model, for tests."""
        from orcinus.config.settings import load_settings
        from orcinus.engine.text.tokenizer import Tokenizer

        given = settings if model is None else {**settings, "model": model}
        loaded = load_settings(**given)
        config = loaded.engine_config()
        self.tokenizer = Tokenizer.load(
            config.model, trust_remote_code=config.trust_remote_code, chat_template=loaded.chat_template
        )
        self.info, executor = (build or _build_executor)(config)
        self._core = EngineCore(
            self.info, executor, batch_wait_ms=config.batch_wait_ms, target_itl_ms=config.target_itl_ms
        )
        self._seeds = seed_source(config.seed)
        self._num_requests = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[GenerationResult]:
        """Complete prompts (texts or token ids); one result for each, in their order.

        `sampling_params` are shared, or one for each prompt. Raises `InvalidRequestError` before anything runs.
        """
        many = _as_prompts(prompts)
        jobs = [self._job(prompt, sampling) for prompt, sampling in _pair(many, sampling_params)]
        return self._run(jobs, use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        **template_options: Any,
    ) -> list[GenerationResult]:
        """Answer one conversation or several. `template_options` as in `Tokenizer.render_chat`."""
        conversations = _as_conversations(messages)
        jobs = []
        for conversation, sampling in _pair(conversations, sampling_params):
            text = self.tokenizer.render_chat(conversation, **template_options)
            jobs.append(self._job(text, sampling, add_special_tokens=False))
        return self._run(jobs, use_tqdm)

    def _job(self, prompt: Prompt, sampling: SamplingParams, *, add_special_tokens: bool = True) -> _Job:
        if isinstance(prompt, str):
            return _Job(prompt, self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens), sampling)
        return _Job(None, list(prompt), sampling)

    def _run(self, jobs: list[_Job], use_tqdm: bool) -> list[GenerationResult]:
        requests = [
            GenerationRequest(request_id=str(position), prompts=[job.token_ids], sampling=job.sampling)
            for position, job in enumerate(jobs)
        ]
        for request in requests:
            check_request(request, self.info)
        unfinished: dict[str, tuple[_Job, OutputProcessor]] = {}
        for job, request in zip(jobs, requests, strict=True):
            for choice in split_request(request, self.info, self._seeds):
                unfinished[self._add(choice)] = job, self._processor(choice)
        progress = _progress_bar(len(unfinished)) if use_tqdm else None
        try:
            while unfinished:
                self._step(unfinished, progress)
        finally:
            self._core.abort_requests([*unfinished])
            if progress is not None:
                progress.close()
        return [job.result() for job in jobs]

    def _add(self, choice: ChoiceRequest) -> str:
        request_id = str(self._num_requests)
        self._num_requests += 1
        self._core.add_request(
            AddRequest(
                request_id=request_id,
                prompt_token_ids=choice.prompt,
                sampling=choice.sampling,
                arrival_time=time.monotonic(),
            )
        )
        return request_id

    def _processor(self, choice: ChoiceRequest) -> OutputProcessor:
        return OutputProcessor(self.tokenizer, choice.index, choice.prompt, choice.sampling)

    def _step(self, unfinished: dict[str, tuple[_Job, OutputProcessor]], progress: "tqdm[Any] | None") -> None:
        if (wait_s := self._core.wait_time_s()) is not None:
            time.sleep(wait_s)
        stopped = []
        for delta in self._core.step().deltas:
            job, processor = unfinished[delta.request_id]
            output = processor.process(delta)
            if processor.index in job.outputs:
                merge_output(job.outputs[processor.index], output)
            else:
                job.outputs[processor.index] = output
            if processor.is_finished:
                del unfinished[delta.request_id]
                if processor.needs_abort:
                    stopped.append(delta.request_id)
                if progress is not None:
                    progress.update()
        self._core.abort_requests(stopped)


def _build_executor(config: "EngineConfig") -> "tuple[EngineInfo, Executor]":
    limit_spinning()
    from orcinus.engine.startup.build import build_executor

    return build_executor(config)


def _completion(output: RequestOutput) -> Completion:
    assert output.finish_reason is not None, "the choice is not finished"
    return Completion(
        index=output.index,
        text=output.text,
        token_ids=output.token_ids,
        finish_reason=output.finish_reason,
        stop_reason=output.stop_reason,
        logprobs=output.logprobs,
        error=output.error,
    )


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A text or a list of token ids is one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]  # its first element says which of the two it is
    return list(prompts)  # type: ignore[arg-type]


def _as_conversations(messages: Conversation | Sequence[Conversation]) -> list[Conversation]:
    if messages and isinstance(messages[0], Mapping):
        return [messages]  # type: ignore[list-item]  # as above
    return list(messages)  # type: ignore[arg-type]


def _pair(
    prompts: list[_T], sampling_params: SamplingParams | Sequence[SamplingParams] | None
) -> list[tuple[_T, SamplingParams]]:
    if sampling_params is None:
        sampling_params = SamplingParams()
    if isinstance(sampling_params, SamplingParams):
        return [(prompt, sampling_params) for prompt in prompts]
    if len(sampling_params) != len(prompts):
        raise InvalidRequestError(
            f"sampling_params must be one for all prompts or one for each, got {len(sampling_params)}"
            f" for {len(prompts)} prompts",
            "sampling_params",
        )
    return list(zip(prompts, sampling_params, strict=True))


def _progress_bar(total: int) -> "tqdm[Any]":
    from tqdm import tqdm

    return tqdm(total=total, desc="Generating", unit="choice")
