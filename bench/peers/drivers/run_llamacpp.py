"""Serves a GGUF file by llama.cpp over HTTP, as its own server does: FILE PORT SLOTS CONTEXT [NAME=VALUE ...].

Runs in an environment that has `xllamacpp`, which brings llama.cpp's server as a library. More values are fields of its
`CommonParams`; all others are as the library has them.
"""

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str]) -> int:
    xllamacpp: Any = importlib.import_module("xllamacpp")
    file, port, slots, context, *more = arguments
    num_threads = len(os.sched_getaffinity(0))
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.port = int(port)
    params.n_parallel = int(slots)
    params.n_ctx = int(context)
    params.cpuparams.n_threads = num_threads
    params.cpuparams_batch.n_threads = num_threads
    for name, value in (word.split("=", 1) for word in more):
        kind = type(getattr(params, name))
        setattr(params, name, value.lower() in ("1", "true") if kind is bool else kind(value))
    server = xllamacpp.Server(params)
    print(f"serving at {server.listening_address}; {xllamacpp.get_system_info()}", file=sys.stderr, flush=True)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    del server
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    raise SystemExit(main(sys.argv[1:]))
