"""The engine as a server sees it: requests in, streams of text out, on one event loop.

Owns admission (bounded queue, deadlines), the choices in flight, and the state of the engine behind the transport.
Knows nothing of HTTP. Everything but `start` runs on the event loop, and nothing here blocks it.
"""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal

from config.engine_config import EngineConfig
from engine.admission import check_request, seed_source, split_request
from engine.drain_rate import DrainRate
from engine.errors import (
    EngineUnavailableError,
    InvalidRequestError,
    ModelLoadError,
    OrcinusError,
    QueueFullError,
    RequestFailedError,
    RequestTimeoutError,
)
from engine.messages import (
    AbortRequests,
    AddRequest,
    EngineFailed,
    EngineInfo,
    FromEngine,
    RequestDelta,
    StepOutputs,
    StepStats,
)
from engine.observer import EngineObserver, NullObserver, Outcome
from engine.output_processor import OutputProcessor
from engine.outputs import GenerationRequest
from engine.request_stream import Choice, LiveRequest, RequestStream
from engine.sampling_params import Grammar
from engine.transport import ProcessTransport, Transport

if TYPE_CHECKING:
    from engine.grammar_gate import GrammarGate
    from engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

EngineState = Literal["loading", "ready", "draining", "dead"]

_OFF_LOOP_CHARS = 4096  # longer texts are tokenized in a thread: about a millisecond's work


