"""Does the wheel work by itself? Installs it where nothing else is, and talks to the server that it starts.

    python .ci/smoke.py dist/orcinus-*.whl [arguments for pip install]

Uses the standard library alone, and nothing of the repository but the wheel: the environment, the working
directory and the home directory are new and empty. Exits non-zero, with the server's output, when a step fails.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READY_WITHIN_S = 120
STOPPED_WITHIN_S = 15
QUESTION = "What is the capital of France?"


class SmokeError(Exception):
    """A step did not give what it must."""


def main(wheel: str, *pip_arguments: str) -> None:
    with tempfile.TemporaryDirectory(prefix="orcinus-smoke-") as folder:
        home = Path(folder)
        environment = clean_environment(home)
        python = install(Path(wheel).resolve(), home / "venv", pip_arguments, environment)
        workdir = home / "empty"
        workdir.mkdir()
        environment["PATH"] = str(python.parent)  # no compiler from here on
        check_command_line(python.parent / "orcinus", workdir, environment)
        with running_server(python.parent / "orcinus", workdir, environment) as port:
            check_server(port)
    print("smoke: ok")


def clean_environment(home: Path) -> dict[str, str]:
    """Return what a new user's shell has: no ORCINUS_*, no PYTHON*, no virtual environment; pip's settings stay."""
    kept = {"PATH", "LANG", "LC_ALL", "TERM"}
    environment = {
        name: value for name, value in os.environ.items() if name in kept or name.startswith(("PIP_", "SSL_"))
    }
    cache = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=True)
    return {"PIP_CACHE_DIR": cache.stdout.strip(), **environment, "HOME": str(home)}


def install(wheel: Path, venv: Path, pip_arguments: tuple[str, ...], environment: dict[str, str]) -> Path:
    """A virtual environment with the wheel in it; returns its interpreter."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, env=environment)
    python = venv / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", *pip_arguments, str(wheel)]
    subprocess.run(command, check=True, env=environment, cwd=venv)
    print(f"smoke: {wheel.name} installed in {time.monotonic() - began:.0f} s")
    return python


def check_command_line(orcinus: Path, workdir: Path, environment: dict[str, str]) -> None:
    for argument in ("--version", "--help"):
        done = subprocess.run(
            [str(orcinus), argument],
            capture_output=True,
            check=False,
            text=True,
            env=environment,
            cwd=workdir,
            timeout=60,
        )
        if done.returncode != 0 or not done.stdout.strip():
            raise SmokeError(f"orcinus {argument} exited {done.returncode}: {done.stdout}{done.stderr}")
    print("smoke: orcinus --version and --help answer")


@contextmanager
def running_server(orcinus: Path, workdir: Path, environment: dict[str, str]) -> Iterator[int]:
    """A server on a free port; afterwards SIGTERM must end it cleanly, and its output is shown if it did not."""
    port = free_port()
    log = workdir.parent / "server.log"
    began = time.monotonic()
    with log.open("w") as output:
        server = subprocess.Popen(
            [str(orcinus), "serve", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=workdir,
        )
        try:
            wait_until_ready(server, port)
            print(f"smoke: ready after {time.monotonic() - began:.1f} s")
            check_attention(server, log)
            yield port
            stop(server)
        except BaseException:
            print(log.read_text(), file=sys.stderr)
            raise
        finally:
            server.kill()
            server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SmokeError(f"the server exited {server.returncode} before it was ready")
        try:
            if call(port, "GET", "/ready")[0] == 200:
                return
        except OSError:
            pass  # not listening yet
        time.sleep(0.1)
    raise SmokeError(f"not ready within {READY_WITHIN_S} s")


def check_attention(server: subprocess.Popen[bytes], log: Path) -> None:
    """Check that the server's summary names the native kernels, which the wheel has brought."""
    backend = attention_backend(server, log)
    if not backend.startswith("native-"):
        raise SmokeError(f"attention is {backend}, although the wheel should have brought the native kernels")
    print(f"smoke: attention is {backend}, without a compiler")


def attention_backend(server: subprocess.Popen[bytes], log: Path) -> str:
    """As the summary has it, which is printed once the server is ready, and so may come a moment later."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(r"attention: (\S+)", log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise SmokeError("the server's summary names no attention backend")


def stop(server: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    server.send_signal(signal.SIGTERM)
    status = server.wait(timeout=STOPPED_WITHIN_S)
    if status != 0:
        raise SmokeError(f"after SIGTERM the server exited {status}, not 0")
    print(f"smoke: stopped {time.monotonic() - began:.1f} s after SIGTERM")


def check_server(port: int) -> None:
    for path in ("/live", "/version", "/v1/models", "/metrics"):
        status, body = call(port, "GET", path)
        if status != 200 or not body:
            raise SmokeError(f"GET {path}: {status} {body[:500]!r}")
    request = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 32}
    status, body = call(port, "POST", "/v1/chat/completions", request)
    if status != 200:
        raise SmokeError(f"POST /v1/chat/completions: {status} {body[:500]!r}")
    answer = json.loads(body)["choices"][0]["message"]["content"]
    if "Paris" not in answer:
        raise SmokeError(f"{QUESTION!r} was answered {answer!r}")
    print(f"smoke: {QUESTION} {answer}")


def call(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (SmokeError, subprocess.SubprocessError) as error:
        sys.exit(f"smoke: {error}")
