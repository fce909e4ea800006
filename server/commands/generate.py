"""`orcinus generate`: answers a file of requests with an engine in this process, without a server.

Input and output have the line format of OpenAI's batch files, and each line is answered by the functions that
answer HTTP. Lines are read as the engine gets to them and written in their order, so that neither file needs to
fit into memory. A line that cannot be answered becomes an error line.
"""

import argparse
import asyncio
import contextlib
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import msgspec

from orcinus.config.arguments import Parser, add_settings, settings_from
from orcinus.config.engine_config import EngineConfig
from orcinus.config.settings import Settings, SettingsError
from orcinus.config.text_files import BOM, TextFileError, check_encoding
from orcinus.engine.core import Executor
from orcinus.engine.errors import EngineUnavailableError, InvalidRequestError, OrcinusError
from orcinus.engine.messages import EngineInfo
from orcinus.engine.platform.device import limit_spinning
from orcinus.server.process.logs import configure_logging

if TYPE_CHECKING:
    from orcinus.server.context import ServingContext, ServingEngine
    from orcinus.server.operations import GenerationOperation

_DESCRIPTION = """\
Answer a file of requests with the engine, without a server. Each line of FILE is one request, as in a batch file
of the OpenAI API:

  {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
   "body": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}}

url is /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/rerank, /v1/responses or /v1/score. The answers come
in the order of the requests; a line that cannot be answered gives a line with an error, and the exit code is 1 then.
What of a body was left out, such as tools that other servers run, is listed as left_out in its response.
"""
_EPILOG = """\
examples:
  orcinus generate prompts.jsonl -o answers.jsonl
  orcinus generate - --model ./my-model < prompts.jsonl > answers.jsonl
"""
_MIN_LOOK_AHEAD = 256
_LOOK_AHEAD_PER_SLOT = 8
_LONGEST_BOM = 4  # bytes
# Lines are bounded by the look-ahead, so the engine's own bounds must only not be in the way.
_OFFLINE: dict[str, Any] = {
    "max_queue_len": 1_000_000,
    "max_queue_tokens": sys.maxsize,
    "max_requests_per_key": None,
    "max_logprobs_per_request": sys.maxsize,
    "max_tokens_per_minute_per_key": None,
    "step_timeout_s": 0.0,
    "max_engine_restarts": 0,  # a thread cannot be replaced
}

Answer = Callable[[dict[str, Any]], Awaitable[msgspec.Raw]]  # a JSON object, written


class Progress(Protocol):
    def update(self, n: float = 1) -> object: ...
    def set_postfix_str(self, s: str, refresh: bool) -> object: ...


class _Counted(msgspec.Struct):
    """Holds what is read of an answer, of which the rest is passed over."""

    usage: dict[str, Any] = {}


