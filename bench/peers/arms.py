"""The arms: how each server is installed, started and recognised as ready. It starts nothing itself."""

import argparse
import glob
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.gguf_model import TYPES, write_gguf
from bench.peers.environments import (
    LLAMACPP,
    OPENVINO,
    OPENVINO_CONVERT,
    ROOT,
    VLLM,
    Environment,
    ensure_installed,
)
from bench.peers.roofline import kv_bytes_per_token
from orcinus.config.version import VERSION
from orcinus.engine.errors import OrcinusError

_ALLOCATORS = "/usr/lib/*/libtcmalloc_minimal.so.4"
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*")
# What an arm is given in place of the model: a GGUF file of it, of this type; and what serves it.
_GGUF_TYPE, _LLAMA_SERVER = "GGUF", "SERVER"
_DEFAULT_GGUF_TYPE = "Q4_0"
_LLAMA_CONTEXT_UNIT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Holds what all arms are given alike. `model` is a directory in transformers' format."""

    model: Path
    slots: int
    max_model_len: int
    kv_gib: int

    @property
    def config(self) -> dict[str, Any]:
        return dict(json.loads((self.model / "config.json").read_text()))

    @property
    def kv_tokens(self) -> int:
        return self.kv_gib * 2**30 // kv_bytes_per_token(self.config)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A command. A server is asked at `ready_path` whether it is ready; a driver, which has none, says so itself.

    `facts` are what a reader has to know of how it runs; a driver adds its own.
    """

    command: list[str]
    ready_path: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kind:
    """Says how its command is made of the setting, a port and extra arguments, and what it runs in.

    One that is a server can be asked at any time; a driver gets all requests at once. With `takes_samplings` not all
    requests have to be sampled alike.
    """

    launch: Callable[[Setting, int, tuple[str, ...]], Launch]
    version: str
    environments: tuple[Environment, ...] = ()
    prepare: Callable[[Path, tuple[str, ...]], object] | None = None
    takes_arguments: bool = True
    takes_samplings: bool = True
    is_server: bool = False


@dataclass(frozen=True, slots=True)
class Arm:
    """A kind with arguments of its own, under the name that it was asked for by."""

    name: str
    kind: Kind
    arguments: tuple[str, ...]

    @property
    def file_name(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.name)

    def install(self, model: Path) -> None:
        """All that takes long and is needed once only. Raises `OrcinusError`."""
        for environment in self.kind.environments:
            ensure_installed(environment)
        if self.kind.prepare is not None:
            self.kind.prepare(model, self.arguments)

    def launch(self, setting: Setting, port: int) -> Launch:
        return self.kind.launch(setting, port, self.arguments)


def parse_arms(text: str) -> list[Arm]:
    """`orcinus,vllm,orcinus:--no-enable-prefix-caching` as arms. Raises `ArgumentTypeError`."""
    arms = [_parse_arm(part.strip()) for part in text.split(",")]
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an arm twice")
    return arms


def _parse_arm(text: str) -> Arm:
    name, _, arguments = text.partition(":")
    if name not in KINDS:
        raise argparse.ArgumentTypeError(f"{name!r} is no arm; there are {', '.join(KINDS)}")
    if arguments and not KINDS[name].takes_arguments:
        raise argparse.ArgumentTypeError(f"{name} takes no arguments, but was given {arguments!r}")
    return Arm(text, KINDS[name], tuple(shlex.split(arguments)))


def serve(flags: Sequence[str], port: int, environment: Mapping[str, str] | None = None) -> Launch:
    """This server, as `flags` say."""
    command = [sys.executable, "-m", "orcinus.server.cli", "serve", *flags, "--port", str(port)]
    return Launch(
        command=command,
        ready_path="/health",
        environment={"ORCINUS_LOG_LEVEL": "warning", **(environment or {})},
        facts={"asked": "over HTTP"},
    )


def _orcinus(setting: Setting, port: int, arguments: tuple[str, ...]) -> Launch:
    environment, flags = _split(arguments)
    return serve([*_orcinus_flags(setting, environment), *flags], port, environment)


def _orcinus_loop(setting: Setting, port: int, arguments: tuple[str, ...]) -> Launch:
    environment, flags = _split(arguments)
    command = [sys.executable, "-m", "bench.peers.drivers.run_orcinus", *_orcinus_flags(setting, environment), *flags]
    return Launch(command=command, environment=environment, facts={"asked": "in process"})


def _orcinus_flags(setting: Setting, environment: dict[str, str]) -> list[str]:
    """`GGUF=...` is taken out of the environment, and has the model as such a file."""
    type_name = environment.pop(_GGUF_TYPE, None)
    model = setting.model if type_name is None else _gguf_file(setting.model, type_name)
    flags = [str(model), "--dtype", "bfloat16", "--max-num-seqs", str(setting.slots), "--device", "cpu"]
    return [*flags, "--max-model-len", str(setting.max_model_len), "--kv-cache-memory", f"{setting.kv_gib}GiB"]


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return what has the form `NAME=VALUE`, as in front of a shell's command, and the rest."""
    given = [word for word in arguments if _ASSIGNMENT.fullmatch(word)]
    return dict(word.split("=", 1) for word in given), [word for word in arguments if word not in given]


