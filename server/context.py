"""What every operation of the API needs: the engine, and the names and limits it is served under.

Independent of HTTP, so that a file of requests can be answered in process:

    ctx = ServingContext(engine, settings)
    generation = await chat.start_chat_completion(ctx, body)
    response = b"".join(await generation.whole())  # JSON, as the API returns it

Both calls raise the errors that `server.errors.to_response` turns into a status and a body.
"""

import logging
import re
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Protocol

from orcinus.config.limits import ClientLimits
from orcinus.config.settings import Settings
from orcinus.config.version import VERSION
from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.frontend.observer import EngineObserver, SlotListener
from orcinus.engine.frontend.prompt_history import PromptHistory
from orcinus.engine.messages import EngineInfo
from orcinus.engine.outputs import GenerationRequest, RequestOutput
from orcinus.engine.sampling_params import Grammar
from orcinus.server.caller_key import check_allowed, is_allowed
from orcinus.server.errors import ModelNotFoundError
from orcinus.server.intake import Intake
from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.thought_marks import (
    TRIAL_MESSAGES,
    ThoughtMarks,
    find_thought_marks,
    marks_before_answer,
)

logger = logging.getLogger(__name__)

_MAX_STAND_INS = 32  # names that the log tells of


class ServingTokenizer(Protocol):
    """The part of `engine.text.tokenizer.Tokenizer` that the API uses."""

    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def special_tokens(self) -> frozenset[str]: ...
    @property
    def chat_template_source(self) -> str: ...
    @property
    def response_template(self) -> Any: ...
    @property
    def reads_pairs(self) -> bool: ...
    @property
    def eos_token_id(self) -> int | None: ...
    def added_token_id(self, text: str) -> int | None: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...
    def token_bytes(self, token_id: int) -> bytes: ...


class OutputStream(Protocol):
    """The part of `engine.frontend.request_stream.RequestStream` that the API uses."""

    def __aiter__(self) -> AsyncIterator[RequestOutput]: ...
    async def __anext__(self) -> RequestOutput: ...
    def abort(self) -> None: ...


class ServingEngine(Protocol):
    """The part of `engine.frontend.async_engine.AsyncEngine` that the server uses."""

    observer: EngineObserver

    @property
    def state(self) -> str: ...
    @property
    def info(self) -> EngineInfo: ...
    @property
    def tokenizer(self) -> ServingTokenizer: ...
    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    async def render_and_encode(
        self, messages: Sequence[Mapping[str, Any]], /, *, add_special_tokens: bool = False, **options: Any
    ) -> list[int]: ...
    async def check_grammar(self, grammar: Grammar, param: str) -> None: ...
    def check_admitting(self) -> None: ...
    def check_ready(self) -> None: ...
    def check_room(self, client: str) -> None: ...
    def check_context(self, num_prompt_tokens: int, max_tokens: int | None) -> None: ...
    def submit(self, request: GenerationRequest) -> OutputStream: ...
    def watch_slots(self, listener: SlotListener | None) -> None: ...
    def limit_clients(self, limits_of: Callable[[str], ClientLimits]) -> None: ...
    def clients(self) -> Counter[str]: ...
    async def run(self) -> None: ...
    async def wait_ready(self) -> EngineInfo: ...
    def start_draining(self) -> None: ...
    async def drained(self, timeout_s: float | None) -> bool: ...
    async def aclose(self) -> None: ...


