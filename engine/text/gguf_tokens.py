"""What earlier releases of transformers leave out of the tokenizer in a GGUF file; later ones need none of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as FastTokenizer

from orcinus.engine.platform.gguf_reader import read_metadata

# llama.cpp's types of tokens
_CONTROL = 3
_USER_DEFINED = 4
_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def read_tokens(file: Path) -> dict[str, Any]:
    """Return what a file states, its tokens included."""
    return read_metadata(file, (_TOKENS,))[0]


def add_marked_tokens(tokenizer: FastTokenizer, metadata: Mapping[str, Any]) -> None:
    """Add the tokens that the file marks as control (`<|im_end|>`) or as the user's own (`<think>`).

    They stay whole in a text then. Those that are not in the vocabulary, or added already, are passed over.
    """
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    named = zip(metadata.get(_TOKENS, ()), metadata.get(_TYPES, ()), strict=False)
    missing = [(name, kind) for name, kind in named if name in vocab and name not in known]
    control = [AddedToken(name, normalized=False, special=True) for name, kind in missing if kind == _CONTROL]
    own = [AddedToken(name, normalized=False, special=False) for name, kind in missing if kind == _USER_DEFINED]
    if control:
        tokenizer.add_special_tokens(control)
    if own:
        tokenizer.add_tokens(own)


def simplify_decoder(tokenizer: FastTokenizer) -> None:
    """Let a byte-level vocabulary be decoded as such, where steps for SentencePiece's vocabularies stand around it."""
    steps = [] if tokenizer.decoder is None else json.loads(tokenizer.decoder.__getstate__()).get("decoders", [])
    if len(steps) > 1 and any(step["type"] == "ByteLevel" for step in steps):
        tokenizer.decoder = decoders.ByteLevel()


def named_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the tokens that the file has names for, such as `eos_token`, which may be mixed up."""
    ids = {name: metadata.get(f"tokenizer.ggml.{key}") for name, key in _NAMES.items()}
    return {name: metadata[_TOKENS][token_id] for name, token_id in ids.items() if token_id is not None}
