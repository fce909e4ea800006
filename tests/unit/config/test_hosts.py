"""Which hosts are this machine."""

import pytest

from orcinus.config.hosts import is_any_address, is_loopback


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "x.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1"]
)
def test_loopback_is_this_machine_alone(host: str) -> None:
    assert is_loopback(host)
    assert not is_any_address(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "::ffff:0.0.0.0"])
def test_any_address_is_reached_from_elsewhere(host: str) -> None:
    assert is_any_address(host)
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "example.org", "localhost.example.org", "fe80::1", "128.0.0.1", ""])
def test_other_hosts_are_neither(host: str) -> None:
    assert not is_loopback(host)
    assert not is_any_address(host)
