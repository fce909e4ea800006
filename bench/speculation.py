"""What drafts from texts and from a model's MTP head bring, and what they cost where nothing can be guessed.

    python -m bench.speculation [--model out/peers/qwen3-0.6b] [--streams 1,4,32] [--rounds 3] [--tokens 160]
        [--speculation auto,ngram] [--kinds copy,noise]
    python -m bench.speculation --model DIRECTORY --speculation mtp --kinds own

In process, without HTTP. The model computes and samples as it always does, and then the text that it writes is replaced
by one that is given: a random model copies nothing, and speed does not depend on the weights. Copies, edits of code and
JSON repeat their prompts; prose does now and then, random tokens never; "again" is prose that was written before with
one token in twenty another one. "own" is what the model itself writes, greedily, after a part of our documentation: a
head's guesses (mtp) are right about that alone, and as often as the checkpoint's head is good. The same requests are
served with drafts and without at the same time, a step of one and a step of the other in turn, so that what else the
machine does meets both alike, and counted while all of them run; medians over rounds.
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

from bench.engine_threads import restart_as_the_engine
from bench.peers.machine import describe_machine
from orcinus.config.engine_config import Speculation
from orcinus.config.settings import load_settings
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, EngineInfo, HeadUse, NewRequest, StepPlan, StepResult
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.runner.mtp_drafter import MtpDrafter
from orcinus.engine.sampling.history import TokenHistory
from orcinus.engine.sampling.row import SamplingRow
from orcinus.engine.sampling.sampler import PendingSample, SampledRows, Sampler
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor, make_drafter
from orcinus.engine.text.tokenizer import Tokenizer
from orcinus.server.load.report import markdown_table

_ROOT = Path(__file__).parents[1]
_PROMPT_TOKENS = 400
_FIRST_TOKEN = 10
_OWN = "own"

Executor = tuple[EngineInfo, ModelRunner]
Job = tuple[list[int], list[int]]
"""A prompt, and the text that comes after it."""


class Writing(Sampler):
    """Chooses tokens, and puts in their place those of the text that each request, known by its seed, is to write.

    Without texts, requests get what was chosen.
    """

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

        if not self.texts:
            return chosen

        def wait() -> SampledRows:
            texts = [(self.texts[seed], position) for seed, position in places]
            token_ids = [text[position] if position < len(text) else 0 for text, position in texts]
            return replace(chosen.wait(), token_ids=token_ids)

        return PendingSample(chosen.tokens, wait)


@dataclass
class Figures:
    """Counts what one side brought, and the seconds that its steps took: on the clock, and of processor time."""

    num_tokens: int = 0
    num_steps: int = 0
    num_draft_steps: int = 0
    num_head_steps: int = 0
    num_tried: int = 0
    num_accepted: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def tokens_per_cpu_s(self) -> float:
        return self.num_tokens / self.cpu_s


class HalfOfBlocks:
    """Runs the plans of a core that has half of the cache's blocks, in each group those from `firsts` on."""

    def __init__(self, runner: ModelRunner, firsts: Sequence[int]) -> None:
        self.device_monitor = runner.device_monitor
        self.runs_ahead = runner.runs_ahead
        self.prepare, self.diagnose, self.warm_up = runner.prepare, runner.diagnose, runner.warm_up
        self.last_head: HeadUse = "rests"
        self._runner = runner
        self._firsts = firsts

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        self.last_head = plan.head
        scheduled = [
            msgspec.structs.replace(item, new_block_ids=[*map(self._own, self._firsts, item.new_block_ids)])
            for item in plan.scheduled
        ]
        return self._runner.launch(msgspec.structs.replace(plan, scheduled=scheduled))

    @staticmethod
    def _own(first: int, block_ids: list[int]) -> list[int]:
        return [first + block_id for block_id in block_ids]


