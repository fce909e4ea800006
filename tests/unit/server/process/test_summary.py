"""The start-up summary."""

import json
import shlex
from pathlib import Path

import msgspec
import pytest

from orcinus.config.engine_config import EngineShare, Speculation
from orcinus.config.settings import load_settings
from orcinus.engine.messages import CacheGroup, EngineInfo
from orcinus.server.process.summary import example_request, server_url, start_up_summary
from tests.certificates import make_certificate

INFO = EngineInfo(
    model="/models/tiny",
    architecture="LlamaForCausalLM",
    num_parameters=4_210_000,
    weight_bytes=8_420_000,
    dtype="bfloat16",
    device="cpu",
    device_name="A Processor",
    attention_backend="sdpa",
    vocab_size=4096,
    eos_token_ids=[1],
    max_model_len=2048,
    max_num_seqs=16,
    max_num_batched_tokens=512,
    num_kv_blocks=4096,
    block_size=16,
    kv_cache_bytes=2**28,
    enable_prefix_caching=True,
    batching="continuous",
    load_time_s=0.82,
)


def test_summary_tells_all_that_was_resolved() -> None:
    text = start_up_summary(INFO, load_settings(), port=8000, ready_s=2.34)
    for expected in (
        "orcinus-demo (LlamaForCausalLM, 4.2 M parameters, 8 MiB)",
        "cpu (A Processor), bfloat16, attention: sdpa",
        "16, 512 tokens a step, continuous batching",
        "4,096 blocks of 16 tokens (65,536 in all), 256 MiB, prefix caching on",
        "2,048 tokens",
        "2.3 s, of which the model took 0.8 s to load",
        "http://127.0.0.1:8000",
    ):
        assert expected in text


def test_summary_tells_of_the_blocks_that_windows_have() -> None:
    groups = [CacheGroup(4096, 4), CacheGroup(1024, 22, window=1024)]
    text = start_up_summary(msgspec.structs.replace(INFO, cache_groups=groups), load_settings(), port=80, ready_s=1.0)
    assert "4,096 blocks of 16 tokens (65,536 in all) and 1,024 for windows of 1,024, 256 MiB, prefix" in text


def test_summary_tells_what_the_cache_is_stored_in_where_that_is_another_type() -> None:
    info = msgspec.structs.replace(INFO, kv_cache_dtype="int8")
    assert "256 MiB in int8, prefix caching on" in start_up_summary(info, load_settings(), port=80, ready_s=1.0)
    info = msgspec.structs.replace(INFO, kv_cache_dtype=INFO.dtype)
    assert "256 MiB, prefix caching on" in start_up_summary(info, load_settings(), port=80, ready_s=1.0)


def test_summary_tells_how_many_snapshots_of_states_there_are() -> None:
    info = msgspec.structs.replace(INFO, state_bytes=2**20, num_state_snapshots=1500)
    text = start_up_summary(info, load_settings(), port=80, ready_s=1.0)
    assert "prefix caching on, 1,500 snapshots of states (1 MiB each)" in text
    assert "snapshots" not in start_up_summary(INFO, load_settings(), port=80, ready_s=1.0)


def test_summary_tells_how_the_machine_was_divided_among_several_engines() -> None:
    def summary(*shares: EngineShare) -> str:
        return start_up_summary(INFO, load_settings(), port=80, ready_s=1.0, shares=shares)

    parts = [((0, 1, 2, 8), 4), ((3,), 1)]
    text = summary(*(EngineShare(index=0, num_engines=2, cores=cores, num_threads=threads) for cores, threads in parts))
    for expected in (
        "2: 4 threads on cores 0-2, 8; 1 thread on core 3. The first one is up, the others load.",
        "16 in each engine, 512 tokens a step",
        "256 MiB, prefix caching on, in each engine",
    ):
        assert expected in text
    on_gpus = summary(*(EngineShare(index=0, num_engines=2, cuda_device=device) for device in "01"))
    assert "2: GPU 0; GPU 1." in on_gpus
    unbound = summary(EngineShare(index=0, num_engines=1, num_threads=2))
    assert "1: 2 threads." in unbound
    assert "Engines" not in summary()


def test_summary_says_that_weights_are_quantized() -> None:
    info = msgspec.structs.replace(INFO, quantization="int8")
    text = start_up_summary(info, load_settings(), port=8000, ready_s=2.34)
    assert "bfloat16 with int8 weights, attention: sdpa" in text


def test_summary_says_what_it_costs_to_have_no_kernels_and_what_to_do() -> None:
    text = start_up_summary(msgspec.structs.replace(INFO, lacks_kernels=True), load_settings(), port=80, ready_s=1.0)
    (line,) = [line for line in text.splitlines() if line.startswith("  Kernels ")]
    assert "several times slower" in line
    assert "Install a wheel for this platform, or a C++ compiler (g++)" in text
    assert "Kernels" not in start_up_summary(INFO, load_settings(), port=80, ready_s=1.0)


