"""Checks this engine on a GPU, from the repository alone, and writes one page that tells everything.

    python -m bench.gpu_check [--output FILE] [--model DIR] [--batch-sizes 1,8,32,64,128,256]

First the truth tests, whose failures and skips are on the page. Then, section by section: each attention backend on
every kind of layer, sampling by Triton and by torch, what start-up decided, memory with every slot in use, throughput
with steps replayed as CUDA graphs and with every operation launched, what sampling costs in a step, how long the host
takes to launch steps with a chunk of a prompt, and streams among prompts with and without an objective. A section that
fails says how and leaves the others to run; the exit status is then 1.

Weights are random, in the shape of Qwen3-0.6B unless a model is given: speed does not depend on what they hold. A
decode step cannot take less than reading the weights and the KV cache once: the roofline, at the bandwidth of a copy.
Not a test, and no test imports it.
"""

import argparse
import logging
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench import gpu_serving
from bench.gpu_attention import attention_table, copy_bandwidth
from bench.gpu_sampling import sampling_table
from bench.gpu_serving import Engine
from bench.random_model import write_model
from orcinus.config.engine_config import EngineConfig
from orcinus.engine.startup.build import build_executor

ROOT = Path(__file__).parents[1]
TRUTH_TESTS = [
    "tests/gpu",
    "tests/unit/engine/attention/triton_cases.py",
    "tests/unit/engine/sampling/triton_cases.py",
]
_PACED_STREAMS = 64
_MIXED_STREAMS = 32
_CHUNKS = (16, 64, 256, 1024)
_TARGETS_MS = (None, 10.0, 20.0, 40.0)


@dataclass
class Page:
    """Holds a page in markdown, printed as it grows."""

    sections: list[str] = field(default_factory=list)
    has_failed: bool = False

    def add(self, title: str, make: Callable[[], str]) -> None:
        """Add a section, or what kept it from being made."""
        started = time.monotonic()
        try:
            text = make()
        except Exception:
            text = f"FAILED\n\n```\n{traceback.format_exc()}```\n"
            self.has_failed = True
        self.sections.append(f"## {title}\n\n{text.rstrip()}\n\n_{time.monotonic() - started:.0f} s_\n")
        print(self.sections[-1], flush=True)


