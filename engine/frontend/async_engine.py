"""The engine as a server sees it: requests in, streams of text out, on one event loop.

Owns deadlines and the choices in flight: while an engine is replaced they wait, and the next one goes on with them.
Knows nothing of HTTP. Everything but `start` runs on the event loop, and nothing here blocks it.
"""

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from orcinus.config.admission_limits import AdmissionLimits
from orcinus.config.engine_config import EngineConfig
from orcinus.engine.admission.control import AdmissionControl
from orcinus.engine.admission.request_checks import check_context, check_request, seed_source, split_request
from orcinus.engine.errors import (
    ContextLengthError,
    EngineUnavailableError,
    ModelLoadError,
    OrcinusError,
    RequestFailedError,
    RequestTimeoutError,
)
from orcinus.engine.frontend.observer import EngineObserver, NullObserver
from orcinus.engine.frontend.output_processor import OutputProcessor
from orcinus.engine.frontend.request_stream import Choice, LiveRequest, RequestStream
from orcinus.engine.messages import (
    AbortRequests,
    AddRequest,
    EngineInfo,
    RequestDelta,
    StepOutputs,
    StepStarted,
    StepStats,
)
from orcinus.engine.outputs import GenerationRequest, Outcome, RequestOutput
from orcinus.engine.sampling_params import Grammar
from orcinus.engine.supervision.liveness import SupervisionLimits
from orcinus.engine.supervision.supervisor import EngineEnd, Supervisor
from orcinus.engine.supervision.suspects import Probation
from orcinus.engine.supervision.transport import ProcessTransport, Transport

if TYPE_CHECKING:
    from orcinus.engine.grammar.gate import GrammarGate
    from orcinus.engine.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

EngineState = Literal["loading", "ready", "restarting", "draining", "dead"]

_OFF_LOOP_CHARS = 4096  # longer texts are tokenized in a thread: about a millisecond's work
_STABLE_S = 60.0  # an engine that had nothing to do for so long was of use
_ON_LOOP_S = 0.02
_NUM_RENDERERS = 4  # threads of their own: what holds them up holds up nothing else
_TEXT_CHARS = 2**19  # that are read whatever the context, and
_CHARS_PER_TOKEN = 32  # of the context: many times what any language needs


