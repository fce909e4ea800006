"""GGUF files that are multiplied in their blocks: near to what they are when dequantized, in less memory."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orcinus.engine.attention.serving import ProbingAttention
from orcinus.engine.attention.step_context import StepContext, step_context
from orcinus.engine.cpu.decoder_layers import NativeDecoder, num_native_layers
from orcinus.engine.cpu.joined_linear import JoinedLinears, LinearPart
from orcinus.engine.cpu.native_linear import NativeLinear
from orcinus.engine.cpu.packed_linear import PackedEmbedding
from orcinus.engine.kernels.library import load_library
from orcinus.engine.models import loader
from orcinus.engine.models.language_model import LanguageModel
from orcinus.engine.models.loader import load_causal_lm
from orcinus.engine.models.packed_types import packed_types_of
from orcinus.engine.startup.build import build_executor
from tests.integration.gguf_files import Q, write_gguf
from tests.integration.test_int8 import greedy_cases
from tests.integration.tiny_models import engine_config, random_model
from tests.integration.truth import BLOCK_SIZE, MAX_MODEL_LEN, sampled_cases, serve_together_and_alone

LIBRARY = load_library()
HAS_LAYERS = LIBRARY is not None and LIBRARY.has_decoder
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="there is no library here")

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
# What llama.cpp calls Q4_K_M; types of which siblings have others; and a type that is rounded.
K_MIX = {"attn_v": "Q6_K", "ffn_down": "Q6_K", "output.weight": "Q6_K", "weight": "Q4_K"}
SIBLINGS = {"attn_q": "Q5_0", "attn_k": "Q4_1", "attn_v": "Q5_K", "attn_output": "Q3_K", "ffn_gate": "Q5_1"}
SIBLINGS |= {"ffn_up": "IQ4_XS", "ffn_down": "MXFP4", "output.weight": "Q6_K", "weight": "Q8_0"}
EXPERTS = {"gate_exps": "Q5_0", "up_exps": "Q4_1", "down_exps": "MXFP4", "weight": "Q4_K"}
FILES: dict[str, dict[str, Any]] = {
    "Q8_0": {"quantization": Q.Q8_0},
    "Q4_0": {"quantization": Q.Q4_0},
    "Q4_K and Q6_K": {"blocks": K_MIX},
    "siblings": {"blocks": SIBLINGS},
    "rounded": {"blocks": {"ffn_down": "IQ3_S"}, "quantization": Q.Q8_0},
    "tied": {"blocks": K_MIX, "tie_word_embeddings": True},
    "biases": {"quantization": Q.Q4_0, "architecture": "qwen2"},
    "experts": {"quantization": Q.Q4_0, "architecture": "qwen3moe"},
    "experts mixed": {"blocks": EXPERTS, "architecture": "qwen3moe"},
}
CLASSES = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3moe": "Qwen3MoeConfig"}
OF_EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 96}


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        architecture = FILES[name].get("architecture", "llama")
        class_name, others = CLASSES[architecture], OF_EXPERTS if architecture == "qwen3moe" else {}
        tied = FILES[name].get("tie_word_embeddings", False)
        model = random_model(class_name, **SHAPE, **others, tie_word_embeddings=tied)
        model.config.head_dim = SHAPE["head_dim"]
        given = {key: FILES[name][key] for key in ("quantization", "blocks") if key in FILES[name]}
        return write_gguf(model, tmp_path_factory.mktemp("files") / "model.gguf", architecture, **given)

    return cache(write)


@torch.inference_mode()
def logits_of(file: Path, **settings: Any) -> tuple[Any, Tensor]:
    model: Any = load_causal_lm(engine_config(file, **settings), CPU)
    ids = torch.randint(0, 320, (200,), generator=torch.Generator().manual_seed(0))
    with step_context(StepContext(ProbingAttention())):
        return model, LanguageModel(model).whole_logits(ids, torch.arange(200)).float()


def off(logits: Tensor, exact: Tensor) -> float:
    return float((logits - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", FILES)
def test_model_in_blocks_is_near_to_the_dequantized_one(name: str, file_of: Callable[[str], Path]) -> None:
    """Rows rounded to 8 bits put logits off by less than twice what bfloat16 by itself does, whose numbers have 8 bits.

    What has to be rounded itself is held to that as well: its steps are those of rows. Of the likeliest tokens, among
    320 in a random model, nine in ten are the same at least.
    """
    file = file_of(name)
    _, exact = logits_of(file, dtype="float32", quantization="none")
    plain, rounded = logits_of(file, dtype="bfloat16", quantization="none")
    model, logits = logits_of(file, dtype="bfloat16")
    assert packed_types_of(model)
    assert not packed_types_of(plain)
    assert not any(type(module) in (nn.Linear, nn.Embedding) for module in model.modules())
    assert 0 < off(logits, exact) < 2 * off(rounded, exact)
    assert float((logits.argmax(dim=1) == exact.argmax(dim=1)).float().mean()) >= 0.9


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K and Q6_K", "siblings", "tied"])
def test_tokens_do_not_depend_on_what_shares_the_batch(name: str, file_of: Callable[[str], Path]) -> None:
    config = engine_config(file_of(name), dtype="bfloat16", max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)
    executor = build_executor(config)
    rng = random.Random(name)
    cases = greedy_cases(rng, 10) + sampled_cases(rng, 4)
    serve_together_and_alone(executor, cases, rng)


@pytest.mark.skipif(not HAS_LAYERS, reason="there are no native layers here")
@pytest.mark.parametrize(("name", "count"), [("Q4_K and Q6_K", 2), ("biases", 2), ("rounded", 2), ("siblings", 0)])
def test_layers_are_native_where_gate_and_up_are_of_one_type(
    name: str, count: int, file_of: Callable[[str], Path]
) -> None:
    info, runner = build_executor(engine_config(file_of(name), dtype="bfloat16"))
    model = runner._model.causal_lm
    assert num_native_layers(model) == count
    assert any(isinstance(module, NativeDecoder) for module in model.modules()) is (count > 0)
    assert info.is_deterministic is (count > 0)


def test_what_is_served_is_told(file_of: Callable[[str], Path]) -> None:
    """Weights take what their forms take, and parameters are counted as if they were there."""
    plain, _ = build_executor(engine_config(file_of("Q4_K and Q6_K"), dtype="bfloat16", quantization="none"))
    info, _ = build_executor(engine_config(file_of("Q4_K and Q6_K"), dtype="bfloat16"))
    assert info.num_parameters == plain.num_parameters
    assert set(info.packed_types) == {"Q4_K", "Q6_K"}
    assert plain.packed_types == {}
    vectors = 5 * 256 * 2  # of norms
    assert info.weight_bytes - vectors <= sum(info.packed_types.values()) * 1.01
    assert info.weight_bytes < 0.45 * plain.weight_bytes
    assert info.quantization is plain.quantization is None


def test_head_and_embedding_that_share_a_weight_share_its_blocks(file_of: Callable[[str], Path]) -> None:
    model: Any = load_causal_lm(engine_config(file_of("tied"), dtype="bfloat16"), CPU)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, NativeLinear)
    assert isinstance(embedding, PackedEmbedding)
    assert embedding.packed is head.packed
    ids = torch.tensor([[0, 5], [319, 5]])
    assert torch.equal(embedding(ids), head.weight[ids])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Q8_0", [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]),
        ("Q4_K and Q6_K", [["q_proj", "k_proj"], ["gate_proj", "up_proj"]]),
        ("biases", [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]),
        ("siblings", []),
    ],
)
def test_layers_of_one_input_and_form_are_packed_as_one(
    name: str, wanted: list[list[str]], file_of: Callable[[str], Path]
) -> None:
    model: Any = load_causal_lm(engine_config(file_of(name), dtype="bfloat16"), CPU)
    together: dict[JoinedLinears, list[str]] = {}
    for where, module in model.model.layers[0].named_modules():
        if isinstance(module, LinearPart):
            together.setdefault(module.joined, []).append(where.rpartition(".")[2])
    assert list(together.values()) == wanted
    assert [joined.alternates for joined in together] == [names[0] == "gate_proj" for names in wanted]


def test_quantization_at_load_begins_with_dequantized_weights(file_of: Callable[[str], Path]) -> None:
    info, _ = build_executor(engine_config(file_of("Q8_0"), dtype="bfloat16", quantization="int8"))
    assert info.quantization == "int8"
    assert info.packed_types == {}


def test_without_kernels_weights_are_dequantized(
    file_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "load_library", lambda: None)
    model: Any = load_causal_lm(engine_config(file_of("Q8_0"), dtype="bfloat16"), CPU)
    assert packed_types_of(model) == {}
    assert type(model.lm_head) is nn.Linear


def test_types_that_are_rounded_are_named_once(
    file_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    load_causal_lm(engine_config(file_of("rounded"), dtype="bfloat16"), CPU)
    assert [record.getMessage() for record in caplog.records if "rounded" in record.getMessage()] == [
        "2 weights of type IQ3_S are rounded to 8 bits in groups of 32"
    ]
