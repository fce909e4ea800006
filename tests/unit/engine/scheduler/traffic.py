"""Traffic on a core whose steps take what a function says, on a virtual clock: latencies without a model.

python -m tests.unit.engine.scheduler.traffic

prints the table of docs/decisions/0014-prompt-chunks-from-measured-step-times.md
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.simulation.traffic import Unlimited, VirtualClock
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, EngineInfo, StepPlan, StepResult
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.scheduler.prefill_budget import PrefillBudget
from tests.unit.engine.fakes import Synchronous
from tests.unit.engine.scheduler.simulator import engine_info

StepCost = Callable[[int, int], float]
"""(decodes, prompt tokens) -> seconds."""


def cpu_step_s(num_decodes: int, num_prompt_tokens: int) -> float:
    """As a model of 0.6 B parameters has it on two cores: 16 rows come with the weights, each one more costs."""
    return 0.03 + 0.0016 * max(0, num_decodes + num_prompt_tokens - 16)


def gpu_step_s(num_decodes: int, num_prompt_tokens: int) -> float:
    """As on a GPU: the first two hundred rows are free, and more cost little."""
    return 0.008 + 0.00001 * max(0, num_decodes + num_prompt_tokens - 200)


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    num_prompt_tokens: int
    num_output_tokens: int


class CostedExecutor(Synchronous):
    """Says 1 to everybody, and takes its time."""

    def __init__(self, clock: VirtualClock, step_cost: StepCost) -> None:
        self.plans: list[StepPlan] = []
        self._clock = clock
        self._step_cost = step_cost

    def prepare(self, sampling: SamplingParams) -> None:
        """Everything is at hand."""

    def execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        num_decodes = sum(item.num_tokens == 1 for item in plan.scheduled)
        self._clock.now += self._step_cost(num_decodes, plan.num_tokens - num_decodes)
        return StepResult(sampled_token_ids={item.request_id: [1] for item in plan.scheduled if item.num_samples})


@dataclass(slots=True)
class Outcome:
    """Tells what the requests saw. Times in seconds."""

    num_tokens: int = 0
    duration_s: float = 0.0
    max_running: int = 0
    num_preemptions: int = 0
    first_token_s: dict[str, float] = field(default_factory=dict)
    between_tokens_s: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.duration_s

    def between_tokens(self, percent: int) -> float:
        """A percentile of the time between two tokens of a request."""
        ordered = sorted(self.between_tokens_s)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


class Traffic:
    """Runs arrivals through a core, and sees the tokens leave."""

    def __init__(
        self,
        step_cost: StepCost = cpu_step_s,
        *,
        target_itl_ms: float | None = None,
        target_ttft_ms: float = 500.0,
        **info: object,
    ) -> None:
        self.clock = VirtualClock()
        self.executor = CostedExecutor(self.clock, step_cost)
        self.core = EngineCore(
            server_info(**info),
            self.executor,
            target_itl_ms=target_itl_ms,
            target_ttft_ms=target_ttft_ms,
            clock=self.clock,
        )
        self._last_token_at: dict[str, float] = {}

    def run(self, arrivals: Sequence[Arrival], until_s: float = float("inf")) -> Outcome:
        """Serve them all, or until it is so late."""
        outcome, started = Outcome(), self.clock.now
        coming = sorted(arrivals, key=lambda arrival: arrival.at_s, reverse=True)
        while (coming or self.core.has_work) and self.clock.now < until_s:
            if not self.core.has_work:
                self.clock.now = max(self.clock.now, coming[-1].at_s)
            self.clock.now += self.core.wait_time_s() or 0.0
            while coming and coming[-1].at_s <= self.clock.now:
                self._add(coming.pop(), len(coming))
            self._step(outcome)
        outcome.duration_s = self.clock.now - started
        return outcome

    def _add(self, arrival: Arrival, number: int) -> None:
        name = f"r{number}"
        self._last_token_at[name] = arrival.at_s
        sampling = SamplingParams(max_tokens=arrival.num_output_tokens, ignore_eos=True)
        prompt = [number + 2] * arrival.num_prompt_tokens
        added = AddRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, arrival_time=arrival.at_s)
        self.core.add_request(added)

    def _step(self, outcome: Outcome) -> None:
        num_steps = len(self.executor.plans)
        outputs = self.core.step()
        assert len(self.executor.plans) > num_steps, "there is work, and nothing runs"
        outcome.max_running = max(outcome.max_running, outputs.stats.num_running)
        outcome.num_preemptions += outputs.stats.num_preemptions
        for delta in outputs.deltas:
            waited_s = self.clock.now - self._last_token_at[delta.request_id]
            self._last_token_at[delta.request_id] = self.clock.now
            outcome.num_tokens += len(delta.token_ids)
            if delta.queue_time_s is not None:
                outcome.first_token_s[delta.request_id] = waited_s
            else:
                outcome.between_tokens_s.append(waited_s)


def server_info(**changes: object) -> EngineInfo:
    """A CPU server as it comes, with more blocks than anybody needs."""
    defaults: dict[str, object] = {
        "max_model_len": 4096,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 512,
        "num_kv_blocks": 4096,
        "block_size": 32,
        "eos_token_ids": [],
    }
    return engine_info(**(defaults | changes))


def streams_with_long_prompts(num_streams: int = 16, every_s: float = 2.0, num_prompts: int = 20) -> list[Arrival]:
    """Streams that decode for at least 45 seconds, and a prompt of 1,000 tokens every now and then."""
    streams = [Arrival(0.0, 32, 2_000) for _ in range(num_streams)]
    return streams + [Arrival(5.0 + every_s * number, 1_000, 16) for number in range(num_prompts)]


def burst(num_requests: int = 32, num_tokens: int = 128) -> list[Arrival]:
    return [Arrival(0.0, num_tokens, num_tokens) for _ in range(num_requests)]


def skewed(num_requests: int = 64, seed: int = 0) -> list[Arrival]:
    """All at once: prompts of 32 to 128 tokens, outputs of 8 to 256, most of them short."""
    rng = random.Random(seed)
    output_lengths = [min(256, max(8, round(rng.expovariate(1 / 64)))) for _ in range(num_requests)]
    return [Arrival(0.0, rng.randint(32, 128), length) for length in output_lengths]


LOADS: dict[str, tuple[list[Arrival], int]] = {
    "16 streams, 1,000 tokens every 2 s": (streams_with_long_prompts(), 32),
    "16 streams, 1,000 tokens every 4 s": (streams_with_long_prompts(every_s=4.0, num_prompts=10), 32),
    "16 streams, 1,000 tokens every 8 s": (streams_with_long_prompts(every_s=8.0, num_prompts=5), 32),
    "32 x 128 + 128 at once, 32 slots": (burst(), 32),
    "64 skewed at once, 16 slots": (skewed(), 16),
}


def main() -> None:
    print("| load | objective | tokens/s | TTFT, mean | ITL p50 | p99 | max |\n|---|---|---:|---:|---:|---:|---:|")
    for name, (arrivals, num_slots) in LOADS.items():
        for label, budget in budgets().items():
            traffic = Traffic(max_num_seqs=num_slots)
            traffic.core.scheduler._prefill_budget = budget
            until_s = 45.0 if "streams" in name else float("inf")
            print(row(f"{name} | {label}", traffic.run(arrivals, until_s)))


def budgets() -> dict[str, PrefillBudget]:
    return {
        "(512 tokens)": Unlimited(),
        "–": PrefillBudget(),
        "100 ms": PrefillBudget(0.1),
        "45 ms": PrefillBudget(0.045),
    }


def row(label: str, outcome: Outcome) -> str:
    ttft_s = sum(outcome.first_token_s.values()) / len(outcome.first_token_s)
    itl_ms = [1000 * outcome.between_tokens(percent) for percent in (50, 99, 100)]
    shown = " | ".join(f"{value:.0f} ms" for value in itl_ms)
    return f"| {label} | {outcome.tokens_per_s:.0f} | {ttft_s:.1f} s | {shown} |"


if __name__ == "__main__":
    main()