class AsyncEngine:
    """`start` it as early as possible, keep `run` as a task, `wait_ready`, then `submit`; `aclose` at the end.

    `max_queue_len` bounds the choices that are admitted but have no slot yet.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        max_queue_len: int,
        chat_template: str | None = None,
        observer: EngineObserver | None = None,
        transport_factory: Callable[[], Transport] = ProcessTransport,
    ) -> None:
        self.stats = StepStats()
        self._config = config
        self._max_queue_len = max_queue_len
        self._chat_template = chat_template
        self.observer: EngineObserver = observer or NullObserver()
        self._transport = transport_factory()
        self._state: EngineState = "loading"
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
        self._drain_rate = DrainRate()
        self._num_finished = 0
        self._last_step_time = time.monotonic()
        self._grammar_gate: GrammarGate | None = None

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Spawn the engine and begin to load the tokenizer. Needs no event loop."""
        self._transport.start(self._config)
        threading.Thread(target=self._load_tokenizer, name="tokenizer", daemon=True).start()

    async def run(self) -> None:
        """Read the engine's messages until it is closed or dead. Its end fails every waiter."""
        try:
            await self._become_ready()
            while True:
                self._on_message(await self._transport.receive())
        except (ModelLoadError, EngineUnavailableError) as error:
            self._die(error)
        except Exception as error:
            logger.exception("reading the engine's messages failed")
            self._die(EngineUnavailableError(f"the connection to the engine failed: {type(error).__name__}"))
        await self._transport.aclose()

    async def wait_ready(self) -> EngineInfo:
        """Raises `ModelLoadError` or `EngineUnavailableError` if it will never be. `run` must be running."""
        await self._settled.wait()
        if self._failure is not None:
            raise self._failure
        return self.info

    def start_draining(self) -> None:
        """Admit nothing more; what is in flight goes on."""
        if self._state != "dead":
            self._state = "draining"

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
        if self._grammar_gate is not None:
            await self._grammar_gate.aclose()
        await self._transport.aclose()

    # --- state ----------------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        return self._state

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
        """`Tokenizer.encode`, off the event loop where it takes long."""
        tokenizer = self.tokenizer
        if len(text) <= _OFF_LOOP_CHARS:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)

    async def render_and_encode(
        self, messages: Sequence[Mapping[str, Any]], /, *, add_special_tokens: bool = False, **options: Any
    ) -> list[int]:
        """`Tokenizer.render_chat` with `options`, as token ids, off the event loop where it takes long."""
        tokenizer = self.tokenizer

        def render() -> list[int]:
            text = tokenizer.render_chat(messages, **options)
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)

        if _num_chars(messages) + _num_chars(options.get("tools")) <= _OFF_LOOP_CHARS:
            return render()
        return await asyncio.to_thread(render)

    async def check_grammar(self, grammar: Grammar, param: str) -> None:
        """Raises `InvalidRequestError`, which blames `param`, for a grammar that the engine cannot follow.

        To be called before a request with it is submitted: what passes here is compiled in the engine process.
        """
        if self._grammar_gate is None:
            from engine.grammar_gate import GrammarGate, ServedVocabulary

            config, info = self._config, self.info
            vocabulary = ServedVocabulary(config.model, config.trust_remote_code, info.vocab_size, info.eos_token_ids)
            self._grammar_gate = GrammarGate(vocabulary)
        await self._grammar_gate.check(grammar, param)

    # --- requests -------------------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> RequestStream:
        """Admit the request as a whole, or refuse it at once.

        Raises `InvalidRequestError`, `ContextLengthError`, `QueueFullError` or `EngineUnavailableError`.
        """
        try:
            self._check_admission(request)
        except OrcinusError:
            for _ in range(request.num_choices):
                self.observer.on_choice_done("rejected", 0.0, 0, 0)
            raise
        return self._admit(request)

    def _check_admission(self, request: GenerationRequest) -> None:
        if self._state != "ready":
            raise self._unavailable()
        check_request(request, self.info)
        num_slots = self.stats.num_slots or self.info.max_num_seqs
        most = num_slots + self._max_queue_len
        if request.num_choices > most:
            raise InvalidRequestError(
                f"at most {most} choices fit slots and queue (max_queue_len is {self._max_queue_len}),"
                f" got {request.num_choices}",
                "n",
            )
        num_missing = len(self._choices) + request.num_choices - most
        if num_missing > 0:
            raise QueueFullError(
                f"the queue is full: it has {self._max_queue_len} places, and this request needs {num_missing} more",
                self._drain_rate.time_for(num_missing),
            )

    def _admit(self, request: GenerationRequest) -> RequestStream:
        now = time.monotonic()
        live = LiveRequest(request.request_id)
        added = []
        for sequence in split_request(request, self.info, self._seeds):
            engine_id = f"{request.request_id}.{next(self._serial)}"  # request ids need not be unique
            processor = OutputProcessor(self.tokenizer, sequence.index, sequence.prompt, sequence.sampling)
            # A prompt is counted once, as in usage, however many samples are drawn from it.
            num_counted = len(sequence.prompt) if sequence.index % request.sampling.n == 0 else 0
            live.choices[engine_id] = Choice(engine_id, live, processor, num_counted, now)
            added.append(
                AddRequest(
                    request_id=engine_id,
                    prompt_token_ids=sequence.prompt,
                    sampling=sequence.sampling,
                    arrival_time=now,
                    priority=request.priority,
                    cache_salt=request.cache_salt,
                )
            )
        self._choices |= live.choices
        self._idle.clear()
        self._transport.send([*added])
        if request.timeout_s is not None:
            live.timer = asyncio.get_running_loop().call_later(request.timeout_s, self._expire, live, request.timeout_s)
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

    def _send_aborts(self) -> None:
        if self._aborts:
            self._transport.send([AbortRequests(request_ids=self._aborts)])
            self._aborts = []

    # --- what the engine says -------------------------------------------------------------------------------

    def _on_message(self, message: FromEngine) -> None:
        match message:
            case StepOutputs():
                self._on_step(message)
            case EngineFailed(during_start=True):
                raise ModelLoadError(message.message)
            case EngineFailed():
                raise EngineUnavailableError(message.message)
            case EngineInfo():
                self._info = message

    def _on_step(self, outputs: StepOutputs) -> None:
        now = time.monotonic()
        self.stats = outputs.stats
        was_busy = bool(self._choices)
        for delta in outputs.deltas:
            choice = self._choices.get(delta.request_id)
            if choice is not None:  # aborted ones may still have been in this step
                self._on_delta(choice, delta, now)
        self._send_aborts()
        self._drain_rate.observe(now - self._last_step_time if was_busy else 0.0, self._num_finished)
        self._num_finished = 0
        self._last_step_time = now
        self.observer.on_step(outputs.stats)

    def _on_delta(self, choice: Choice, delta: RequestDelta, now: float) -> None:
        """A fault here is this request's alone."""
        try:
            output = choice.processor.process(delta)
        except Exception:
            logger.exception("request %s: reading its tokens failed", choice.live.request_id)
            self._end(choice.live, "error", RequestFailedError("the output could not be read"))
            return
        self._observe_tokens(choice, delta, len(output.token_ids), now)
        if output.finish_reason in ("error", "abort"):
            self._finish(choice, output.finish_reason)
            self._end(choice.live, "error", RequestFailedError(output.error or "the engine gave the request up"))
            return
        choice.queue_time_s = delta.queue_time_s or choice.queue_time_s
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

    def _observe_tokens(self, choice: Choice, delta: RequestDelta, num_tokens: int, now: float) -> None:
        if num_tokens == 0:
            return
        if choice.last_token_time is None:
            choice.first_token_time = now
            self.observer.on_first_token(now - choice.arrival_time, delta.queue_time_s or 0.0)
            num_tokens -= 1
        if num_tokens:
            self.observer.on_next_tokens(now - (choice.last_token_time or now), num_tokens)
        choice.last_token_time = now

    def _finish(self, choice: Choice, outcome: Outcome) -> None:
        """A choice leaves, for whatever reason. Called once for each."""
        del self._choices[choice.engine_id]
        del choice.live.choices[choice.engine_id]
        self._num_finished += 1
        if not self._choices:
            self._idle.set()
        self.observer.on_choice_done(
            outcome,
            time.monotonic() - choice.arrival_time,
            choice.num_prompt_tokens,
            choice.processor.num_output_tokens,
        )

    # --- start and end --------------------------------------------------------------------------------------

    def _load_tokenizer(self) -> None:
        try:
            from engine.tokenizer import Tokenizer

            tokenizer = Tokenizer.load(
                self._config.model,
                trust_remote_code=self._config.trust_remote_code,
                chat_template=self._chat_template,
            )
        except BaseException as error:  # whoever waits must hear of it
            self._loading_tokenizer.set_exception(error)
        else:
            self._loading_tokenizer.set_result(tokenizer)

    async def _become_ready(self) -> None:
        """The engine speaks first: where neither it nor the tokenizer can be loaded, its message counts."""
        while self._info is None:
            self._on_message(await self._transport.receive())
        self._tokenizer = await asyncio.wrap_future(self._loading_tokenizer)
        if self._state == "loading":
            self._state = "ready"
        self._settled.set()

    def _die(self, error: OrcinusError) -> None:
        """No more tokens will come. The one place that a restart of the engine would begin from."""
        if self._state == "dead":
            return
        self._state = "dead"
        self._failure = error
        for live in {id(choice.live): choice.live for choice in self._choices.values()}.values():
            for choice in [*live.choices.values()]:
                self._finish(choice, "error")
            live.close(RequestFailedError(str(error)))
        self._settled.set()

    def _unavailable(self) -> EngineUnavailableError:
        match self._state:
            case "dead":
                return EngineUnavailableError(f"the engine is gone: {self._failure}")
            case "draining":
                return EngineUnavailableError("the server is draining and admits no more requests")
            case _:
                return EngineUnavailableError("the model is still loading")


def _num_chars(value: Any) -> int:
    """Roughly how much text is in a piece of JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_num_chars, value.values()))
    if isinstance(value, Sequence):
        return sum(map(_num_chars, value))
    return 0
