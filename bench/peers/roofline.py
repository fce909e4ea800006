"""What the memory would allow: a step reads all weights once and the cache of every sequence in it. Pure arithmetic.

Prefill and everything that is computed are left out, so that no server can reach it.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelBytes:
    """Says what one step reads: `weights` once, `kv_per_token` for every token before the one that is made."""

    weights: int
    kv_per_token: int


def bytes_read(model: ModelBytes, lengths: Sequence[tuple[int, int]], slots: int) -> int:
    """Of the fewest steps that make all outputs. `lengths` are the prompt and output tokens of each request."""
    outputs = [output for _, output in lengths]
    num_steps = max(*outputs, -(-sum(outputs) // slots))
    num_read_tokens = sum(output * prompt + output * (output - 1) // 2 for prompt, output in lengths)
    return num_steps * model.weights + num_read_tokens * model.kv_per_token


def ceiling_tokens_per_s(
    model: ModelBytes, lengths: Sequence[tuple[int, int]], slots: int, bandwidth_gb_per_s: float
) -> float:
    """Output tokens a second if nothing took time but reading."""
    seconds = bytes_read(model, lengths, slots) / (bandwidth_gb_per_s * 1e9)
    return sum(output for _, output in lengths) / seconds


def kv_bytes_per_token(config: dict[str, int]) -> int:
    """Of a cache in 16 bits. `config` is the model's config.json."""
    heads = config.get("num_attention_heads") or config["n_head"]
    num_layers = config.get("num_hidden_layers") or config["n_layer"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or (config.get("hidden_size") or config["n_embd"]) // heads
    return 2 * 2 * num_layers * kv_heads * head_dim
