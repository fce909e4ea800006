"""What fewer bits cost in accuracy, of weights, GGUF files and the cache: how far the next token's distribution moves.

    OMP_NUM_THREADS=1 python -m bench.quantization [--model DIR] [--prompts 24] [--outliers 20]
    OMP_NUM_THREADS=1 python -m bench.quantization --text README.md --tokens 1500 --prompts 4

Each position of the prompts is one distribution. The prompts are questions with their answers, as a model with a chat
template is asked them: of the demo model, or of the one that is named. A model with random weights in SmolLM2-135M's
shape follows, on random tokens. A few of its hidden channels are `--outliers` times as large as the others, as in
trained models, and what reads them is as much smaller: so they carry no more than others, but set the scale of a row.
In a last one some channels of keys are that large, by their biases, which is what a cache in 8 bits has to bear.

Of 4 bits the weights have groups of 16 with a scale each, and the head has 8 bits. GGUF files are those of
`bench.gguf_model`, whose rounding is plainer than llama.cpp's; models without a tokenizer are not written as such.
ORCINUS_KERNELS says what the kernels may use.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gguf_model import write_gguf
from bench.random_model import SHAPES
from orcinus.config.settings import demo_model_path, load_settings
from orcinus.engine.attention.cache import allocate_cache
from orcinus.engine.attention.interface import batch_metadata
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.serving import PagedAttention
from orcinus.engine.attention.step_context import StepContext, step_context
from orcinus.engine.kernels.library import use_kernels
from orcinus.engine.models.loader import load_causal_lm, progress_bars_on_a_terminal
from orcinus.engine.startup.cpu_layout import lay_out_for_cpu
from orcinus.engine.startup.probe import ServedModel, probe_model
from orcinus.engine.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
_BLOCK_SIZE = 32
_SHAPE = "smollm2-135m"
_OUTLIER_CHANNELS = 4
_OUTLIER_KEYS = 1 / 32  # of their channels
# Of the random model's logits: sharp enough that there is a first place to lose.
_LOGIT_STD = 3.0
_RANDOM_PROMPT_TOKENS = 24
_MOST_PROMPT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Numbers:
    """Says what weights and activations are computed in."""

    name: str
    dtype: str
    quantization: str | None
    kv_cache_dtype: str = "auto"
    gguf_type: str | None = None


EXACT = Numbers("float32", "float32", None)
BFLOAT16 = Numbers("bfloat16", "bfloat16", None)
INT8 = Numbers("int8", "bfloat16", "int8")
INT4 = Numbers("int4", "bfloat16", "int4")
CACHE = Numbers("bfloat16, cache int8", "bfloat16", None, "int8")
GGUF = [Numbers(f"GGUF {name}", "bfloat16", None, gguf_type=name) for name in ("Q8_0", "Q4_K", "Q4_0")]


@torch.inference_mode()
def main() -> int:
    options = parse_arguments()
    torch.manual_seed(0)
    if (kernels := load_settings().kernels) != "auto":
        use_kernels(kernels)
    model = options.model or demo_model_path()
    print(
        "| model | positions | of | against | mean KL | max KL | same first token |\n|---|---:|---|---|---:|---:|---:|"
    )
    report(model.name, model, list(islice(prompts_of(options, model), options.prompts)))
    with TemporaryDirectory() as directory:
        for outliers, key_bias in dict.fromkeys(((1.0, 0.0), (options.outliers, 0.0), (1.0, options.outliers))):
            vocab_size = write_structured_model(Path(directory), outliers, key_bias)
            prompts = [torch.randint(vocab_size, (_RANDOM_PROMPT_TOKENS,)).tolist() for _ in range(options.prompts)]
            kind = f"outliers {outliers:g}x" if not key_bias else f"of keys {key_bias:g}x"
            report(f"random {_SHAPE}, {kind}", Path(directory), prompts)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quantization", description=__doc__)
    parser.add_argument("--model", type=Path, help="a directory; without one, the demo model")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--text", type=Path, help="a file, of which the prompts are pieces, in place of questions")
    parser.add_argument("--tokens", type=int, default=_MOST_PROMPT_TOKENS, help="of a prompt at most")
    parser.add_argument("--outliers", type=float, default=20.0)
    return parser.parse_args()


def prompts_of(options: argparse.Namespace, model: Path) -> Iterator[list[int]]:
    """Pieces of a text, or questions."""
    if options.text is None:
        for prompt in question_prompts(model, options.prompts):
            yield prompt[: options.tokens]
        return
    token_ids = Tokenizer.load(str(model)).encode(options.text.read_text(), add_special_tokens=False)
    for first in range(0, len(token_ids), options.tokens):
        yield token_ids[first : first + options.tokens]


def question_prompts(model: Path, count: int) -> Iterator[list[int]]:
    """Questions with their answers, of one kind each."""
    from demo.evaluate import questions

    tokenizer = Tokenizer.load(str(model))
    for _, example in [drawn for drawn in questions(1) if not drawn[1].tools][:count]:
        if tokenizer.has_chat_template:
            text = tokenizer.render_chat(example.messages, add_generation_prompt=False)
        else:
            text = "\n".join(message["content"] for message in example.messages)
        yield tokenizer.encode(text, add_special_tokens=False)


def write_structured_model(directory: Path, outliers: float, key_bias: float = 0.0) -> int:
    """Weights that keep the size of what they multiply; biases of keys in few channels, if of any size.

    Returns the size of the vocabulary.
    """
    import transformers

    class_name, config_name, values = SHAPES[_SHAPE]
    own = {"tie_word_embeddings": False, "attention_bias": bool(key_bias)}
    config = getattr(transformers, config_name)(**values | own, dtype=torch.bfloat16, bos_token_id=0, eos_token_id=0)
    model = getattr(transformers, class_name)(config).bfloat16()
    channels = torch.randperm(config.hidden_size, generator=torch.Generator().manual_seed(1))[:_OUTLIER_CHANNELS]
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            weight.copy_(_structured(name, tuple(weight.shape), channels, outliers, generator))
        elif "k_proj.bias" in name:
            large = torch.rand(weight.shape, generator=generator) < _OUTLIER_KEYS
            weight.copy_(torch.where(large, key_bias * torch.randn(weight.shape, generator=generator), 0.0))
    with progress_bars_on_a_terminal():
        model.save_pretrained(directory)
    return int(config.vocab_size)


def _structured(
    name: str, shape: tuple[int, ...], channels: Tensor, outliers: float, generator: torch.Generator
) -> Tensor:
    """(out_features, in_features), or (vocab_size, hidden_size) of the embedding."""
    weight = torch.randn(shape, generator=generator)
    if "embed_tokens" in name:
        weight[:, channels] *= outliers
        return weight
    weight *= (_LOGIT_STD if "lm_head" in name else 1.0) / math.sqrt(shape[1])
    if "o_proj" in name or "down_proj" in name:
        weight[channels] *= outliers
    else:
        weight[:, channels] /= outliers
    return weight


def report(name: str, model: Path, prompts: list[list[int]]) -> None:
    exact, plain = (logprobs(model, numbers, prompts) for numbers in (EXACT, BFLOAT16))
    report_one(name, BFLOAT16, plain, EXACT, exact)
    files = GGUF if (model / "tokenizer.json").is_file() else []  # which hold the tokenizer, too
    for numbers in (INT8, INT4, *files, CACHE):
        got = logprobs(model, numbers, prompts)
        if numbers in (INT8, CACHE):
            report_one(name, numbers, got, EXACT, exact)
        report_one(name, numbers, got, BFLOAT16, plain)


def report_one(name: str, numbers: Numbers, got: Tensor, than: Numbers, wanted: Tensor) -> None:
    divergence = (wanted.exp() * (wanted - got)).sum(dim=-1)
    agreement = (got.argmax(dim=-1) == wanted.argmax(dim=-1)).float().mean()
    print(
        f"| {name} | {len(got)} | {numbers.name} | {than.name} | {float(divergence.mean()):.2g} | "
        f"{float(divergence.max()):.2g} | {float(agreement):.1%} |",
        flush=True,
    )


def logprobs(model: Path, numbers: Numbers, prompts: Sequence[list[int]]) -> Tensor:
    """(num_tokens, vocab_size) of all prompts, one after the other, as they are served."""
    with TemporaryDirectory() as directory:
        if numbers.gguf_type is not None:
            file = Path(directory) / f"{numbers.gguf_type}.gguf"
            write_gguf(model, file, numbers.gguf_type)
            model = file
        served = loaded(model, numbers)
    return torch.cat([torch.log_softmax(_logits(served, prompt).float(), dim=-1) for prompt in prompts])


def loaded(model: Path, numbers: Numbers) -> ServedModel:
    settings: dict[str, Any] = {"dtype": numbers.dtype, "quantization": numbers.quantization, "device": "cpu"}
    config = load_settings(model=str(model), **settings).engine_config()
    causal_lm = load_causal_lm(config, CPU)
    served = probe_model(causal_lm, CPU)
    lay_out_for_cpu(served, config.quantization)
    if numbers.kv_cache_dtype == "int8":
        assert isinstance(served.backend, NativeBackend)
        served = replace(served, backend=NativeBackend(served.backend.library, stores_int8=True))
    return served


def _logits(served: ServedModel, token_ids: list[int]) -> Tensor:
    num_blocks = math.ceil(len(token_ids) / _BLOCK_SIZE)
    caches = allocate_cache(served.backend, served.kv, [num_blocks], _BLOCK_SIZE, dtype=served.cache_dtype, device=CPU)
    attention = PagedAttention(served.backend, caches)
    table = np.arange(num_blocks, dtype=np.int32).reshape(1, -1)
    metadata = batch_metadata([(0, len(token_ids))], table, _BLOCK_SIZE, CPU)
    with step_context(StepContext(attention, (metadata,))):
        hidden = served.model.hidden_states(torch.tensor(token_ids), torch.arange(len(token_ids)))
    return served.model.logits(hidden)


if __name__ == "__main__":
    raise SystemExit(main())
