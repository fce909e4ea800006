"""Checks this engine on a GPU, from the repository alone: the truth tests, then attention, then throughput.

    python -m bench.gpu_check [--output FILE] [--model DIR] [--batch-sizes 1,8,32,64,128,256]

Weights are random, in the shape of Qwen3-0.6B unless a model is given: speed does not depend on what they hold. Each
batch size is measured with steps replayed as CUDA graphs and with every operation launched, where both exist. A decode
step cannot take less than reading the weights and the KV cache once: the roofline, at the bandwidth of a copy.
Not a test, and no test imports it.
"""

import argparse
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_attention import attention_table, copy_bandwidth
from bench.random_model import write_model
from orcinus.config.engine_config import EngineConfig
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, CacheGroup, EngineInfo
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor

ROOT = Path(__file__).parents[1]
TRUTH_TESTS = ["tests/gpu", "tests/unit/engine/attention/triton_cases.py"]


@dataclass(frozen=True)
class Measured:
    """One row of the table. Tokens per second include the prefill; a decode step is the median one."""

    batch_size: int
    is_replayed: bool
    tokens_per_s: float
    last_first_token_s: float
    decode_step_ms: float
    utilization: float | None


@dataclass(frozen=True)
class Device:
    """Holds what was measured of it before: its copies' bytes a second, and its attention backends."""

    copy_bandwidth: float
    attention_table: str


def main() -> int:
    options = parse_arguments()
    print("truth tests", flush=True)
    passed = subprocess.run([sys.executable, "-m", "pytest", "-q", *TRUTH_TESTS], cwd=ROOT, check=False)
    if passed.returncode != 0:
        print("the truth tests failed: no throughput is measured of a wrong answer")
        return passed.returncode
    device = measure_device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or str(write_model("qwen3-0.6b", Path(scratch)))
        info, runner = build_executor(engine_config(options, model))
        rows = [row for size in options.batch_sizes for row in measure(info, runner, size, options)]
    table = report(info, options, rows, device)
    print(table)
    if options.output is not None:
        options.output.write_text(table)
    return 0


