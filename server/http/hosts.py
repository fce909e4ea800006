"""Which hosts a request may name: none without one, none with two, and where a list is kept, those on it.

A name that a hostile web page has pointed at this machine is not on the list, so that such a page reaches nothing
(DNS rebinding). Knows heads of requests, and nothing of paths and keys.
"""

import socket
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.exceptions import HTTPException

from orcinus.config.addresses import Host, parse_host, parse_listed_host

MAX_SHOWN_CHARS = 100
# What containers call the loopback address of the machine that runs them; nobody else can own such a name.
_CONTAINER_NAMES = ("host.docker.internal", "host.containers.internal")


class HostPolicy:
    """The hosts that are served. `listen_host` is what the server listens on, None for a Unix socket, which no web page
    reaches; `allowed` is what was listed.

    Loopback names always are. Without a list that is all on a loopback address, and elsewhere every host is; with one,
    addresses are served elsewhere, too: probes and proxies use them, and a hostile page cannot.
    """

    def __init__(self, listen_host: str | None, allowed: Sequence[str] = ()) -> None:
        self._listed = frozenset(map(parse_listed_host, allowed))
        self._suffixes = tuple(entry[1:] for entry in self._listed if entry.startswith("*."))
        self._is_on_loopback = listen_host is not None and is_loopback(listen_host)
        self._is_open = "*" in self._listed or not (self._listed or self._is_on_loopback)
        own = (listen_host or "").lower().removesuffix(".")
        self._own_names = {own, *_CONTAINER_NAMES} if self._is_on_loopback else set()

    def check(self, headers: Sequence[tuple[bytes, bytes]], target: bytes, http_version: str) -> None:
        """Raise the 400 that is due to a request with this head, as RFC 9112 (3.2) has it."""
        values = [value for name, value in headers if name == b"host"]
        if len(values) > 1:
            raise HTTPException(400, f"a request must have one Host header, got {len(values)}")
        if not values and http_version != "1.0":
            raise HTTPException(400, f"a request of HTTP/{http_version} must have a Host header, got none")
        hosts = [_parse(value) for value in values]
        if not target.startswith((b"/", b"*")):
            hosts = [_parse(_authority_of(target))]  # which counts, and not the header
        for host in hosts:
            if not self._is_allowed(host):
                raise HTTPException(
                    400, f"the host {host.name[:MAX_SHOWN_CHARS]!r} is not served here: --allowed-host HOST allows it"
                )

    def _is_allowed(self, host: Host) -> bool:
        if self._is_open or host.is_loopback or host.name in self._own_names:
            return True
        if host.address is not None and not self._is_on_loopback:
            return True
        return self._is_listed(host)

    def _is_listed(self, host: Host) -> bool:
        shown = f"[{host.name}]" if ":" in host.name else host.name
        with_port = f"{shown}:{80 if host.port is None else host.port}"
        return host.name in self._listed or with_port in self._listed or host.name.endswith(self._suffixes)


def is_loopback(listen_host: str) -> bool:
    """Return whether a server that listens on this address or name is reached from its own machine alone."""
    name = listen_host.partition("%")[0].strip("[]")
    host = Host(name.lower().removesuffix("."))
    if host.is_loopback or host.address is not None:
        return host.is_loopback
    try:
        found = socket.getaddrinfo(listen_host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ip_address(address[0]).is_loopback for *_, address in found)


def _parse(value: bytes) -> Host:
    text = value.decode("latin-1").strip(" \t")
    try:
        return parse_host(text)
    except ValueError as error:
        raise HTTPException(400, f"the host {text[:MAX_SHOWN_CHARS]!r} is not valid: {error}") from None


def _authority_of(target: bytes) -> bytes:
    """Return the authority of an absolute URL."""
    rest = target.partition(b"://")[2]
    for end in (b"/", b"?", b"#"):
        rest = rest.partition(end)[0]
    return rest
