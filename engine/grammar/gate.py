"""Tries grammars out before they reach the engine: in processes of their own, with bounds on their time and memory.

Any client may send a grammar that makes the code which compiles it use more time or memory than there is, or end its
process. The server process uses the gate on its event loop, and never waits for it there; what the other process does
is `engine.grammar.trial_process`. Knows nothing of tokens.
"""

import asyncio
import contextlib
import logging
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import msgspec
import psutil

from orcinus.engine.errors import (
    EngineUnavailableError,
    InvalidRequestError,
    UnenforceableKeyword,
    UnenforceableSchemaError,
)
from orcinus.engine.platform.child_process import module_command, parent_arguments
from orcinus.engine.sampling_params import Grammar, GrammarKind, Openings

logger = logging.getLogger(__name__)

_TIMEOUT_S = 5.0  # of the process's own time: how busy the machine is says nothing of a grammar
_MOST_WAITING = 12  # times as long is waited for it at most
_START_TIMEOUT_S = 60.0  # of the process, and of the tokenizer in it
_MAX_VERDICTS = 1024
_DOUBTFUL_S = 60.0  # how long a verdict counts that may be due to a busy machine
VERDICT_SIZE_BYTES = 8  # the length that stands before a verdict


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
    openings: Openings | None = None


class Verdict(msgspec.Struct, frozen=True):
    """Tells what is wrong with a grammar, if anything. The first one says that the process is ready.

    Of a schema, `keywords` are those that are to blame, where they are known, and `rest` is the schema without them.
    """

    fault: str | None = None
    keywords: tuple[UnenforceableKeyword, ...] = ()
    rest: str = ""


@dataclass(slots=True, eq=False)
class _Pending:
    """A trial that one client has asked for, once or several times, and that has no verdict yet."""

    task: asyncio.Task[Verdict]
    num_waiting: int = 0
    has_begun: bool = False


