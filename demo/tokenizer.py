"""The demo model's tokenizer: byte-level BPE with single digits, and the chat template that goes with it.

Owns the vocabulary and the special tokens. It does not know what the texts are about.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
SPECIAL: Final = (END_OF_TEXT, TURN_START, TURN_END)
# Not "special": a client must see these in the answer to read a tool call from it.
MARKS: Final = ("<tool_call>", "</tool_call>", "<tools>", "</tools>")
CONTEXT: Final = 2048
TEMPLATE: Final = Path(__file__).with_name("chat_template.jinja")


def _bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `vocabulary` tokens; every byte is one of them, so that any text can be encoded."""
    tokenizer = _bpe()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(MARKS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    return wrap(tokenizer)


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer with what transformers keeps beside it: special tokens, context and chat template."""
    untyped: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = untyped(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE.read_text(encoding="utf-8").rstrip("\n"),
    )
    return wrapped


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The number of one token."""
    number: Any = tokenizer.convert_tokens_to_ids(token)
    return int(number)


def render(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    prompt: bool = False,
) -> str:
    """A conversation as text; with `prompt` the assistant's turn is opened."""
    template: Any = tokenizer.apply_chat_template
    return str(template(messages, tools=tools or None, tokenize=False, add_generation_prompt=prompt))
