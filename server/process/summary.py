"""What a person reads when the server is ready: the resolved settings in a few lines, and a command to paste.

It formats and prints nothing else; no key is ever part of it.
"""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from orcinus.config.addresses import url_of
from orcinus.config.engine_config import EngineShare
from orcinus.config.settings import Settings
from orcinus.config.values import format_bytes
from orcinus.config.version import VERSION
from orcinus.engine.messages import EngineInfo

_QUESTION = "What is the capital of France?"
_NO_KERNELS = (
    "NONE: without native code this CPU computes several times slower than it could.\n"
    "             Install a wheel for this platform, or a C++ compiler (g++), and start again"
)


def start_up_summary(
    info: EngineInfo,
    settings: Settings,
    *,
    port: int,
    ready_s: float,
    has_chat_template: bool = True,
    message_format: str = "",
    shares: Sequence[EngineShare] = (),
) -> str:
    """Return the start-up summary. `port` is the one that is listened on, which `settings.port` 0 does not tell.

    `ready_s` is the time since the command was started. `message_format` says what was recognized in the chat template.
    `info` is of one of the engines, which are alike, and `shares` are of all where there are several.
    """
    url = server_url(settings, port)
    rows = {
        "Model": _model(info, settings),
        **({} if info.has_head else {"Serves": "embeddings alone: the checkpoint has no language-model head"}),
        **({"Text half": f"of {info.text_half_of}: text alone, no images or audio"} if info.text_half_of else {}),
        **({"Weights": _in_blocks(info)} if info.packed_types else {}),
        "Device": f"{_device(info)}, {_numbers(info)}, attention: {info.attention_backend}",
        **({"Kernels": _NO_KERNELS} if info.lacks_kernels else {}),
        **({"Drafts": _drafts(info)} if info.speculation != "off" else {}),
        **({"Engines": _engines(shares)} if shares else {}),
        "Slots": f"{info.max_num_seqs}{' in each engine' if shares else ''}, {info.max_num_batched_tokens:,} tokens a"
        f" step, {info.batching} batching",
        "KV cache": _kv_cache(info) + (", in each engine" if shares else ""),
        "Context": f"{info.max_model_len:,} tokens",
        **({"Messages": message_format} if has_chat_template and message_format else {}),
        "Keys": "needed" if settings.is_key_needed else "none needed",
        "Ready in": f"{ready_s:.1f} s, of which the model took {info.load_time_s:.1f} s to load",
        "URL": f"{url}  (API reference: {url}/docs)" if settings.uds is None else f"unix:{settings.uds}",
    }
    table = "\n".join(f"  {name:<10} {value}" for name, value in rows.items())
    name = settings.model_names[0]
    curl = example_request(
        url, name, settings.is_key_needed, has_chat_template, has_head=info.has_head, options=_curl_options(settings)
    )
    return f"Orcinus {VERSION} is ready.\n\n{table}\n\nTry it:\n\n{curl}\n"


def server_url(settings: Settings, port: int) -> str:
    """Return the address to use from this machine; on a Unix socket the name of the host means nothing."""
    scheme = "http" if settings.ssl_certfile is None else "https"
    return f"{scheme}://localhost" if settings.uds is not None else url_of(settings.host, port, scheme)


def _curl_options(settings: Settings) -> str:
    """Return what curl needs to be told to reach the server: its socket, and a certificate that nobody vouches for."""
    socket = "" if settings.uds is None else f"--unix-socket {shlex.quote(str(settings.uds))} "
    certificate = "" if settings.ssl_certfile is None else f"--cacert {shlex.quote(str(settings.ssl_certfile))} "
    return socket + certificate


