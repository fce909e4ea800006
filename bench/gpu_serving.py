"""What an engine on a GPU does with whole batches: throughput, what sampling costs, memory, and steps among prompts.

Each function drives `EngineCore` in this process and returns a table in markdown. Used by `bench.gpu_check`. Not yet
run on a GPU; on a CPU it only tries itself out.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, CacheGroup, EngineInfo, Fault, StepPlan, StepResult
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import MAX_LOGPROBS, SamplingParams

GREEDY: dict[str, Any] = {"temperature": 0}
# By what the sampler has to do for each row.
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "temperature": {"temperature": 1.0},
    "top_p 0.9, top_k 50": {"temperature": 1.0, "top_p": 0.9, "top_k": 50},
    "penalties": {"temperature": 1.0, "presence_penalty": 0.5, "repetition_penalty": 1.05},
    "20 log-probabilities": {"temperature": 0, "logprobs": MAX_LOGPROBS},
}
_WARM_UP_TOKENS = 4
_PACED_STEPS = 300
_MIXED_STEPS = 50


@dataclass(frozen=True)
class Engine:
    """Holds a loaded model, and the bytes a second that a copy on its device reads and writes."""

    info: EngineInfo
    runner: ModelRunner
    bandwidth: float


@dataclass
class Run:
    """Holds what was seen of a run; `decode_steps_s` are times from result to result, of steps without prompts."""

    num_tokens: int = 0
    elapsed_s: float = 0.0
    last_first_token_s: float = 0.0
    decode_steps_s: list[float] = field(default_factory=list)
    utilization: float | None = None
    errors: list[str] = field(default_factory=list)


def run(engine: Engine, name: str, count: int, prompt_tokens: int, output_tokens: int, **sampling: Any) -> Run:
    """Run requests that arrive at once and generate as many tokens each."""
    core, seen = EngineCore(engine.info, engine.runner), set()
    names = add(core, requests(engine, name, count, prompt_tokens, output_tokens, **sampling))
    result, started = Run(), time.perf_counter()
    last = started
    while core.has_work:
        step = core.step()
        now = time.perf_counter()
        if step.stats.num_prefill_tokens == 0:
            result.decode_steps_s.append(now - last)
        last = now
        for delta in step.deltas:
            result.num_tokens += len(delta.token_ids)
            if delta.error is not None:
                result.errors.append(delta.error)
            if delta.token_ids and delta.request_id not in seen:
                seen.add(delta.request_id)
                result.last_first_token_s = now - started
    result.elapsed_s = time.perf_counter() - started
    monitor = engine.runner.device_monitor
    result.utilization = None if monitor is None else monitor.sample()[0]
    release(engine, names)
    return result


def add(core: EngineCore, new: Iterable[AddRequest]) -> list[str]:
    """Add the requests; returns their names."""
    names = []
    for request in new:
        core.add_request(request)
        names.append(request.request_id)
    return names


def release(engine: Engine, names: list[str]) -> None:
    """Let the runner forget the requests of a core that is dropped: the next one plans with all of its rows."""
    engine.runner.execute(StepPlan(scheduled=[], released=names))


def requests(
    engine: Engine, name: str, count: int, prompt_tokens: int, output_tokens: int, **sampling: Any
) -> Iterator[AddRequest]:
    rng = random.Random(f"{name} {count}")
    for i in range(count):
        yield AddRequest(
            request_id=f"{name} {count} {output_tokens} {i}",
            prompt_token_ids=[rng.randrange(engine.info.vocab_size) for _ in range(prompt_tokens)],
            sampling=SamplingParams(max_tokens=output_tokens, ignore_eos=True, seed=i, **sampling),
            arrival_time=0.0,
        )


def throughput(engine: Engine, batch_sizes: Iterable[int], prompt_tokens: int, output_tokens: int) -> str:
    """Return tokens per second with recorded steps, where there are any, and with every operation launched."""
    lines = [
        "| streams | CUDA graphs | tokens/s | tokens/s each | last first token, s | decode step, ms | roofline, ms "
        "| device busy |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    graphs = engine.runner.graphs
    for size in batch_sizes:
        for tried in [graphs, None] if graphs is not None else [None]:
            engine.runner.graphs = tried
            run(engine, "warm-up", size, prompt_tokens, _WARM_UP_TOKENS, **GREEDY)
            got = run(engine, "throughput", size, prompt_tokens, output_tokens, **GREEDY)
            busy = "–" if got.utilization is None else f"{got.utilization:.0%}"
            roofline = roofline_ms(engine.info, size, prompt_tokens + output_tokens / 2, engine.bandwidth)
            lines.append(
                f"| {size} | {'on' if tried is not None and tried.sizes else 'off'} "
                f"| {got.num_tokens / got.elapsed_s:.0f} | {got.num_tokens / got.elapsed_s / size:.1f} "
                f"| {got.last_first_token_s:.2f} | {1000 * statistics.median(got.decode_steps_s):.2f} "
                f"| {roofline:.2f} | {busy} |"
            )
    engine.runner.graphs = graphs
    return "\n".join(lines) + "\n"


def roofline_ms(info: EngineInfo, batch_size: int, context: float, bandwidth: float) -> float:
    """Return the time to read all weights and, for each sequence, its state and the keys and values that are seen.

    A layer with a window sees the last of the `context` tokens alone. Layers are taken to be of one shape.
    """
    groups = info.cache_groups or [CacheGroup(num_blocks=info.num_kv_blocks, num_layers=1)]
    num_layer_tokens = info.block_size * sum(group.num_blocks * group.num_layers for group in groups)
    num_seen = sum(group.num_layers * min(context, group.window or context) for group in groups)
    block_bytes = info.kv_cache_bytes - (info.max_num_seqs + 1) * info.state_bytes
    sequence_bytes = num_seen * block_bytes / num_layer_tokens + info.state_bytes
    return 1000 * (info.weight_bytes + batch_size * sequence_bytes) / bandwidth


def sampling(engine: Engine, batch_sizes: Iterable[int], prompt_tokens: int, output_tokens: int) -> str:
    """Return the median decode step by what the sampler has to do."""
    sizes = list(batch_sizes)
    lines = [f"| sampling | {' | '.join(f'{size} streams, ms' for size in sizes)} |", "|---|" + "---:|" * len(sizes)]
    for name, parameters in SAMPLINGS.items():
        steps = []
        for size in sizes:
            run(engine, "warm-up", size, prompt_tokens, _WARM_UP_TOKENS, **parameters)
            got = run(engine, f"sampling {name}", size, prompt_tokens, output_tokens, **parameters)
            steps.append(f"{1000 * statistics.median(got.decode_steps_s):.2f}")
        lines.append(f"| {name} | {' | '.join(steps)} |")
    return "\n".join(lines) + "\n"


def memory(engine: Engine) -> str:
    """Return what start-up took, and how much is left when every slot runs and samples with everything on.

    Raises `RuntimeError` if a request ended with an error, as it does for want of memory.
    """
    info, device = engine.info, torch.device("cuda")
    if info.device != "cuda":
        return "Only on a GPU.\n"
    torch.cuda.reset_peak_memory_stats(device)
    free_before, total = torch.cuda.mem_get_info(device)
    prompt_tokens = max(1, min(info.max_model_len - 8, 2 * info.max_num_batched_tokens // info.max_num_seqs))
    parameters = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "logprobs": MAX_LOGPROBS}
    got = run(engine, "full", info.max_num_seqs, prompt_tokens, 8, **parameters)
    got.errors += run(engine, "longest", 1, info.max_model_len - 1, 1, **parameters).errors
    if got.errors:
        raise RuntimeError(f"{len(got.errors)} requests failed, first: {got.errors[0]}")
    free_after, _ = torch.cuda.mem_get_info(device)
    sizes = {
        "device": total,
        "weights": info.weight_bytes,
        "KV cache": info.kv_cache_bytes,
        "free after the start": free_before,
        "free after full steps": free_after,
        "torch's peak in full steps": torch.cuda.max_memory_allocated(device),
        "torch's reserve": torch.cuda.memory_reserved(device),
    }
    lines = ["| | GiB |", "|---|---:|", *(f"| {name} | {size / 2**30:.2f} |" for name, size in sizes.items())]
    return "\n".join(lines) + "\n"


class LaunchTimer:
    """Stands in for the runner, and notes how long the host takes to launch each step, by its number of tokens."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.device_monitor = runner.device_monitor
        self.runs_ahead = runner.runs_ahead
        self.launches: list[tuple[int, float]] = []

    def prepare(self, sampling: SamplingParams) -> Future[Any] | None:
        return self._runner.prepare(sampling)

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        started = time.perf_counter()
        wait = self._runner.launch(plan)
        self.launches.append((plan.num_tokens, time.perf_counter() - started))
        return wait

    def diagnose(self, error: Exception) -> Fault:
        return self._runner.diagnose(error)

    def warm_up(self) -> None:
        self._runner.warm_up()


