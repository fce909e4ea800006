"""One sitting with a server: finds out what it takes, warms it up, and runs loads on it as the flags say."""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from orcinus.config.version import VERSION
from orcinus.server.load.http_client import HttpClient
from orcinus.server.load.options import describe_sampling, sampling_fields
from orcinus.server.load.prompts import WORDS, LoadItem, PromptShape, Writer, random_items, read_dataset
from orcinus.server.load.run import LoadRun, run_load
from orcinus.server.load.target import Target, check_answers, choose_writer, first_model

_DEFAULT_REQUESTS = 100
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Session:
    """A server that is known to answer, and what it will be asked."""

    target: Target
    writer: Writer
    args: argparse.Namespace

    def items(self, count: int | None, content: str = "") -> list[LoadItem]:
        """The first `count` requests. Random prompts of another `content` are as long and say something else."""
        args, seed = self.args, f"{self.args.seed}"
        if args.dataset is not None:
            return read_dataset(args.dataset, count, args.output_tokens, seed)
        return random_items(self._shape, self.writer, count or _DEFAULT_REQUESTS, seed, content)

    async def run(
        self,
        items: Sequence[LoadItem],
        *,
        name: str = "",
        arrivals: Sequence[float] | None = None,
        max_concurrency: int | None = None,
    ) -> LoadRun:
        """Run a load and show how far it is. All at once, if no arrivals are given."""
        from tqdm import tqdm

        with tqdm(total=len(items), unit="request", desc=name or None, file=sys.stderr) as progress:
            return await run_load(
                self.target,
                items,
                arrivals=arrivals or [0.0] * len(items),
                max_concurrency=max_concurrency,
                on_done=progress.update,
            )

    async def warm_up(self, max_concurrency: int | None) -> None:
        """Run requests that are not counted, with prompts that do not come again."""
        if self.args.warmup:
            items = random_items(self._shape, self.writer, self.args.warmup, f"{self.args.seed}", "warm-up")
            await self.run(items, name="warm-up", max_concurrency=max_concurrency)

    def describe(self) -> str:
        """Say what is asked of which server, and when: without this the numbers mean nothing."""
        args = self.args
        return (
            f"{self.target.model} at {args.base_url}, {args.endpoint}, orcinus bench {VERSION},"
            f" {datetime.now(UTC):%Y-%m-%d}\n"
            f"{self._describe_prompts()}, outputs {args.output_tokens.text}"
            f"{' with ignore_eos' if args.ignore_eos else ''}, {describe_sampling(self.target.sampling)}"
            f", seed {args.seed}"
        )

    @property
    def _shape(self) -> PromptShape:
        return PromptShape(
            prompt_tokens=self.args.prompt_tokens,
            output_tokens=self.args.output_tokens,
            shared_prefix_tokens=self.args.shared_prefix_tokens,
            num_prefixes=self.args.num_prefixes,
        )

    def _describe_prompts(self) -> str:
        args = self.args
        if args.dataset is not None:
            return f"prompts of {args.dataset.name}"
        prefix = f"{args.shared_prefix_tokens} shared + " if args.shared_prefix_tokens else ""
        form = "random words" if self.writer.writes_text else "random token ids"
        return f"prompts {prefix}{args.prompt_tokens.text} tokens ({form})"


async def open_session(client: HttpClient, args: argparse.Namespace) -> Session:
    """Ask the server what has to be known of it. Raises `LoadError` with the reason if it does not answer."""
    model = args.model or await first_model(client)
    target = Target(client, model, args.endpoint, sampling_fields(args), args.ignore_eos)
    if args.dataset is None:
        return Session(target, await choose_writer(target, args.prompt_form, args.vocab_size), args)
    await check_answers(target)
    return Session(target, Writer(WORDS), args)


def client_of(args: argparse.Namespace) -> HttpClient:
    return HttpClient(args.base_url, args.api_key, args.timeout_s, cacert=args.cacert)


def run_on_fast_loop(main: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run`, on uvloop where there is one, and with as many connections as this process may have."""
    _allow_many_connections()
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def _allow_many_connections() -> None:
    """Every request under way is an open file, of which many systems allow 1024 unless asked."""
    with contextlib.suppress(ImportError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
