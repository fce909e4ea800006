"""Tries grammars out before they reach the engine: in a process of its own, with bounds on its time and memory.

Any client may send a grammar that makes the code which compiles it use more time or memory than there is, or end its
process. The server process uses the gate on its event loop, and never waits for it there; what the other process does
is `engine.grammar.trial_process`. Knows nothing of tokens.
"""

import asyncio
import contextlib
import logging
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict

import msgspec

from orcinus.engine.errors import EngineUnavailableError, InvalidRequestError
from orcinus.engine.platform.child_process import module_command, parent_arguments
from orcinus.engine.sampling_params import Grammar, GrammarKind

logger = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
_START_TIMEOUT_S = 60.0  # of the process, and of the tokenizer in it
_MAX_VERDICTS = 1024
_DOUBTFUL_S = 60.0  # how long a verdict counts that may be due to a busy machine


class ServedVocabulary(msgspec.Struct, frozen=True):
    """The model whose tokens grammars are compiled for, as the first line that the process reads."""

    model: str
    trust_remote_code: bool
    vocab_size: int
    eos_token_ids: list[int]


class Trial(msgspec.Struct, frozen=True):
    """A grammar to try out, as one line of JSON."""

    kind: GrammarKind
    source: str


class Verdict(msgspec.Struct, frozen=True):
    """Tells what is wrong with a grammar, if anything. The first one says that the process is ready."""

    fault: str | None = None


class GrammarGate:
    """Checks grammars, one at a time, and remembers the verdicts. Its process starts with the first grammar."""

    def __init__(self, vocabulary: ServedVocabulary, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._process = TrialProcess(vocabulary)
        self._one_at_a_time = asyncio.Lock()
        self._verdicts: OrderedDict[tuple[GrammarKind, str], asyncio.Task[Verdict]] = OrderedDict()

    async def check(self, grammar: Grammar, param: str) -> None:
        """Raise `InvalidRequestError`, which blames `param`, for a grammar that cannot be served.

        Raises `EngineUnavailableError` if `aclose` comes first. A trial goes on when the client that asked for it
        leaves: others may ask for the same.
        """
        if grammar.kind == "json_object":
            return  # nothing in it is the client's
        key = grammar.kind, grammar.source
        task = self._verdicts.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._verdicts[key] = asyncio.create_task(self._judge(*key))
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > _MAX_VERDICTS:
            self._verdicts.popitem(last=False)
        await asyncio.wait([task])
        if task.cancelled():
            raise EngineUnavailableError("the server is shutting down")
        verdict = task.result()
        if verdict.fault is not None:
            raise InvalidRequestError(verdict.fault, param)

    async def aclose(self) -> None:
        """End the trials that are under way, and the process."""
        unfinished = [task for task in self._verdicts.values() if not task.done()]
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        await self._process.end()

    async def _judge(self, kind: GrammarKind, source: str) -> Verdict:
        async with self._one_at_a_time:
            try:
                await self._process.start()
                async with asyncio.timeout(self._timeout_s):
                    return await self._process.ask(Trial(kind, source))
            except TimeoutError:
                fault = f"it took longer than {self._timeout_s:g} s to compile"
            except EOFError:
                fault = "compiling it took too much memory"
            await self._process.end()
            asyncio.get_running_loop().call_later(_DOUBTFUL_S, self._verdicts.pop, (kind, source), None)
            logger.warning("a grammar of %d characters was refused: %s", len(source), fault)
            return Verdict(f"the grammar is too complex: {fault}")


class TrialProcess:
    """The process in which grammars are tried out. It ends with the server, and when its standard input does."""

    def __init__(self, vocabulary: ServedVocabulary) -> None:
        self._vocabulary = vocabulary
        self._process: Process | None = None

    async def start(self) -> None:
        """Start the process unless it is running. Raises `TimeoutError` or `EOFError` if it does not come up."""
        if self._process is not None and self._process.returncode is None:
            return
        child = module_command("orcinus.engine.grammar.trial_process", *parent_arguments())
        self._process = await asyncio.create_subprocess_exec(
            *child.arguments, stdin=PIPE, stdout=PIPE, env=child.environment
        )
        async with asyncio.timeout(_START_TIMEOUT_S):
            await self.ask(self._vocabulary)

    async def ask(self, message: ServedVocabulary | Trial) -> Verdict:
        """Send one message and return its verdict. Raises `EOFError` if the process ends over it."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(message) + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise EOFError
        return msgspec.json.decode(line, type=Verdict)

    async def end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