def mixed_steps(engine: Engine, num_streams: int, chunks: Iterable[int]) -> str:
    """Return how long steps of streams alone and beside a prompt of so many tokens take, and the host to launch them.

    Where launching takes as long as the step, the device waits for the host.
    """
    lines = ["| tokens of a prompt | step p50, ms | its launch p50, ms |", "|---:|---:|---:|"]
    for chunk in [0, *chunks]:
        steps_s, launches_s = _beside_chunks(engine, num_streams, chunk)
        figures = [f"{1000 * statistics.median(times):.2f}" if times else "–" for times in (steps_s, launches_s)]
        lines.append(f"| {chunk} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _beside_chunks(engine: Engine, num_streams: int, chunk: int) -> tuple[list[float], list[float]]:
    """Return times of steps and of launches in which a prompt of so many tokens is computed at once."""
    timer = LaunchTimer(engine.runner)
    core = EngineCore(engine.info, timer)
    length = min(engine.info.max_model_len - 8, 4 * _MIXED_STEPS)
    names = add(core, requests(engine, f"mixed {chunk}", num_streams, 8, length, **GREEDY))
    prompts = requests(engine, f"mixed {chunk} prompt", _MIXED_STEPS, max(1, chunk), 1, **GREEDY)
    steps_s: list[float] = []
    last = time.perf_counter()
    for number in range(2 * _MIXED_STEPS):
        if chunk and number % 2 and core.scheduler.num_running <= num_streams:
            names += add(core, [next(prompts)])
        step = core.step()
        now = time.perf_counter()
        if number > num_streams and (step.stats.num_prefill_tokens >= chunk if chunk else True):
            steps_s.append(now - last)
        last = now
    release(engine, names)
    launches_s = [elapsed for num_tokens, elapsed in timer.launches if num_tokens >= num_streams + chunk]
    return steps_s, launches_s


def pacing(engine: Engine, num_streams: int, targets_ms: Sequence[float | None]) -> str:
    """Return the time between tokens of streams beside which a long prompt is always being computed."""
    lines = [
        "| objective, ms | step p50, ms | p95, ms | p99, ms | longest, ms | prompt tokens/s | tokens/s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for target_ms in targets_ms:
        core = EngineCore(engine.info, engine.runner, target_itl_ms=target_ms)
        steps_s, num_prompt, num_decode = _among_prompts(engine, core, num_streams, f"pacing {target_ms}")
        times_ms = sorted(1000 * step for step in steps_s)
        p50, p95, p99 = (times_ms[int(share * (len(times_ms) - 1))] for share in (0.5, 0.95, 0.99))
        lines.append(
            f"| {'none' if target_ms is None else f'{target_ms:.0f}'} | {p50:.1f} | {p95:.1f} | {p99:.1f} "
            f"| {times_ms[-1]:.1f} | {num_prompt / sum(steps_s):.0f} | {num_decode / sum(steps_s):.0f} |"
        )
    return "\n".join(lines) + "\n"


def _among_prompts(engine: Engine, core: EngineCore, num_streams: int, name: str) -> tuple[list[float], int, int]:
    """Return the times of steps while prompts come, and the tokens of prompts and of streams that were computed."""
    room = engine.info.max_model_len
    longest = min(room - 8, 2 * _PACED_STEPS)
    names = add(core, requests(engine, f"{name} stream", num_streams, 8, longest, **GREEDY))
    flowing: set[str] = set()
    while len(flowing) < num_streams:
        step = core.step()
        flowing |= {delta.request_id for delta in step.deltas if delta.token_ids}
    arrivals = requests(engine, f"{name} prompt", _PACED_STEPS, max(1, min(2048, room // 2)), 1, **GREEDY)
    steps_s: list[float] = []
    num_prompt = num_decode = 0
    last = time.perf_counter()
    while len(steps_s) < _PACED_STEPS and core.has_work:
        if step.stats.num_waiting == 0 and step.stats.num_running <= num_streams:
            names += add(core, [next(arrivals)])
        step = core.step()
        now = time.perf_counter()
        steps_s.append(now - last)
        last = now
        num_prompt += step.stats.num_prefill_tokens
        num_decode += step.stats.num_decode_tokens
    release(engine, names)
    return steps_s, num_prompt, num_decode
