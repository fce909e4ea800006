"""Flags of other servers (`vllm serve`, `llama-server`, SGLang, TGI), and what says the same here, or why nothing does.

Names that mean the same here are no part of it. It knows nothing of argparse.
"""

# What says the same here: one of our flags, or a variable of the environment, perhaps with a remark.
_TWINS: dict[str, str] = {
    "--model": "-m --model-path --model-id",
    "--model (a hub id, or owner/name/file.gguf)": "-hf -hfr --hf-repo -hff --hf-file",
    "--served-model-name": "-a --alias",
    "--max-model-len": "-c --ctx-size --context-length --max-input-tokens --max-input-length --max-seq-len",
    "--max-model-len (of TGI), or --kv-cache-memory (of SGLang),": "--max-total-tokens",
    "--max-num-seqs": "-np --parallel --max-running-requests --max-batch-size",
    "--replicas": "-dp --dp --dp-size --data-parallel-size",
    "--max-num-batched-tokens": "-b --batch-size -ub --ubatch-size --chunked-prefill-size --max-prefill-tokens"
    " --max-batch-prefill-tokens --max-num-partial-prefills --enable-chunked-prefill --no-enable-chunked-prefill",
    "--kv-cache-memory (a size, not a share of the device)": "--gpu-memory-utilization --mem-fraction-static"
    " --cuda-memory-fraction",
    "--kv-cache-memory": "--kv-cache-memory-bytes --max-batch-total-tokens --num-gpu-blocks-override --cache-ram -cram",
    "--kv-cache-dtype (of keys and values alike)": "-ctk --cache-type-k -ctv --cache-type-v",
    "--block-size": "--page-size",
    "--enable-prefix-caching": "--cache-prompt --cache-reuse --enable-radix-cache --prefix-caching",
    "--no-enable-prefix-caching": "--no-cache-prompt --disable-radix-cache",
    "--scheduling-policy": "--schedule-policy",
    "--batching": "-cb --cont-batching -nocb --no-cont-batching",
    "--max-queue-len": "--max-queued-requests --max-concurrent-requests",
    "--deterministic": "--enable-deterministic-inference",
    "--seed": "-s --random-seed",
    "--quantization": "-q --quantize",
    "--use-generation-config": "--generation-config",
    "--chat-template": "--chat-template-file",
    "--default-thinking-budget": "--reasoning-budget",
    "--reasoning-parser": "--reasoning-format --enable-reasoning",
    "--tool-call-parser (tools need no flag otherwise)": "--enable-auto-tool-choice",
    "--pooling": "--pooler-config --override-pooler-config --pooling-type",
    "--host": "--hostname",
    "--root-path": "--api-prefix",
    "--cors-allow-origin": "--allowed-origins --allow-origins",
    "--max-body-bytes": "--payload-limit",
    "--step-timeout-s": "--watchdog-timeout",
    "--drain-timeout-s": "--shutdown-timeout --timeout-graceful-shutdown",
    "--metrics-port": "--prometheus-port",
    "--log-format json": "--json-output",
    "--ssl-certfile": "--ssl-cert-file",
    "--ssl-keyfile": "--ssl-key-file",
    "--otlp-traces-endpoint": "--otlp-endpoint",
    "the environment variable OTEL_SERVICE_NAME": "--otlp-service-name",
    "--log-level": "-v --verbose -lv --verbosity --log-verbosity --uvicorn-log-level --log-requests"
    " --enable-log-requests --disable-log-requests --no-enable-log-requests --disable-log-stats --log-disable",
    "the environment variable HF_HOME": "--download-dir --huggingface-hub-cache",
    "the environment variable HF_TOKEN": "--hf-token -hft",
    "the environment variable OMP_NUM_THREADS": "-t --threads -tb --threads-batch",
    "the environment variable CUDA_VISIBLE_DEVICES": "-mg --main-gpu --base-gpu-id",
    "--device (a model runs on one device, with all layers)": "-ngl --gpu-layers --n-gpu-layers",
}

_ONE_DEVICE = "a model runs on one device"
_PER_REQUEST = "requests say it, each for itself"
_CONFIG = "it is read from the model's config.json"
_CHOSEN = "what is fastest for the model and the device is chosen and checked at the start"
_NO_FLAG = "it is on without a flag"