class BadLineError(OrcinusError):
    """A line that is no request. `code` is for programs."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Totals:
    """Counts what was done, for the summary line."""

    started: float = field(default_factory=time.monotonic)
    num_requests: int = 0
    num_errors: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0

    def count(self, line: Mapping[str, Any]) -> None:
        self.num_requests += 1
        response = line["response"]
        if response is None or response["status_code"] != 200:
            self.num_errors += 1
            return
        usage = msgspec.json.decode(response["body"], type=_Counted).usage
        self.num_prompt_tokens += usage.get("prompt_tokens", 0)
        self.num_output_tokens += usage.get("completion_tokens", 0)

    @property
    def speed(self) -> str:
        return f"{self.num_output_tokens / max(time.monotonic() - self.started, 1e-9):.1f} tokens/s"

    def __str__(self) -> str:
        return (
            f"{self.num_requests} requests, {self.num_errors} errors, {self.num_prompt_tokens} prompt tokens,"
            f" {self.num_output_tokens} output tokens in {time.monotonic() - self.started:.1f} s ({self.speed})"
        )


class BatchRunner:
    """Turns lines of a batch file into answer lines. `answers` maps a url to who answers its bodies.

    Bodies reach `answers` as parsed JSON. What an answer raises becomes its line, except
    `EngineUnavailableError`, after which there is no point in going on.
    """

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self._answers = answers
        self._seen: set[int] = set()  # hashes, as a file may have millions of ids

    async def run(self, lines: Iterator[bytes], look_ahead: int) -> AsyncGenerator[dict[str, Any], None]:
        """Return the answers to `lines`, in order, with at most `look_ahead` of them begun and not yet yielded."""
        whole = (line.removeprefix(BOM) if number == 1 else line for number, line in enumerate(lines, start=1))
        numbered = ((number, line) for number, line in enumerate(whole, start=1) if line.strip())
        begun: deque[asyncio.Task[dict[str, Any]]] = deque()
        try:
            for number, line in numbered:
                begun.append(asyncio.create_task(self._answer(number, line)))
                if len(begun) >= look_ahead:
                    yield await begun.popleft()
            while begun:
                yield await begun.popleft()
        finally:
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)

    async def _answer(self, number: int, line: bytes) -> dict[str, Any]:
        custom_id: str | None = None
        try:
            entry = _parse_line(number, line)
            custom_id = _custom_id(number, entry)
            self._check_unseen(number, custom_id)
            answer = self._choose(number, entry)
        except BadLineError as error:
            return _answer_line(custom_id, error={"code": error.code, "message": str(error)})
        return _answer_line(custom_id, response=await _respond(answer, entry["body"]))

    def _check_unseen(self, number: int, custom_id: str) -> None:
        if hash(custom_id) in self._seen:
            raise BadLineError(f"line {number}: the custom_id {custom_id!r} was used before", "duplicate_custom_id")
        self._seen.add(hash(custom_id))

    def _choose(self, number: int, entry: Mapping[str, Any]) -> Answer:
        if entry.get("method", "POST") != "POST":
            raise BadLineError(f"line {number}: method must be POST, got {entry['method']!r}", "invalid_method")
        url = entry.get("url")
        if not isinstance(url, str) or url not in self._answers:
            raise BadLineError(
                f"line {number}: url must be one of {', '.join(self._answers)}, got {url!r}", "invalid_url"
            )
        if not isinstance(entry.get("body"), dict):
            raise BadLineError(f"line {number}: body must be an object with the request", "invalid_body")
        return self._answers[url]


def main(argv: Sequence[str]) -> int:
    parser = Parser("orcinus generate", "FILE [-o FILE] [OPTIONS]", _DESCRIPTION, _EPILOG)
    parser.add_argument("file", metavar="FILE", help="file of requests, or - for standard input")
    parser.add_argument(
        "-o", "--output", default="-", metavar="FILE", help="file for the answers, or - [default: standard output]"
    )
    parser.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="exit with code 1 where lines had errors; --no-strict: with 0, once all lines have an answer or an error",
    )
    add_settings(parser, groups=("Model", "Engine", "General"), without=("replicas",))
    args = parser.parse(argv)
    settings = settings_from(args)
    configure_logging(settings)
    _check_files(args.file, args.output)
    total = None if args.file == "-" else _count_lines(Path(args.file))
    with _open_input(args.file) as lines:
        totals = asyncio.run(_generate(settings, lines, args.output, total))
    return 1 if args.strict and totals.num_errors else 0


async def _generate(settings: Settings, lines: BinaryIO, target: str, total: int | None) -> Totals:
    """Answer all lines. The target is opened once the model is there, so that a failed start leaves it alone."""
    from tqdm import tqdm

    async with _engine_answers(settings) as (answers, look_ahead):
        totals = Totals()
        interval = 0.2 if sys.stderr.isatty() else 10
        progress = tqdm(total=total, unit="request", mininterval=interval, miniters=1, file=sys.stderr)
        try:
            with _open_output(target) as output:
                lines_out = BatchRunner(answers).run(iter(lines), look_ahead)
                await write_answers(lines_out, output, totals, progress)
        finally:
            progress.close()
            print(totals, file=sys.stderr)
        return totals


async def write_answers(
    answers: AsyncGenerator[dict[str, Any], None], output: BinaryIO, totals: Totals, progress: Progress
) -> None:
    """Write each answer as a whole line when its turn comes, so that an interruption leaves a valid file."""
    async with contextlib.aclosing(answers):
        async for line in answers:
            output.write(msgspec.json.encode(line) + b"\n")
            output.flush()
            totals.count(line)
            progress.set_postfix_str(f"{totals.speed}, {totals.num_errors} errors", refresh=False)
            progress.update(1)


@contextlib.asynccontextmanager
async def _engine_answers(settings: Settings) -> AsyncIterator[tuple[dict[str, Answer], int]]:
    """Run an engine in this process. Gives what answers each url, and how many lines it pays to begin at once."""
    from orcinus.engine.frontend.async_engine import AsyncEngine
    from orcinus.engine.frontend.replica import EngineSpec
    from orcinus.engine.supervision.transport import InProcessTransport

    spec = EngineSpec(settings.engine_config(), partial(InProcessTransport, _build_executor))
    engine = AsyncEngine(settings.model_copy(update=_OFFLINE), engines=[spec])
    engine.start()
    running = asyncio.create_task(engine.run())
    try:
        info = await engine.wait_ready()
        look_ahead = max(_MIN_LOOK_AHEAD, _LOOK_AHEAD_PER_SLOT * info.max_num_seqs)
        yield _answers(engine, settings), look_ahead
    finally:
        await engine.aclose()
        await asyncio.gather(running, return_exceptions=True)


def _build_executor(config: EngineConfig) -> tuple[EngineInfo, Executor]:
    """Load the model in the engine's thread, whose import of torch leaves this one free to read the tokenizer."""
    limit_spinning()
    from orcinus.engine.startup.build import build_executor

    return build_executor(config)


