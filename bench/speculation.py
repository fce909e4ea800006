"""What drafts from a request's own text bring, and what they cost where nothing can be guessed.

    python -m bench.speculation [--model out/peers/qwen3-0.6b] [--streams 1,4,32] [--rounds 3] [--tokens 160]
        [--speculation auto,ngram] [--kinds copy,noise]

In process, without HTTP. The model computes and samples as it always does, and then the text that it writes is replaced
by one that is given: a random model copies nothing, and speed does not depend on the weights. Copies, edits of code and
JSON repeat their prompts; prose does now and then, random tokens never. In each round all settings have the same
requests in turn; medians, and the median of the ratios to `off` in the same round.
"""

import argparse
import itertools
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.peers.machine import describe_machine
from orcinus.config.settings import load_settings
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, EngineInfo
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.runner.ngram_drafter import NgramDrafter
from orcinus.engine.sampling.history import TokenHistory
from orcinus.engine.sampling.row import SamplingRow
from orcinus.engine.sampling.sampler import PendingSample, SampledRows, Sampler
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor
from orcinus.server.load.report import markdown_table

_ROOT = Path(__file__).parents[1]
_PROMPT_TOKENS = 400
_MAX_DRAFTS = {"ngram": 8, "auto": 16}  # as the engine has them
_FIRST_TOKEN = 10

Executor = tuple[EngineInfo, ModelRunner]
Job = tuple[list[int], list[int]]
"""A prompt, and the text that comes after it."""


class Writing(Sampler):
    """Chooses tokens, and puts in their place those of the text that each request, known by its seed, is to write."""

    def __init__(self, inner: Sampler) -> None:
        self._inner = inner
        self.texts: dict[int, list[int]] = {}

    def launch(
        self,
        logits: Tensor,
        rows: Sequence[SamplingRow],
        positions: Sequence[int] | NDArray[np.int64],
        history: TokenHistory | None = None,
    ) -> PendingSample:
        assert history is None, "a device that works ahead takes tokens from itself"
        chosen = self._inner.launch(logits, rows, positions)
        places = [(row.seed, int(position)) for row, position in zip(rows, positions, strict=True)]

        def wait() -> SampledRows:
            texts = [(self.texts[seed], position) for seed, position in places]
            token_ids = [text[position] if position < len(text) else 0 for text, position in texts]
            return replace(chosen.wait(), token_ids=token_ids)

        return PendingSample(chosen.tokens, wait)


@dataclass(frozen=True)
class Figures:
    """Counts what a run brought: tokens a second, steps, and drafts."""

    tokens_per_s: float
    num_steps: int
    num_tried: int
    num_accepted: int


def main() -> None:
    options = _arguments()
    values: dict[str, Any] = {"model": options.model, "device": "cpu", "max_num_seqs": max(options.streams)}
    config = load_settings(**values, max_model_len=_PROMPT_TOKENS + options.tokens + 8, enable_prefix_caching=False)
    info, runner = build_executor(config.engine_config())
    print(f"- {describe_machine()}\n- {options.model}, {info.dtype}, {options.tokens} tokens each\n", flush=True)
    writing = Writing(runner._sampler)
    runner._sampler = writing
    rows = []
    for kind, streams in itertools.product(options.kinds, options.streams):
        rows += measure((info, runner), writing, kind, streams, options)
    headings = ["text", "streams", "speculation", "tokens/s", "to off", "least", "most", "tokens a step", "accepted"]
    print("\n" + markdown_table([headings, *rows]))


