"""Counts what drafts from texts bring, without a model: steps take what they are said to, by a clock of its own.

    python -m bench.speculation_counts [--kinds JSON,copy] [--streams 1,4] [--row 0.06] [--tokens 160]

Scheduler, policy and drafter are the engine's, texts those of `bench.speculation`. A step of one request takes 1, each
request beside it 0.04 more, each draft `--row` more. So the counts are the same on every machine, however busy. What
comes while all of them run is counted.
"""

import argparse
import itertools
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec

from bench.simulation.traffic import VirtualClock, engine_info
from bench.speculation import KINDS, Job
from orcinus.config.engine_config import Speculation
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, Fault, Proposal, StepPlan, StepResult
from orcinus.engine.platform.device import DeviceMonitor
from orcinus.engine.runner.drafts import num_accepted
from orcinus.engine.runner.past_answers import PastAnswers
from orcinus.engine.runner.text_drafter import OwnText, TextDrafter
from orcinus.engine.sampling_params import SamplingParams
from orcinus.server.load.report import markdown_table

_REQUEST_S = 0.04
_MAX_DRAFTS = 16
_STEP_TOKENS = 1 << 16
_ROUNDS = 3
_VOCAB_SIZE = 150_000


@dataclass
class Writer:
    """Writes given texts, by request; proposes drafts as the runner does."""

    texts: dict[str, list[int]]
    row_s: float
    drafter: TextDrafter | None
    clock: VirtualClock = field(default_factory=VirtualClock)
    runs_ahead: bool = False
    device_monitor: DeviceMonitor | None = None

    def prepare(self, sampling: SamplingParams) -> Future[Any] | None:
        return None

    def diagnose(self, error: Exception) -> Fault:
        raise error

    def warm_up(self) -> None:
        """Nothing is loaded."""

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        num_drafts = sum(len(item.draft_token_ids) for item in plan.scheduled)
        self.clock.now += 1 + _REQUEST_S * (len(plan.scheduled) - 1) + self.row_s * num_drafts
        tokens = {}
        for item in plan.scheduled:
            if item.num_samples:
                first = item.end - len(item.draft_token_ids)
                sampled = (self.texts[item.request_id] + [0] * item.num_samples)[first : first + item.num_samples]
                count = num_accepted(item.draft_token_ids, sampled, [True] * len(sampled))
                tokens[item.request_id] = sampled[:count]
        drafts = {} if self.drafter is None else self._drafts(self.drafter, plan, tokens)
        return lambda: StepResult(sampled_token_ids=tokens, drafts=drafts)

    @staticmethod
    def _drafts(drafter: TextDrafter, plan: StepPlan, tokens: dict[str, list[int]]) -> dict[str, Proposal]:
        for request_id in plan.released:
            drafter.release(request_id)
        for new in plan.new_requests:
            drafter.begin(new)
        drafter.take_in(tokens)
        return drafter.propose([*tokens]) if plan.wants_drafts else {}


@dataclass
class Counts:
    """Tells what requests took from their first tokens on, while all of them ran."""

    seconds: float = 0.0
    num_tokens: int = 0
    num_steps: int = 0
    num_draft_steps: int = 0
    num_tried: int = 0
    num_accepted: int = 0

    def add(self, other: "Counts") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


def serve(jobs: Sequence[Job], speculation: Speculation, row_s: float) -> Counts:
    """Serve all jobs at once."""
    drafter = None if speculation == "off" else TextDrafter([OwnText(), PastAnswers()], _MAX_DRAFTS)
    writer = Writer({f"r{i}": prompt + text for i, (prompt, text) in enumerate(jobs)}, row_s, drafter)
    info = engine_info(max_num_seqs=len(jobs), max_num_batched_tokens=_STEP_TOKENS)
    core = EngineCore(msgspec.structs.replace(info, speculation=speculation), writer, clock=writer.clock)
    for i, (prompt, text) in enumerate(jobs):
        sampling = SamplingParams(max_tokens=len(text), ignore_eos=True)
        core.add_request(AddRequest(f"r{i}", prompt, sampling, arrival_time=0.0))
    missing = {*writer.texts}
    while missing:
        missing -= {delta.request_id for delta in core.step().deltas if delta.token_ids}
    counts, began, is_full = Counts(), writer.clock.now, True
    while is_full:
        outputs = core.step()
        is_full = not any(delta.finish_reason for delta in outputs.deltas)
        stats = outputs.stats
        counts.num_steps += 1
        counts.num_tokens += sum(len(delta.token_ids) for delta in outputs.deltas)
        counts.num_draft_steps += stats.num_draft_tokens > 0
        counts.num_tried += stats.num_draft_tokens
        counts.num_accepted += stats.num_accepted_drafts
    counts.seconds = writer.clock.now - began
    return counts


def main() -> None:
    options = _arguments()
    rows = [["text", "streams", "tokens/s, to off", "tokens a step, to off", "steps", "with drafts", "accepted"]]
    for kind, streams in itertools.product(options.kinds, options.streams):
        plain, own = Counts(), Counts()
        for number in range(_ROUNDS):
            rng = random.Random(f"{kind} {streams} {number}")
            jobs = [KINDS[kind](rng, options.tokens, _VOCAB_SIZE) for _ in range(streams)]
            plain.add(serve(jobs, "off", options.row))
            own.add(serve(jobs, "auto", options.row))
        gain = own.num_tokens / plain.num_tokens
        ratios = [f"{gain * plain.seconds / own.seconds:.2f}", f"{gain * plain.num_steps / own.num_steps:.2f}"]
        counts = [f"{own.num_steps}", f"{own.num_draft_steps}", f"{own.num_accepted} of {own.num_tried}"]
        rows.append([kind, str(streams), *ratios, *counts])
    print(markdown_table(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speculation_counts", description=__doc__)
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=["copy", "code edit", "JSON", "prose"])
    parser.add_argument("--streams", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4])
    parser.add_argument("--row", type=float, default=0.06)
    parser.add_argument("--tokens", type=int, default=160)
    return parser.parse_args()


if __name__ == "__main__":
    main()
