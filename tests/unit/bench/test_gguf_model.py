"""The GGUF files that are measured: what they say, and that their blocks hold the weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.gguf_model import interleaved, quantized, write_gguf
from bench.random_model import write_tokenizer

ROWS, COLUMNS = 6, 512


# The root mean square of a rounding error, over that of the weights: half a step of about a sixth to a ninetieth.
@pytest.mark.parametrize(("type_name", "most"), [("Q8_0", 0.007), ("Q6_K", 0.025), ("Q4_0", 0.1), ("Q4_K", 0.09)])
def test_blocks_are_read_as_the_weights_that_they_were_written_from(type_name: str, most: float) -> None:
    import gguf

    weight = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32)
    weight[0, :32] = 0.0
    blocks = quantized(weight, type_name)
    read = gguf.dequantize(blocks, gguf.GGMLQuantizationType[type_name])
    assert read.shape == weight.shape
    assert np.sqrt(np.mean((read - weight) ** 2)) < most


def test_pairs_of_rotary_rows_stand_beside_each_other() -> None:
    rows = torch.arange(8.0).unsqueeze(1)  # two heads of four
    assert interleaved(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_written_model_is_read_by_transformers(tmp_path: Path) -> None:
    import gguf
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=320,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    model = transformers.Qwen3ForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path, config.vocab_size)
    file = tmp_path / "model-Q4_K.gguf"
    write_gguf(tmp_path, file, "Q4_K")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert (types["token_embd.weight"], types["blk.0.attn_q.weight"]) == ("Q6_K", "Q4_K")
    assert types["blk.0.attn_norm.weight"] == "F32"
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name)
    assert read.config.rope_parameters == config.rope_parameters
    wanted, got = model.model.layers[0].mlp.up_proj.weight.float(), read.model.layers[0].mlp.up_proj.weight.float()
    assert (got - wanted).norm() < 0.1 * wanted.norm()


def test_an_architecture_that_is_not_known_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="gpt2 cannot be written"):
        write_gguf(tmp_path, tmp_path / "model.gguf", "Q8_0")
    assert not (tmp_path / "model.gguf").exists()
