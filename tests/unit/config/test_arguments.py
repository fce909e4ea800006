"""Flags made from the declarations of settings."""

import argparse

import pytest

from orcinus.config.arguments import Parser, add_settings, settings_from
from orcinus.config.foreign_flags import FOREIGN_FLAGS, explain_foreign
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
        (["--ctx-sise", "4"], "unknown flag: --ctx-sise; did you mean --ctx-size? --ctx-size is --max-model-len here"),
        (["--tensor_parallel", "2"], "did you mean --tensor-parallel-size? --tensor-parallel-size has no twin here"),
        (["--hots"], "unknown flag: --hots; did you mean --host"),
        (["--frobnicate-it"], "unknown flag: --frobnicate-it; orcinus serve --help lists what there is"),
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


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (["--ctx-size", "4096"], ["--ctx-size is --max-model-len here"]),
        (["--ctx_size=4096"], ["--ctx_size is --max-model-len here"]),
        (["-hf", "owner/name"], ["-hf is --model (a hub id, or owner/name/file.gguf) here"]),
        (["-c", "4096", "-ngl", "99"], None),
        (["--threads", "8"], ["--threads is the environment variable OMP_NUM_THREADS here"]),
        (["--tensor-parallel-size", "2"], ["--tensor-parallel-size has no twin here: a model runs on one device"]),
        (
            ["m", "-np", "4", "--prot", "80"],
            ["-np is --max-num-seqs here", "unknown flag: --prot; did you mean --port?"],
        ),
        (["--gpu-memory-utilization", "0.9"], None),
        (
            ["--model-id", "m", "--context-length", "1"],
            ["--model-id is --model here", "--context-length is --max-model-len here"],
        ),
    ],
)
def test_flags_of_other_servers_are_answered_with_ours(argv: list[str], lines: list[str] | None) -> None:
    with pytest.raises(SettingsError) as raised:
        _settings(*argv)
    answered = str(raised.value).splitlines()
    assert lines is None or answered == lines
    assert all(" here" in line or line.startswith("unknown flag") for line in answered)


def test_every_flag_of_other_servers_has_a_twin_that_there_is_or_a_reason() -> None:
    own = frozenset(_parser()._option_string_actions)
    assert not FOREIGN_FLAGS & own
    known_later = {"--root-path", "--cors-allow-origin"}  # of layers that a server may be without
    for flag in FOREIGN_FLAGS:
        answer = explain_foreign(flag, own | known_later)
        assert answer is not None
        assert "this command has no" not in answer


def test_a_command_without_settings_has_none_of_their_twins() -> None:
    parser = Parser("orcinus chat", "[OPTIONS]", "Chat.")
    with pytest.raises(SettingsError, match="unknown flag: --ctx-size"):
        parser.parse(["--ctx-size", "1"])
    add_settings(parser, groups=("Model",))
    with pytest.raises(SettingsError, match="--parallel has no twin here: this command has no --max-num-seqs"):
        parser.parse(["--parallel", "1"])