def test_summary_of_a_model_without_a_head_says_so_and_asks_for_an_embedding() -> None:
    text = start_up_summary(msgspec.structs.replace(INFO, has_head=False), load_settings(), port=80, ready_s=1.0)
    assert "embeddings alone: the checkpoint has no language-model head" in text
    assert "curl http://127.0.0.1:80/v1/embeddings" in text
    assert "Serves" not in start_up_summary(INFO, load_settings(), port=80, ready_s=1.0)


def test_summary_says_what_was_recognized_in_the_chat_template() -> None:
    form = "tools: hermes; reasoning: think"
    text = start_up_summary(INFO, load_settings(), port=80, ready_s=1.0, message_format=form)
    assert "  Messages   tools: hermes; reasoning: think\n" in text
    plain = start_up_summary(INFO, load_settings(), port=80, ready_s=1.0, has_chat_template=False, message_format=form)
    assert "Messages" not in plain


def test_summary_says_that_the_engine_is_deterministic() -> None:
    info = msgspec.structs.replace(INFO, is_deterministic=True)
    text = start_up_summary(info, load_settings(), port=8000, ready_s=1.0)
    assert "bfloat16, deterministic, attention: sdpa" in text


def test_summary_never_shows_a_key() -> None:
    text = start_up_summary(INFO, load_settings(api_key=["top-secret"]), port=8000, ready_s=2.34)
    assert "top-secret" not in text
    assert "-H 'Authorization: Bearer YOUR_API_KEY'" in text


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("example.org", "http://example.org:80"),
    ],
)
def test_the_url_is_one_that_works_from_here(host: str, url: str) -> None:
    assert server_url(load_settings(host=host), 80) == url


@pytest.mark.parametrize("has_chat_template", [True, False])
def test_the_command_to_paste_is_valid_shell_and_valid_json(has_chat_template: bool) -> None:
    command = example_request("http://h:1", 'it\'s a "model"', False, has_chat_template)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "curl"
    assert words[1] == f"http://h:1/v1/{'chat/' if has_chat_template else ''}completions"
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == 'it\'s a "model"'
    assert ("messages" in body) is has_chat_template


def test_summary_of_a_unix_socket_says_how_to_reach_it(tmp_path: Path) -> None:
    text = start_up_summary(INFO, load_settings(uds=tmp_path / "orcinus.sock"), port=0, ready_s=1.0)
    assert f"unix:{tmp_path}/orcinus.sock\n" in text
    assert f"curl --unix-socket {tmp_path}/orcinus.sock http://localhost/v1/chat/completions" in text


def test_summary_of_tls_names_the_certificate(tmp_path: Path) -> None:
    pair = make_certificate(tmp_path)
    text = start_up_summary(INFO, load_settings(**pair.settings), port=443, ready_s=1.0)
    assert f"curl --cacert {pair.certfile} https://127.0.0.1:443/v1/chat/completions" in text


def test_summary_says_which_types_of_blocks_are_multiplied_as_they_are() -> None:
    info = msgspec.structs.replace(INFO, packed_types={"Q6_K": 3 << 20, "Q4_K": 5 << 20})
    text = start_up_summary(info, load_settings(), port=8000, ready_s=1)
    assert "Weights    in the file's blocks: Q4_K 5 MiB, Q6_K 3 MiB" in text
    assert "blocks: " not in start_up_summary(INFO, load_settings(), port=8000, ready_s=1)


def test_summary_says_that_a_text_half_is_served() -> None:
    info = msgspec.structs.replace(INFO, text_half_of="Gemma3ForConditionalGeneration")
    text = start_up_summary(info, load_settings(), port=8000, ready_s=1)
    assert "of Gemma3ForConditionalGeneration: text alone, no images or audio" in text
    assert "text alone" not in start_up_summary(INFO, load_settings(), port=8000, ready_s=1)


@pytest.mark.parametrize(
    ("speculation", "has_head", "told"),
    [
        ("ngram", False, "a request's own text"),
        ("suffix", False, "past answers"),
        ("mtp", True, "the checkpoint's MTP head"),
        ("auto", False, "a request's own text, past answers: as many as pay"),
        ("auto", True, "the checkpoint's MTP head, a request's own text, past answers: as many as pay"),
    ],
)
def test_summary_tells_where_drafts_come_from(speculation: Speculation, has_head: bool, told: str) -> None:
    info = msgspec.structs.replace(INFO, speculation=speculation, has_mtp_head=has_head)
    assert f"Drafts     from {told}\n" in start_up_summary(info, load_settings(), port=80, ready_s=1.0)
    assert "Drafts" not in start_up_summary(INFO, load_settings(), port=80, ready_s=1.0)
