"""Multimodal checkpoints served by their language model: what it writes, what is read of them, what is refused."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.models import loader as model_loader
from orcinus.engine.models.checkpoint import read_text_half
from orcinus.engine.models.loader import eos_token_ids, load_causal_lm
from orcinus.engine.startup.build import build_executor
from tests.effort import slow_but_for
from tests.integration.test_model_loader import CPU
from tests.integration.tiny_models import build_tokenizer, engine_config, set_config
from tests.models_table.shrink import tiny_config, tiny_model
from tests.models_table.trial import cases_of, compare, reference_of, served_tokens, towers_without_timm

WHOLES = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3n": "Gemma3nForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "lfm2_vl": "Lfm2VlForConditionalGeneration",
}


def make(family: str, dtype: str = "float32", **overrides: Any) -> Any:
    import transformers

    with towers_without_timm():
        return tiny_model(getattr(transformers, WHOLES[family]), tiny_config(family, **overrides), dtype)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """Each as its own class writes it, under the names that published checkpoints have."""

    def write(family: str) -> tuple[Any, Path]:
        model, directory = make(family), tmp_path_factory.mktemp(family)
        model.save_pretrained(directory)
        return model, directory

    return cache(write)


@pytest.mark.parametrize("family", slow_but_for(WHOLES, "gemma3", "qwen3_vl"))
def test_text_half_writes_what_generate_of_the_whole_model_does(
    family: str, written: Callable[[str], tuple[Any, Path]]
) -> None:
    model, directory = written(family)
    assert compare(model, directory) == ("served", "")


@pytest.mark.parametrize("family", slow_but_for(["gemma3", "mistral3", "qwen3_vl"], "mistral3"))
def test_text_half_in_bfloat16_writes_what_the_whole_model_finds_likely(family: str, tmp_path: Path) -> None:
    """Rounding decides between near ones: no token is further behind the whole model's best one than that."""
    model = make(family, "bfloat16")
    model.save_pretrained(tmp_path)
    cases = cases_of(model)
    chosen = 0
    for case, token_ids in zip(cases, served_tokens(tmp_path, cases, dtype="bfloat16"), strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([case.prompt + token_ids])).logits[0, len(case.prompt) - 1 : -1]
        behind = logits.amax(dim=-1) - logits.gather(-1, torch.tensor(token_ids).unsqueeze(-1)).squeeze(-1)
        assert float(behind.max()) < 0.2 * float(logits.float().std())
        chosen += int((behind == 0).sum())
    assert chosen >= 0.8 * sum(len(case.expected) for case in cases)


