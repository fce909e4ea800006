"""How hosts, origins and paths of this server are written in settings and requests, and which are the same.

Knows nothing of which of them are allowed, or of connections.
"""

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

ANY_ADDRESSES = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, never listened on

MAX_SOCKET_PATH_BYTES = 107  # of Linux, whose sun_path has 108 with the zero at its end

_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)(?:%[\w.~-]+)?\]|([\w.~!$&'()*+,;=%-]+))(?::(\d{0,5}))?", re.ASCII)
_OLD_IPV4 = re.compile(r"(?:0x[0-9a-f]+|\d+)(?:\.(?:0x[0-9a-f]+|\d+)){0,3}")
_PATH_PART = re.compile(r"[\w.~-]+", re.ASCII)
_MAX_PORT = 65_535
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Host:
    """A host as `Host` names it. `name` is in its one form: small letters, no dot at the end, no brackets."""

    name: str
    port: int | None = None

    @property
    def address(self) -> IPv4Address | IPv6Address | None:
        """The address, if the name is one; IPv4 also in the old forms that systems understand (127.1)."""
        try:
            found = ip_address(self.name)
        except ValueError:
            return _old_ipv4(self.name)
        return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found

    @property
    def is_loopback(self) -> bool:
        """Whether it names this machine to itself alone."""
        if (address := self.address) is not None:
            return address.is_loopback
        return self.name == "localhost" or self.name.endswith(".localhost")


def parse_host(text: str) -> Host:
    """Return the host of `name`, `name:port`, `[IPv6]` or `[IPv6]:port`. Raises `ValueError` for anything else."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise ValueError("it is not of the form name, name:port, [IPv6] or [IPv6]:port")
    bracketed, name, port = match.groups()
    if port and int(port) > _MAX_PORT:
        raise ValueError(f"the port is at most {_MAX_PORT}, got {port}")
    if bracketed is not None:
        name = IPv6Address(bracketed).compressed
    name = name.lower().removesuffix(".")
    if not name:
        raise ValueError("the name is empty")
    return Host(name, int(port) if port else None)


def parse_listed_host(text: str) -> str:
    """Return an entry of `allowed_host` in its one form: `*`, `*.name`, or a host. Raises `ValueError`."""
    if text == "*":
        return text
    if text.startswith("*."):
        return "*." + parse_host(text[2:]).name
    try:
        return IPv6Address(text).compressed  # without brackets
    except ValueError:
        host = parse_host(text)
        return _written(host)


def parse_origin(text: str) -> str:
    """Return `*`, `null` or `scheme://host[:port]` as browsers write it. Raises `ValueError`."""
    if text in ("*", "null"):
        return text
    parts = urlsplit(text.lower())
    if not parts.scheme or not parts.netloc or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("an origin is * or a scheme and a host, such as https://chat.example.com")
    host = parse_host(parts.netloc)
    is_default = host.port is None or host.port == _DEFAULT_PORTS.get(parts.scheme)
    shown = f"[{host.name}]" if ":" in host.name else host.name
    return f"{parts.scheme}://{shown}" if is_default else f"{parts.scheme}://{shown}:{host.port}"


def parse_proxy(text: str) -> str:
    """Return `*`, an address or a network in its one form. Raises `ValueError`."""
    if text == "*":
        return text
    try:
        return str(ip_network(text, strict=False)) if "/" in text else str(ip_address(text.strip("[]")))
    except ValueError:
        raise ValueError("a proxy is an address, a network such as 10.0.0.0/8, or *") from None


def parse_socket_url(text: str) -> str | None:
    """Return the path in `unix:/path` or `unix:///path`; None for another URL. Raises `ValueError` without a path."""
    if not text.startswith("unix:"):
        return None
    path = text.removeprefix("unix:").removeprefix("//")
    if not path.startswith("/"):
        raise ValueError("a Unix socket is written unix:/path/of/the.sock")
    return path


def parse_root_path(text: str) -> str:
    """Return `/a/b` for a path however its ends are written, and "" for `/`. Raises `ValueError`."""
    parts = text.strip("/").split("/")
    if parts == [""]:
        return ""
    if not all(_PATH_PART.fullmatch(part) and part not in (".", "..") for part in parts):
        raise ValueError("a path is made of letters, digits and ._~- between slashes, such as /llm")
    return "/" + "/".join(parts)


def url_of(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL of a server that listens on `host`, to be used on the same machine."""
    if host in ANY_ADDRESSES:
        host = "127.0.0.1"
    name, percent, scope = host.strip("[]").partition("%")
    if ":" not in name:
        return f"{scheme}://{host}:{port}"
    return f"{scheme}://[{name}{'%25' if percent else ''}{scope}]:{port}"


def _written(host: Host) -> str:
    if host.port is None:
        return host.name
    return f"[{host.name}]:{host.port}" if ":" in host.name else f"{host.name}:{host.port}"


def _old_ipv4(name: str) -> IPv4Address | None:
    if not _OLD_IPV4.fullmatch(name):
        return None
    try:
        return IPv4Address(socket.inet_aton(name))
    except OSError:
        return None
