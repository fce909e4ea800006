"""What is said when the server starts and is probably not meant."""

from pathlib import Path
from typing import Any

import pytest

from orcinus.config.settings import load_settings
from orcinus.server.process.start_warnings import start_up_warnings


def warnings_of(**settings: Any) -> list[str]:
    return list(start_up_warnings(load_settings(**settings)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "llm.example"])
def test_an_open_server_without_a_key_is_one_warning(host: str) -> None:
    [warning] = warnings_of(host=host)
    assert f"listening on {host} without an API key" in warning
    assert "--api-key" in warning
    assert warnings_of(host=host, api_key="secret") == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_server_for_this_machine_needs_none(host: str) -> None:
    assert warnings_of(host=host) == []


def test_a_key_file_without_a_key_is_one_warning(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n\n", encoding="utf-8-sig")
    [warning] = warnings_of(api_key_file=file, host="0.0.0.0")
    assert f"the API key file {file} has no key in it" in warning
    file.write_text("secret\n")
    assert warnings_of(api_key_file=file) == []
    file.write_text("")
    assert warnings_of(api_key_file=file, api_key="secret") == []


def test_a_link_to_a_service_in_place_of_the_port_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCINUS_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("ORCINUS_PORT_8000_TCP", "tcp://10.0.0.1:8000")
    assert load_settings().port == 8000
    [warning] = warnings_of()
    assert warning.startswith("ORCINUS_PORT=tcp://10.0.0.1:8000 is Kubernetes' link to a service")
    monkeypatch.setenv("ORCINUS_PORT", "9000")
    assert warnings_of() == []