@pytest.mark.parametrize("family", slow_but_for(["gemma3", "qwen3_vl", "qwen3_vl_moe"], "gemma3", "qwen3_vl"))
def test_transformers_own_loading_finds_the_same_weights(
    family: str, written: Callable[[str], tuple[Any, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, directory = written(family)
    read = load_causal_lm(engine_config(directory), CPU)
    plain = read_text_half
    monkeypatch.setattr(model_loader, "read_text_half", lambda *given: (False, plain(*given)[1]))
    loaded = load_causal_lm(engine_config(directory), CPU)
    assert read.state_dict().keys() == loaded.state_dict().keys()
    for name, weight in read.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_towers_are_not_read(
    family: str, written: Callable[[str], tuple[Any, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, directory = written(family)
    read: list[str] = []
    opened = safetensors.safe_open

    class Spy:
        def __init__(self, *given: Any, **options: Any) -> None:
            self._file: Any = opened(*given, **options)

        def __enter__(self) -> "Spy":
            self._file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self._file.__exit__(*error)

        def get_tensor(self, name: str) -> Any:
            read.append(name)
            return self._file.get_tensor(name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(safetensors, "safe_open", Spy)
    causal_lm = load_causal_lm(engine_config(directory), CPU)
    assert read
    assert not [name for name in read if "visi" in name or "visual" in name]
    assert sum(weight.numel() for weight in causal_lm.parameters()) < sum(w.numel() for w in model.parameters())
    assert not [name for name, _ in causal_lm.named_parameters() if "visi" in name or "visual" in name]


def test_shards_of_the_towers_may_lie_anywhere(tmp_path: Path, written: Callable[[str], tuple[Any, Path]]) -> None:
    model, _ = written("gemma3")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 3
    assert compare(model, tmp_path) == ("served", "")


@pytest.mark.parametrize("is_tied", [True, False])
def test_head_is_tied_where_the_multimodal_configuration_says_so(is_tied: bool, tmp_path: Path) -> None:
    model = make("llava", tie_word_embeddings=is_tied)
    model.save_pretrained(tmp_path)
    causal_lm = load_causal_lm(engine_config(tmp_path), CPU)
    head, embedding = causal_lm.get_output_embeddings().weight, causal_lm.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) is is_tied
    assert torch.equal(head, model.get_output_embeddings().weight)


def test_head_that_differs_is_not_tied_whatever_the_configuration_says(tmp_path: Path) -> None:
    model = make("mistral3", tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    set_config(tmp_path, tie_word_embeddings=True)
    causal_lm = load_causal_lm(engine_config(tmp_path), CPU)
    assert torch.equal(causal_lm.get_output_embeddings().weight, model.get_output_embeddings().weight)
    assert torch.equal(causal_lm.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_what_ends_a_chat_is_the_multimodal_checkpoints(
    tmp_path: Path, written: Callable[[str], tuple[Any, Path]]
) -> None:
    model, _ = written("gemma3")
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9], "temperature": 0.5}))
    info, _ = build_executor(engine_config(tmp_path))
    assert (info.eos_token_ids, info.sampling_defaults) == ([2, 9], {"temperature": 0.5})
    (tmp_path / "generation_config.json").unlink()
    set_config(tmp_path, eos_token_id=[7, 8])
    assert eos_token_ids(load_causal_lm(engine_config(tmp_path), CPU)) == [7, 8]


def test_info_says_whose_text_half_is_served(written: Callable[[str], tuple[Any, Path]]) -> None:
    info, _ = build_executor(engine_config(written("gemma3")[1]))
    assert (info.architecture, info.text_half_of) == ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
    info, _ = build_executor(engine_config(written("qwen3_vl")[1]))
    assert info.architecture == info.text_half_of == "Qwen3VLForConditionalGeneration"


def test_model_with_chunks_is_served_within_its_first_one(written: Callable[[str], tuple[Any, Path]]) -> None:
    _, directory = written("llama4")
    assert build_executor(engine_config(directory))[0].max_model_len == 128  # attention_chunk_size of 256 positions
    with pytest.raises(ModelLoadError, match="128"):
        build_executor(engine_config(directory, max_model_len=200))


def test_checkpoint_that_lacks_weights_of_its_text_half_is_refused(
    tmp_path: Path, written: Callable[[str], tuple[Any, Path]]
) -> None:
    from safetensors.torch import load_file, save_file

    model, _ = written("gemma3")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(
        name
        for name in weights
        if name.endswith("language_model.layers.1.mlp.up_proj.weight")
        or name.endswith("language_model.model.layers.1.mlp.up_proj.weight")
    )
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lacks 1 of the model's weights, first model\.layers\.1\.mlp\.up_proj"):
        build_executor(engine_config(tmp_path))


def write_config(directory: Path, family: str, architecture: str, **settings: Any) -> Path:
    config = tiny_config(family)
    config.architectures = [architecture]
    config.save_pretrained(directory)
    (directory / "model.safetensors").write_bytes(b"")
    set_config(directory, **settings)
    return directory


@pytest.mark.parametrize(
    ("family", "architecture", "reason"),
    [
        ("gemma3", "Gemma3ForSequenceClassification", "not a causal language model"),
        ("gemma3", "Gemma3ForNothing", "not a causal language model"),
    ],
)
def test_what_is_refused_is_refused_for_its_text_half(
    family: str, architecture: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=f"{architecture}.*{reason}"):
        load_causal_lm(engine_config(write_config(tmp_path, family, architecture)), CPU)


def test_text_half_that_attends_both_ways_is_refused(tmp_path: Path) -> None:
    import transformers

    model = tiny_model(transformers.PaliGemmaForConditionalGeneration, tiny_config("paligemma"))
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="in both directions"):
        build_executor(engine_config(tmp_path))


@pytest.mark.slow
def test_whole_checkpoint_is_read_where_its_own_class_alone_knows_what_becomes_of_its_weights(tmp_path: Path) -> None:
    """The experts of MiniMax-M3's are written one by one, and its language model's class has no name for them."""
    import transformers

    model = tiny_model(transformers.MiniMaxM3SparseForConditionalGeneration, tiny_config("minimax_m3_vl"))
    model.save_pretrained(tmp_path)
    assert compare(model, tmp_path) == ("served", "")


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "LlamaTokenizer"])
def test_chat_template_of_the_processor_is_the_models(file: str, kind: str, tmp_path: Path) -> None:
    from orcinus.engine.text.tokenizer import Tokenizer

    build_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": kind}))
    assert not Tokenizer.load(str(tmp_path)).has_chat_template
    (tmp_path / file).write_text(json.dumps({"chat_template": "{% for m in messages %}<user>{% endfor %}"}))
    assert Tokenizer.load(str(tmp_path)).has_chat_template


def test_reference_is_the_whole_models_own_generate(written: Callable[[str], tuple[Any, Path]]) -> None:
    """Only where its class cannot run on text is its language model's taken."""
    model, _ = written("gemma3")
    assert reference_of(model) is model