def _arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m bench.speculation", description=__doc__)
    parser.add_argument("--model", default="out/peers/qwen3-0.6b")
    parser.add_argument("--streams", type=numbers, default=[1, 4, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--speculation", type=lambda text: text.split(","), default=["auto"])
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=[*KINDS])
    return parser.parse_args()


def measure(
    executor: Executor, writing: Writing, kind: str, streams: int, options: argparse.Namespace
) -> list[list[str]]:
    """Return a row for each setting."""
    found: dict[str, list[Figures]] = {name: [] for name in ("off", *options.speculation)}
    for number in range(options.rounds):
        rng = random.Random(f"{kind} {streams} {number}")
        jobs = [KINDS[kind](rng, options.tokens, executor[0].vocab_size) for _ in range(streams)]
        names = list(found)
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(run(executor, writing, name, jobs))
    rows = []
    for name, figures in found.items():
        ratios = [own.tokens_per_s / plain.tokens_per_s for own, plain in zip(figures, found["off"], strict=True)]
        speed = statistics.median(each.tokens_per_s for each in figures)
        num_steps, tried = sum(each.num_steps for each in figures), sum(each.num_tried for each in figures)
        per_step = options.rounds * streams * options.tokens / num_steps / streams
        accepted = f"{sum(each.num_accepted for each in figures)} of {tried}"
        columns = [speed, statistics.median(ratios), min(ratios), max(ratios), per_step]
        rows.append([kind, str(streams), name, *(f"{column:.3g}" for column in columns), accepted])
        print(rows[-1], flush=True)
    return rows


def run(executor: Executor, writing: Writing, speculation: str, jobs: Sequence[Job]) -> Figures:
    """Serve all at once, and time it from when every prompt is computed and every stream has its first tokens."""
    info, runner = executor
    runner.drafter = NgramDrafter(_MAX_DRAFTS[speculation]) if speculation in _MAX_DRAFTS else None
    core = EngineCore(msgspec.structs.replace(info, speculation=speculation), runner)
    writing.texts = {seed: prompt + text for seed, (prompt, text) in enumerate(jobs)}
    for seed, (prompt, text) in enumerate(jobs):
        sampling = SamplingParams(max_tokens=len(text), ignore_eos=True, seed=seed)
        core.add_request(AddRequest(f"r{seed}", prompt, sampling, arrival_time=time.monotonic()))
    missing = {f"r{seed}" for seed in range(len(jobs))}
    began, num_tokens, num_steps, num_tried, num_accepted = 0.0, 0, 0, 0, 0
    while core.has_work:
        outputs = core.step()
        if missing:
            missing -= {delta.request_id for delta in outputs.deltas if delta.token_ids}
            began = time.perf_counter()
            continue
        num_steps += 1
        num_tokens += sum(len(delta.token_ids) for delta in outputs.deltas)
        num_tried += outputs.stats.num_draft_tokens
        num_accepted += outputs.stats.num_accepted_drafts
    return Figures(num_tokens / (time.perf_counter() - began), num_steps, num_tried, num_accepted)


# --- texts --------------------------------------------------------------------------------------------------


def words(text: str) -> list[int]:
    """Return the tokens of a text, about as long as those of models: words with the space before them, signs."""
    return [
        _FIRST_TOKEN + _VOCABULARY.setdefault(word, len(_VOCABULARY)) for word in re.findall(r" ?\w{1,8}|\s+|.", text)
    ]


_VOCABULARY: dict[str, int] = {}


def _part(rng: random.Random, tokens: list[int], count: int) -> list[int]:
    first = rng.randrange(len(tokens) - count)
    return tokens[first : first + count]


def copied(rng: random.Random, num_tokens: int, vocab_size: int) -> Job:
    """A part of the prompt, word for word."""
    prompt = _part(rng, words((_ROOT / "CONTRIBUTING.md").read_text()), _PROMPT_TOKENS)
    return prompt, (prompt[20:] * 2)[:num_tokens]


def edited(rng: random.Random, num_tokens: int, vocab_size: int) -> Job:
    """Code with a name changed in it, and now and then a line that is new."""
    code = words((_ROOT / "engine/scheduler/block_manager.py").read_text())
    prompt = _part(rng, code, _PROMPT_TOKENS)
    common = rng.choice([token for token in set(prompt) if 3 <= prompt.count(token) <= 8])
    text = []
    for token in prompt:
        text.append(vocab_size - 1 if token == common else token)
        if rng.random() < 0.02:
            text += [rng.randrange(_FIRST_TOKEN, vocab_size) for _ in range(8)]
    return prompt, text[:num_tokens]


def records(rng: random.Random, num_tokens: int, vocab_size: int) -> Job:
    """JSON whose keys repeat themselves and whose values stand in the prompt, or are new."""
    names = [f"{rng.choice('BDKLMPRT')}{rng.choice('aeiou')}{rng.randrange(1000)}" for _ in range(60)]
    prompt = words("\n".join(f"{name} {rng.randrange(10_000)} {rng.choice(['open', 'closed'])}" for name in names))
    entries = [
        {
            "customer_name": name,
            "number": rng.randrange(10_000),
            "is_open": rng.random() < 0.5,
            "note": rng.choice(names),
        }
        for name in names
    ]
    return prompt[:_PROMPT_TOKENS], words(json.dumps(entries, indent=1))[:num_tokens]


def prose(rng: random.Random, num_tokens: int, vocab_size: int) -> Job:
    """Text that goes on: what it repeats is what language does."""
    tokens = _part(rng, words((_ROOT / "docs/operations.md").read_text()), _PROMPT_TOKENS + num_tokens)
    return tokens[:_PROMPT_TOKENS], tokens[_PROMPT_TOKENS:]


def noise(rng: random.Random, num_tokens: int, vocab_size: int) -> Job:
    """Nothing that can be guessed."""
    tokens = [rng.randrange(_FIRST_TOKEN, vocab_size) for _ in range(_PROMPT_TOKENS + num_tokens)]
    return tokens[:_PROMPT_TOKENS], tokens[_PROMPT_TOKENS:]


KINDS: dict[str, Callable[[random.Random, int, int], Job]] = {
    "copy": copied,
    "code edit": edited,
    "JSON": records,
    "prose": prose,
    "noise": noise,
}

if __name__ == "__main__":
    main()
