"""The engine as a server sees it: requests in, streams of text out, on one event loop.

Owns whether work may come in, and which engines there are: one or several of the same model, behind one door. What is
done for text, for requests in flight and for one engine is in modules of their own. Knows nothing of HTTP. Everything
but `start` runs on the event loop, and nothing here blocks it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from orcinus.config.limits import ClientLimits
from orcinus.engine.admission.control import AdmissionControl
from orcinus.engine.admission.convictions import Convictions
from orcinus.engine.admission.request_checks import check_context, check_request
from orcinus.engine.admission.request_splitter import RequestSplitter
from orcinus.engine.errors import DrainingError, EngineUnavailableError, ModelLoadError, OrcinusError
from orcinus.engine.frontend.combined_stats import combine_stats
from orcinus.engine.frontend.engine_specs import engine_specs
from orcinus.engine.frontend.observer import EngineObserver, SlotListener
from orcinus.engine.frontend.replica import EngineReplica, EngineSpec
from orcinus.engine.frontend.request_stream import RequestStream
from orcinus.engine.frontend.request_tracker import RequestTracker
from orcinus.engine.frontend.router import Router
from orcinus.engine.frontend.text_frontend import TextFrontend
from orcinus.engine.messages import EngineInfo, SlotReport, StepStats
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import Grammar

if TYPE_CHECKING:
    from orcinus.config.engine_config import EngineShare
    from orcinus.config.settings import Settings
    from orcinus.engine.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

EngineState = Literal["loading", "ready", "restarting", "draining", "dead"]

# What a request, or the answer to it, depends on: in this all engines must be alike. Sizes and devices may differ.
_MUST_AGREE = (
    *("model", "architecture", "dtype", "quantization", "kv_cache_dtype", "is_deterministic", "vocab_size"),
    "eos_token_ids",
    *("max_model_len", "sampling_defaults", "pooling", "hidden_size", "has_head", "label_token_ids"),
)


class AsyncEngine:
    """`start` it as early as possible, keep `run` as a task, `wait_ready`, then `submit`; `aclose` at the end.

    With several engines, the queue's bounds and what a client may have at once and in a minute hold for all of them
    together. A client's fair share and the order of the queue are per engine: each shares out the slots and steps of
    its own among the clients whose requests were sent there, so that where every engine has a queue of several clients
    each client has its share of the whole, too. A request goes to one engine as a whole. When that one ends, the others
    that are up go on with it at once, but for what may be why it ended: that stays with its successors. An engine that
    is lost for good (it cannot be loaded, or ended too often without use) takes no more than that with it, and the
    others go on; with the last one everything ends. The first one decides all sizes: the others load after it.
    """

    def __init__(
        self,
        settings: "Settings",
        *,
        engines: Sequence[EngineSpec] | None = None,
        observer: EngineObserver | None = None,
    ) -> None:
        """Take the engines of `settings`, in processes of their own, or `engines`, which must all have the same model.

        Raises `SettingsError` for more engines than the machine has cores or GPUs.
        """
        specs = engines or engine_specs(settings)
        self.stats = StepStats()  # gauges of all engines; counts of the step that was last
        self._admission = AdmissionControl(settings)
        self._convictions = Convictions()
        self._requests = RequestTracker(self._admission, self._convictions, observer or EngineObserver())
        self._text = TextFrontend(specs[0].config, settings.read_chat_template())
        self._splitter = RequestSplitter(specs[0].config.seed)
        self._router = Router()
        self._replicas = [
            EngineReplica(
                spec,
                self._requests,
                step_timeout_s=settings.step_timeout_s,
                max_restarts=settings.max_engine_restarts,
                keeps_prefixes=len(specs) > 1,
                on_up=self._on_replica_up,
                on_stats=self._on_replica_stats,
                on_slots=self._on_replica_slots,
                on_end=self._on_replica_end,
            )
            for spec in specs
        ]
        self._slot_listener: SlotListener | None = None
        self._info: EngineInfo | None = None
        self._failure: OrcinusError | None = None
        self._is_draining = False
        self._settled = asyncio.Event()  # ready, or dead

    @property
    def observer(self) -> EngineObserver:
        """Return what is told of steps, tokens and ends. It may be replaced at any time."""
        return self._requests.observer

    @observer.setter
    def observer(self, observer: EngineObserver) -> None:
        self._requests.observer = observer

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Spawn the first engine and begin to load the tokenizer. Needs no event loop."""
        self._replicas[0].start()
        self._text.start()

    async def run(self) -> None:
        """Serve until closed, or until there will be no engine any more, which fails every waiter."""
        await asyncio.gather(*(self._run_replica(replica) for replica in self._replicas))

    async def wait_ready(self) -> EngineInfo:
        """Return what the first engine that is up resolved. `run` must be running.

        Raises `ModelLoadError` or `EngineUnavailableError` if there will be none.
        """
        await self._settled.wait()
        if self._failure is not None:
            raise self._failure
        return self.info

    def start_draining(self) -> None:
        """Admit nothing more; what is in flight goes on."""
        self._is_draining = True

    async def drained(self, timeout_s: float | None) -> bool:
        """Wait until nothing is in flight, and return False if that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._requests.wait_idle()
        except TimeoutError:
            return False
        return True

    async def aclose(self) -> None:
        """Fail what is in flight and end the engines. Idempotent."""
        error = EngineUnavailableError("the server is shutting down")
        for replica in self._replicas:
            replica.fail(error)
        self._die(error)
        for replica in self._replicas:
            replica.forget_slots()
        await asyncio.gather(*(replica.aclose() for replica in self._replicas))
        await self._text.aclose()

    # --- state ----------------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        """The state of all engines together, which is that of the best of them."""
        if self._failure is not None:
            return "dead"
        if self._is_draining:
            return "draining"
        states = {replica.state for replica in self._replicas}
        return next(state for state in ("ready", "restarting", "loading") if state in states)

    @property
    def is_admitting(self) -> bool:
        """Whether work may come in. While engines are replaced, requests wait for the next ones."""
        return self.state in ("ready", "restarting")

    def check_admitting(self) -> None:
        """Raise `DrainingError` or `EngineUnavailableError` unless work may come in, if only to wait."""
        if not self.is_admitting:
            raise self._refusal()

    def check_ready(self) -> None:
        """Raise `DrainingError` or `EngineUnavailableError` unless new work would run now."""
        if self.state == "restarting":
            raise EngineUnavailableError("the engine is restarting")
        self.check_admitting()

    def _refusal(self) -> EngineUnavailableError:
        match self.state:
            case "draining":
                return DrainingError("the server is shutting down and takes no new requests")
            case "dead":
                return EngineUnavailableError(f"the engine is not running: {self._failure}", retry_after_s=30.0)
            case _:
                return EngineUnavailableError("the model is still loading")

    @property
    def info(self) -> EngineInfo:
        """Return what the engine resolved at start-up. Raises as `check_admitting` until the model is loaded."""
        if self._info is None:
            raise self._refusal()
        return self._info

    @property
    def tokenizer(self) -> "Tokenizer":
        """The model's tokenizer. Raises as `check_admitting` until the model is loaded."""
        if self._info is None:
            raise self._refusal()
        return self._text.tokenizer

    @property
    def shares(self) -> "list[EngineShare]":
        """Return what each engine has of the machine; nothing where there is one engine, which has all of it."""
        return [replica.config.share for replica in self._replicas if replica.config.share is not None]

    @property
    def num_running(self) -> int:
        """Choices in slots, as of the last steps."""
        return sum(replica.num_running for replica in self._replicas)

    @property
    def num_queued(self) -> int:
        """Choices in flight that have no slot."""
        return sum(replica.num_in_flight - replica.num_running for replica in self._replicas)

    @property
    def _num_slots(self) -> int:
        return sum(replica.num_slots for replica in self._replicas if replica.state != "dead")

    # --- slots ----------------------------------------------------------------------------------------------

    def watch_slots(self, listener: SlotListener | None) -> None:
        """Have the engines tell `listener` what is in their slots, all of it at first; None ends that.

        It is called on the event loop a few times a second, and while nobody listens no engine computes or sends
        anything for it. It must not block and must not raise.
        """
        self._slot_listener = listener
        for replica in self._replicas:
            replica.watch_slots(is_on=listener is not None)

    def clients(self) -> Counter[str]:
        """Return how many choices each client has in flight, waiting and running."""
        return sum((replica.clients() for replica in self._replicas), Counter[str]())

    def _on_replica_slots(self, replica: EngineReplica, report: SlotReport) -> None:
        if self._slot_listener is not None:
            self._slot_listener(self._replicas.index(replica), report, replica.client_of)

    # --- text -----------------------------------------------------------------------------------------------

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`, off the event loop where it takes long.

        Raises `ContextLengthError` for a text that is far too long for the context, before anything is spent on it.
        """
        return await self._text.encode(text, self.info.max_model_len, add_special_tokens=add_special_tokens)

    async def render_and_encode(
        self, messages: Sequence[Mapping[str, Any]], /, *, add_special_tokens: bool = False, **options: Any
    ) -> list[int]:
        """Return `Tokenizer.render_chat` with `options`, as token ids, off the event loop where it takes long."""
        max_model_len = self.info.max_model_len
        text = await self._text.render(messages, options)
        return await self._text.encode(text, max_model_len, add_special_tokens=add_special_tokens)

    async def check_grammar(self, grammar: Grammar, param: str) -> None:
        """Raise `InvalidRequestError`, which blames `param`, for a grammar that the engine cannot follow.

        To be called before a request with it is submitted: what passes here is compiled in the engine process.
        """
        await self._text.check_grammar(grammar, param, self.info)

    # --- requests -------------------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> RequestStream:
        """Admit the request as a whole, or refuse it at once.

        Raises `InvalidRequestError`, `ContextLengthError`, `QueueFullError`, `QuotaError`, `DrainingError`,
        `EngineUnavailableError`, or `RequestQuarantinedError` for one that ended engines a short time ago.
        """
        self.check_admitting()
        check_request(request, self.info)
        self._convictions.check(request)
        self._admission.check(request, self._num_slots, self.info.max_model_len)
        return self._admit(request)

    def check_room(self, client: str) -> None:
        """Raise `QueueFullError` or `QuotaError` where anything that this client may ask for would be refused.

        To be asked before a request is read. Where nothing is admitted for another reason, `submit` says so.
        """
        if self.is_admitting:
            self._admission.check_room(client, self._num_slots)

    def limit_clients(self, limits_of: Callable[[str], ClientLimits]) -> None:
        """Hold each client to the limits that `limits_of` gives, in place of those that the settings give to all."""
        self._admission.limits_of = limits_of

    def check_context(self, num_prompt_tokens: int, max_tokens: int | None) -> None:
        """Raise `ContextLengthError` where `submit` would, before the prompts after this one are read."""
        check_context(num_prompt_tokens, max_tokens, self.info.max_model_len)

    def _admit(self, request: GenerationRequest) -> RequestStream:
        max_model_len = self.info.max_model_len
        sequences = self._splitter.split(request, max_model_len, self._admission.share_of(request.client))
        replica = self._router.choose(request.prompts, sequences[0].scope, request.num_choices, self._replicas)
        live = self._requests.open(request, sequences, replica, self.tokenizer, max_model_len)
        replica.submit(live.choices.values())
        return RequestStream(live, partial(self._requests.abort, live), [len(prompt) for prompt in request.prompts])

    # --- replicas -------------------------------------------------------------------------------------------

    async def _run_replica(self, replica: EngineReplica) -> None:
        self._observe(replica)
        try:
            if replica is not self._replicas[0]:
                await self._settled.wait()
                if self._failure is not None:
                    return
                replica.start(self._info)
            await replica.run()
        except (ModelLoadError, EngineUnavailableError) as error:
            self._on_replica_lost(replica, error)
        except Exception as error:
            logger.exception("reading the engine's messages failed")
            reason = f"the connection to the engine failed: {type(error).__name__}"
            self._on_replica_lost(replica, EngineUnavailableError(reason))
        await replica.aclose()

    async def _on_replica_up(self, info: EngineInfo) -> None:
        """Serve with an engine that is loaded. Where neither it nor the tokenizer can be loaded, its error counts."""
        await self._text.loaded()
        if self._info is None:
            self._info = info
            if info.warms_grammars:
                self._text.warm_up(info)
        elif differences := _differences(self._info, info):
            raise ModelLoadError(f"an engine is not like the others: {differences}")
        self._settled.set()

    def _on_replica_stats(self, replica: EngineReplica) -> None:
        others = [other.stats for other in self._others(replica) if other.state != "dead"]
        is_memory_shared = self._info is not None and self._info.device == "cpu"
        self.stats = combine_stats(replica.stats, others, is_memory_shared=is_memory_shared)
        self.observer.on_step(self.stats)
        self._observe(replica)

    def _observe(self, replica: EngineReplica) -> None:
        index = self._replicas.index(replica)
        self.observer.on_engine(index, is_up=replica.state == "ready", stats=replica.stats)

    def _on_replica_end(self, replica: EngineReplica) -> None:
        """Have the engines that are up go on with what was in flight. Where none is, it waits for the next one here."""
        self._move_choices(replica, [other for other in self._others(replica) if other.state == "ready"])

    def _on_replica_lost(self, replica: EngineReplica, error: OrcinusError) -> None:
        others = [other for other in self._others(replica) if other.state != "dead"]
        self._move_choices(replica, [other for other in others if other.state != "loading"])
        replica.fail(error)
        if others and self._info is not None:
            index = self._replicas.index(replica)
            logger.error("engine %d is lost for good, and %d go on: %s", index, len(others), error)
        else:
            self._die(error)
        replica.forget_slots()

    def _move_choices(self, replica: EngineReplica, others: Sequence[EngineReplica]) -> None:
        """Have others go on with what one had in flight, but for what may be the reason that its engine ended."""
        if not others:
            return
        for choice in replica.free_choices():
            added = choice.added
            replica.hand_over(choice, self._router.choose([added.prompt_token_ids], added.scope, 1, others))
        for other in others:
            other.flush()

    def _others(self, replica: EngineReplica) -> list[EngineReplica]:
        return [other for other in self._replicas if other is not replica]

    def _die(self, error: OrcinusError) -> None:
        """Fail whoever waits for an engine: there will be none any more."""
        self._failure = self._failure or error
        self._settled.set()


def _differences(first: EngineInfo, other: EngineInfo) -> str:
    pairs = [(name, getattr(first, name), getattr(other, name)) for name in _MUST_AGREE]
    return ", ".join(f"{name} is {new!r} instead of {old!r}" for name, old, new in pairs if old != new)