class AsyncEngine:
    """`start` it as early as possible, keep `run` as a task, `wait_ready`, then `submit`; `aclose` at the end."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        limits: AdmissionLimits,
        chat_template: str | None = None,
        observer: EngineObserver | None = None,
        transport_factory: Callable[[], Transport] = ProcessTransport,
        supervision: SupervisionLimits | None = None,
    ) -> None:
        self.stats = StepStats()
        self._config = config
        self._admission = AdmissionControl(limits)
        self._chat_template = chat_template
        self.observer: EngineObserver = observer or NullObserver()
        self._supervisor = Supervisor(config, self, transport_factory, supervision or SupervisionLimits())
        self._probation = Probation()
        self._state: EngineState = "loading"  # of the engine; draining is a matter of ours
        self._is_draining = False
        self._up_since: float | None = None
        self._was_useful = False  # the engine that runs now has brought something
        self._failure: OrcinusError | None = None
        self._info: EngineInfo | None = None
        self._tokenizer: Tokenizer | None = None
        self._loading_tokenizer: Future[Tokenizer] = Future()
        self._settled = asyncio.Event()  # ready, or dead
        self._idle = asyncio.Event()
        self._idle.set()
        self._choices: dict[str, Choice] = {}
        self._serial = itertools.count()
        self._seeds = seed_source(config.seed)
        self._aborts: list[str] = []  # collected during a step's message, sent as one
        self._grammar_gate: GrammarGate | None = None
        self._renderers: ThreadPoolExecutor | None = None

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Spawn the engine and begin to load the tokenizer. Needs no event loop."""
        self._supervisor.start()
        threading.Thread(target=self._load_tokenizer, name="tokenizer", daemon=True).start()

    async def run(self) -> None:
        """Serve until closed, or until there will be no engine any more, which fails every waiter."""
        try:
            await self._supervisor.run()
        except (ModelLoadError, EngineUnavailableError) as error:
            self._die(error)
        except Exception as error:
            logger.exception("reading the engine's messages failed")
            self._die(EngineUnavailableError(f"the connection to the engine failed: {type(error).__name__}"))
        await self._supervisor.aclose()

    async def wait_ready(self) -> EngineInfo:
        """Raises `ModelLoadError` or `EngineUnavailableError` if it will never be. `run` must be running."""
        await self._settled.wait()
        if self._failure is not None:
            raise self._failure
        return self.info

    def start_draining(self) -> None:
        """Admit nothing more; what is in flight goes on."""
        self._is_draining = True

    async def drained(self, timeout_s: float | None) -> bool:
        """Wait until nothing is in flight. False if that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def aclose(self) -> None:
        """Fail what is in flight and end the engine. Idempotent."""
        self._die(EngineUnavailableError("the server is shutting down"))
        await self._supervisor.aclose()
        if self._grammar_gate is not None:
            await self._grammar_gate.aclose()
        if self._renderers is not None:
            self._renderers.shutdown(wait=False, cancel_futures=True)

    # --- state ----------------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        return "draining" if self._is_draining and self._state != "dead" else self._state

    @property
    def info(self) -> EngineInfo:
        if self._info is None or self._tokenizer is None:
            raise self._unavailable()
        return self._info

    @property
    def tokenizer(self) -> "Tokenizer":
        if self._info is None or self._tokenizer is None:
            raise self._unavailable()
        return self._tokenizer

    @property
    def num_running(self) -> int:
        """Choices in slots, as of the last step."""
        return min(self.stats.num_running, len(self._choices))

    @property
    def num_queued(self) -> int:
        """Choices in flight that have no slot."""
        return len(self._choices) - self.num_running

    # --- text -----------------------------------------------------------------------------------------------

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """`Tokenizer.encode`, off the event loop where it takes long.

        Raises `ContextLengthError` for a text that is far too long for the context, before anything is spent on it.
        """
        tokenizer = self.tokenizer
        _check_text(text, self.info.max_model_len)
        if len(text) <= _OFF_LOOP_CHARS:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)

    async def render_and_encode(
        self, messages: Sequence[Mapping[str, Any]], /, *, add_special_tokens: bool = False, **options: Any
    ) -> list[int]:
        """`Tokenizer.render_chat` with `options`, as token ids, off the event loop where it takes long."""
        text = await self._render(messages, options)
        return await self.encode(text, add_special_tokens=add_special_tokens)

    async def _render(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """What looks short gets a moment on the event loop: a template may do much with little, or need a process."""
        from orcinus.engine.text.template_sandbox import RenderLimitError, time_limit

        render = partial(self.tokenizer.render_chat, messages, **options)
        if _num_chars(messages) + _num_chars(options.get("tools")) <= _OFF_LOOP_CHARS:
            with contextlib.suppress(RenderLimitError), time_limit(_ON_LOOP_S):
                return render()
        self._renderers = self._renderers or ThreadPoolExecutor(_NUM_RENDERERS, "template")
        return await asyncio.get_running_loop().run_in_executor(self._renderers, render)

    async def check_grammar(self, grammar: Grammar, param: str) -> None:
        """Raises `InvalidRequestError`, which blames `param`, for a grammar that the engine cannot follow.

        To be called before a request with it is submitted: what passes here is compiled in the engine process.
        """
        if self._grammar_gate is None:
            from orcinus.engine.grammar.gate import GrammarGate, ServedVocabulary

            config, info = self._config, self.info
            vocabulary = ServedVocabulary(config.model, config.trust_remote_code, info.vocab_size, info.eos_token_ids)
            self._grammar_gate = GrammarGate(vocabulary)
        await self._grammar_gate.check(grammar, param)

    # --- requests -------------------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> RequestStream:
        """Admit the request as a whole, or refuse it at once.

        Raises `InvalidRequestError`, `ContextLengthError`, `QueueFullError`, `QuotaError` or `EngineUnavailableError`.
        """
        try:
            self._check_admission(request)
        except OrcinusError:
            for _ in range(request.num_choices):
                self.observer.on_choice_done("rejected", 0.0, 0, 0)
            raise
        return self._admit(request)

    def _check_admission(self, request: GenerationRequest) -> None:
        if not self._is_admitting:
            raise self._unavailable()
        check_request(request, self.info)
        self._admission.check(request, self._num_slots, self.info.max_model_len)

    def check_room(self, client: str) -> None:
        """Refuse at once, before a request of this client is read, where it would be whatever it asks for.

        Raises `QueueFullError` or `QuotaError`. Where nothing is admitted for another reason, `submit` says so.
        """
        if self._is_admitting:
            with self._counted_where_refused():
                self._admission.check_room(client, self._num_slots)

    def check_context(self, num_prompt_tokens: int, max_tokens: int | None) -> None:
        """Refuse, before the prompts after this one are read, where `submit` would. Raises `ContextLengthError`."""
        with self._counted_where_refused():
            check_context(num_prompt_tokens, max_tokens, self.info.max_model_len)

    @contextlib.contextmanager
    def _counted_where_refused(self) -> Iterator[None]:
        """Once: how many choices there would have been is not known yet."""
        try:
            yield
        except OrcinusError:
            self.observer.on_choice_done("rejected", 0.0, 0, 0)
            raise

    @property
    def _is_admitting(self) -> bool:
        """While an engine is replaced, requests may come and wait for the next one."""
        return self.state in ("ready", "restarting")

    @property
    def _num_slots(self) -> int:
        return self.stats.num_slots or self.info.max_num_seqs

    def _admit(self, request: GenerationRequest) -> RequestStream:
        now = time.monotonic()
        live = LiveRequest(request.request_id)
        for sequence in split_request(request, self.info, self._seeds):
            engine_id = f"{request.request_id}.{next(self._serial)}"  # request ids need not be unique
            processor = OutputProcessor(self.tokenizer, sequence.index, sequence.prompt, sequence.sampling)
            # A prompt is counted once, as in usage, however many samples are drawn from it.
            num_counted = len(sequence.prompt) if sequence.index % request.sampling.n == 0 else 0
            added = AddRequest(
                request_id=engine_id,
                prompt_token_ids=sequence.prompt,
                sampling=sequence.sampling,
                arrival_time=now,
                priority=request.priority,
                cache_salt=request.cache_salt,
                client=self._admission.share_of(request.client),
                adapter=request.adapter,
            )
            live.choices[engine_id] = Choice(added, live, processor, num_counted)
            self._probation.add(engine_id)
        self._admission.enter(request, [*live.choices], self.info.max_model_len)
        self._choices |= live.choices
        self._idle.clear()
        self._note_waiting()
        self._submit_due()
        if request.timeout_s is not None:
            spent_s = 0.0 if request.asked_at is None else now - request.asked_at
            left_s = request.timeout_s - spent_s
            live.timer = asyncio.get_running_loop().call_later(left_s, self._expire, live, request.timeout_s)
        return RequestStream(live, lambda: self._abort(live), [len(prompt) for prompt in request.prompts])

    def _abort(self, live: LiveRequest) -> None:
        if live.choices:
            logger.info("request %s aborted", live.request_id)
            live.discard_pending()
            self._end(live, "abort", None)

    def _expire(self, live: LiveRequest, timeout_s: float) -> None:
        logger.info("request %s timed out", live.request_id)
        self._end(live, "timeout", RequestTimeoutError(f"the request did not finish within {timeout_s:g} s"))

    def _end(self, live: LiveRequest, outcome: Outcome, error: OrcinusError | None) -> None:
        """End all unfinished choices of a request before their time, here and in the engine."""
        self._aborts += live.choices
        for choice in [*live.choices.values()]:
            self._finish(choice, outcome)
        live.close(error)
        self._send_aborts()
        self._submit_due()

    def _send_aborts(self) -> None:
        if self._aborts:
            self._supervisor.send([AbortRequests(request_ids=self._aborts)])
            self._aborts = []

    def _submit_due(self) -> None:
        """Give the engine that is up those whom it may have now."""
        if self._state != "ready" or not self._probation.holds_back:
            return
        due = [self._choices[engine_id] for engine_id in self._probation.due()]
        if not due:
            return
        if num_resumed := sum(choice.was_submitted for choice in due):
            self.observer.on_resumed(num_resumed)
        self._supervisor.send([choice.submission() for choice in due])

    # --- what the supervisor tells --------------------------------------------------------------------------

    async def engine_up(self, info: EngineInfo) -> None:
        """For the supervisor. The first engine's message counts where neither it nor the tokenizer can be loaded."""
        if self._info is None:
            self._info = info
            self._tokenizer = await asyncio.wrap_future(self._loading_tokenizer)
        if self._state != "dead":
            self._state = "ready"
        self._up_since = time.monotonic()
        self._settled.set()
        self._submit_due()

    def engine_said(self, message: StepOutputs | StepStarted) -> None:
        """For the supervisor."""
        if isinstance(message, StepOutputs):
            self._on_step(message)
        else:
            self._probation.begin(message.request_ids)
            self._admission.start(message.request_ids)

    def engine_gone(self, end: EngineEnd) -> bool:
        """For the supervisor. The choices in flight stay, but for those whose fault it may be twice."""
        was_useful = self._was_useful or self._was_idle_for_long()
        self._state, self._up_since, self._was_useful = "restarting", None, False
        self._admission.requeue()
        convicted = self._probation.bury(was_killed=end.was_killed)
        for engine_id in convicted:
            self._quarantine(engine_id, end.reason)
        self._note_waiting()
        self.observer.on_restart()
        return was_useful or bool(convicted)

    def _note_waiting(self) -> None:
        """While there is no engine to count them, all who are in flight wait."""
        if self._state != "restarting":
            return
        self.stats = StepStats(
            num_slots=self.stats.num_slots, num_kv_blocks=self.stats.num_kv_blocks, num_waiting=len(self._choices)
        )
        self.observer.on_step(self.stats)

    def _was_idle_for_long(self) -> bool:
        return self._up_since is not None and not self._choices and time.monotonic() > self._up_since + _STABLE_S

    def _quarantine(self, engine_id: str, reason: str) -> None:
        choice = self._choices.get(engine_id)
        if choice is None:  # it ended with another choice of its request
            return
        logger.error("request %s is given up: an engine ended again while it ran (%s)", choice.live.request_id, reason)
        self.observer.on_quarantined()
        self._end(choice.live, "error", RequestFailedError("the engine ended again while it ran this request"))

    def _on_step(self, outputs: StepOutputs) -> None:
        now = time.monotonic()
        self.stats = outputs.stats
        for delta in outputs.deltas:
            choice = self._choices.get(delta.request_id)
            if choice is not None:  # aborted ones may still have been in this step
                self._on_delta(choice, delta, now)
        self._send_aborts()
        self._submit_due()
        self.observer.on_step(outputs.stats)

    def _on_delta(self, choice: Choice, delta: RequestDelta, now: float) -> None:
        """A fault here is this request's alone."""
        if choice.is_unproven:
            choice.is_unproven = False
            self._was_useful = True
            self._probation.progress(choice.engine_id)
        try:
            output = choice.processor.process(delta)
        except Exception:
            logger.exception("request %s: reading its tokens failed", choice.live.request_id)
            self._end(choice.live, "error", RequestFailedError("the output could not be read"))
            return
        self._observe(choice, output, now)
        if output.finish_reason in ("error", "abort"):
            self._finish(choice, output.finish_reason)
            self._end(choice.live, "error", RequestFailedError(output.error or "the engine gave the request up"))
            return
        if output.finish_reason is None:
            choice.live.put(output)
            return
        output.timing = choice.timing(now, output.num_preemptions)
        choice.live.put(output)
        if choice.processor.needs_abort:
            self._aborts.append(choice.engine_id)
        self._finish(choice, output.finish_reason)
        if not choice.live.choices:
            choice.live.close()

    def _observe(self, choice: Choice, output: RequestOutput, now: float) -> None:
        if output.queue_time_s is not None:
            choice.queue_time_s = output.queue_time_s
            self.observer.on_first_output(output.queue_time_s)
        if num_tokens := len(output.token_ids):
            self._observe_tokens(choice, num_tokens, now)

    def _observe_tokens(self, choice: Choice, num_tokens: int, now: float) -> None:
        if choice.last_token_time is None:
            choice.first_token_time = now
            self.observer.on_first_token(now - choice.arrival_time)
            num_tokens -= 1
        if num_tokens:
            self.observer.on_next_tokens(now - (choice.last_token_time or now), num_tokens)
        choice.last_token_time = now

    def _finish(self, choice: Choice, outcome: Outcome) -> None:
        """A choice leaves, for whatever reason. Called once for each."""
        del self._choices[choice.engine_id]
        self._probation.remove(choice.engine_id)
        del choice.live.choices[choice.engine_id]
        self._admission.leave(choice.engine_id, outcome, choice.processor.num_output_tokens)
        if not self._choices:
            self._idle.set()
        self._note_waiting()
        self.observer.on_choice_done(
            outcome,
            time.monotonic() - choice.arrival_time,
            choice.num_prompt_tokens,
            choice.processor.num_output_tokens,
        )

    # --- start and end --------------------------------------------------------------------------------------

    def _load_tokenizer(self) -> None:
        try:
            from orcinus.engine.text.tokenizer import Tokenizer

            tokenizer = Tokenizer.load(
                self._config.model,
                trust_remote_code=self._config.trust_remote_code,
                chat_template=self._chat_template,
            )
        except BaseException as error:  # whoever waits must hear of it
            self._loading_tokenizer.set_exception(error)
        else:
            self._loading_tokenizer.set_result(tokenizer)

    def _die(self, error: OrcinusError) -> None:
        """No more tokens will come."""
        if self._state == "dead":
            return
        self._state = "dead"
        self._failure = error
        for live in {id(choice.live): choice.live for choice in self._choices.values()}.values():
            for choice in [*live.choices.values()]:
                self._finish(choice, "error")
            live.close(EngineUnavailableError(str(error)))
        self._settled.set()

    def _unavailable(self) -> EngineUnavailableError:
        match self.state:
            case "dead":
                return EngineUnavailableError(f"the engine is gone: {self._failure}")
            case "draining":
                return EngineUnavailableError("the server is draining and admits no more requests")
            case _:
                return EngineUnavailableError("the model is still loading")


def _check_text(text: str, max_model_len: int) -> None:
    most = max(_TEXT_CHARS, _CHARS_PER_TOKEN * max_model_len)
    if len(text) > most:
        raise ContextLengthError(
            f"this model's maximum context length is {max_model_len} tokens: texts of up to {most} characters are read,"
            f" got {len(text)}",
            "prompt",
        )


def _num_chars(value: Any) -> int:
    """Roughly how much text is in a piece of JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_num_chars, value.values()))
    if isinstance(value, Sequence):
        return sum(map(_num_chars, value))
    return 0
