"""What a token of free text costs a request whose calls are held to their schemas, by two ways of doing it.

    python -m bench.strict_calls MODEL [--num-tokens 2000]

Prose is followed in the tokens of MODEL (a directory with a tokenizer): by the engine's watch for openings, whose mask
is empty of work where no token may begin a call wrongly, and by one grammar of llguidance's over text and calls. The
mask is then applied to a row of logits, as the sampler does where there is no native kernel.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pydoc_data.topics import topics

import numpy as np
import torch
from llguidance import LLMatcher

from orcinus.engine.grammar.compiler import GrammarCompiler
from orcinus.engine.grammar.masks import empty_mask
from orcinus.engine.grammar.matcher import GrammarMatcher
from orcinus.engine.sampling.processors import unpack_bits
from orcinus.engine.sampling_params import Grammar
from orcinus.engine.text.tokenizer import Tokenizer
from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.tools.request import read_tool_use
from orcinus.server.reading.tools.tagged_json import HERMES

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--num-tokens", type=int, default=2000)
    args = parser.parse_args()
    tokenizer = Tokenizer.load(args.model)
    prose = tokenizer.encode("".join(topics.values()), add_special_tokens=False)[: args.num_tokens]
    ends = [i for i in (tokenizer.eos_token_id,) if i is not None]
    compiler = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size, ends)
    use = read_tool_use(TOOLS, "auto")
    assert use is not None
    form = MessageFormat.detect(tokenizer.chat_template_source, tokenizer.added_token_id, tool_call_parser="hermes")
    grammar = form.grammar("", use)
    assert grammar is not None
    print(f"{tokenizer.vocab_size} tokens of vocabulary, {len(prose)} of prose; microseconds a token")
    started = time.perf_counter()
    compiled = compiler.compile(grammar.kind, grammar.source, grammar.openings)
    print(f"compiled in {1000 * (time.perf_counter() - started):.0f} ms, the vocabulary's tree with it")
    row = torch.zeros(1, tokenizer.vocab_size)
    report("watch", *follow_engine(compiled.matcher(max_tokens=None), prose, row))
    report("one grammar", *follow_one_grammar(compiler, grammar, tokenizer, prose, row))


def follow_engine(matcher: GrammarMatcher, prose: list[int], row: torch.Tensor) -> tuple[list[float], list[float]]:
    masks, takes = [], []
    for token_id in prose:
        masks.append(timed(lambda: _mask_by_engine(matcher, row)))
        takes.append(timed(lambda token_id=token_id: matcher.accept(token_id)))  # type: ignore[misc]
    assert matcher.error is None
    return masks, takes


def _mask_by_engine(matcher: GrammarMatcher, row: torch.Tensor) -> None:
    matcher.fill_mask()
    if matcher.mask is not None:
        apply(matcher.mask, row)


def follow_one_grammar(
    compiler: GrammarCompiler, grammar: Grammar, tokenizer: Tokenizer, prose: list[int], row: torch.Tensor
) -> tuple[list[float], list[float]]:
    """Follow the prose by a grammar of text with calls in it, in which the opening is a token."""
    rules = grammar.source.removeprefix("start: calls\n")
    source = f"start: (TEXT calls)* TEXT\nTEXT: /(.|\\n)*/\n{rules}"
    if tokenizer.added_token_id(HERMES.opening) is None:
        rules = rules.replace(f'"{HERMES.opening}"', "", 1)
        lazy = f"text_to_call[lazy]: /(.|\\n)*{HERMES.opening}/"
        source = f"start: (text_to_call calls)* TEXT\n{lazy}\nTEXT: /(.|\\n)*/\n{rules}"
    matcher = LLMatcher(compiler.vocabulary.ll_tokenizer, LLMatcher.grammar_from_lark(source), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    mask = empty_mask(compiler.vocabulary.size)
    masks, takes = [], []
    for token_id in prose:
        masks.append(timed(lambda: _mask_by_grammar(matcher, mask, row)))
        takes.append(timed(lambda token_id=token_id: matcher.consume_token(token_id)))  # type: ignore[misc]
    assert not matcher.is_error(), matcher.get_error()
    return masks, takes


def _mask_by_grammar(matcher: LLMatcher, mask: "np.ndarray[tuple[int], np.dtype[np.int32]]", row: torch.Tensor) -> None:
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    apply(mask, row)


def apply(mask: "np.ndarray[tuple[int], np.dtype[np.int32]]", row: torch.Tensor) -> None:
    row.masked_fill_(unpack_bits(torch.from_numpy(~mask[None]), row.shape[1]), -torch.inf)


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - started)


def report(name: str, masks: list[float], takes: list[float]) -> None:
    for what, times in (("mask", masks), ("token", takes)):
        ordered = sorted(times)
        print(
            f"{name}, {what}: median {statistics.median(ordered):.1f}, mean {statistics.fmean(ordered):.1f}, "
            f"most {ordered[-1]:.0f}"
        )


if __name__ == "__main__":
    main()
