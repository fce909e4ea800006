"""Every setting of Orcinus, declared once: flag, `ORCINUS_*` variable, YAML key, default, help and table row.

Precedence: command line > environment > YAML file > defaults. A wrong value and an unknown key are refused as
`SettingsError`, whose message says what is allowed. This module knows nothing of how the environment and the file are
read (`config.sources`), of argparse (`config.arguments` makes flags from the declarations), of models or of HTTP.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from orcinus.config.addresses import (
    MAX_SOCKET_PATH_BYTES,
    parse_listed_host,
    parse_origin,
    parse_proxy,
    parse_root_path,
)
from orcinus.config.api_keys import ApiKey, check_distinct, digest_of, read_keys
from orcinus.config.engine_config import BatchingStrategy, EngineConfig, Speculation
from orcinus.config.limits import ClientLimits, Limit
from orcinus.config.parser_names import (
    REASONING_PARSER_ALIASES,
    TOOL_CALL_PARSER_ALIASES,
    ReasoningParser,
    ToolCallParser,
)
from orcinus.config.sources import ENV_PREFIX, Environment, YamlFile, given_by
from orcinus.config.text_files import TextFileError, read_text
from orcinus.config.values import (
    SettingsError,
    check_keys,
    describe_allowed,
    parse_bytes,
    parse_names,
    parse_strings,
)

__all__ = [
    "DEMO_MODEL_NAME",
    "GROUPS",
    "Settings",
    "SettingsError",
    "demo_model_path",
    "load_settings",
]

DEMO_MODEL_NAME = "orcinus-demo"
_HOST_AND_PORT = re.compile(r"(?:\[.*\]|[^:]*):(\w*)")
_MIN_STEP_TIMEOUT_S = 5.0  # stalls are counted in seconds, and a loaded machine takes some

METRICS_NAMES = ("orcinus", "vllm")
MAX_LABELS = 2  # of a reranker

GROUPS = {
    "Model": "what is served",
    "Engine": "how it runs; what is not set is chosen for the model and the device",
    "Server": "how it is reached",
    "General": "where settings come from and what is logged",
}

Strings = Annotated[tuple[str, ...], NoDecode, BeforeValidator(parse_strings)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(parse_names)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]


def _setting(default: Any, group: str, help_text: str, metavar: str = "", **constraints: Any) -> Any:
    extra: JsonDict = {"group": group, "metavar": metavar}
    return Field(default, description=help_text, json_schema_extra=extra, **constraints)


class Settings(BaseSettings):
    """The settings in force: frozen, complete and checked. `load_settings` gives messages fit for users."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    model: str | None = _setting(
        None,
        "Model",
        "Directory, hub id or GGUF file of the model; without one, the demo model that comes with Orcinus.",
        min_length=1,
    )
    served_model_name: Strings = _setting(
        (), "Model", "Name that clients call the model by; repeatable. Default: taken from MODEL.", "NAME"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _setting(
        "auto",
        "Model",
        "Type of weights and activations; auto takes the checkpoint's, where the device is fast with it.",
    )
    quantization: Literal["none", "int8", "int4"] | None = _setting(
        None,
        "Model",
        "Quantize weights at load and activations as they come, on a CPU. int8: up to twice as fast, a little less"
        " exact. int4: groups of 16 weights with a scale each, little more than half of that memory, clearly less"
        " exact in small models. A checkpoint that is already quantized is served as it is, without this; a GGUF file's"
        " blocks are multiplied as they are, unless this is none: then they are dequantized at load.",
    )
    kernels: Literal["auto", "generic", "avx2", "avx2-vnni", "avx512", "avx512-bf16", "amx"] = _setting(
        "auto",
        "Engine",
        "Most that the CPU kernels may use of the processor, to see what a lesser one does; auto uses all that it has.",
    )
    max_model_len: int | None = _setting(
        None,
        "Model",
        "Context length in tokens, prompt and output together. Default: the model's.",
        "N",
        ge=1,
    )
    chat_template: str | None = _setting(
        None, "Model", "Chat template to use instead of the model's: a file, or Jinja text.", "FILE"
    )
    tool_call_parser: ToolCallParser = _setting(
        "auto",
        "Model",
        "How the model writes calls of tools; auto tells by its tokenizer's response template, else by its chat"
        " template. vLLM's names are taken for the same.",
    )
    reasoning_parser: ReasoningParser = _setting(
        "auto",
        "Model",
        "How the model marks what it thinks before it answers; auto tells by its tokenizer's response template, else by"
        " its chat template. vLLM's names are taken for the same.",
    )
    default_thinking_budget: int | None = _setting(
        None,
        "Model",
        "Tokens that the thinking of a chat may have which names neither a budget nor an effort: it is ended there, and"
        " the answer follows. 0: none. Default: no budget.",
        "N",
        ge=0,
        le=2**31 - 1,
    )
    trust_remote_code: bool = _setting(
        False, "Model", "Run Python code that comes with the model. It can do anything that you can."
    )
    use_generation_config: bool = _setting(
        True,
        "Model",
        "Where a request does not say, take temperature, top_p, top_k, min_p and repetition_penalty from the"
        " model's generation_config.json.",
    )
    pooling: Literal["auto", "mean", "last"] = _setting(
        "auto",
        "Model",
        "How an embedding is made of a prompt's last hidden states: their mean, or the last token's. auto does what the"
        " model's 1_Pooling/config.json (of sentence-transformers) says, and takes the mean without one.",
    )
    rerank_template: Literal["auto", "chat", "qwen3", "mxbai-v2", "bge-gemma"] = _setting(
        "auto",
        "Model",
        "The prompt by which the model judges how relevant a document is to a query, in /v1/rerank and /v1/score: that"
        " of a family of rerankers, or with chat a question in the model's chat template. auto takes a chat template"
        " that has the roles query and document as it is, else the family that the model's name tells, else chat.",
    )
    rerank_labels: Names = _setting(
        (),
        "Model",
        "Texts whose first tokens are the answers of that prompt: the one of a relevant document, and, where there is"
        " one, that of another. Default: what the model's 1_LogitScore/config.json (of sentence-transformers) says,"
        " else what the family has, else yes,no.",
        "YES[,NO]",
    )

    device: Literal["auto", "cpu", "cuda"] = _setting(
        "auto", "Engine", "Device to run on; auto takes CUDA where there is one."
    )
    replicas: int = _setting(
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
    max_num_seqs: int | None = _setting(
        None,
        "Engine",
        "Slots: how many sequences run at once, in each replica. Default: by device.",
        "N",
        ge=1,
        le=4096,
    )
    max_num_batched_tokens: int | None = _setting(
        None,
        "Engine",
        "Most tokens in one step, decode tokens and prompt chunks together. Default: by device.",
        "N",
        ge=1,
        le=1_048_576,
    )
    target_itl_ms: float | None = _setting(
        None,
        "Engine",
        "Objective: milliseconds between two tokens of a stream. Prompts are computed in chunks that fit beside the"
        " streams, and no more requests are started than keep to it; at least one always runs. Default: no objective;"
        " a step with prompts takes up to 240 ms, or four times as long as the streams' tokens where that is more.",
        "MS",
        gt=0,
        le=60_000,
    )
    target_ttft_ms: float = _setting(
        500.0,
        "Engine",
        "Objective: milliseconds from a request's arrival to its first token. Chunks of its prompt grow as far as that"
        " needs, within what streams may wait; a larger number lets streams run more evenly while prompts are"
        " computed.",
        "MS",
        gt=0,
        le=3_600_000,
    )
    kv_cache_memory: Bytes | None = _setting(
        None,
        "Engine",
        "Memory for the KV cache, and for states where a model keeps some, taken at the start, but for what all slots"
        " together cannot use. Default: on a CPU 40 % of what is free once the weights are loaded, within the limits of"
        " containers; on a GPU what weights and the largest step leave of 90 %. Replicas on a CPU share it out; on GPUs"
        " each takes so much of its own.",
        "SIZE",
        ge=1,
    )
    state_cache_memory: Bytes | None = _setting(
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
    block_size: int | None = _setting(
        None,
        "Engine",
        "Tokens in one block of the KV cache; on a CPU multiples of 16 are fastest. Default: by device.",
        "N",
        ge=1,
        le=1024,
    )
    enable_prefix_caching: bool = _setting(True, "Engine", "Reuse the KV blocks of prompts that begin alike.")
    batching: BatchingStrategy = _setting(
        "continuous",
        "Engine",
        "Batching strategy; continuous refills a free slot in the next step, the others are for comparison.",
    )
    batch_wait_ms: float = _setting(
        50.0, "Engine", "How long static batching waits to fill a batch.", "MS", ge=0, le=60_000
    )
    speculation: Speculation = _setting(
        "off",
        "Engine",
        "Speculative decoding with drafts from a request's own prompt and output, which changes no token: ngram tries"
        " all that are found, auto as many in each step as make the tokens come faster by what was measured.",
    )
    deterministic: bool | None = _setting(
        None,
        "Engine",
        "Answer a request with the same tokens and log-probabilities, to the last bit, whatever runs beside it and"
        " however its prompt was cut, cached or computed again. On a CPU alone. Default: where all of the model's"
        " layers run natively, by the same code; elsewhere it is slower.",
    )
    warm_grammars: bool | None = _setting(
        None,
        "Engine",
        "Load what grammars and schemas need as soon as nothing is running after the start, so that the first of them"
        " does not wait for it: a process and the vocabulary in two of them, some 250 MiB with 152,000 tokens. Default:"
        " with more than 32,768 tokens and at least 1 GiB of memory left.",
    )
    seed: int | None = _setting(
        None,
        "Engine",
        "Makes runs repeatable: requests that bring no seed are given one from this, in order of arrival."
        " Default: a random one each.",
        "N",
        ge=0,
        le=2**63 - 1,
    )

    host: str = _setting(
        "127.0.0.1",
        "Server",
        "Address to listen on. The default is reachable from this machine alone, because no key is needed"
        " until you set one; 0.0.0.0 listens everywhere (the container image does).",
        "ADDRESS",
        min_length=1,
    )
    port: int = _setting(8000, "Server", "Port to listen on; 0 takes any free one.", "PORT", ge=0, le=65_535)
    uds: Path | None = _setting(
        None,
        "Server",
        "Unix socket to listen on, in place of host and port. Who may connect is decided by the directory that it is"
        " in.",
        "FILE",
    )
    metrics_port: int | None = _setting(
        None,
        "Server",
        "Port of its own for /metrics, without TLS; 0 takes any free one. /live, /ready and /health are there, too, and"
        " stay on the main port, which /metrics leaves. Default: none, and /metrics is on the main port.",
        "PORT",
        ge=0,
        le=65_535,
    )
    ssl_certfile: Path | None = _setting(
        None,
        "Server",
        "File with the certificate (PEM), and those between it and the root: the server speaks TLS. Read again when it"
        " changes, as the key is.",
        "FILE",
    )
    ssl_keyfile: Path | None = _setting(
        None, "Server", "File with the certificate's private key (PEM). Default: it is in ssl_certfile.", "FILE"
    )
    ssl_keyfile_password: str | None = _setting(
        None, "Server", "Password of the private key, where it has one.", "PASSWORD", repr=False
    )
    forwarded_allow_ips: Strings = _setting(
        (),
        "Server",
        "Proxy whose X-Forwarded-For and X-Forwarded-Proto are believed: an address, a network such as 10.0.0.0/8, or *"
        " for any, and on a Unix socket; repeatable. Default: none.",
        "ADDRESS",
    )
    allowed_host: Strings = _setting(
        (),
        "Server",
        "Host that requests may name (the header Host); repeatable: a name, NAME:PORT, *.NAME, or * for any. Loopback"
        " names always may. Default: those alone where the server listens on a loopback address, so that no web page"
        " reaches it by a name of its own; any host elsewhere.",
        "HOST",
    )
    cors_allow_origin: Strings = _setting(
        (),
        "Server",
        "Web origin whose pages may call the server (CORS), such as https://chat.example.com; repeatable, or * for any."
        " Default: none.",
        "ORIGIN",
    )
    root_path: str = _setting(
        "",
        "Server",
        "Path under which a proxy publishes the server, such as /llm. Requests are answered with it and without it,"
        " whether the proxy takes it off or not.",
        "PATH",
    )
    connection_keep_alive_s: float = _setting(
        620.0,
        "Server",
        "Seconds that a connection without a request stays open, while no more than half of max_connections are open;"
        " beyond that 75, and 10 where none has come yet. Longer than load balancers keep theirs, so that none of them"
        " sends a request into a connection that is being closed.",
        "S",
        gt=0,
        le=86_400,
    )
    api_key: Strings = _setting(
        (),
        "Server",
        "Key that clients must send, or sha256: and its hash; repeatable. Without any, everybody may.",
        "KEY",
        repr=False,
    )
    api_key_file: Path | None = _setting(
        None,
        "Server",
        "File with more keys, or their hashes: one a line (empty lines and lines with # are skipped), or YAML, which"
        " gives keys names, limits, models and an expiry.",
        "FILE",
    )
    usage_db: Path | None = _setting(
        None,
        "Server",
        "SQLite file in which is kept, over restarts, what each named key uses by day and model; made where there is"
        " none. `orcinus usage` and GET /v1/usage show it.",
        "FILE",
    )
    max_queue_len: int = _setting(
        2048,
        "Server",
        "Sequences that may wait for a slot; one more is refused with 429.",
        "N",
        ge=1,
        le=1_000_000,
    )
    max_connections: int = _setting(
        4096,
        "Server",
        "Connections that may be open at once; one more is refused with 503. Fewer where the system lets the process"
        " open fewer files.",
        "N",
        ge=1,
        le=1_000_000,
    )
    max_queue_tokens: int = _setting(
        4 * 2**20,
        "Server",
        "Tokens of prompts that may wait for a slot; a request that brings more is refused with 429, unless nothing"
        " waits. What may be generated is not counted.",
        "N",
        ge=1,
    )
    max_preparing: int = _setting(
        2048,
        "Server",
        "Requests that may be on their way to the queue at once: read, parsed, rendered, tokenized, their grammars"
        " tried out. One API key may have half of them; one more is refused with 429.",
        "N",
        ge=1,
        le=1_000_000,
    )
    max_requests_per_key: int | None = _setting(
        None,
        "Server",
        "Sequences that one API key may have waiting and running; a request counts prompts times n. One more is refused"
        " with 429. Without API keys all clients count as one. Default: no limit.",
        "N",
        ge=1,
        le=1_000_000,
    )
    max_tokens_per_minute_per_key: int | None = _setting(
        None,
        "Server",
        "Tokens a minute that one API key may use, of prompts and generated: a bucket that takes a minute to fill; what"
        " it does not hold is refused with 429. A request reserves its max_tokens, or the rest of the context without,"
        " and gives back at its end what it did not use."
        " Default: no limit.",
        "N",
        ge=1,
    )
    max_logprobs_per_request: int | None = _setting(
        None,
        "Server",
        "Log-probabilities that one request may ask for, of all tokens of its prompts and choices and of their"
        " alternatives: prompts times n times tokens times 1 + top_logprobs. More is a 400. Default: 2**20, which is"
        " about 80 MB of JSON, or what one choice over the whole context may have, where that is more.",
        "N",
        ge=1,
    )
    scheduling_policy: Literal["fair", "fcfs"] = _setting(
        "fair",
        "Server",
        "Whose turn it is, and who makes room in the KV cache: fair shares the engine equally between API keys, by"
        " tokens, and goes by priority and arrival among the requests of each; fcfs goes by those alone. With one key,"
        " or none, both are the same.",
    )
    page: bool = _setting(
        True,
        "Server",
        "Serve the page at / and the events behind it, at /events. Whoever has a key sees there how much each request"
        " and each key holds, by number, and nothing of what they say.",
    )
    lenient: bool = _setting(
        False,
        "Server",
        "Leave request parameters out that are not known here, and name them in the header x-orcinus-left-out, instead"
        " of a 400.",
    )
    prefix_cache_scope: Literal["key", "all"] = _setting(
        "key",
        "Server",
        "Whose prompts may share computed prefixes: those of one API key, so that no client can tell by the time or by"
        " cached_tokens what others have asked, or all. With one key, or none, both are the same. What a request's"
        " cache_salt sets apart stays apart.",
    )
    max_body_bytes: Bytes = _setting(
        16 * 2**20, "Server", "Largest request body; a larger one is refused with 413.", "SIZE", ge=1024
    )
    keep_alive_s: float = _setting(
        10.0,
        "Server",
        "Seconds of silence after which a stream gets an SSE comment, so that proxies keep it open.",
        "S",
        gt=0,
        le=3600,
    )
    drain_timeout_s: float = _setting(
        30.0, "Server", "Seconds that running requests have to finish after SIGTERM.", "S", ge=0, le=86_400
    )
    step_timeout_s: float = _setting(
        120.0,
        "Server",
        "Seconds that one step may take: an engine that is in it for longer is stuck, and is replaced by a new one,"
        " which goes on with its requests. At least 5; 0: as long as it likes.",
        "S",
        ge=0,
        le=86_400,
    )
    max_engine_restarts: int = _setting(
        5,
        "Server",
        "Times in a row that the engine is restarted without a token from it; when it ends once more, so does the"
        " server. 0: an engine that ends is not replaced, and the server ends with the last one.",
        "N",
        ge=0,
        le=1_000_000,
    )

    metrics_names: Names = _setting(
        ("orcinus",),
        "Server",
        "Names that /metrics has its numbers by: orcinus, vllm, or both (orcinus,vllm). vllm are the names that"
        " endpoint pickers, autoscalers and dashboards made for vLLM ask for.",
        "NAMES",
    )

    config: Path | None = _setting(
        None, "General", "YAML file of settings; its keys are the names of flags with underscores.", "FILE"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "General", "What is logged.")
    log_format: Literal["text", "json"] = _setting(
        "text",
        "General",
        "How lines of the log look: text, or one JSON object a line, with the ids of request and trace.",
    )
    otlp_traces_endpoint: str | None = _setting(
        None,
        "General",
        "URL that traces are sent to (OTLP over HTTP), such as http://localhost:4318/v1/traces; needs orcinus[otel]."
        " Variables of OpenTelemetry, such as OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER, say the rest. Default: none.",
        "URL",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, Environment(settings_cls), YamlFile(settings_cls)

    @field_validator("tool_call_parser", mode="before")
    @classmethod
    def _take_tool_alias(cls, name: Any) -> Any:
        return TOOL_CALL_PARSER_ALIASES.get(str(name), name)

    @field_validator("reasoning_parser", mode="before")
    @classmethod
    def _take_reasoning_alias(cls, name: Any) -> Any:
        return REASONING_PARSER_ALIASES.get(str(name), name)

    @field_validator("served_model_name", "api_key")
    @classmethod
    def _no_empty_entries(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise ValueError("an entry is empty")
        return value

    @field_validator("host")
    @classmethod
    def _host_has_no_port(cls, value: str) -> str:
        if (match := _HOST_AND_PORT.fullmatch(value)) is not None:
            raise ValueError(f"must be an address alone: its port {match[1]} is given by --port")
        return value

    @field_validator("allowed_host")
    @classmethod
    def _hosts_are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_parsed(parse_listed_host, entry) for entry in value)

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _proxies_are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_parsed(parse_proxy, entry) for entry in value)

    @field_validator("otlp_traces_endpoint")
    @classmethod
    def _endpoint_is_a_url(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must be a URL such as http://localhost:4318/v1/traces")
        return value

    @field_validator("uds")
    @classmethod
    def _socket_has_a_place(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        if (length := len(os.fsencode(value))) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"the path of a socket has at most {MAX_SOCKET_PATH_BYTES} bytes, got {length}")
        if not value.parent.is_dir():
            raise ValueError(f"there is no directory {value.parent}")
        if value.is_dir():
            raise ValueError(f"{value} is a directory; give the path of the socket in it, such as {value}/orcinus.sock")
        return value

    @field_validator("ssl_certfile", "ssl_keyfile")
    @classmethod
    def _pem_exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"there is no file {value}")
        return value

    @field_validator("cors_allow_origin")
    @classmethod
    def _origins_are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_parsed(parse_origin, entry) for entry in value)

    @field_validator("metrics_names")
    @classmethod
    def _names_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not set(value) <= set(METRICS_NAMES):
            raise ValueError(f"must name one or more of {', '.join(METRICS_NAMES)}, got {','.join(value) or 'none'}")
        return tuple(dict.fromkeys(value))

    @field_validator("rerank_labels")
    @classmethod
    def _labels_are_two_at_most(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > MAX_LABELS or len(set(value)) < len(value) or not all(value):
            raise ValueError(f"must be one or two different texts, such as yes,no; got {','.join(value)!r}")
        return value

    @field_validator("root_path")
    @classmethod
    def _path_is_a_path(cls, value: str) -> str:
        return _parsed(parse_root_path, value)

    @field_validator("api_key")
    @classmethod
    def _keys_can_be_sent(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, key in enumerate(value, 1):
            digest_of(key, f"key {number}")
        return value

    @field_validator("api_key_file")
    @classmethod
    def _file_exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"there is no file {value}")
        if value is not None:
            read_keys(value)
        return value

    @field_validator("usage_db")
    @classmethod
    def _usage_has_a_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.parent.is_dir():
            raise ValueError(f"there is no folder {value.parent} for {value.name}")
        if value is not None and value.is_dir():
            raise ValueError(f"{value} is a folder: name a file in it")
        return value

    @field_validator("chat_template")
    @classmethod
    def _template_exists(cls, value: str | None) -> str | None:
        if value is not None and "{" not in value and not Path(value).is_file():
            raise ValueError(f"there is no file {value}, and it is no Jinja text")
        if value is not None and "{" not in value:
            read_text(Path(value))
        return value

    @field_validator("step_timeout_s")
    @classmethod
    def _step_has_time(cls, value: float) -> float:
        if 0 < value < _MIN_STEP_TIMEOUT_S:
            raise ValueError(f"must be 0 (no limit) or at least {_MIN_STEP_TIMEOUT_S:g}, got {value:g}")
        return value

    @model_validator(mode="after")
    def _budget_covers_slots(self) -> "Settings":
        slots, budget = self.max_num_seqs, self.max_num_batched_tokens
        if slots is not None and budget is not None and budget < slots:
            raise ValueError(
                f"max_num_batched_tokens ({budget}) must be at least max_num_seqs ({slots}): every running"
                " sequence needs one token a step"
            )
        return self

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> "Settings":
        if self.ssl_certfile is None:
            if self.ssl_keyfile is not None or self.ssl_keyfile_password is not None:
                raise ValueError("ssl_keyfile and ssl_keyfile_password need ssl_certfile")
            return self
        from orcinus.config.certificates import server_context

        server_context(self.ssl_certfile, self.ssl_keyfile, self.ssl_keyfile_password)
        return self

    @model_validator(mode="after")
    def _keys_have_one_owner(self) -> "Settings":
        self.read_api_keys()
        return self

    @property
    def model_path(self) -> str:
        """`model`, or the directory of the demo model."""
        return self.model or str(demo_model_path())

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that clients may use; responses carry the first. A local path is named by its last part."""
        if self.served_model_name:
            return self.served_model_name
        if self.model is None:
            return (DEMO_MODEL_NAME,)
        path = Path(self.model)
        if not path.exists():
            return (self.model,)
        return (path.stem if path.suffix == ".gguf" else path.resolve().name,)

    @property
    def is_key_needed(self) -> bool:
        return bool(self.api_key) or self.api_key_file is not None

    def read_api_keys(self) -> tuple[ApiKey, ...]:
        """Return the keys of `api_key` and those that `api_key_file` holds now. Raises `TextFileError`."""
        given = tuple(ApiKey(digest_of(key, "api_key")) for key in self.api_key)
        if self.api_key_file is None:
            return given
        read = read_keys(self.api_key_file)
        try:
            check_distinct(read, given)
        except ValueError as error:
            raise TextFileError(self.api_key_file, str(error)) from None
        return given + read

    @property
    def limits_per_key(self) -> ClientLimits:
        """The limits of each client, but for those that its key has of its own."""
        requests, tokens = self.max_requests_per_key, self.max_tokens_per_minute_per_key
        return ClientLimits(
            max_requests=None if requests is None else Limit(requests, "max_requests_per_key"),
            max_tokens_per_minute=None if tokens is None else Limit(tokens, "max_tokens_per_minute_per_key"),
        )

    def read_chat_template(self) -> str | None:
        """Return the Jinja text of `chat_template`, read from its file if it names one. Raises `TextFileError`."""
        if self.chat_template is None or "{" in self.chat_template:
            return self.chat_template
        return read_text(Path(self.chat_template))

    def engine_config(self) -> EngineConfig:
        """Return the settings that the engine process needs."""
        return EngineConfig(
            model=self.model_path,
            dtype=self.dtype,
            device=self.device,
            quantization=self.quantization,
            kernels=self.kernels,
            trust_remote_code=self.trust_remote_code,
            use_generation_config=self.use_generation_config,
            pooling=self.pooling,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            target_itl_ms=self.target_itl_ms,
            target_ttft_ms=self.target_ttft_ms,
            kv_cache_memory=self.kv_cache_memory,
            state_cache_memory=self.state_cache_memory,
            block_size=self.block_size,
            enable_prefix_caching=self.enable_prefix_caching,
            batching=self.batching,
            batch_wait_ms=self.batch_wait_ms,
            deterministic=self.deterministic,
            speculation=self.speculation,
            warm_grammars=self.warm_grammars,
            seed=self.seed,
            log_level=self.log_level,
            log_format=self.log_format,
        )


def _parsed(parse: Callable[[str], str], entry: str) -> str:
    """Return an entry in its one form. Raises `ValueError` that shows it."""
    try:
        return parse(entry)
    except ValueError as error:
        raise ValueError(f"{error}, got {entry[:100]!r}") from None


def demo_model_path() -> Path:
    """Return the directory of the demo model, installed or in a checkout."""
    return Path(__file__).resolve().parent.parent / "engine" / "demo_model"


def load_settings(**flags: Any) -> Settings:
    """Return the settings from `flags` (those that were given), the environment and the YAML file.

    Raises `SettingsError` that names all that is wrong, each with its source and what is allowed.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        problems = [_explain(problem, flags) for problem in error.errors(include_url=False)]
        raise SettingsError("\n".join(dict.fromkeys(problems))) from None


def _explain(problem: Any, flags: Mapping[str, Any]) -> str:
    """Return one line about one of pydantic's errors."""
    reason = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return reason
    name = str(problem["loc"][0])
    field = Settings.model_fields.get(name)
    if field is None:
        return _unknown_name(name)
    source, value = given_by(name, flags)
    shown = "" if not field.repr or value is None else f", got {value!r}"
    stated = reason if problem["type"] == "value_error" else f"must be {describe_allowed(field)}{shown}"
    return f"{source}: {stated}"


def _unknown_name(name: str) -> str:
    try:
        check_keys([name], list(Settings.model_fields), "setting")
    except SettingsError as error:
        return str(error)
    raise AssertionError(f"{name} is a setting")