class Side:
    """Serves requests with one setting. Counted are steps beyond the prompts while all of them run."""

    def __init__(self, executor: Executor, speculation: Speculation, jobs: Sequence[Job], temperature: float) -> None:
        info, self._runner = executor
        self._drafter = make_drafter(speculation, self._runner._model)
        halves = [group.num_blocks // 2 for group in info.cache_groups]
        groups = [
            msgspec.structs.replace(group, num_blocks=half)
            for group, half in zip(info.cache_groups, halves, strict=True)
        ]
        info = msgspec.structs.replace(info, speculation=speculation, cache_groups=groups)
        firsts = [0] * len(halves) if speculation == "off" else halves
        self._blocks = HalfOfBlocks(self._runner, firsts)
        self.core = EngineCore(info, self._blocks)
        self.figures = Figures()
        for seed, (prompt, text) in enumerate(jobs):
            sampling = SamplingParams(max_tokens=len(text), ignore_eos=True, seed=seed, temperature=temperature)
            self.core.add_request(AddRequest(f"{speculation}{seed}", prompt, sampling, arrival_time=time.monotonic()))
        self._missing = {f"{speculation}{seed}" for seed in range(len(jobs))}  # those without a token
        self._is_full = True  # no request has ended

    def note_earlier(self, rng: random.Random, jobs: Sequence[Job], vocab_size: int) -> None:
        """Let the drafter see much the same answers."""
        assert self._drafter is not None
        for i, (prompt, text) in enumerate(jobs):
            other = [rng.randrange(_FIRST_TOKEN, vocab_size) if rng.random() < 0.05 else token for token in text]
            self._drafter.begin(NewRequest(f"before{i}", prompt, len(prompt), SamplingParams()))
            self._drafter.take_in({f"before{i}": other})
            self._drafter.release(f"before{i}")

    def has_all_prompts(self) -> bool:
        """Run a step, uncounted, while there is a prompt to compute."""
        if self._missing:
            self._runner.drafter = self._drafter
            self._missing -= {delta.request_id for delta in self.core.step().deltas if delta.token_ids}
        return not self._missing

    def step(self) -> None:
        if not self.core.has_work:
            return
        self._runner.drafter = self._drafter
        began, cpu_began = time.perf_counter(), time.thread_time()
        outputs = self.core.step()
        if not self._is_full:
            return
        self._is_full = not any(delta.finish_reason for delta in outputs.deltas)
        self.figures.cpu_s += time.thread_time() - cpu_began
        self.figures.seconds += time.perf_counter() - began
        self.figures.num_steps += 1
        self.figures.num_draft_steps += outputs.stats.num_draft_tokens > 0
        self.figures.num_head_steps += self._blocks.last_head == "guesses" and isinstance(self._drafter, MtpDrafter)
        self.figures.num_tokens += sum(len(delta.token_ids) for delta in outputs.deltas)
        self.figures.num_tried += outputs.stats.num_draft_tokens
        self.figures.num_accepted += outputs.stats.num_accepted_drafts


def main() -> None:
    restart_as_the_engine()
    options = _arguments()
    values: dict[str, Any] = {"model": options.model, "device": "cpu", "max_num_seqs": 2 * max(options.streams)}
    values["speculation"] = "mtp" if "mtp" in options.speculation else "auto"  # which load a head
    config = load_settings(**values, max_model_len=_PROMPT_TOKENS + options.tokens + 8, enable_prefix_caching=False)
    info, runner = build_executor(config.engine_config())
    print(f"- {describe_machine()}\n- {options.model}, {info.dtype}, {options.tokens} tokens each\n", flush=True)
    writing = Writing(runner._sampler)
    runner._sampler = writing
    rows = []
    for kind, streams in itertools.product(options.kinds, options.streams):
        rows += measure((info, runner), writing, kind, streams, options)
    headings = ["text", "streams", "speculation", "off, tokens/s", "tokens/s", "to off", "least", "most"]
    headings += ["to off, by processor time", "tokens a step, to off", "steps", "with drafts", "with head", "accepted"]
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
    rows = []
    for name in options.speculation:
        rounds = []
        for number in range(options.rounds):
            rng = random.Random(f"{kind} {streams} {number}")
            if kind == _OWN:
                jobs = [own_text(rng, options.tokens, options.model) for _ in range(streams)]
            else:
                jobs = [KINDS[kind](rng, options.tokens, executor[0].vocab_size) for _ in range(streams)]
            rounds.append(race(executor, writing, name, jobs, kind))
        rows.append([kind, str(streams), name, *summary(rounds)])
        print(rows[-1], flush=True)
    return rows


def summary(rounds: Sequence[tuple[Figures, Figures]]) -> list[str]:
    """Return the columns of a row: medians over rounds of a setting, and of its ratios to the same without drafts."""
    ratios = [own.tokens_per_s / plain.tokens_per_s for plain, own in rounds]
    cpu_ratios = [own.tokens_per_cpu_s / plain.tokens_per_cpu_s for plain, own in rounds]
    columns = [
        statistics.median(plain.tokens_per_s for plain, _ in rounds),
        statistics.median(own.tokens_per_s for _, own in rounds),
        *(statistics.median(ratios), min(ratios), max(ratios), statistics.median(cpu_ratios)),
        statistics.median(
            (own.num_tokens / own.num_steps) / (plain.num_tokens / plain.num_steps) for plain, own in rounds
        ),
    ]
    counts = [
        (sum(own.num_draft_steps for _, own in rounds), sum(own.num_head_steps for _, own in rounds)),
        (sum(own.num_accepted for _, own in rounds), sum(own.num_tried for _, own in rounds)),
    ]
    num_steps = sum(own.num_steps for _, own in rounds)
    (drafting, with_head), (accepted, tried) = counts
    return [
        *(f"{column:.3g}" for column in columns),
        f"{num_steps}",
        f"{drafting}",
        f"{with_head}",
        f"{accepted} of {tried}",
    ]


def race(
    executor: Executor, writing: Writing, speculation: Speculation, jobs: Sequence[Job], kind: str
) -> tuple[Figures, Figures]:
    """Serve the same requests without drafts and with them, a step of one and a step of the other in turn.

    Whatever else the machine does meets both alike.
    """
    is_own = kind == _OWN
    writing.texts = {} if is_own else {seed: prompt + text for seed, (prompt, text) in enumerate(jobs)}
    plain, own = (Side(executor, name, jobs, 0.0 if is_own else 1.0) for name in ("off", speculation))
    if kind == "again":
        own.note_earlier(random.Random(len(jobs)), jobs, executor[0].vocab_size)
    while not all([plain.has_all_prompts(), own.has_all_prompts()]):
        pass
    sides = [plain, own]
    while plain.core.has_work or own.core.has_work:
        for side in sides:
            side.step()
        sides.reverse()
    executor[1].drafter = None
    executor[1].execute(StepPlan([], released=[*executor[1]._requests]))
    return plain.figures, own.figures


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


def own_text(rng: random.Random, num_tokens: int, model: str) -> Job:
    """A part of our documentation, which the model goes on with as it likes."""
    tokens = Tokenizer.load(model).encode((_ROOT / "docs/operations.md").read_text())
    return _part(rng, tokens, _PROMPT_TOKENS), [0] * num_tokens


KINDS: dict[str, Callable[[random.Random, int, int], Job]] = {
    "copy": copied,
    "code edit": edited,
    "JSON": records,
    "prose": prose,
    "again": prose,
    "noise": noise,
}

if __name__ == "__main__":
    main()
