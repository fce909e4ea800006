"""How many sequences fit into how much memory, by the code that sizes the cache of a server when it starts.

    python -m bench.sizing            the tables of docs/operations.md
    python -m bench.sizing --tokens 32768

Nothing is loaded: of each model there is the shape alone, from which weights and blocks follow. A server measures two
things that are assumed here: on a CPU the memory that is free once the weights are loaded (all but the weights), and on
a GPU what the largest step takes (1 GiB).
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.random_model import SHAPES as MODEL_SHAPES
from orcinus.config.settings import load_settings
from orcinus.config.values import format_bytes
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.scheduler.cache_groups import GroupCost
from orcinus.engine.startup.cache_size import (
    default_cpu_memory,
    default_cuda_memory,
    resolve_cache_size,
    resolve_limits,
)

_MOST_SLOTS = 4096
_LARGEST_STEP_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's shape, as its config.json has it; `dtype_bytes` of weights, keys and values."""

    name: str
    model: str
    config: dict[str, Any]
    dtype_bytes: int = 2


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    return {
        "vocab_size": 151_936,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": tied,
    }


SHAPES = (
    Shape("SmolLM2 135M", "llama", MODEL_SHAPES["smollm2-135m"][2]),
    Shape("Qwen3 0.6B", "qwen3", _qwen3(1024, 3072, 28, 16, tied=True)),
    Shape("Qwen3 1.7B", "qwen3", _qwen3(2048, 6144, 28, 16, tied=True)),
    Shape("Qwen3 4B", "qwen3", _qwen3(2560, 9728, 36, 32, tied=True)),
    Shape(
        "Llama 3.1 8B",
        "llama",
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    ),
    Shape("Qwen3 14B", "qwen3", _qwen3(5120, 17_408, 40, 40, tied=False)),
    Shape("Qwen3 32B", "qwen3", _qwen3(5120, 25_600, 64, 64, tied=False)),
)
MEMORY = {
    "cpu": (4 * 2**30, 8 * 2**30, 16 * 2**30, 32 * 2**30, 64 * 2**30, 128 * 2**30),
    "cuda": (16 * 2**30, 24 * 2**30, 48 * 2**30, 80 * 2**30, 141 * 2**30),
}


def weight_bytes(shape: Shape) -> int:
    """Return what the weights take, of which none is made."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(shape.model, **shape.config)
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return sum(parameter.numel() for parameter in model.parameters()) * shape.dtype_bytes


def token_bytes(shape: Shape) -> int:
    """Return what the keys and values of one token take, in all layers."""
    config = shape.config
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim * shape.dtype_bytes)


def slots_that_fit(shape: Shape, weights: int, device: str, memory_bytes: int, num_tokens: int) -> int:
    """Return how many sequences of so many tokens the cache of a server with default settings holds."""
    if device == "cpu":
        cache_bytes = default_cpu_memory(max(0, memory_bytes - weights))
    else:
        cache_bytes = default_cuda_memory(memory_bytes, weights + _LARGEST_STEP_BYTES)
    settings = load_settings(max_num_seqs=_MOST_SLOTS, max_model_len=num_tokens, max_num_batched_tokens=_MOST_SLOTS)
    config = settings.engine_config()
    limits = resolve_limits(config, device)
    costs = [GroupCost(shape.config["num_hidden_layers"], token_bytes(shape) * limits.block_size)]
    try:
        size = resolve_cache_size(config, limits, wanted_len=num_tokens, memory_bytes=cache_bytes, costs=costs)
    except ModelLoadError:
        return 0
    return size.num_blocks // math.ceil(num_tokens / limits.block_size)


def table(device: str, num_tokens: int, weights: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a Markdown table: slots by model and memory."""
    header = ["Model", "Weights", "1,000 tokens", *map(format_bytes, MEMORY[device])]
    yield "| " + " | ".join(header) + " |"
    yield "| " + " | ".join(["---", *["---:"] * (len(header) - 1)]) + " |"
    for shape, weight in zip(SHAPES, weights, strict=True):
        fitting = [slots_that_fit(shape, weight, device, memory, num_tokens) for memory in MEMORY[device]]
        slots = [f"{number:,}" if number else "-" for number in fitting]
        cells = [shape.name, format_bytes(weight), format_bytes(1000 * token_bytes(shape)), *slots]
        yield "| " + " | ".join(cells) + " |"


def tables(num_tokens: int) -> str:
    """Return both tables, each with what it is of."""
    weights = [weight_bytes(shape) for shape in SHAPES]
    on_cpu, on_gpu = ("\n".join(table(device, num_tokens, weights)) for device in ("cpu", "cuda"))
    return (
        f"Sequences of {num_tokens:,} tokens on a CPU, by its free memory before the weights are loaded:"
        f"\n\n{on_cpu}\n\n"
        f"The same on a GPU, by its memory:\n\n{on_gpu}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sizing", description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of each sequence, prompt and output")
    print(tables(parser.parse_args().tokens))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
