"""Which source of settings wins, how values are written in each, and what is refused."""

from pathlib import Path

import pytest

from orcinus.config.settings import SettingsError, load_settings


def test_command_line_beats_environment_beats_file_beats_default(
    monkeypatch: pytest.MonkeyPatch, yaml_file: Path
) -> None:
    yaml_file.write_text("port: 1001\nhost: from-file\nmax_num_seqs: 3\n")
    monkeypatch.setenv("ORCINUS_PORT", "1002")
    monkeypatch.setenv("ORCINUS_HOST", "from-environment")
    settings = load_settings(config=str(yaml_file), port="1003")
    assert settings.port == 1003
    assert settings.host == "from-environment"
    assert settings.max_num_seqs == 3
    assert settings.block_size is None


def test_the_file_may_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, yaml_file: Path) -> None:
    yaml_file.write_text("port: 1001\n")
    monkeypatch.setenv("ORCINUS_CONFIG", str(yaml_file))
    assert load_settings().port == 1001


def test_empty_values_in_file_and_environment_count_as_not_set(
    monkeypatch: pytest.MonkeyPatch, yaml_file: Path
) -> None:
    yaml_file.write_text("port:\n")
    monkeypatch.setenv("ORCINUS_HOST", "")
    settings = load_settings(config=yaml_file)
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_an_empty_file_is_no_settings(yaml_file: Path) -> None:
    yaml_file.write_text("# nothing yet\n")
    assert load_settings(config=yaml_file).port == 8000


@pytest.mark.parametrize("text", ["one,two", "one, two", '["one", "two"]'])
def test_a_list_in_the_environment_has_commas_or_is_json(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ORCINUS_SERVED_MODEL_NAME", text)
    assert load_settings().served_model_name == ("one", "two")


def test_a_list_in_the_file_is_a_list_or_one_entry(yaml_file: Path) -> None:
    yaml_file.write_text("served_model_name: [one, two]\napi_key: secret\n")
    settings = load_settings(config=yaml_file)
    assert settings.served_model_name == ("one", "two")
    assert settings.api_key == ("secret",)


def test_a_misspelt_variable_is_refused_with_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCINUS_MAX_NUM_SEQ", "4")
    with pytest.raises(SettingsError, match="ORCINUS_MAX_NUM_SEQ; did you mean ORCINUS_MAX_NUM_SEQS"):
        load_settings()


def test_a_misspelt_key_in_the_file_is_refused_with_what_was_meant(yaml_file: Path) -> None:
    yaml_file.write_text("max-model-len: 5\n")
    with pytest.raises(SettingsError, match=r"orcinus\.yaml: max-model-len; did you mean max_model_len"):
        load_settings(config=yaml_file)


def test_the_file_cannot_name_another_file(yaml_file: Path) -> None:
    yaml_file.write_text("config: other.yaml\n")
    with pytest.raises(SettingsError, match=r"unknown key in .*: config"):
        load_settings(config=yaml_file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- port\n", "must hold lines of 'key: value'"),
        (b"port: {a\n", "is not YAML"),
        (b"\xff\xfe\xfa", "it is not UTF-8 text"),
    ],
)
def test_a_broken_file_is_refused(yaml_file: Path, content: bytes, message: str) -> None:
    yaml_file.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        load_settings(config=yaml_file)


def test_a_missing_file_is_refused(yaml_file: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read the settings file .*No such file"):
        load_settings(config=yaml_file)


def test_kubernetes_service_links_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ORCINUS_PORT": "tcp://10.0.0.1:8000",
        "ORCINUS_SERVICE_HOST": "10.0.0.1",
        "ORCINUS_SERVICE_PORT": "8000",
        "ORCINUS_SERVICE_PORT_HTTP": "8000",
        "ORCINUS_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "ORCINUS_PORT_8000_TCP_ADDR": "10.0.0.1",
        "ORCINUS_METRICS_SERVICE_HOST": "10.0.0.2",
    }.items():
        monkeypatch.setenv(name, value)
    assert load_settings().port == 8000