def main() -> int:
    options = parse_arguments()
    page = Page([f"# {time.strftime('%Y-%m-%d')}\n\n{environment(options)}\n"])
    page.add("Truth tests", lambda: truth_tests(page, options))
    bandwidths: list[float] = []
    page.add("Attention alone, one layer", lambda: attention(options.device, bandwidths))
    page.add("Sampling alone", lambda: sampling_alone(options))
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or str(write_model("qwen3-0.6b", Path(scratch)))
        serving(page, model, bandwidths, options)
    if options.output is not None:
        options.output.write_text("\n".join(page.sections))
    return 1 if page.has_failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("--model", type=str, help="a model directory or hub id instead of random weights")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu only tries this script")
    parser.add_argument("--batch-sizes", type=_sizes, default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--output", type=Path, help="also write the page to this file")
    return parser.parse_args()


def _sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def environment(options: argparse.Namespace) -> str:
    """Return what runs on what."""
    import torch

    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU: only the script is tried"
    capability = torch.cuda.get_device_capability() if options.device == "cuda" else "–"
    command = f"python -m bench.gpu_check {' '.join(sys.argv[1:])}".rstrip()
    describe = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    packages = ", ".join(f"{package} {_version(package)}" for package in ("torch", "triton", "transformers"))
    return (
        f"{name}, compute capability {capability}, CUDA {torch.version.cuda}, {packages}, Python "
        f"{platform.python_version()}, commit {commit or 'unknown'}; `{command}`"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def truth_tests(page: Page, options: argparse.Namespace) -> str:
    """Return pytest's summary, with the reason of each failure and each skip."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "--tb=short", *TRUTH_TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines() or ["nothing ran", *done.stderr.splitlines()]
    has_passed = done.returncode == 0 and " passed" in lines[-1]
    page.has_failed |= not has_passed and options.device == "cuda"
    return "\n".join(["```", *lines, "```", "", "Passed." if has_passed else "NOT PASSED."])


def attention(device_name: str, bandwidths: list[float]) -> str:
    import torch

    device = torch.device(device_name)
    bandwidths.append(copy_bandwidth(device))
    table = attention_table(device, torch.bfloat16, bandwidths[0])
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what is left belongs to the model
    return f"A copy reads and writes {bandwidths[0] / 1e9:.0f} GB/s.\n\n{table}"


def sampling_alone(options: argparse.Namespace) -> str:
    import torch

    is_tried_only = options.device == "cpu"
    return sampling_table(torch.device(options.device), [1, 2] if is_tried_only else [1, 32, 256], 151_936)


def serving(page: Page, model: str, bandwidths: list[float], options: argparse.Namespace) -> None:
    engines: list[Engine] = []
    page.add("Start", lambda: start(model, bandwidths, options, engines))
    if not engines:
        return
    (engine,) = engines
    sizes, prompt, output = options.batch_sizes, options.prompt_tokens, options.output_tokens
    context = f"Prompts of {prompt}, outputs of {output} tokens, all at once.\n\n"
    page.add("Memory", lambda: gpu_serving.memory(engine))
    page.add("Throughput", lambda: context + gpu_serving.throughput(engine, sizes, prompt, output))
    page.add("Sampling: the median decode step", lambda: gpu_serving.sampling(engine, sizes[-2:], prompt, output // 2))
    few = min(_MIXED_STREAMS, engine.info.max_num_seqs - 1)
    page.add(
        f"Mixed steps: {few} streams beside prompts of one chunk",
        lambda: gpu_serving.mixed_steps(engine, few, _CHUNKS),
    )
    num_streams = min(_PACED_STREAMS, engine.info.max_num_seqs - 1)
    page.add(
        f"Pacing: {num_streams} streams while prompts come, one after the other",
        lambda: gpu_serving.pacing(engine, num_streams, _TARGETS_MS),
    )


def start(model: str, bandwidths: list[float], options: argparse.Namespace, engines: list[Engine]) -> str:
    """Return what was decided, and what the log says of it."""
    with log_lines() as lines:
        info, runner = build_executor(engine_config(options, model))
    engines.append(Engine(info, runner, bandwidths[0] if bandwidths else float("nan")))
    sizes = [] if runner.graphs is None else runner.graphs.sizes
    name = options.model or "Qwen3-0.6B (random weights)"
    facts = (
        f"{name}, {info.num_parameters / 1e9:.2f} B parameters, {info.dtype}, attention {info.attention_backend}, "
        f"{info.num_kv_blocks} blocks of {info.block_size}, {info.max_model_len} tokens of context, "
        f"{info.max_num_batched_tokens} tokens a step, {len(sizes)} batch sizes recorded, ready in "
        f"{info.load_time_s:.1f} s."
    )
    return "\n".join([facts, "", "```", *lines, "```"])


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """Collect what the engine logs meanwhile."""
    lines: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("orcinus")
    handler.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def engine_config(options: argparse.Namespace, model: str) -> EngineConfig:
    return EngineConfig(
        model=model,
        dtype="auto",
        device=options.device,
        quantization=None,
        trust_remote_code=False,
        use_generation_config=False,
        pooling="auto",
        max_model_len=None,
        max_num_seqs=max(options.batch_sizes),
        max_num_batched_tokens=None,
        target_itl_ms=None,
        target_ttft_ms=500.0,
        kv_cache_memory=None,
        state_cache_memory=None,
        block_size=None,
        enable_prefix_caching=False,
        batching="continuous",
        batch_wait_ms=0.0,
        deterministic=False,
        seed=0,
        log_level="warning",
        log_format="text",
    )


if __name__ == "__main__":
    sys.exit(main())
