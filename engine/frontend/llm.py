"""Offline use: `LLM("model").generate(prompts, SamplingParams(...))`, in this process, without an event loop.

The same core and the same text side as the server's, driven directly: by the call that waits for answers or
reads a stream. Owns which call each request in the core belongs to. Knows nothing of files and HTTP.
"""

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from orcinus.engine.admission.request_checks import check_request
from orcinus.engine.admission.request_splitter import RequestSplitter
from orcinus.engine.core import EngineCore, Executor
from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.frontend.chat_ends import ending_chats
from orcinus.engine.frontend.output_buffer import OutputBuffer
from orcinus.engine.frontend.output_processor import OutputProcessor
from orcinus.engine.messages import EngineInfo, RequestDelta, TokenLogprobs
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
class GenerationResult:
    """Tells what became of one prompt: the whole of each choice, by index.

    `prompt` is None if it was given as token ids; of a chat it is the rendered text. A choice on which the engine
    failed has the `finish_reason` "error", and the reason in `error`.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[RequestOutput]

    @property
    def num_cached_tokens(self) -> int:
        return self.outputs[0].num_cached_tokens or 0

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs | None] | None:
        packed = self.outputs[0].prompt_logprobs
        return None if packed is None else [*packed]


@dataclass(frozen=True, slots=True)
class _Job:
    """One prompt and what is asked for it."""

    prompt_index: int
    text: str | None
    token_ids: list[int]
    sampling: SamplingParams

    def request(self) -> GenerationRequest:
        return GenerationRequest(request_id=str(self.prompt_index), prompts=[self.token_ids], sampling=self.sampling)


class _Call:
    """The choices of one call in flight, and their outputs that the caller has yet to see."""

    def __init__(self) -> None:
        self.unfinished: dict[str, OutputProcessor] = {}
        self._pending: dict[tuple[int, int], OutputBuffer] = {}  # by prompt and choice

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    def process(self, delta: RequestDelta) -> bool:
        """Take in what a step brought one choice, and return whether the core must be told to end it.

        What the caller has not seen of the same choice becomes one with it: other calls may have run many steps.
        """
        processor = self.unfinished[delta.request_id]
        output = processor.process(delta)
        key = output.prompt_index, output.index
        if (earlier := self._pending.get(key)) is None:
            self._pending[key] = OutputBuffer(output)
        else:
            earlier.add(output)
        if processor.is_finished:
            del self.unfinished[delta.request_id]
        return processor.needs_abort

    def take_pending(self) -> list[RequestOutput]:
        outputs = [buffer.merged() for buffer in self._pending.values()]
        self._pending.clear()
        return outputs


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
            self.info,
            executor,
            batch_wait_ms=config.batch_wait_ms,
            target_itl_ms=config.target_itl_ms,
            target_ttft_ms=config.target_ttft_ms,
        )
        self._splitter = RequestSplitter(config.seed)
        self._calls: dict[str, _Call] = {}  # by request in the core
        self._is_core_busy = False
        self._aborts: list[str] = []  # that the core has yet to be told of

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[GenerationResult]:
        """Complete prompts (texts or token ids), and return one result for each, in their order.

        `sampling_params` are shared, or one for each prompt. Raises `InvalidRequestError` before anything runs.
        """
        return self._collect(self._prompt_jobs(prompts, sampling_params), use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        **template_options: Any,
    ) -> list[GenerationResult]:
        """Answer one conversation or several, as `generate` does.

        `template_options` are those of `Tokenizer.render_chat`.
        """
        return self._collect(self._chat_jobs(messages, sampling_params, template_options), use_tqdm)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Generator[RequestOutput, None, None]:
        """Complete prompts as `generate` does, but yield what is new of each choice as it comes.

        Choices come interleaved: `prompt_index` and `index` tell whose an output is, and its `finish_reason` is None
        but in the last one. The texts of one choice, joined, are the text that `generate` gives, and its tokens
        likewise. Closing the generator, as leaving its loop does, ends what is unfinished and frees its slots. Streams
        and calls of `generate` may be interleaved: the steps of any of them advance all.

        Raises `InvalidRequestError` at once, before anything runs.
        """
        return self._run(self._prompt_jobs(prompts, sampling_params))

    def stream_chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **template_options: Any,
    ) -> Generator[RequestOutput, None, None]:
        """Answer one conversation or several, in outputs as `stream` yields them."""
        return self._run(self._chat_jobs(messages, sampling_params, template_options))

    # --- what is asked for ----------------------------------------------------------------------------------

    def _prompt_jobs(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[_Job]:
        pairs = _pair(_as_prompts(prompts), sampling_params)
        return self._checked([self._prompt_job(index, *pair) for index, pair in enumerate(pairs)])

    def _prompt_job(self, prompt_index: int, prompt: Prompt, sampling: SamplingParams) -> _Job:
        if isinstance(prompt, str):
            return _Job(prompt_index, prompt, self.tokenizer.encode(prompt), sampling)
        return _Job(prompt_index, None, list(prompt), sampling)

    def _chat_jobs(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        template_options: Mapping[str, Any],
    ) -> list[_Job]:
        jobs = []
        for index, (conversation, sampling) in enumerate(_pair(_as_conversations(messages), sampling_params)):
            text = self.tokenizer.render_chat(conversation, **template_options)
            token_ids = self.tokenizer.encode(text, add_special_tokens=False)
            ending = ending_chats(sampling, self.tokenizer.eos_token_id, self.info)
            jobs.append(_Job(index, text, token_ids, ending))
        return self._checked(jobs)

    def _checked(self, jobs: list[_Job]) -> list[_Job]:
        for job in jobs:
            check_request(job.request(), self.info)
        return jobs

    # --- running it -----------------------------------------------------------------------------------------

    def _collect(self, jobs: list[_Job], use_tqdm: bool) -> list[GenerationResult]:
        """Run jobs to their end, and return the whole of each."""
        num_choices = sum(job.sampling.n for job in jobs)
        choices: dict[tuple[int, int], OutputBuffer] = {}
        with contextlib.closing(self._run(jobs)) as outputs, _progress_bar(num_choices, use_tqdm) as progress:
            for output in outputs:
                key = output.prompt_index, output.index
                if key in choices:
                    choices[key].add(output)
                else:
                    choices[key] = OutputBuffer(output)
                if progress is not None and output.finish_reason is not None:
                    progress.update()
        return [
            GenerationResult(
                prompt=job.text,
                prompt_token_ids=job.token_ids,
                outputs=[choices[job.prompt_index, index].merged() for index in range(job.sampling.n)],
            )
            for job in jobs
        ]

    def _run(self, jobs: Iterable[_Job]) -> Generator[RequestOutput, None, None]:
        """Yield the outputs of checked jobs as they come; what is unfinished when the caller leaves is aborted."""
        call = _Call()
        try:
            for job in jobs:
                self._add(job, call)
            while call.unfinished or call.has_pending:
                if not call.has_pending:  # else another call's steps have brought it
                    self._step()
                yield from call.take_pending()
        finally:
            self._close(call)

    def _add(self, job: _Job, call: _Call) -> None:
        for index, added in enumerate(self._splitter.split(job.request(), self.info.max_model_len)):
            call.unfinished[added.request_id] = OutputProcessor(
                self.tokenizer, index, added.prompt_token_ids, added.sampling, prompt_index=job.prompt_index
            )
            self._calls[added.request_id] = call
            with self._using_core() as core:
                core.add_request(added)

    def _step(self) -> None:
        if (wait_s := self._core.wait_time_s()) is not None:
            time.sleep(wait_s)
        with self._using_core() as core:
            outputs = core.step()
        for delta in outputs.deltas:
            if (call := self._calls.get(delta.request_id)) is not None:  # else it was closed during the step
                self._take(call, delta)

    def _take(self, call: _Call, delta: RequestDelta) -> None:
        if call.process(delta):
            self._abort([delta.request_id])
        if delta.request_id not in call.unfinished:
            self._calls.pop(delta.request_id, None)  # closing the call may have come first

    def _close(self, call: _Call) -> None:
        """End what is unfinished of a call."""
        for request_id in call.unfinished:
            self._calls.pop(request_id, None)
        self._abort([*call.unfinished])

    def _abort(self, request_ids: list[str]) -> None:
        """Have the core forget requests: now, or when it has done what it is doing."""
        self._aborts += request_ids
        if not self._is_core_busy:
            with self._using_core():
                pass

    @contextlib.contextmanager
    def _using_core(self) -> Iterator[EngineCore]:
        """Hold aborts back until the core is free: the collector may close a dropped stream at any moment."""
        self._is_core_busy = True
        try:
            yield self._core
        finally:
            while self._aborts:
                request_ids, self._aborts = self._aborts, []
                self._core.abort_requests(request_ids)
            self._is_core_busy = False


def _build_executor(config: "EngineConfig") -> "tuple[EngineInfo, Executor]":
    limit_spinning()
    from orcinus.engine.startup.build import build_executor

    return build_executor(config)


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return a list of prompts: a text or a list of token ids is one."""
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


def _progress_bar(total: int, is_wanted: bool) -> "contextlib.AbstractContextManager[tqdm[Any] | None]":
    if not is_wanted:
        return contextlib.nullcontext()
    from tqdm import tqdm

    return tqdm(total=total, desc="Generating", unit="choice")
