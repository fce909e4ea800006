"""Which hosts are this machine and no other: loopback names and addresses. Resolves no names."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the host: `localhost`, 127.0.0.0/8, `::1`."""
    address = _address(host)
    if address is None:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback


def is_any_address(host: str) -> bool:
    """Return whether the host stands for all addresses of a machine: `0.0.0.0`, `::`."""
    address = _address(host)
    return address is not None and address.is_unspecified


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
