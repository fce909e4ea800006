"""Settings of the engine: the device, how much a step takes on, the cache, and how steps are planned."""

from typing import Literal, Self

from pydantic import BaseModel, model_validator

from orcinus.config.engine_config import BatchingStrategy, KVCacheDtype, Speculation
from orcinus.config.setting import Bytes, setting


class EngineSettings(BaseModel):
    """Says how the model is run."""

    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Engine", "Device to run on; auto takes CUDA where there is one."
    )
    kernels: Literal["auto", "generic", "avx2", "avx2-vnni", "avx512", "avx512-bf16", "amx"] = setting(
        "auto",
        "Engine",
        "Most that the CPU kernels may use of the processor, to see what a lesser one does; auto uses all that it has.",
    )
    replicas: int = setting(
        1,
        "Engine",
        "Engines behind this server, each in a process of its own with the whole model. On a CPU they share out the"
        " cores, to which they are bound, and the memory of the KV cache; on GPUs each has one of its own. A request"
        " goes to the engine that has most of its prompt cached, unless that one is loaded too much; what an engine had"
        " when it ended goes on in another.",
        "N",
        ge=1,
        le=256,
    )
    max_num_seqs: int | None = setting(
        None,
        "Engine",
        "Slots: how many sequences run at once, in each replica. Default: by device.",
        "N",
        ge=1,
        le=4096,
    )
    max_num_batched_tokens: int | None = setting(
        None,
        "Engine",
        "Most tokens in one step, decode tokens and prompt chunks together. Default: by device.",
        "N",
        ge=1,
        le=1_048_576,
    )
    target_itl_ms: float | None = setting(
        None,
        "Engine",
        "Objective: milliseconds between two tokens of a stream. Prompts are computed in chunks that fit beside the"
        " streams, and no more requests are started than keep to it; at least one always runs. Default: no objective;"
        " a step with prompts takes up to 240 ms, or four times as long as the streams' tokens where that is more.",
        "MS",
        gt=0,
        le=60_000,
    )
    target_ttft_ms: float = setting(
        500.0,
        "Engine",
        "Objective: milliseconds from a request's arrival to its first token. Chunks of its prompt grow as far as that"
        " needs, within what streams may wait; a larger number lets streams run more evenly while prompts are"
        " computed.",
        "MS",
        gt=0,
        le=3_600_000,
    )
    kv_cache_memory: Bytes | None = setting(
        None,
        "Engine",
        "Memory for the KV cache, and for states where a model keeps some, taken at the start, but for what all slots"
        " together cannot use. Default: on a CPU 40 % of what is free once the weights are loaded, within the limits of"
        " containers; on a GPU what weights and the largest step leave of 90 %. Replicas on a CPU share it out; on GPUs"
        " each takes so much of its own.",
        "SIZE",
        ge=1,
    )
    state_cache_memory: Bytes | None = setting(
        None,
        "Engine",
        "Memory for snapshots of states, by which prefixes are reused of a model that keeps states beside keys and"
        " values (linear attention, convolutions); 0 reuses none. On a CPU it is a part of kv_cache_memory; for a GPU"
        " it is the host's. Replicas share it out as they do kv_cache_memory. Default: an eighth of the KV cache's,"
        " eight snapshots at least where half of it has room for them; for a GPU at most an eighth of what the host"
        " has free. Neither is there more than an eighth of the cache that all slots can use, or four for each slot.",
        "SIZE",
        ge=0,
    )
    block_size: int | None = setting(
        None,
        "Engine",
        "Tokens in one block of the KV cache; on a CPU multiples of 16 are fastest. Default: by device.",
        "N",
        ge=1,
        le=1024,
    )
    kv_cache_dtype: KVCacheDtype = setting(
        "auto",
        "Engine",
        "What keys and values are cached in. auto: the type that the model computes in, exactly. int8, on a CPU: bytes"
        " with a scale for each token and head, half the memory of bfloat16 and so twice the tokens; a little less"
        " exact.",
    )
    enable_prefix_caching: bool = setting(True, "Engine", "Reuse the KV blocks of prompts that begin alike.")
    batching: BatchingStrategy = setting(
        "continuous",
        "Engine",
        "Batching strategy; continuous refills a free slot in the next step, the others are for comparison.",
    )
    batch_wait_ms: float = setting(
        50.0, "Engine", "How long static batching waits to fill a batch.", "MS", ge=0, le=60_000
    )
    speculation: Speculation = setting(
        "off",
        "Engine",
        "Speculative decoding, which changes no token. ngram tries drafts from a request's own prompt and output,"
        " suffix from past answers, which are kept in memory, bounded, and apart by cache_salt; mtp the guesses of the"
        " checkpoint's own head for multi-token prediction, as DeepSeek-V3, GLM-4.5 and Qwen3.5 have one; auto from all"
        " that there are, as many in each step as make the tokens come faster by what was measured. A model that keeps"
        " states beside keys and values has two of them for each request then.",
    )
    deterministic: bool | None = setting(
        None,
        "Engine",
        "Answer a request with the same tokens and log-probabilities, to the last bit, whatever runs beside it and"
        " however its prompt was cut, cached or computed again. On a CPU alone. Default: where all of the model's"
        " layers run natively, by the same code; elsewhere it is slower.",
    )
    warm_grammars: bool | None = setting(
        None,
        "Engine",
        "Load what grammars and schemas need as soon as nothing is running after the start, so that the first of them"
        " does not wait for it: a process and the vocabulary in two of them, some 250 MiB with 152,000 tokens. Default:"
        " with more than 32,768 tokens and at least 1 GiB of memory left.",
    )
    seed: int | None = setting(
        None,
        "Engine",
        "Makes runs repeatable: requests that bring no seed are given one from this, in order of arrival."
        " Default: a random one each.",
        "N",
        ge=0,
        le=2**63 - 1,
    )

    @model_validator(mode="after")
    def _budget_covers_slots(self) -> Self:
        slots, budget = self.max_num_seqs, self.max_num_batched_tokens
        if slots is not None and budget is not None and budget < slots:
            raise ValueError(
                f"max_num_batched_tokens ({budget}) must be at least max_num_seqs ({slots}): every running"
                " sequence needs one token a step"
            )
        return self