def _answers(engine: "ServingEngine", settings: Settings) -> dict[str, Answer]:
    """Return what answers the bodies of each url."""
    from orcinus.server.context import ServingContext

    context = ServingContext(engine, settings)
    return {operation.path: partial(_answer, operation, context) for operation in batch_operations()}


def batch_operations() -> "list[GenerationOperation]":
    """Return what a line may ask for: what generates in OpenAI's API, whose form the file has, by path."""
    from orcinus.server.errors import speaks_anthropic
    from orcinus.server.operations import OPERATIONS, GenerationOperation

    rows = [
        row
        for row in OPERATIONS
        if isinstance(row, GenerationOperation) and row.is_documented and not speaks_anthropic(row.path)
    ]
    return sorted(rows, key=lambda row: row.path)


async def _answer(operation: "GenerationOperation", context: "ServingContext", body: dict[str, Any]) -> msgspec.Raw:
    from orcinus.server.requests.caller import ANONYMOUS

    generation = await operation.start(context, body, ANONYMOUS)
    return msgspec.Raw(b"".join(await generation.whole()))


async def _respond(answer: Answer, body: dict[str, Any]) -> dict[str, Any]:
    """Return the response to one body, or to what went wrong with it, as HTTP would have given it."""
    from orcinus.server.errors import error_body, kind_of
    from orcinus.server.requests.left_out import collecting_left_out

    request_id = f"req_{uuid.uuid4().hex}"
    try:
        if body.get("stream"):
            raise InvalidRequestError("stream makes no sense in a file of requests", "stream")
        with collecting_left_out(is_lenient=False) as left_out:
            response = await answer(body)
    except EngineUnavailableError:
        raise
    except Exception as error:
        return {"status_code": kind_of(error).status, "request_id": request_id, "body": error_body(error)}
    named = {"left_out": left_out.places} if left_out.places else {}
    return {"status_code": 200, "request_id": request_id, "body": response, **named}


def _parse_line(number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLineError(f"line {number} is not JSON: {error}", "invalid_json") from None
    if not isinstance(entry, dict):
        raise BadLineError(f"line {number} must be a JSON object", "invalid_json")
    return entry


def _custom_id(number: int, entry: Mapping[str, Any]) -> str:
    custom_id = entry.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise BadLineError(f"line {number}: custom_id must be a string that is not empty", "missing_custom_id")
    return custom_id


def _answer_line(
    custom_id: str | None, *, response: Mapping[str, Any] | None = None, error: Mapping[str, str] | None = None
) -> dict[str, Any]:
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }


def _check_files(source: str, target: str) -> None:
    if target != "-" and not Path(target).parent.is_dir():
        raise SettingsError(f"there is no directory {Path(target).parent} to write {target} in")
    if source == "-":
        return
    if not Path(source).is_file():
        raise SettingsError(f"there is no file {source}")
    if target != "-" and Path(target).exists() and Path(target).samefile(source):
        raise SettingsError(f"{source} would be overwritten by its own answers; choose another --output")
    try:
        with Path(source).open("rb") as lines:
            check_encoding(lines.read(_LONGEST_BOM), source)
    except OSError as error:
        raise SettingsError(f"cannot read {source}: {error.strerror}") from None
    except TextFileError as error:
        raise SettingsError(str(error)) from None


def _open_input(source: str) -> contextlib.AbstractContextManager[BinaryIO]:
    return contextlib.nullcontext(sys.stdin.buffer) if source == "-" else Path(source).open("rb")


def _open_output(target: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if target == "-":
        return contextlib.nullcontext(sys.stdout.buffer)
    try:
        return Path(target).open("wb")
    except OSError as error:
        raise SettingsError(f"cannot write {target}: {error.strerror}") from None


def _count_lines(path: Path) -> int:
    """Return the number of requests in the file, for the progress bar."""
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())
