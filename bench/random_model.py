"""Writes models with random weights in the shapes of real ones, with a tokenizer: speed does not depend on the weights.

    python -m bench.random_model qwen3-0.6b DIRECTORY

Any server that reads transformers' format can load the directory, so that several can be compared on the same weights.
Texts become single bytes; what the model says is decoded to words, as many tokens as its vocabulary has.
"""

import argparse
import random
from pathlib import Path
from typing import Any

_QWEN3_06B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
_QWEN3_4B = _QWEN3_06B | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
}
_SMOLLM2_135M: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
}
# Three layers of gated delta nets to one of attention.
_QWEN35_08B: dict[str, Any] = {
    "vocab_size": 248_320,
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 262_144,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000_000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    },
}
# Name -> model class, configuration class, and what differs from its defaults.
SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3-0.6b": ("Qwen3ForCausalLM", "Qwen3Config", _QWEN3_06B),
    "qwen3-4b": ("Qwen3ForCausalLM", "Qwen3Config", _QWEN3_4B),
    "qwen3.5-0.8b": ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", _QWEN35_08B),
    "smollm2-135m": ("LlamaForCausalLM", "LlamaConfig", _SMOLLM2_135M),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {}),
}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.random_model", description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    write_model(options.shape, options.directory)
    return 0


def write_model(shape: str, directory: Path) -> Path:
    """Weights in bfloat16 and a tokenizer, the same in every run. Returns the directory."""
    import torch
    import transformers

    model_name, config_name, values = SHAPES[shape]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**values, dtype=torch.bfloat16, bos_token_id=0, eos_token_id=0)
    torch.set_default_dtype(torch.bfloat16)  # in float32 the larger shapes would take twice the memory
    try:
        getattr(transformers, model_name)(config).bfloat16().save_pretrained(directory)
    finally:
        torch.set_default_dtype(torch.float32)
    write_tokenizer(directory, config.vocab_size)
    return directory


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """Special tokens, all bytes, and words that no text is split into."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    rng = random.Random(0)
    while len(vocab) < vocab_size:
        letters = rng.choices("etaoinshrdlucmfwygpb", k=rng.randint(2, 8))
        vocab.setdefault("Ġ" + "".join(letters), len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=SPECIAL_TOKENS[0], bos_token=SPECIAL_TOKENS[0]
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)


if __name__ == "__main__":
    raise SystemExit(main())