def example_request(
    url: str, model: str, is_key_needed: bool, has_chat_template: bool, *, has_head: bool = True, options: str = ""
) -> str:
    """Return a curl command that works as printed, once the key is filled in where one is needed."""
    asked: dict[str, Any]
    if not has_head:
        path, asked = "/v1/embeddings", {"input": _QUESTION}
    elif has_chat_template:
        path, asked = "/v1/chat/completions", {"messages": [{"role": "user", "content": _QUESTION}]}
    else:
        path, asked = "/v1/completions", {"prompt": _QUESTION}
    body = json.dumps({"model": model, **asked})
    lines = [f"  curl {options}{shlex.quote(url + path)}", "    -H 'Content-Type: application/json'"]
    if is_key_needed:
        lines.append("    -H 'Authorization: Bearer YOUR_API_KEY'")
    return " \\\n".join([*lines, f"    -d {shlex.quote(body)}"])


def _model(info: EngineInfo, settings: Settings) -> str:
    parameters = f"{_count(info.num_parameters)} parameters, {format_bytes(info.weight_bytes)}"
    return f"{', '.join(settings.model_names)} ({info.architecture}, {parameters})"


def _in_blocks(info: EngineInfo) -> str:
    """Return what is multiplied in the blocks that the file has, the largest part first."""
    types = sorted(info.packed_types.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in types)
    return f"in the file's blocks: {parts}"


def _drafts(info: EngineInfo) -> str:
    """Return what speculative decoding takes its drafts from."""
    weighed = info.speculation == "auto"
    sources = {
        "the checkpoint's MTP head": info.has_mtp_head,
        "a request's own text": weighed or info.speculation == "ngram",
        "past answers": weighed or info.speculation == "suffix",
    }
    named = ", ".join(name for name, is_source in sources.items() if is_source)
    return f"from {named}{': as many as pay' if weighed else ''}"


def _device(info: EngineInfo) -> str:
    return f"{info.device} ({info.device_name})" if info.device_name else info.device


def _engines(shares: Sequence[EngineShare]) -> str:
    """Return how the machine was divided among the engines, of which the first is up."""
    parts = "; ".join(_part(share) for share in shares)
    return f"{len(shares)}: {parts}. The first one is up, the others load."


def _part(share: EngineShare) -> str:
    if share.cuda_device is not None:
        return f"GPU {share.cuda_device}"
    threads = f"{share.num_threads} thread{'s' if share.num_threads > 1 else ''}"
    if not share.cores:
        return threads
    return f"{threads} on core{'s' if len(share.cores) > 1 else ''} {_ranges(share.cores)}"


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers in short: `0-3, 8`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _kv_cache(info: EngineInfo) -> str:
    tokens = info.num_kv_blocks * info.block_size
    sharing = "on" if info.enable_prefix_caching else "off"
    windows = "".join(
        f" and {group.num_blocks:,} for windows of {group.window:,}" for group in info.cache_groups if group.window
    )
    return (
        f"{info.num_kv_blocks:,} blocks of {info.block_size} tokens ({tokens:,} in all){windows},"
        f" {format_bytes(info.kv_cache_bytes)}{_stored_in(info)}, prefix caching {sharing}{_snapshots(info)}"
    )


def _stored_in(info: EngineInfo) -> str:
    """Return what keys and values are stored in, where that is not what they are computed in."""
    return f" in {info.kv_cache_dtype}" if info.kv_cache_dtype not in {"", info.dtype} else ""


def _snapshots(info: EngineInfo) -> str:
    if not info.state_bytes:
        return ""
    return f", {info.num_state_snapshots:,} snapshots of states ({format_bytes(info.state_bytes)} each)"


def _count(number: int) -> str:
    """Return a number in short: `4.2 M`, `1.1 B`."""
    if number >= 10**9:
        return f"{number / 10**9:.1f} B"
    return f"{number / 10**6:.1f} M" if number >= 10**5 else f"{number:,}"


def _numbers(info: EngineInfo) -> str:
    numbers = info.dtype if info.quantization is None else f"{info.dtype} with {info.quantization} weights"
    return f"{numbers}, deterministic" if info.is_deterministic else numbers