def _vllm(setting: Setting, port: int, arguments: tuple[str, ...]) -> Launch:
    """With all cores and the libraries that its documentation recommends; left alone it keeps a core for HTTP."""
    command = [str(VLLM.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(setting.model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    command += ["--max-model-len", str(setting.max_model_len), "--max-num-seqs", str(setting.slots)]
    given, flags = _split(arguments)
    allocators = glob.glob(_ALLOCATORS)  # noqa: PTH207
    environment = {
        "LD_PRELOAD": ":".join([str(VLLM.directory / "lib" / "libiomp5.so"), *allocators]),
        "VLLM_CPU_KVCACHE_SPACE": str(setting.kv_gib),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        "VLLM_NO_USAGE_STATS": "1",
        **given,
    }
    facts: dict[str, str | int] = {
        "asked": "over HTTP",
        "weights and cache": "bfloat16",
        "threads on cores": environment["VLLM_CPU_OMP_THREADS_BIND"],
        "tcmalloc": "preloaded" if allocators else "not installed",
    }
    return Launch(command=[*command, *flags], ready_path="/health", environment=environment, facts=facts)


def _openvino(setting: Setting, port: int, arguments: tuple[str, ...]) -> Launch:
    """`NAME=VALUE` is for the driver, the other arguments are those of the conversion."""
    given, conversion = _split(arguments)
    model = _converted_directory(setting.model, conversion)
    command = [str(OPENVINO.python), "-m", "bench.peers.drivers.run_openvino", str(model)]
    command += [str(setting.slots), str(setting.kv_gib), *(f"{name}={value}" for name, value in given.items())]
    return Launch(command=command, facts={"asked": "in process", "weights": " ".join(conversion) or "fp16"})


def _llamacpp(setting: Setting, port: int, arguments: tuple[str, ...]) -> Launch:
    """By the wheel's library, or by a `llama-server` that is named. What is left are their own arguments.

    llama.cpp divides its cache among the slots beforehand: each has as many tokens as the longest sequence.
    """
    given, flags = _split(arguments)
    type_name, server = given.pop(_GGUF_TYPE, _DEFAULT_GGUF_TYPE), given.pop(_LLAMA_SERVER, None)
    model = str(_gguf_file(setting.model, type_name))
    slot_tokens = -(-setting.max_model_len // _LLAMA_CONTEXT_UNIT) * _LLAMA_CONTEXT_UNIT
    facts: dict[str, str | int] = {
        "asked": "over HTTP",
        "weights": type_name,
        "tokens of cache": slot_tokens * setting.slots,
    }
    sizes = [str(setting.slots), str(slot_tokens * setting.slots)]
    if server is None:
        fields = [f"{name}={value}" for name, value in given.items()] + flags
        command = [str(LLAMACPP.python), "-m", "bench.peers.drivers.run_llamacpp", model, str(port), *sizes, *fields]
        return Launch(command=command, ready_path="/health", facts=facts)
    threads = str(len(os.sched_getaffinity(0)))
    command = [server, "--model", model, "--host", "127.0.0.1", "--port", str(port), "--parallel", sizes[0]]
    command += ["--ctx-size", sizes[1], "--threads", threads, "--threads-batch", threads, *flags]
    return Launch(command=command, ready_path="/health", environment=given, facts=facts | {"server": server})


def _transformers(setting: Setting, port: int, arguments: tuple[str, ...]) -> Launch:
    driver = "bench.peers.drivers.run_transformers"
    sizes = [str(setting.slots), str(setting.kv_tokens)]
    command = [sys.executable, "-m", driver, str(setting.model), *sizes]
    return Launch(command=command, facts={"asked": "in process"})


def _convert(model: Path, arguments: tuple[str, ...]) -> None:
    """Write the model in OpenVINO's format unless it is there, in fp16 without arguments. Raises `OrcinusError`."""
    _, conversion = _split(arguments)
    directory = _converted_directory(model, conversion)
    if (directory / "openvino_tokenizer.bin").is_file():
        return
    export = [str(OPENVINO_CONVERT.command("optimum-cli")), "export", "openvino", "--model", str(model.resolve())]
    format_arguments = conversion or ["--weight-format", "fp16"]
    command = [*export, "--task", "text-generation-with-past", *format_arguments, str(directory)]
    if subprocess.run(command, check=False, stdout=sys.stderr, cwd=ROOT).returncode:
        raise OrcinusError(f"OpenVINO's conversion failed: {shlex.join(command)}")


def _write_gguf(default: str | None) -> Callable[[Path, tuple[str, ...]], None]:
    """Return what writes the file of the type that arguments name unless it is there. It raises `OrcinusError`."""

    def write(model: Path, arguments: tuple[str, ...]) -> None:
        type_name = _split(arguments)[0].get(_GGUF_TYPE, default)
        if type_name is None or (file := _gguf_file(model, type_name)).is_file():
            return
        if type_name not in TYPES:
            raise OrcinusError(
                f"{_GGUF_TYPE}={type_name} is no type that is written here; there are {', '.join(TYPES)}"
            )
        try:
            write_gguf(model, file, type_name)
        except ValueError as error:
            raise OrcinusError(str(error)) from None

    return write


def _gguf_file(model: Path, type_name: str) -> Path:
    resolved = model.resolve()
    return resolved.with_name(f"{resolved.name}-{type_name}.gguf")


def _converted_directory(model: Path, conversion: Sequence[str]) -> Path:
    resolved = model.resolve()
    return resolved.with_name("-".join([resolved.name, "openvino", *(part.strip("-") for part in conversion)]))


KINDS: Mapping[str, Kind] = {
    "orcinus": Kind(_orcinus, f"Orcinus {VERSION}", prepare=_write_gguf(None), is_server=True),
    "orcinus-loop": Kind(_orcinus_loop, f"Orcinus {VERSION}, its engine loop alone", prepare=_write_gguf(None)),
    "vllm": Kind(_vllm, VLLM.requirements[0], (VLLM,), is_server=True),
    "openvino": Kind(_openvino, OPENVINO.requirements[0], (OPENVINO, OPENVINO_CONVERT), _convert),
    "llamacpp": Kind(
        _llamacpp,
        f"llama.cpp, {LLAMACPP.requirements[0]}",
        (LLAMACPP,),
        _write_gguf(_DEFAULT_GGUF_TYPE),
        is_server=True,
    ),
    "transformers": Kind(
        _transformers,
        f"transformers {metadata.version('transformers')}, continuous batching",
        takes_arguments=False,
        takes_samplings=False,
    ),
}
