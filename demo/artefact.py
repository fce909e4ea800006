"""The files of the demo model as they ship: weights in bf16, configuration, tokenizer.

Owns the layout of the artefact's folder. It does not know how the weights came about.
"""

import copy
import json
from pathlib import Path
from typing import Any, Final

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.tokenizer import CONTEXT, END_OF_TEXT, TURN_END, token_id

HIDDEN: Final = 256
LAYERS: Final = 5
INNER: Final = 640


def model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """A small Llama with grouped keys and values and tied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, TURN_END),
        pad_token_id=token_id(tokenizer, END_OF_TEXT),
    )


def _tokenizer_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return what readers of the tokenizer need, by the names that all versions of transformers know."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes tokenizer.json, the chat template and a small tokenizer_config.json."""
    tokenizer.save_pretrained(folder)
    text = json.dumps(_tokenizer_config(tokenizer), indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Writes the weights in bf16 with their configuration; `model` itself stays as it is."""
    copied: Any = copy.deepcopy(model)
    shipped = copied.to(torch.bfloat16)
    eos, pad = model.config.eos_token_id, model.config.pad_token_id
    generation: Any = GenerationConfig
    # Warm enough to vary a story, and cool enough to keep to the facts it knows.
    shipped.generation_config = generation(
        eos_token_id=[eos, pad],
        pad_token_id=pad,
        bos_token_id=None,
        do_sample=True,
        temperature=0.2,
        max_new_tokens=256,
    )
    shipped.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