def measure_device(name: str) -> Device:
    import torch

    device = torch.device(name)
    bandwidth = copy_bandwidth(device)
    table = attention_table(device, torch.bfloat16, bandwidth)
    torch.cuda.empty_cache()  # what is left belongs to the model
    return Device(bandwidth, table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("--model", type=str, help="a model directory or hub id instead of random weights")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu only tries this script")
    parser.add_argument("--batch-sizes", type=_sizes, default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    return parser.parse_args()


def _sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def engine_config(options: argparse.Namespace, model: str) -> EngineConfig:
    return EngineConfig(
        model=model,
        dtype="auto",
        device=options.device,
        quantization=None,
        trust_remote_code=False,
        use_generation_config=False,
        pooling="auto",
        max_model_len=options.prompt_tokens + options.output_tokens,
        max_num_seqs=max(options.batch_sizes),
        max_num_batched_tokens=None,
        target_itl_ms=None,
        target_ttft_ms=500.0,
        kv_cache_memory=None,
        block_size=None,
        enable_prefix_caching=False,
        batching="continuous",
        batch_wait_ms=0.0,
        deterministic=False,
        seed=0,
        log_level="warning",
    )


def measure(info: EngineInfo, runner: ModelRunner, batch_size: int, options: argparse.Namespace) -> Iterator[Measured]:
    """All requests arrive at once, and each generates as many tokens. With graphs first, where there are any."""
    graphs = runner.graphs
    for tried in [graphs, None] if graphs is not None else [None]:
        runner.graphs = tried
        _run(info, runner, batch_size, options.prompt_tokens, output_tokens=4)  # warm-up
        yield _run(info, runner, batch_size, options.prompt_tokens, options.output_tokens)
    runner.graphs = graphs


def _run(info: EngineInfo, runner: ModelRunner, batch_size: int, prompt_tokens: int, output_tokens: int) -> Measured:
    core = EngineCore(info, runner)
    rng = random.Random(batch_size)
    for i in range(batch_size):
        core.add_request(
            AddRequest(
                request_id=f"{batch_size} {output_tokens} {i}",
                prompt_token_ids=[rng.randrange(info.vocab_size) for _ in range(prompt_tokens)],
                sampling=SamplingParams(max_tokens=output_tokens, ignore_eos=True, seed=i),
                arrival_time=0.0,
            )
        )
    started = time.perf_counter()
    last_first_token_s = 0.0
    num_tokens = 0
    seen: set[str] = set()
    decode_steps_s: list[float] = []
    while core.has_work:
        begun = time.perf_counter()
        step = core.step()
        now = time.perf_counter()
        if step.stats.num_prefill_tokens == 0:
            decode_steps_s.append(now - begun)
        for delta in step.deltas:
            num_tokens += len(delta.token_ids)
            if delta.token_ids and delta.request_id not in seen:
                seen.add(delta.request_id)
                last_first_token_s = now - started
    elapsed_s = time.perf_counter() - started
    monitor = runner.device_monitor
    return Measured(
        batch_size,
        runner.graphs is not None and bool(runner.graphs.sizes),
        num_tokens / elapsed_s,
        last_first_token_s,
        1000 * statistics.median(decode_steps_s),
        None if monitor is None else monitor.sample()[0],
    )


def roofline_ms(info: EngineInfo, batch_size: int, context: float, bandwidth: float) -> float:
    """Return the time to read all weights and, for each sequence, the keys and values that its next token sees.

    A layer with a window sees the last of the `context` tokens alone. Layers are taken to be of one shape.
    """
    groups = info.cache_groups or [CacheGroup(num_blocks=info.num_kv_blocks, num_layers=1)]
    num_layer_tokens = info.block_size * sum(group.num_blocks * group.num_layers for group in groups)
    num_seen = sum(group.num_layers * min(context, group.window or context) for group in groups)
    kv_bytes = batch_size * num_seen * info.kv_cache_bytes / num_layer_tokens
    return 1000 * (info.weight_bytes + kv_bytes) / bandwidth


def report(info: EngineInfo, options: argparse.Namespace, rows: Sequence[Measured], device: Device) -> str:
    """A markdown page: what ran on what, and the tables."""
    import torch

    context = options.prompt_tokens + options.output_tokens / 2
    lines = [
        f"# {info.device_name}",
        "",
        f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, Python {platform.python_version()}; "
        f"`python -m bench.gpu_check {' '.join(sys.argv[1:])}`".rstrip()
        + f". The truth tests passed. A copy reads and writes {device.copy_bandwidth / 1e9:.0f} GB/s.",
        "",
        f"{options.model or 'Qwen3-0.6B (random weights)'}, {info.num_parameters / 1e9:.2f} B parameters, "
        f"{info.dtype}, attention {info.attention_backend}, {info.num_kv_blocks} blocks of {info.block_size}, "
        f"{info.max_num_batched_tokens} tokens a step; prompts of {options.prompt_tokens}, outputs of "
        f"{options.output_tokens} tokens, all at once.",
        "",
        "| streams | CUDA graphs | tokens/s | tokens/s each | last first token, s | decode step, ms | roofline, ms "
        "| device busy |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.batch_size} | {'on' if row.is_replayed else 'off'} | {row.tokens_per_s:.0f} "
        f"| {row.tokens_per_s / row.batch_size:.1f} | {row.last_first_token_s:.2f} | {row.decode_step_ms:.1f} "
        f"| {roofline_ms(info, row.batch_size, context, device.copy_bandwidth):.2f} "
        f"| {'–' if row.utilization is None else f'{row.utilization:.0%}'} |"
        for row in rows
    ]
    lines += ["", "Attention alone, one layer:", "", device.attention_table]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
