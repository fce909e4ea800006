"""What the engine is told at start-up: a frozen, plain value that crosses the process boundary.

It declares no defaults, no help and no validation: `config.settings.Settings` owns those and builds this.
What the engine resolves from it (KV blocks, context length, dtype) is reported in
`engine.messages.EngineInfo` and never written back here.
"""

from dataclasses import dataclass
from typing import Literal

BatchingStrategy = Literal["continuous", "static", "interleaved", "sequential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings that the engine process needs; `None` means "choose from the model and the device"."""

    model: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device: Literal["auto", "cpu", "cuda"]
    quantization: Literal["int8"] | None
    trust_remote_code: bool
    use_generation_config: bool
    pooling: Literal["auto", "mean", "last"]
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    target_itl_ms: float | None
    target_ttft_ms: float
    kv_cache_memory: int | None  # bytes
    block_size: int | None  # tokens
    enable_prefix_caching: bool
    batching: BatchingStrategy
    batch_wait_ms: float
    deterministic: bool | None
    seed: int | None
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["text", "json"]
