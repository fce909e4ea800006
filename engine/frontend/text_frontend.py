"""The text side of requests on an event loop: tokenizer, chat templates and grammars, off the loop where it takes long.

Owns the tokenizer's loading, the threads that tokenize and render templates, and the processes that try grammars out:
clients take turns in all of them. Knows nothing of engines and of requests in flight.
"""

import asyncio
import contextlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.errors import ContextLengthError
from orcinus.engine.frontend.turns import FairSemaphore, FairThreads, current_client
from orcinus.engine.messages import EngineInfo
from orcinus.engine.sampling_params import Grammar

if TYPE_CHECKING:
    from orcinus.engine.grammar.gate import GrammarGate
    from orcinus.engine.text.tokenizer import Tokenizer

_OFF_LOOP_CHARS = 4096  # longer texts are tokenized in a thread: about a millisecond's work
_ON_LOOP_S = 0.02
# Threads of their own for either: what holds them up holds up nothing else.
_NUM_ENCODERS = 4
_NUM_RENDERERS = 4
_WARM_UP_AFTER_S = 1.0  # the first requests go first
_NUM_TRIALS = 2  # at once: the second for other clients than the first
_TEXT_CHARS = 2**19  # that are read whatever the context, and
_CHARS_PER_TOKEN = 32  # of the context: many times what any language needs


class TextFrontend:
    """`start` it early, await `loaded`; then everything else may be called. `aclose` it at the end."""

    def __init__(self, config: EngineConfig, chat_template: str | None) -> None:
        self._config = config
        self._chat_template = chat_template
        self._loading: Future[Tokenizer] = Future()
        self._grammar_gate: GrammarGate | None = None
        self._warming: asyncio.TimerHandle | None = None
        self._encoders = FairThreads(_NUM_ENCODERS, "encode")
        self._renderers = FairThreads(_NUM_RENDERERS, "template")

    def start(self) -> None:
        """Begin to load the tokenizer, in a thread. Needs no event loop."""
        threading.Thread(target=self._load_tokenizer, name="tokenizer", daemon=True).start()

    async def loaded(self) -> None:
        """Wait for the tokenizer. Raises `ModelLoadError` if it cannot be loaded."""
        await asyncio.wrap_future(self._loading)

    @property
    def tokenizer(self) -> "Tokenizer":
        assert self._loading.done(), "the tokenizer is not loaded"
        return self._loading.result()

    async def encode(self, text: str, max_model_len: int, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of `text`.

        Raises `ContextLengthError` for a text that is far too long for the context, before anything is spent on it.
        """
        _check_text(text, max_model_len)
        encode = partial(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)
        return encode() if len(text) <= _OFF_LOOP_CHARS else await self._encoders.run(encode)

    async def render(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """Return the text that the chat template makes of `messages`, as `Tokenizer.render_chat` does.

        What looks short gets a moment on the event loop: a template may do much with little, or need a process.
        """
        from orcinus.engine.text.template_sandbox import RenderLimitError, time_limit

        render = partial(self.tokenizer.render_chat, messages, **options)
        if _num_chars(messages) + _num_chars(options.get("tools")) <= _OFF_LOOP_CHARS:
            with contextlib.suppress(RenderLimitError), time_limit(_ON_LOOP_S):
                return render()
        return await self._renderers.run(render)

    async def check_grammar(self, grammar: Grammar, param: str, info: EngineInfo) -> None:
        """Raise `InvalidRequestError`, which blames `param`, for a grammar that the engine cannot follow."""
        await self._gate(info).check(grammar, param, current_client())

    def warm_up(self, info: EngineInfo) -> None:
        """Have a process for grammars shortly, so that the first of them does not wait for it. On an event loop."""
        self._warming = asyncio.get_running_loop().call_later(_WARM_UP_AFTER_S, self._warm_up, info)

    def _warm_up(self, info: EngineInfo) -> None:
        self._gate(info).warm_up()

    def _gate(self, info: EngineInfo) -> "GrammarGate":
        if self._grammar_gate is None:
            from orcinus.engine.grammar.gate import GrammarGate, ServedVocabulary

            model, trusts_code = self._config.model, self._config.trust_remote_code
            vocabulary = ServedVocabulary(model, trusts_code, info.vocab_size, info.eos_token_ids)
            turns = FairSemaphore(_NUM_TRIALS, num_reserved=1)
            self._grammar_gate = GrammarGate(vocabulary, turns.turn)
        return self._grammar_gate

    async def aclose(self) -> None:
        if self._warming is not None:
            self._warming.cancel()
        if self._grammar_gate is not None:
            await self._grammar_gate.aclose()
        self._encoders.shutdown()
        self._renderers.shutdown()

    def _load_tokenizer(self) -> None:
        try:
            from orcinus.engine.platform.lean_imports import wait_for_transformers
            from orcinus.engine.text.tokenizer import Tokenizer

            tokenizer = Tokenizer.load(
                self._config.model,
                trust_remote_code=self._config.trust_remote_code,
                chat_template=self._chat_template,
            )
            if tokenizer.response_template is not None:
                with contextlib.suppress(ImportError):  # the server says so where it would read answers by it
                    wait_for_transformers()
        except BaseException as error:  # `loaded` raises it, whatever it is
            self._loading.set_exception(error)
        else:
            self._loading.set_result(tokenizer)


def _check_text(text: str, max_model_len: int) -> None:
    most = max(_TEXT_CHARS, _CHARS_PER_TOKEN * max_model_len)
    if len(text) > most:
        raise ContextLengthError(
            f"this model's maximum context length is {max_model_len} tokens: texts of up to {most} characters are read,"
            f" got {len(text)}",
            "prompt",
        )


def _num_chars(value: Any) -> int:
    """Return roughly how much text is in a piece of JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_num_chars, value.values()))
    if isinstance(value, Sequence):
        return sum(map(_num_chars, value))
    return 0
