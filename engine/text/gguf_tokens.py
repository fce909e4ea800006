"""Tokens that a GGUF file marks as control (`<|im_end|>`) or as the user's own (`<think>`): they stay whole in a text.

transformers adds them itself in its later releases; in earlier ones it cuts some of them into pieces.
"""

from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

# llama.cpp's types of tokens
_CONTROL = 3
_USER_DEFINED = 4
_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"


def add_marked_tokens(tokenizer: FastTokenizer, file: Path) -> None:
    """Add the file's tokens of these types to its tokenizer, where they are in the vocabulary and not added yet."""
    from transformers.integrations.gguf.reader import read_gguf_metadata  # several times as fast as gguf

    metadata, _ = read_gguf_metadata(str(file), (_TOKENS,))
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
