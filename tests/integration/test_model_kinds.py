"""Kinds of models that no flag and no name vouches for: served if a run of their own attention gives the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orcinus.engine.attention.interface import LayerShape
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.startup import build
from orcinus.engine.startup.build import build_executor
from orcinus.engine.startup.probe import ServedModel, probe_model
from tests.integration.tiny_models import CONTEXT, build_model, engine_config
from tests.models_table.shrink import tiny_config, tiny_model
from tests.models_table.trial import compare


def write(directory: Path, class_name: str, model_type: str, **settings: Any) -> Any:
    import transformers

    model = tiny_model(getattr(transformers, class_name), tiny_config(model_type, **settings))
    model.save_pretrained(directory)
    return model


def refusal(directory: Path, **overrides: Any) -> str:
    with pytest.raises(ModelLoadError) as refused:
        build_executor(engine_config(directory, **overrides))
    return str(refused.value)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServedModel]:
    """What is loaded in a test."""
    seen: list[ServedModel] = []

    def noted(*args: Any, **options: Any) -> ServedModel:
        seen.append(probe_model(*args, **options))
        return seen[-1]

    monkeypatch.setattr(build, "probe_model", noted)
    return seen


def test_encoder_is_served_where_its_configuration_makes_a_decoder_of_it(tmp_path: Path) -> None:
    decoder = write(tmp_path / "decoder", "BertLMHeadModel", "bert")
    assert compare(decoder, tmp_path / "decoder") == ("served", "")
    write(tmp_path / "encoder", "BertLMHeadModel", "bert", is_decoder=False)
    assert "attends in both directions" in refusal(tmp_path / "encoder")


def test_class_that_no_flag_vouches_for_is_compared_with_its_own_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.stablelm import modeling_stablelm

    model = write(tmp_path, "StableLmForCausalLM", "stablelm")
    assert compare(model, tmp_path) == ("served", "")
    plain = modeling_stablelm.eager_attention_forward

    def biased(module: Any, query: torch.Tensor, *args: Any, **options: Any) -> Any:
        return plain(module, 1.5 * query, *args, **options)

    monkeypatch.setattr(modeling_stablelm, "eager_attention_forward", biased)
    assert "attends by more than it tells transformers' attention interface" in refusal(tmp_path)


def test_model_is_served_within_what_its_indexers_pick(tmp_path: Path, served: list[ServedModel]) -> None:
    directory = build_model("deepseek_v32", tmp_path, index_topk=96)
    info, _ = build_executor(engine_config(directory))
    assert info.max_model_len == 96 < CONTEXT
    assert not [name for name, _ in served[0].model.causal_lm.named_parameters() if "indexer" in name]
    assert "model's own context has 96 tokens" in refusal(directory, max_model_len=97)


def test_layers_that_run_again_must_have_caches_of_their_own(tmp_path: Path) -> None:
    loops = {"num_hidden_layers": 4, "n_input_layers": 1, "n_output_layers": 1, "sliding_window": 12}
    build_model("dory", tmp_path / "each", **loops)
    info, _ = build_executor(engine_config(tmp_path / "each"))
    assert sum(group.num_layers for group in info.cache_groups) == 6  # two of four layers run twice
    build_model("dory", tmp_path / "last", **loops, recurrent_kv_cache_mode="last_loop")
    assert "with a cache it computes something else than without one" in refusal(tmp_path / "last")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3"])
def test_latents_are_cached_in_place_of_heads(
    family: str, dtype: str, tmp_path: Path, served: list[ServedModel]
) -> None:
    build_executor(engine_config(build_model(family, tmp_path), dtype=dtype))
    assert {spec.shape for spec in served[0].kv.values()} == {LayerShape(1, 16 + 8, 16)}
    assert not [name for name, _ in served[0].model.causal_lm.named_parameters() if "kv_b_proj" in name]


def test_marker_of_an_image_among_the_first_tokens_does_not_speak_against_a_model(tmp_path: Path) -> None:
    """Its own class embeds token 5 + 37 as an image, which its decoder alone does not."""
    write(tmp_path, "MuseGlimmerForConditionalGeneration", "muse_glimmer", image_token_id=42)
    build_executor(engine_config(tmp_path))


def test_model_with_classes_of_attention_to_choose_from_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "GitForCausalLM", "git")
    assert "several classes of attention" in refusal(tmp_path)
