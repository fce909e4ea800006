"""Finds out what is wrong with a grammar: compiles it and follows random tokens, in a process that may end over it.

`engine.grammar.gate` starts it, writes one line of JSON, and reads the answer behind its length. Knows no requests.
"""

import json
import random
import sys
import time
from functools import partial
from itertools import cycle, islice
from typing import Any

import msgspec
import psutil

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.grammar.compiler import GrammarCompiler
from orcinus.engine.grammar.gate import VERDICT_SIZE_BYTES, ServedVocabulary, Trial, Verdict
from orcinus.engine.grammar.masks import random_token
from orcinus.engine.grammar.matcher import GrammarMatcher
from orcinus.engine.grammar.source import parsed_schema
from orcinus.engine.grammar.unenforceable import find_unenforceable
from orcinus.engine.platform.child_process import die_with_parent, ignore_group_signals
from orcinus.engine.platform.lean_imports import hide_torch
from orcinus.engine.platform.priority import lower_priority
from orcinus.engine.text.tokenizer import Tokenizer

_MEMORY_BYTES = 1 << 30
_MAX_MASK_S = 0.25  # of processor time: well below what the engine waits for
_NUM_WALKS, _WALK_TOKENS = 3, 32
_MAX_WALKED_OPENINGS = 16
_MAX_WALKED_SCHEMAS = 100  # to find out what is to blame


def main() -> None:
    """Answer trials until the standard input ends."""
    ignore_group_signals()
    lower_priority()
    die_with_parent(sys.argv[1:])
    vocabulary = msgspec.json.decode(sys.stdin.buffer.readline(), type=ServedVocabulary)
    hide_torch(trust_remote_code=vocabulary.trust_remote_code)
    compiler = load_compiler(vocabulary)
    _limit_memory()
    _answer(Verdict())
    for line in sys.stdin.buffer:
        trial = msgspec.json.decode(line, type=Trial)
        _answer(judge(compiler, trial))


def load_compiler(vocabulary: ServedVocabulary) -> GrammarCompiler:
    tokenizer = Tokenizer.load(vocabulary.model, trust_remote_code=vocabulary.trust_remote_code)
    compiler = GrammarCompiler(lambda: tokenizer, vocabulary.vocab_size, vocabulary.eos_token_ids)
    assert compiler.vocabulary.size == vocabulary.vocab_size  # it is loaded now
    return compiler


def judge(compiler: GrammarCompiler, trial: Trial) -> Verdict:
    """Return what is wrong with a grammar, and of a schema which keywords are to blame, where that can be told."""
    fault = find_fault(compiler, trial)
    if fault is None or trial.kind != "json_schema":
        return Verdict(fault)
    try:
        schema = parsed_schema(trial.source)
        if _compile_fault(compiler, schema) is not None:
            keywords, rest = find_unenforceable(schema, partial(_compile_fault, compiler))
        else:
            keywords, rest = find_unenforceable(schema, partial(_any_fault, compiler), max_trials=_MAX_WALKED_SCHEMAS)
    except (InvalidRequestError, MemoryError):  # it is too deep, or no schema at all
        return Verdict(fault)
    return Verdict(fault, tuple(keywords), json.dumps(rest, ensure_ascii=False))


def _any_fault(compiler: GrammarCompiler, schema: Any) -> str | None:
    return find_fault(compiler, Trial("json_schema", json.dumps(schema, ensure_ascii=False)))


def _compile_fault(compiler: GrammarCompiler, schema: Any) -> str | None:
    """Return why a schema cannot be compiled. Takes a part of the time that following tokens would."""
    try:
        compiler.compile("json_schema", json.dumps(schema, ensure_ascii=False))
    except InvalidRequestError as error:
        return str(error)
    return None


def find_fault(compiler: GrammarCompiler, trial: Trial) -> str | None:
    """Return why a grammar cannot be served, fit for a user's eyes, or None if it can."""
    rng = random.Random(0)  # noqa: S311  (no secrets; what means the same is followed alike)
    try:
        compiled = compiler.compile(trial.kind, trial.source, trial.openings)
        begun = compiled.begun()
        starts = rng.sample(begun, min(len(begun), _MAX_WALKED_OPENINGS))
        walks = (_walk(start.matcher(), rng) for start in islice(cycle(starts), max(_NUM_WALKS, len(starts))))
        return next((fault for fault in walks if fault is not None), None)
    except InvalidRequestError as error:
        return str(error)
    except MemoryError:
        return f"the grammar is too complex: it needs more than {_MEMORY_BYTES >> 20} MiB"


def _walk(matcher: GrammarMatcher, rng: random.Random) -> str | None:
    """Follow random tokens for a while; return what goes wrong, as it would in the engine."""
    for _ in range(_WALK_TOKENS):
        started = time.thread_time()
        matcher.fill_mask()
        if time.thread_time() - started > _MAX_MASK_S:
            return "the grammar is too complex: a single step takes too long"
        assert matcher.mask is not None, "a grammar that holds from its start has a mask"
        token_id = random_token(matcher.mask, rng)
        if matcher.error is None and token_id is None:
            return "the grammar allows no text at all"
        if matcher.error is None and token_id is not None:
            matcher.accept(token_id)
        if matcher.error is not None or matcher.is_finished:
            return matcher.error
    return None


def _answer(verdict: Verdict) -> None:
    encoded = msgspec.json.encode(verdict)
    sys.stdout.buffer.write(len(encoded).to_bytes(VERDICT_SIZE_BYTES, "big") + encoded)
    sys.stdout.buffer.flush()


def _limit_memory() -> None:
    """Limit what this process may take beyond what it has loaded by now."""
    if sys.platform != "linux":
        return
    import resource

    limit = psutil.Process().memory_info().vms + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
