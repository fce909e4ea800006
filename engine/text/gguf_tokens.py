"""Tokens that a GGUF file marks as the user's own (`<think>`), which stay whole in any text.

transformers adds them itself from 5.18 or so on; before, it cut them into pieces.
"""

from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

_USER_DEFINED = 4  # llama.cpp's type of a token


def add_user_defined_tokens(tokenizer: FastTokenizer, file: Path) -> None:
    """Add the file's tokens of that type to its tokenizer, where they are not added tokens yet."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    types = fields.get("tokenizer.ggml.token_type")
    if types is None:
        return
    numbers = [number for number, kind in enumerate(types.contents()) if kind == _USER_DEFINED]
    tokens = fields["tokenizer.ggml.tokens"]
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    names = [tokens.contents(number) for number in numbers]
    missing = [name for name in names if name in vocab and name not in known]
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in missing])
