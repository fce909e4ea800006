"""What it costs to cache latents: attention layers of DeepSeek-V2's kind, with latents or all heads in the cache.

    OMP_NUM_THREADS=1 python -m bench.latents [--shape deepseek-v2-lite] [--layers 4] [--threads 1] [--rounds 9]

Both models are served in one process and take turns in every round; what is between the attention layers is as good as
nothing. Random weights and keys, bfloat16, on a CPU. Medians over the rounds, and of the rounds' ratios.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orcinus.engine.attention.cache import allocate_cache, bytes_per_block
from orcinus.engine.attention.interface import batch_metadata
from orcinus.engine.attention.serving import ATTENTION_NAME, PagedAttention, attention_function
from orcinus.engine.attention.step_context import StepContext, step_context
from orcinus.engine.platform.device import device_name
from orcinus.engine.startup.cpu_layout import lay_out_for_cpu
from orcinus.engine.startup.probe import ServedModel, probe_model

# Hidden size, heads, and the sizes of a head's key without rotary part and of its value.
SHAPES = {"deepseek-v2-lite": (2048, 16, 128, 128), "glm-4.7-flash": (2048, 20, 192, 256)}
STEPS = [(n, context, 1) for n in (1, 8, 32) for context in (127, 1023, 4095)]
STEPS += [(1, 0, 512), (1, 3584, 512)]
BLOCK_SIZE, VOCAB_SIZE = 64, 512
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Subject:
    """One way to cache, with a cache that several sequences of a step may share blocks of."""

    served: ServedModel
    attention: PagedAttention
    num_blocks: int

    @property
    def bytes_per_token(self) -> float:
        """Return the bytes of one layer."""
        kv = self.served.kv
        return bytes_per_block(kv.values(), BLOCK_SIZE, self.served.cache_dtype) / BLOCK_SIZE / len(kv)

    def run(self, num_seqs: int, context: int, num_new: int) -> float:
        """Return the milliseconds of a step in which each sequence has so many new tokens after `context`."""
        width = -(-(context + num_new) // BLOCK_SIZE)
        table = (np.arange(num_seqs * width) % self.num_blocks).reshape(num_seqs, width).astype(np.int32)
        metadata = batch_metadata([(context, context + num_new)] * num_seqs, table, BLOCK_SIZE, CPU)
        token_ids = torch.arange(num_seqs * num_new) % VOCAB_SIZE
        positions = torch.arange(context, context + num_new).repeat(num_seqs)
        with step_context(StepContext(self.attention, (metadata,))):
            started = time.perf_counter()
            self.served.model.hidden_states(token_ids, positions)
        return (time.perf_counter() - started) * 1e3


@torch.inference_mode()
def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    expanded, latent = (subject(options, caches_latents=caches) for caches in (False, True))
    print(
        f"{options.shape}, {options.layers} layers, {device_name(CPU)}, {options.threads} threads: "
        f"{expanded.bytes_per_token:.0f} bytes a token and layer, with latents {latent.bytes_per_token:.0f}"
    )
    print("| sequences | context | new | all heads, ms | latents, ms | ratio |\n|---:|---:|---:|---:|---:|---:|")
    for step in STEPS:
        rounds = [(expanded.run(*step), latent.run(*step)) for _ in range(options.rounds + 1)][1:]
        plain, ours = (statistics.median(times) for times in zip(*rounds, strict=True))
        ratio = statistics.median(a / b for a, b in rounds)
        print(f"| {step[0]} | {step[1]} | {step[2]} | {plain:.2f} | {ours:.2f} | {ratio:.2f} |", flush=True)
    return 0


def subject(options: argparse.Namespace, *, caches_latents: bool) -> Subject:
    served = probe_model(random_model(options), CPU, block_size=BLOCK_SIZE, caches_latents=caches_latents)
    lay_out_for_cpu(served, None)
    num_blocks = 8 * 4096 // BLOCK_SIZE
    layers = allocate_cache(served.backend, served.kv, [num_blocks], BLOCK_SIZE, dtype=torch.bfloat16, device=CPU)
    for layer in layers.values():
        for part in (layer.cache.keys, layer.cache.values):
            part.copy_(some_numbers(part))
    return Subject(served, PagedAttention(served.backend, layers), num_blocks)


def some_numbers(like: Tensor) -> Tensor:
    return torch.randn(1, *like.shape[1:]).to(like.dtype).expand_as(like)


def random_model(options: argparse.Namespace) -> Any:
    from transformers import AttentionInterface, DeepseekV2Config, DeepseekV2ForCausalLM

    AttentionInterface.register(ATTENTION_NAME, attention_function)
    hidden_size, num_heads, key_dim, value_dim = SHAPES[options.shape]
    config = DeepseekV2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=options.layers,
        first_k_dense_replace=options.layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_rope_head_dim=64,
        qk_nope_head_dim=key_dim,
        v_head_dim=value_dim,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    make: Any = DeepseekV2ForCausalLM._from_config
    return make(config, dtype=torch.bfloat16, attn_implementation=ATTENTION_NAME).eval()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.latents", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="deepseek-v2-lite")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
