"""What a configuration has from a GGUF file beyond what transformers reads of it."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.models.gguf_config import read_gguf_config
from orcinus.engine.platform.model_source import model_source

_COMMON: dict[str, Any] = {
    **{"context_length": 4096, "embedding_length": 256, "block_count": 2, "feed_forward_length": 512},
    **{"attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 32},
    **{"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 50_000.0},
}


def config_of(folder: Path, architecture: str, tensors: tuple[str, ...] = (), **settings: Any) -> Any:
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
    for name, value in (_COMMON | settings).items():
        key = f"{architecture}.{name}"
        match value:
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
    writer.add_token_list([str(i) for i in range(2000)])
    writer.add_eos_token_id(7)
    for name in tensors:
        writer.add_tensor(name, np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_gguf_config(model_source(str(folder / "model.gguf")))


YARN: dict[str, Any] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 1024,
}
LINEAR: dict[str, Any] = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "phi3", "gemma2", "gpt-oss"])
def test_settings_that_all_have_are_the_files(architecture: str, tmp_path: Path) -> None:
    experts: dict[str, Any] = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 64}
    special: dict[str, Any] = experts | {"attention.sliding_window": 128} if architecture == "gpt-oss" else {}
    config = config_of(tmp_path, architecture, **YARN, **special)
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (2000, 7, None)
    assert (config.hidden_size, config.num_hidden_layers, config.max_position_embeddings) == (256, 2, 4096)
    assert config.tie_word_embeddings
    rope = config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("yarn", 4.0, 1024)
    assert rope["rope_theta"] == 50_000.0


def test_experts_of_llama_are_mixtral(tmp_path: Path) -> None:
    config = config_of(tmp_path, "llama", ("output.weight",), expert_count=8, expert_used_count=2)
    assert config.architectures == ["MixtralForCausalLM"]
    assert (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size) == (8, 2, 512)
    assert (config.sliding_window, config.tie_word_embeddings) == (None, False)


def test_size_of_experts_is_the_files(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 1536}
    assert config_of(tmp_path, "qwen3moe", **settings).moe_intermediate_size == 1536


@pytest.mark.parametrize(("layers", "scalar"), [(26, 32), (62, 64)])
def test_queries_of_the_largest_gemma_3_are_scaled_by_its_hidden_size(layers: int, scalar: int, tmp_path: Path) -> None:
    settings = LINEAR | {"block_count": layers, "attention.sliding_window": 512}
    config = config_of(tmp_path, "gemma3", **settings)
    assert config.query_pre_attn_scalar == scalar
    full, local = (config.rope_parameters[f"{kind}_attention"] for kind in ("full", "sliding"))
    assert (full["rope_type"], full["factor"], full["rope_theta"]) == ("linear", 8.0, 50_000.0)
    assert (local["rope_type"], local["rope_theta"]) == ("default", 10_000.0)
    assert config.sliding_window == 512


def test_part_of_a_head_turns_in_phi(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rope.dimension_count": 48, "attention.sliding_window": 2048}
    config = config_of(tmp_path, "phi3", **settings)
    assert config.rope_parameters["partial_rotary_factor"] == 0.75
    assert config.sliding_window == 2048


def test_biases_of_llama_are_seen_by_their_tensors(tmp_path: Path) -> None:
    assert config_of(tmp_path, "llama", ("blk.0.attn_q.bias",)).attention_bias
    assert not config_of(tmp_path, "llama").attention_bias


def test_architecture_that_nobody_reads_is_named_with_those_that_are(tmp_path: Path) -> None:
    known = r"GGUF files of the architecture deepseek2 cannot be read, only those of .*gpt-oss.*qwen35moe"
    with pytest.raises(ModelLoadError, match=known) as caught:
        config_of(tmp_path, "deepseek2")
    assert not {"general", "tokenizer", "qwen3_moe"} & set(str(caught.value).replace(",", "").split())


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt-oss"])
def test_layers_of_heads_are_none_of_the_models(architecture: str, tmp_path: Path) -> None:
    experts: dict[str, Any] = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 64}
    special: dict[str, Any] = {"block_count": 9, "nextn_predict_layers": 2, "attention.sliding_window": 128}
    config = config_of(tmp_path, architecture, ("blk.0.attn_norm.weight",), **experts | special)
    assert config.num_hidden_layers == 7
    assert len(getattr(config, "layer_types", None) or range(7)) == 7


def test_file_with_a_head_alone_is_refused_by_name(tmp_path: Path) -> None:
    tensors = ("token_embd.weight", "blk.2.nextn.eh_proj.weight")
    with pytest.raises(
        ModelLoadError, match=r"model\.gguf has a head for multi-token prediction, and none of the model"
    ):
        config_of(tmp_path, "qwen35", tensors, block_count=3, nextn_predict_layers=1)
