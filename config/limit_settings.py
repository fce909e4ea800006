"""Settings that limit what the server takes on, from all and from each, and how long it waits for what."""

from typing import Literal

from pydantic import BaseModel, field_validator

from orcinus.config.limits import ClientLimits, Limit
from orcinus.config.setting import Bytes, setting

_MIN_STEP_TIMEOUT_S = 5.0  # stalls are counted in seconds, and a loaded machine takes some


class LimitSettings(BaseModel):
    """Says how much is taken on, whose turn it is, and how long things may take."""

    connection_keep_alive_s: float = setting(
        620.0,
        "Server",
        "Seconds that a connection without a request stays open, while no more than half of max_connections are open;"
        " beyond that 75, and 10 where none has come yet. Longer than load balancers keep theirs, so that none of them"
        " sends a request into a connection that is being closed.",
        "S",
        gt=0,
        le=86_400,
    )
    max_connections: int = setting(
        4096,
        "Server",
        "Connections that may be open at once; one more is refused with 503. Fewer where the system lets the process"
        " open fewer files.",
        "N",
        ge=1,
        le=1_000_000,
    )
    max_queue_len: int = setting(
        2048,
        "Server",
        "Sequences that may wait for a slot; one more is refused with 429.",
        "N",
        ge=1,
        le=1_000_000,
    )
    max_queue_tokens: int = setting(
        4 * 2**20,
        "Server",
        "Tokens of prompts that may wait for a slot; a request that brings more is refused with 429, unless nothing"
        " waits. What may be generated is not counted.",
        "N",
        ge=1,
    )
    max_preparing: int = setting(
        2048,
        "Server",
        "Requests that may be on their way to the queue at once: read, parsed, rendered, tokenized, their grammars"
        " tried out. One API key may have half of them; one more is refused with 429.",
        "N",
        ge=1,
        le=1_000_000,
    )
    max_requests_per_key: int | None = setting(
        None,
        "Server",
        "Sequences that one API key may have waiting and running; a request counts prompts times n. One more is refused"
        " with 429. Without API keys all clients count as one. Default: no limit.",
        "N",
        ge=1,
        le=1_000_000,
    )
    max_tokens_per_minute_per_key: int | None = setting(
        None,
        "Server",
        "Tokens a minute that one API key may use, of prompts and generated: a bucket that takes a minute to fill; what"
        " it does not hold is refused with 429. A request reserves its max_tokens, or the rest of the context without,"
        " and gives back at its end what it did not use."
        " Default: no limit.",
        "N",
        ge=1,
    )
    max_logprobs_per_request: int | None = setting(
        None,
        "Server",
        "Log-probabilities that one request may ask for, of all tokens of its prompts and choices and of their"
        " alternatives: prompts times n times tokens times 1 + top_logprobs. More is a 400. Default: 2**20, which is"
        " about 80 MB of JSON, or what one choice over the whole context may have, where that is more.",
        "N",
        ge=1,
    )
    max_body_bytes: Bytes = setting(
        16 * 2**20, "Server", "Largest request body; a larger one is refused with 413.", "SIZE", ge=1024
    )
    scheduling_policy: Literal["fair", "fcfs"] = setting(
        "fair",
        "Server",
        "Whose turn it is, and who makes room in the KV cache: fair shares the engine equally between API keys, by"
        " tokens, and goes by priority and arrival among the requests of each; fcfs goes by those alone. With one key,"
        " or none, both are the same.",
    )
    prefix_cache_scope: Literal["key", "all"] = setting(
        "key",
        "Server",
        "Whose prompts may share computed prefixes: those of one API key, so that no client can tell by the time or by"
        " cached_tokens what others have asked, or all. With one key, or none, both are the same. What a request's"
        " cache_salt sets apart stays apart.",
    )
    lenient: bool = setting(
        False,
        "Server",
        "Leave request parameters out that are not known here, and name them in the header x-orcinus-left-out, instead"
        " of a 400.",
    )
    keep_alive_s: float = setting(
        10.0,
        "Server",
        "Seconds of silence after which a stream gets an SSE comment, so that proxies keep it open.",
        "S",
        gt=0,
        le=3600,
    )
    drain_timeout_s: float = setting(
        30.0, "Server", "Seconds that running requests have to finish after SIGTERM.", "S", ge=0, le=86_400
    )
    step_timeout_s: float = setting(
        120.0,
        "Server",
        "Seconds that one step may take: an engine that is in it for longer is stuck, and is replaced by a new one,"
        " which goes on with its requests. At least 5; 0: as long as it likes.",
        "S",
        ge=0,
        le=86_400,
    )
    max_engine_restarts: int = setting(
        5,
        "Server",
        "Times in a row that the engine is restarted without a token from it; when it ends once more, so does the"
        " server. 0: an engine that ends is not replaced, and the server ends with the last one.",
        "N",
        ge=0,
        le=1_000_000,
    )

    @field_validator("step_timeout_s")
    @classmethod
    def _step_has_time(cls, value: float) -> float:
        if 0 < value < _MIN_STEP_TIMEOUT_S:
            raise ValueError(f"must be 0 (no limit) or at least {_MIN_STEP_TIMEOUT_S:g}, got {value:g}")
        return value

    @property
    def limits_per_key(self) -> ClientLimits:
        """The limits of each client, but for those that its key has of its own."""
        requests, tokens = self.max_requests_per_key, self.max_tokens_per_minute_per_key
        return ClientLimits(
            max_requests=None if requests is None else Limit(requests, "max_requests_per_key"),
            max_tokens_per_minute=None if tokens is None else Limit(tokens, "max_tokens_per_minute_per_key"),
        )