class ServingContext:
    """One served model. `model_names[0]` is the name that responses carry; the others are aliases."""

    def __init__(
        self,
        engine: ServingEngine,
        settings: Settings,
    ) -> None:
        self.engine = engine
        self.model_names = tuple(settings.model_names)
        self.intake = Intake(settings.max_preparing, settings.limits_per_key)
        self._parsers = {
            "tool_call_parser": settings.tool_call_parser,
            "reasoning_parser": settings.reasoning_parser,
        }
        self.default_thinking_budget = settings.default_thinking_budget
        self._thought_marks: list[ThoughtMarks | None] = []  # once they are known
        self.rerank_template = settings.rerank_template
        self.rerank_labels = settings.rerank_labels
        self._shares_prefixes = settings.prefix_cache_scope == "all"
        self.created = int(time.time())
        self.is_lenient = settings.lenient
        self._stand_ins = set[str]()
        self._fingerprint: str | None = None

    @property
    def model_name(self) -> str:
        return self.model_names[0]

    @property
    def fingerprint(self) -> str:
        """A name that changes with what may change a seeded output: version, model, dtype, device, mode."""
        if self._fingerprint is None:
            info = self.engine.info
            kinds = (info.quantization, *sorted(info.packed_types), info.kv_cache_dtype)
            numbers = (info.dtype, *kinds, info.device, info.attention_backend, info.is_deterministic)
            parts = (VERSION, info.model, info.architecture, *numbers)
            self._fingerprint = f"fp_{zlib.crc32(repr(parts).encode()):08x}"
        return self._fingerprint

    @cached_property
    def message_format(self) -> MessageFormat:
        """Return how the model writes its messages. Only once the engine is ready."""
        tokenizer = self.engine.tokenizer
        return MessageFormat.detect(
            tokenizer.chat_template_source,
            tokenizer.added_token_id,
            special_tokens=tokenizer.special_tokens,
            response_template=tokenizer.response_template,
            **self._parsers,
        )

    def template_reads(self, variable: str) -> bool:
        """Return whether the model's chat template speaks of a variable. Only once the engine is ready."""
        return re.search(rf"\b{re.escape(variable)}\b", self.engine.tokenizer.chat_template_source) is not None

    @cached_property
    def marks_before_answer(self) -> tuple[int, ...]:
        """The tokens between a thought and the answer, as far as they are known. Only once the engine is ready."""
        return marks_before_answer(self.message_format, self.engine.tokenizer.added_token_id)

    async def thought_marks(self) -> ThoughtMarks | None:
        """Return by which tokens the model begins and ends its thoughts. Only once the engine is ready."""
        if not self._thought_marks:
            encode = partial(self.engine.encode, add_special_tokens=False)
            tokenizer, shown = self.engine.tokenizer, await self._shown_thought()
            self._thought_marks = [await find_thought_marks(self.message_format, tokenizer, encode, shown)]
        return self._thought_marks[0]

    async def _shown_thought(self) -> str:
        """Return what the chat template makes of a thought and an answer, nothing where it takes no such trial."""
        try:
            token_ids = await self.engine.render_and_encode(TRIAL_MESSAGES, add_generation_prompt=False)
        except InvalidRequestError:
            return ""
        return self.engine.tokenizer.decode(token_ids, skip_special_tokens=False)

    @cached_property
    def prompt_history(self) -> PromptHistory | None:
        """Return the prompts that came last, None where none is cached. Only once the engine is ready."""
        info = self.engine.info
        return PromptHistory(info.block_size) if info.enable_prefix_caching else None

    def limit_clients(self, limits_of: Callable[[str], ClientLimits]) -> None:
        """Hold each client from now on to the limits that `limits_of` gives."""
        self.intake.limits_of = limits_of
        self.engine.limit_clients(limits_of)

    def check_ready(self) -> None:
        """Raise `EngineUnavailableError` (or `DrainingError`) unless new work would run now."""
        self.intake.check()
        self.engine.check_ready()

    def check_admitting(self) -> None:
        """Raise `EngineUnavailableError` (or `DrainingError`) unless new work can be taken now, if only to wait."""
        self.engine.check_admitting()

    def check_room(self, client: str) -> None:
        """Raise `QueueFullError` or `QuotaError` where a request of this client has no room, whatever it asks for."""
        if not self.intake.is_closed:  # else nobody has
            self.intake.check_room(client)
            self.engine.check_room(client)

    def cache_salt(self, client: str, salt: str | None) -> str | None:
        """Return what prompts must share to share a prefix: the client's own salt, and the client unless all share."""
        if self._shares_prefixes or not client:
            return salt
        return client if salt is None else f"{client}:{salt}"

    @property
    def usable_models(self) -> tuple[str, ...]:
        """The names that are served to whoever asks."""
        return tuple(filter(is_allowed, self.model_names))

    def check_model(self, name: str | None) -> None:
        """Raise `ModelNotFoundError` for a name that is not served, and `ModelForbiddenError` for one not to this key.

        None means the served model, by any of its names.
        """
        if name is None and self.usable_models:
            return
        if name is None or name in self.model_names:
            check_allowed(name or self.model_name)
            return
        served = ", ".join(map(repr, self.usable_models)) or "none to this key"
        raise ModelNotFoundError(f"the model {name[:200]!r} does not exist; served here: {served}", "model")

    def note_stand_in(self, name: str) -> None:
        """Say in the log, once for each of the first names, that the served model answers in place of another."""
        shown = name[:100]
        if shown not in self._stand_ins and len(self._stand_ins) < _MAX_STAND_INS:
            self._stand_ins.add(shown)
            logger.info("%r is not served: %s answers in its place", shown, self.model_name)

    def describe(self, name: str) -> dict[str, Any]:
        """Return an entry of /v1/models. The context length is null until the engine has loaded the model."""
        length = self.engine.info.max_model_len if self.engine.state != "loading" else None
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "orcinus",
            "max_model_len": length,
        }
