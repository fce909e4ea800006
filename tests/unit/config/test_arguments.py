"""Flags made from the declarations of settings."""

import argparse

import pytest

from orcinus.config.arguments import Parser, add_settings, settings_from
from orcinus.config.settings import GROUPS, Settings, SettingsError
from orcinus.config.sources import env_name, flag_name
from orcinus.config.values import group_of


def _parser() -> Parser:
    parser = Parser("orcinus serve", "[OPTIONS]", "Serve.")
    add_settings(parser, positional_model=True)
    return parser


def _settings(*argv: str) -> Settings:
    parser = _parser()
    return settings_from(parser.parse(argv))


def test_every_setting_has_a_flag_a_group_and_a_help_text_with_its_variable() -> None:
    text = " ".join(_parser().format_help().split())
    for name, field in Settings.model_fields.items():
        assert flag_name(name) in text
        assert env_name(name) in text.replace("- ", "")
        assert field.description
        assert group_of(field) in GROUPS


def test_flags_become_settings() -> None:
    settings = _settings(
        "--port", "9000", "--kv-cache-memory=1GiB", "--no-enable-prefix-caching", "--api-key", "a", "--api-key", "b"
    )
    assert settings.port == 9000
    assert settings.kv_cache_memory == 2**30
    assert settings.enable_prefix_caching is False
    assert settings.api_key == ("a", "b")


def test_a_flag_that_is_not_given_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCINUS_ENABLE_PREFIX_CACHING", "false")
    assert _settings().enable_prefix_caching is False
    assert _settings("--enable-prefix-caching").enable_prefix_caching is True


def test_the_model_is_positional_or_a_flag() -> None:
    assert _settings("some/model").model == "some/model"
    assert _settings("--model", "some/model").model == "some/model"
    assert _settings("some/model", "--model", "some/model").model == "some/model"


def test_two_models_are_refused() -> None:
    with pytest.raises(SettingsError, match="two models are given: one and --model two"):
        _settings("one", "--model", "two")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max-num-seq", "4"], "unknown flag: --max-num-seq; did you mean --max-num-seqs"),
        (["--prot=80"], "unknown flag: --prot; did you mean --port"),
        (["--zzzzzz"], "unknown flag: --zzzzzz; orcinus serve --help lists what there is"),
        (["one", "two"], "unexpected argument: two"),
        (["--port"], "argument --port: expected one argument"),
    ],
)
def test_a_wrong_command_line_is_refused_with_a_hint(argv: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        _settings(*argv)
    assert message in str(raised.value)


def test_only_the_groups_asked_for_become_flags() -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser, groups=("Model",), without=("dtype",))
    text = parser.format_help()
    assert "--quantization" in text
    assert "--port" not in text
    assert "--dtype" not in text