_NO_TWINS: dict[str, str] = {
    _ONE_DEVICE: "-tp --tensor-parallel-size --tp --tp-size -pp --pipeline-parallel-size --pp-size --ep-size"
    " --enable-expert-parallel --distributed-executor-backend --nnodes --node-rank"
    " --dist-init-addr --num-shard --sharded -sm --split-mode -ts --tensor-split --disable-custom-all-reduce --rpc",
    _PER_REQUEST: "-n --predict --n-predict --temp --temperature --top-k --top-p --min-p --repeat-penalty"
    " --presence-penalty --frequency-penalty --samplers --grammar --grammar-file -j --json-schema --logit-bias"
    " -to --timeout --return-tokens-as-token-ids --max-best-of --max-stop-sequences"
    " --override-generation-config --default-chat-template-kwargs --chat-template-kwargs",
    _CONFIG: "--rope-scaling --rope-theta --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx"
    " --yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast --hf-overrides --hf-config-path"
    " --json-model-override-args --override-kv",
    _CHOSEN: "-fa --flash-attn --attention-backend --sampling-backend --enforce-eager -O --compilation-config -cc"
    " --enable-torch-compile --disable-cuda-graph --cuda-graph-max-bs --cuda-graphs --max-seq-len-to-capture"
    " --disable-custom-kernels --no-warmup --no-kv-offload -nkvo --mlock --no-mmap --numa --poll --prio --cpu-mask",
    "requests that are preempted are computed again, and no weights are offloaded": "--swap-space --cpu-offload-gb"
    " --preemption-mode --slot-save-path --kv-transfer-config --kv-offloading-size",
    "the tokenizer comes with the model": "--tokenizer --tokenizer-path --tokenizer-mode --tokenizer-revision"
    " --skip-tokenizer-init --tokenizer-config-path --tokenizer-worker-num",
    "the hub's main revision is served; download another one and name its directory": "--revision --code-revision",
    "download the file and name its path": "-mu --model-url",
    "the files tell the format; pickles are never loaded": "--load-format --max-parallel-loading-workers"
    " --model-loader-extra-config",
    "adapters are not served": "--enable-lora --lora-modules --max-loras --max-lora-rank --lora --lora-scaled"
    " --lora-paths --lora-adapters --max-cpu-loras",
    "drafts come from texts and the model's own head, by --speculation": "--speculative-config --speculative-model"
    " --num-speculative-tokens -md --model-draft --draft --draft-max --draft-min --speculative-algorithm"
    " --speculative-draft-model-path --speculate",
    "grammars are compiled by llguidance": "--guided-decoding-backend --structured-outputs-config --grammar-backend"
    " --disable-grammar-support --decoding-config",
    "only text is served": "--limit-mm-per-prompt --mm-processor-kwargs --mmproj -mm --allowed-local-media-path"
    " --enable-multimodal",
    f"{_NO_FLAG}: GET /metrics": "--metrics --enable-metrics --slots --props --no-slots",
    f"{_NO_FLAG}: POST /v1/embeddings": "--embedding --embeddings --is-embedding --task --runner --convert",
    f"{_NO_FLAG}: POST /v1/rerank": "--reranking --rerank",
    f"{_NO_FLAG}": "--jinja --webui --path --use-v2-block-manager",
    "the page and the API reference cannot be turned off": "--no-webui --disable-fastapi-docs",
    f"{_NO_FLAG}: traces have all parts": "--collect-detailed-traces",
    "one process serves HTTP": "--threads-http --api-server-count --validation-workers --workers --headless",
    "log lines go to standard error": "--log-file --max-log-len",
    "clients are not asked for certificates": "--ssl-ca-certs --ssl-cert-reqs",
    "steps are planned by --target-itl-ms and --target-ttft-ms": "--waiting-served-ratio --max-waiting-tokens"
    " --schedule-conservativeness --scheduler-delay-factor --num-scheduler-steps --stream-interval"
    " --async-scheduling --long-prefill-token-threshold",
    "limits are those of the API": "--max-logprobs --max-client-batch-size --response-role --middleware"
    " --chat-template-content-format --allow-credentials --allowed-methods --allowed-headers",
}

_FLAGS: dict[str, tuple[str, bool]] = {
    flag: (meaning, is_twin)
    for table, is_twin in ((_TWINS, True), (_NO_TWINS, False))
    for meaning, flags in table.items()
    for flag in flags.split()
}
FOREIGN_FLAGS = frozenset(_FLAGS)


def explain_foreign(flag: str, own: frozenset[str]) -> str | None:
    """Return what another server's flag is here, in one line; None for a flag that is not known. `own` are ours."""
    meaning, is_twin = _FLAGS.get(flag) or _FLAGS.get(flag.replace("_", "-"), ("", False))
    if not meaning:
        return None
    if not is_twin:
        return f"{flag} has no twin here: {meaning}"
    twin = meaning.partition(" ")[0].rstrip(",")
    if twin.startswith("--") and twin not in own:
        return f"{flag} has no twin here: this command has no {twin}"
    return f"{flag} is {meaning} here"
