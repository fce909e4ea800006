"""What the engine is told at start-up: a frozen, plain value that crosses the process boundary.

It declares no help, no validation, and no defaults but that an engine is alone: `config.settings.Settings` owns those
and builds this.
What the engine resolves from it (KV blocks, context length, dtype) is reported in
`engine.messages.EngineInfo` and never written back here.
"""

from dataclasses import dataclass
from typing import Literal

BatchingStrategy = Literal["continuous", "static", "interleaved", "sequential"]
Speculation = Literal["off", "ngram", "suffix", "mtp", "auto"]
KVCacheDtype = Literal["auto", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShare:
    """Says what one of several engines has of the machine. Those with a device each (`cuda_device`) share no memory.

    `cores` are the numbers of the processors that its threads are bound to, of which `num_threads` compute at once: no
    more than there are cores, and fewer where a control group grants less time. `cuda_device` is as
    CUDA_VISIBLE_DEVICES names it, None on a CPU.
    """

    index: int
    num_engines: int
    cores: tuple[int, ...] = ()
    num_threads: int = 0
    cuda_device: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings that the engine process needs; `None` means "choose from the model and the device"."""

    model: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device: Literal["auto", "cpu", "cuda"]
    quantization: Literal["none", "int8", "int4"] | None
    kernels: Literal["auto", "generic", "avx2", "avx2-vnni", "avx512", "avx512-bf16", "amx"] = "auto"
    trust_remote_code: bool
    use_generation_config: bool
    pooling: Literal["auto", "mean", "last"]
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    target_itl_ms: float | None
    target_ttft_ms: float
    kv_cache_memory: int | None  # bytes
    state_cache_memory: int | None  # bytes
    block_size: int | None  # tokens
    enable_prefix_caching: bool
    batching: BatchingStrategy
    batch_wait_ms: float
    deterministic: bool | None
    seed: int | None
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["text", "json"]
    share: EngineShare | None = None  # of the machine; None: all of it, as for one engine alone
    warm_grammars: bool | None = None
    speculation: Speculation = "off"
    kv_cache_dtype: KVCacheDtype = "auto"
    packed_weights_dir: str | None = None  # None: packed weights are not kept

    @property
    def num_sharing_memory(self) -> int:
        """Count the engines that divide the memory that this one's KV cache lies in."""
        return 1 if self.share is None or self.share.cuda_device is not None else self.share.num_engines
