"""Runs the checks of a client's script and says of each, as JSON, whether it passed. Knows no client.

    python -m tests.clients.scripts.checks SCRIPT URL

A check is a function `check_*` of the module SCRIPT, and takes the address of a server. The process may talk to this
machine alone: whatever else a client tries to reach ends the check with an error.
"""

import importlib
import inspect
import ipaddress
import json
import sys
import traceback
from typing import Any


def refuse_network(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: no connection leaves this machine."""
    if event == "socket.connect" and isinstance(args[1], tuple) and not is_local(args[1][0]):
        raise PermissionError(f"the client tried to reach {args[1]!r}")
    if event == "socket.getaddrinfo" and args[0] and not is_local(args[0]):
        raise PermissionError(f"the client tried to look up {args[0]!r}")


def is_local(host: str | bytes) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def run(script: str, url: str) -> dict[str, str]:
    """The name of each check, with what went wrong; empty if nothing did."""
    module = importlib.import_module(script)
    checks = {name: check for name, check in vars(module).items() if name.startswith("check_")}
    return {name: outcome(check, url) for name, check in checks.items() if inspect.isfunction(check)}


def outcome(check: Any, url: str) -> str:
    try:
        check(url)
    except BaseException:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    sys.addaudithook(refuse_network)
    results = run(*sys.argv[1:])
    print("\n" + json.dumps(results), flush=True)
