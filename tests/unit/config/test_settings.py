"""What the settings are, what is said of wrong ones, and what follows from them."""

import hashlib
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from orcinus.config.api_keys import ApiKey
from orcinus.config.parser_names import (
    REASONING_PARSER_ALIASES,
    TOOL_CALL_PARSER_ALIASES,
    ReasoningParser,
    ToolCallParser,
)
from orcinus.config.settings import Settings, SettingsError, demo_model_path, load_settings


def test_defaults_serve_the_demo_model_to_this_machine_alone() -> None:
    settings = load_settings()
    assert settings.model is None
    assert settings.model_path == str(demo_model_path())
    assert settings.model_names == ("orcinus-demo",)
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.batching == "continuous"
    assert settings.max_body_bytes == 16 * 2**20


def test_a_comma_on_the_command_line_is_part_of_the_value() -> None:
    assert load_settings(api_key=["a,b"]).api_key == ("a,b",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": "70000"}, "--port: must be a whole number from 0 to 65535, got '70000'"),
        ({"port": "http"}, "--port: must be a whole number from 0 to 65535, got 'http'"),
        ({"device": "gpu"}, "--device: must be one of auto, cpu, cuda, got 'gpu'"),
        ({"quantization": "int5"}, "--quantization: must be one of none, int8, int4, got 'int5'"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype: must be one of auto, int8, got 'fp8'"),
        ({"tool_call_parser": "xml"}, "--tool-call-parser: must be one of auto, none, hermes, llama3_json, mistral, "),
        ({"tool_call_parser": "xml"}, "step3, xlam, got 'xml'"),
        ({"reasoning_parser": "r1"}, "--reasoning-parser: must be one of auto, none, think, mistral, "),
        ({"max_num_seqs": "0"}, "--max-num-seqs: must be a whole number from 1 to 4096, got '0'"),
        ({"max_model_len": "0"}, "--max-model-len: must be a whole number at least 1, got '0'"),
        ({"target_itl_ms": "0"}, "--target-itl-ms: must be a number above 0 and at most 60000, got '0'"),
        ({"target_ttft_ms": "0"}, "--target-ttft-ms: must be a number above 0 and at most 3600000, got '0'"),
        ({"keep_alive_s": "0"}, "--keep-alive-s: must be a number above 0 and at most 3600, got '0'"),
        ({"drain_timeout_s": "nan"}, "--drain-timeout-s: must be a number from 0 to 86400, got 'nan'"),
        ({"kv_cache_memory": "lots"}, "a size such as 4GiB, 512MiB or a number of bytes, at least 1, got 'lots'"),
        ({"chat_template": "none.jinja"}, "--chat-template: there is no file none.jinja, and it is no Jinja text"),
        ({"api_key_file": "/none"}, "--api-key-file: there is no file /none"),
        ({"api_key": [""]}, "--api-key: an entry is empty"),
        ({"max_num_seqs": 8, "max_num_batched_tokens": 4}, "(4) must be at least max_num_seqs (8)"),
        ({"prot": 1}, "unknown setting: prot; did you mean port"),
    ],
)
def test_a_wrong_flag_is_told_what_is_allowed(flags: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(**flags)
    assert message in str(raised.value)


@pytest.mark.parametrize("kind", ["tool_call_parser", "reasoning_parser"])
def test_vllms_names_of_parsers_are_taken_for_the_same(kind: str) -> None:
    aliases = {"tool_call_parser": TOOL_CALL_PARSER_ALIASES, "reasoning_parser": REASONING_PARSER_ALIASES}[kind]
    own = get_args({"tool_call_parser": ToolCallParser, "reasoning_parser": ReasoningParser}[kind])
    for alias, meant in aliases.items():
        assert alias not in own
        assert getattr(load_settings(**{kind: alias}), kind) == meant
    assert all(getattr(load_settings(**{kind: name}), kind) == name for name in own)


def test_all_that_is_wrong_is_said_at_once_each_with_its_source(
    monkeypatch: pytest.MonkeyPatch, yaml_file: Path
) -> None:
    yaml_file.write_text("block_size: many\n")
    monkeypatch.setenv("ORCINUS_PORT", "x")
    with pytest.raises(SettingsError) as raised:
        load_settings(config=yaml_file, seed="-1")
    lines = str(raised.value).splitlines()
    assert sorted(line.split(":")[0] for line in lines) == [
        "--seed",
        "ORCINUS_PORT",
        f"block_size in {yaml_file}",
    ]


def test_keys_show_neither_in_repr_nor_in_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "top-secret" not in repr(load_settings(api_key=["top-secret"]))
    monkeypatch.setenv("ORCINUS_API_KEY", '["top-secret')
    with pytest.raises(SettingsError) as raised:
        load_settings(port="x")
    assert "top-secret" not in str(raised.value)
    with pytest.raises(ValidationError) as refused:
        Settings(api_key=["top-secret", 1])  # type: ignore[arg-type]
    assert "top-secret" not in str(refused.value)


def test_keys_come_from_settings_and_from_the_file_as_it_is_now(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# team a\nfirst\n\n  second  \n")
    settings = load_settings(api_key=["zeroth"], api_key_file=keys)
    assert settings.read_api_keys() == keys_of("zeroth", "first", "second")
    keys.write_text("third\n")
    assert settings.read_api_keys() == keys_of("zeroth", "third")
    assert settings.is_key_needed


def test_a_chat_template_is_text_or_the_file_that_holds_it(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}")
    assert load_settings(chat_template=str(file)).read_chat_template() == "{{ messages }}"
    assert load_settings(chat_template="{% if x %}").read_chat_template() == "{% if x %}"
    assert load_settings().read_chat_template() is None


def test_names_follow_from_the_model(tmp_path: Path) -> None:
    directory = tmp_path / "my-model"
    directory.mkdir()
    gguf = tmp_path / "small.Q4_0.gguf"
    gguf.touch()
    assert load_settings(model=str(directory)).model_names == ("my-model",)
    assert load_settings(model=str(gguf)).model_names == ("small.Q4_0",)
    assert load_settings(model="Qwen/Qwen3-0.6B").model_names == ("Qwen/Qwen3-0.6B",)
    assert load_settings(model="x/y", served_model_name=["a", "b"]).model_names == ("a", "b")


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1


def test_the_engine_gets_its_part() -> None:
    config = load_settings(
        max_num_seqs="4",
        kv_cache_memory="64MiB",
        enable_prefix_caching=False,
        target_itl_ms="50",
        target_ttft_ms="800",
    ).engine_config()
    assert (config.target_itl_ms, config.target_ttft_ms) == (50.0, 800.0)
    assert (config.max_num_seqs, config.kv_cache_memory, config.enable_prefix_caching) == (4, 64 * 2**20, False)
    assert config.model == str(demo_model_path())


def test_a_byte_order_mark_is_no_part_of_keys_and_templates(tmp_path: Path) -> None:
    keys, template = tmp_path / "keys", tmp_path / "template.jinja"
    keys.write_text("first\nschlüssel\n", encoding="utf-8-sig")
    template.write_text("{{ messages }}", encoding="utf-8-sig")
    settings = load_settings(api_key_file=keys, chat_template=str(template))
    assert settings.read_api_keys() == keys_of("first", "schlüssel")
    assert settings.read_chat_template() == "{{ messages }}"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("name", ["api_key_file", "chat_template"])
def test_a_file_in_another_encoding_is_one_line(encoding: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("schlüssel\n" if encoding == "latin-1" else "key\n", encoding=encoding)
    with pytest.raises(SettingsError) as raised:
        load_settings(**{name: str(file)})
    flag = name.replace("_", "-")
    assert str(raised.value).startswith(f"--{flag}: cannot read {file}: it is not UTF-8 text")
    assert "\n" not in str(raised.value)


def test_a_key_that_nobody_can_type_is_refused_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("good\nsec\x07ret\n")
    with pytest.raises(SettingsError, match="the key in line 2 has a control character") as raised:
        load_settings(api_key_file=file)
    assert "sec" not in str(raised.value)


@pytest.mark.parametrize("given", ["orcinus,vllm", ["orcinus", "vllm"], ["orcinus,vllm"], ["orcinus, vllm", "vllm"]])
def test_names_of_metrics_may_stand_in_one_list_or_in_several(given: str | list[str]) -> None:
    assert load_settings(metrics_names=given).metrics_names == ("orcinus", "vllm")


@pytest.mark.parametrize(("given", "shown"), [("sglang", "sglang"), (["vllm", "x"], "vllm,x"), ([], "none")])
def test_names_of_metrics_that_there_are_not_are_refused(given: str | list[str], shown: str) -> None:
    with pytest.raises(SettingsError, match=f"must name one or more of orcinus, vllm, got {shown}"):
        load_settings(metrics_names=given)


def keys_of(*keys: str) -> tuple[ApiKey, ...]:
    return tuple(ApiKey(hashlib.sha256(key.encode()).digest()) for key in keys)


def test_usage_goes_into_a_folder_that_there_is(tmp_path: Path) -> None:
    assert load_settings(usage_db=str(tmp_path / "usage.db")).usage_db == tmp_path / "usage.db"
    with pytest.raises(SettingsError, match=r"there is no folder .*none for usage\.db"):
        load_settings(usage_db=str(tmp_path / "none" / "usage.db"))
    with pytest.raises(SettingsError, match="is a folder: name a file in it"):
        load_settings(usage_db=str(tmp_path))
