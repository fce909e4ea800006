"""How long a context models are served with: rotary scaling of every kind, against transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.models.context import has_fixed_rope, model_context, rope_context, varying_rope
from orcinus.engine.models.language_model import LanguageModel
from orcinus.engine.models.loader import load_causal_lm
from orcinus.engine.startup.build import build_executor
from orcinus.engine.startup.probe import probe_model
from tests.integration.tiny_models import CONTEXT, VOCAB_SIZE, build_model, engine_config, set_config

CPU = torch.device("cpu")
ROPE: dict[str, Any] = {"rope_theta": 10_000.0}
LONGROPE = ROPE | {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def config_of(directory: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(directory)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("stated", "scaling", "context"),
    [
        (256, YARN, 1024),
        (256, YARN | {"factor": 2.5}, 640),
        (256, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        (256, {"rope_type": "yarn", "factor": 4.0}, 1024),  # its original context is the configuration's
        (1024, YARN, 1024),  # what it says is the scaled context already
        (128, YARN, 128),  # it says less on purpose
        (256, YARN | {"factor": None}, 256),
        (256, {"rope_type": "linear", "factor": 2.0}, 512),
        (256, {"type": "linear", "factor": 4}, 1024),
        (256, LLAMA3 | {"original_max_position_embeddings": 256}, 2048),
        (256, LLAMA3 | {"original_max_position_embeddings": 64}, 256),
        (256, {"rope_type": "dynamic", "factor": 2.0}, 256),
        (256, {"rope_type": "default"}, 256),
    ],
)
def test_context_is_what_rotary_scaling_makes_of_it(
    key: str, stated: int, scaling: dict[str, Any], context: int, tmp_path: Path
) -> None:
    directory = build_model("llama", tmp_path)
    values = {
        "rope_parameters": None,
        "rope_theta": 10_000.0,
        key: ROPE | scaling if key == "rope_parameters" else scaling,
    }
    set_config(directory, max_position_embeddings=stated, **values)
    assert model_context(config_of(directory), {None}) == context


def test_scaling_that_some_layers_have_is_in_the_context_already(tmp_path: Path) -> None:
    rope = {
        "full_attention": ROPE | {"rope_type": "linear", "factor": 8.0},
        "sliding_attention": ROPE | {"rope_type": "default"},
    }
    config = config_of(build_model("gemma3", tmp_path, rope_parameters=rope))
    assert model_context(config, {config.sliding_window}) == CONTEXT


def test_context_stops_where_rotary_scaling_would_depend_on_the_batch(tmp_path: Path) -> None:
    directory = build_model("phi3", tmp_path, rope_parameters=LONGROPE, original_max_position_embeddings=64)
    config = load_causal_lm(engine_config(directory), CPU).config
    assert config.max_position_embeddings == CONTEXT
    assert model_context(config, {config.sliding_window}) == 64


def test_context_stops_at_a_window_that_the_layers_do_not_attend_with(tmp_path: Path) -> None:
    config = load_causal_lm(engine_config(build_model("mistral", tmp_path)), CPU).config
    assert model_context(config, {config.sliding_window}) == CONTEXT
    assert model_context(config, {None}) == config.sliding_window
    config.layer_types = ["full_attention"]
    assert model_context(config, {None}) == CONTEXT


@pytest.mark.parametrize(
    ("kind", "longest"), [("yarn", 1024), ("linear", 1024), ("dynamic", 512), ("longrope", CONTEXT)]
)
def test_longer_contexts_are_accepted_up_to_what_scaling_gives(kind: str, longest: int, tmp_path: Path) -> None:
    rope: dict[str, Any] = {
        "yarn": YARN,
        "linear": {"rope_type": "linear", "factor": 4.0},
        "dynamic": {"rope_type": "dynamic", "factor": 2.0},
        "longrope": LONGROPE | {"original_max_position_embeddings": 64},
    }[kind]
    directory = build_model("llama", tmp_path, rope_parameters=ROPE | rope)
    info, _ = build_executor(engine_config(directory, max_model_len=longest))
    assert info.max_model_len == longest
    with pytest.raises(ModelLoadError, match=f"max_model_len is {longest + 1}.* has {longest} tokens"):
        build_executor(engine_config(directory, max_model_len=longest + 1))


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "longrope"])
def test_long_sequences_are_computed_as_transformers_does(kind: str, tmp_path: Path) -> None:
    """With angles that no other request changes."""
    from transformers import AutoModelForCausalLM

    rope: dict[str, Any] = {
        "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        "linear": {"rope_type": "linear", "factor": 4.0},
        "dynamic": {"rope_type": "dynamic", "factor": 4.0},
        "longrope": LONGROPE | {"original_max_position_embeddings": 32, "factor": 4.0},
    }[kind]
    directory = build_model("llama", tmp_path, rope_parameters=ROPE | rope, max_position_embeddings=32)
    length = 100
    tokens, positions = torch.arange(length) * 37 % VOCAB_SIZE, torch.arange(length)
    causal_lm: Any = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    with torch.inference_mode():
        expected = causal_lm(tokens.unsqueeze(0)).logits[0]
    loaded = load_causal_lm(engine_config(directory, max_model_len=length), CPU)
    assert rope_context(loaded.config).longest == 128
    assert has_fixed_rope(loaded) is (kind in ("dynamic", "longrope"))
    assert varying_rope(loaded) == []
    loaded.set_attn_implementation("eager")
    with torch.inference_mode():
        model = LanguageModel(loaded)
        short = model.whole_logits(tokens[:8], positions[:8])
        logits = model.whole_logits(tokens, positions)
        again = model.whole_logits(tokens[:8], positions[:8])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(short, again)
    torch.testing.assert_close(short, expected[:8], rtol=1e-4, atol=1e-4)


def test_angles_vary_as_transformers_has_them_where_no_longer_context_is_asked_for(tmp_path: Path) -> None:
    rope = ROPE | {"rope_type": "dynamic", "factor": 2.0}
    causal_lm = load_causal_lm(
        engine_config(build_model("llama", tmp_path, rope_parameters=rope), max_model_len=CONTEXT), CPU
    )
    assert varying_rope(causal_lm) == ["dynamic"]
    with torch.inference_mode():
        assert probe_model(causal_lm, CPU).max_context == CONTEXT


def test_a_model_without_attention_has_the_context_that_is_asked_for(tmp_path: Path) -> None:
    """Configurations of Mamba state none."""
    directory = build_model("mamba2", tmp_path)
    path = directory / "config.json"
    stated = json.loads(path.read_text())
    with pytest.raises(
        ModelLoadError, match=f"max_model_len is 5000, but the model's own context has {CONTEXT} tokens"
    ):
        build_executor(engine_config(directory, max_model_len=5000))
    path.write_text(json.dumps({key: value for key, value in stated.items() if key != "max_position_embeddings"}))
    assert build_executor(engine_config(directory))[0].max_model_len == 2048
    assert build_executor(engine_config(directory, max_model_len=5000))[0].max_model_len == 5000