class GrammarGate:
    """Checks grammars and remembers the verdicts. A process starts with the first grammar, or with `warm_up`.

    `turn` says whose turn it is: there are as many processes as were ever let in at once. A trial takes whichever is
    free first, a new one or one that was busy.
    """

    def __init__(
        self,
        vocabulary: ServedVocabulary,
        turn: Callable[[str], AbstractAsyncContextManager[None]],
        *,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._vocabulary = vocabulary
        self._turn = turn
        self._timeout_s = timeout_s
        self._processes: list[TrialProcess] = []
        self._idle = asyncio.Queue[TrialProcess]()
        self._starts: set[asyncio.Task[None]] = set()
        self._num_inside = 0
        self._verdicts: OrderedDict[Trial, Verdict] = OrderedDict()
        self._pending: dict[tuple[str, Trial], _Pending] = {}

    async def check(self, grammar: Grammar, param: str, client: str = "") -> None:
        """Raise `InvalidRequestError`, which blames `param`, for a grammar that cannot be served.

        Of a schema it is `UnenforceableSchemaError` where single keywords are to blame.
        Raises `EngineUnavailableError` if `aclose` comes first. A trial that has begun goes on when all leave that
        asked for it, for others may ask for the same; one that has not is dropped.
        """
        if grammar.kind == "json_object":
            return  # nothing in it is the client's
        trial = Trial(grammar.kind, grammar.source, grammar.openings)
        verdict = self._recall(trial) or await self._verdict(client, trial)
        if verdict.keywords:
            raise UnenforceableSchemaError(verdict.fault or "", param, verdict.keywords, verdict.rest)
        if verdict.fault is not None:
            raise InvalidRequestError(verdict.fault, param)

    def warm_up(self) -> None:
        """Start the first process, unless it is there, so that the first grammar does not wait for it."""
        if not self._processes:
            self._add_process()

    async def aclose(self) -> None:
        """End the trials that are under way, and the processes."""
        unfinished = [*(pending.task for pending in self._pending.values()), *self._starts]
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        await asyncio.gather(*(process.end() for process in self._processes))

    async def _verdict(self, client: str, trial: Trial) -> Verdict:
        key = client, trial
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _Pending(asyncio.create_task(self._judge(client, trial)))
        pending.num_waiting += 1
        try:
            await asyncio.wait([pending.task])
        finally:
            pending.num_waiting -= 1
            if pending.task.done() or not (pending.num_waiting or pending.has_begun):
                pending.task.cancel()
                self._forget(key, pending)
        if pending.task.cancelled():
            raise EngineUnavailableError("the server is shutting down")
        return pending.task.result()

    def _forget(self, key: tuple[str, Trial], pending: _Pending) -> None:
        if self._pending.get(key) is pending:
            del self._pending[key]

    def _recall(self, trial: Trial) -> Verdict | None:
        verdict = self._verdicts.get(trial)
        if verdict is not None:
            self._verdicts.move_to_end(trial)
        return verdict

    def _remember(self, trial: Trial, verdict: Verdict) -> None:
        self._verdicts[trial] = verdict
        if len(self._verdicts) > _MAX_VERDICTS:
            self._verdicts.popitem(last=False)

    async def _judge(self, client: str, trial: Trial) -> Verdict:
        async with self._turn(client):
            if (verdict := self._recall(trial)) is not None:  # another client has asked for the same
                return verdict
            self._pending[client, trial].has_begun = True
            async with self._process() as process:
                verdict = await self._try_out(process, trial)
            self._remember(trial, verdict)
            return verdict

    @contextlib.asynccontextmanager
    async def _process(self) -> AsyncIterator["TrialProcess"]:
        self._num_inside += 1
        try:
            if len(self._processes) < self._num_inside:
                self._add_process()
            process = await self._idle.get()
            try:
                yield process
            finally:
                self._idle.put_nowait(process)
        finally:
            self._num_inside -= 1

    def _add_process(self) -> None:
        process = TrialProcess(self._vocabulary)
        self._processes.append(process)
        start = asyncio.create_task(self._start(process))
        self._starts.add(start)
        start.add_done_callback(self._starts.discard)

    async def _start(self, process: "TrialProcess") -> None:
        with contextlib.suppress(TimeoutError, EOFError, OSError):  # the trial that takes it tries again, and tells
            await process.start()
        self._idle.put_nowait(process)

    async def _try_out(self, process: "TrialProcess", trial: Trial) -> Verdict:
        try:
            await process.start()
            return await process.ask_within(self._timeout_s, trial)
        except TimeoutError:
            fault = f"it took longer than {self._timeout_s:g} s to compile"
        except EOFError:
            fault = "compiling it took too much memory"
        await process.end()
        asyncio.get_running_loop().call_later(_DOUBTFUL_S, self._verdicts.pop, trial, None)
        logger.warning("a grammar of %d characters was refused: %s", len(trial.source), fault)
        return Verdict(f"the grammar is too complex: {fault}")


class TrialProcess:
    """A process in which grammars are tried out. It ends with the server, and when its standard input does."""

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
        # With its length before it: readline refuses lines over 64 KiB, and a verdict has what is left of a schema.
        size = int.from_bytes(await self._process.stdout.readexactly(VERDICT_SIZE_BYTES), "big")
        return msgspec.json.decode(await self._process.stdout.readexactly(size), type=Verdict)

    async def ask_within(self, timeout_s: float, message: Trial) -> Verdict:
        """Do so within so many seconds of the process's own time. Raises `TimeoutError`, too."""
        loop = asyncio.get_running_loop()
        began, spent_before = loop.time(), self._cpu_time_s()
        asking = asyncio.create_task(self.ask(message))
        left_s = timeout_s
        try:
            while not (await asyncio.wait([asking], timeout=left_s))[0]:
                left_s = timeout_s - (self._cpu_time_s() - spent_before)
                if left_s <= 0 or loop.time() - began > _MOST_WAITING * timeout_s:
                    raise TimeoutError
                left_s = max(left_s, timeout_s / 10)
            return await asking
        finally:
            asking.cancel()

    def _cpu_time_s(self) -> float:
        """Return the processor time that the process has had, 0 if it has ended."""
        assert self._process is not None
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    async def end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
