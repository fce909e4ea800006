"""What libraries for constrained decoding can do and cost: schema features, compile and mask times, and bombs.

    python bench/grammar.py [--vocab-size 128000]

llguidance, which the engine uses, and xgrammar if it is installed. The vocabulary is made of pieces of the manual that
comes with Python. Each bomb runs in a process of its own, with 2 GiB of memory and 20 s, its start included.
"""

import argparse
import importlib.util
import json
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pydoc_data.topics import topics
from typing import Any

import numpy as np

_END = 256
_BOMB_MEMORY_BYTES = 2 << 30
_BOMB_TIME_S = 20.0
_MASKED_TEXT_BYTES = 600


def make_vocabulary(size: int) -> list[bytes]:
    """Every byte, an end token, then words and random pieces of prose; the same in each run."""
    text = "".join(topics.values()).encode()
    tokens: dict[bytes, None] = {bytes([byte]): None for byte in range(256)} | {b"<|end|>": None}
    rng = random.Random(0)
    while len(tokens) < size:
        start = rng.randrange(len(text) - 12)
        tokens[text[start : start + rng.randint(2, 12)]] = None
    return [*tokens]


class Library(ABC):
    """One way to compile and follow grammars over a vocabulary of bytes."""

    def __init__(self, vocabulary: list[bytes]) -> None:
        self.vocab_size = len(vocabulary)
        self.mask = np.zeros((self.vocab_size + 31) // 32, dtype=np.int32)

    @abstractmethod
    def compile(self, kind: str, source: str) -> Any:
        """A matcher at its start. Raises `ValueError` or `RuntimeError` for what it refuses."""

    @abstractmethod
    def fill(self, matcher: Any) -> None:
        """Compute the mask of the next token. Raises `RuntimeError` at a limit."""

    @abstractmethod
    def accept_byte(self, matcher: Any, byte: int) -> bool: ...

    @abstractmethod
    def is_complete(self, matcher: Any) -> bool: ...

    def matches(self, matcher: Any, text: str) -> bool:
        return all(self.accept_byte(matcher, byte) for byte in text.encode()) and self.is_complete(matcher)


class _Vocabulary:
    """Has what llguidance asks of a tokenizer."""

    eos_token_id = _END
    bos_token_id = None
    special_token_ids = (_END,)

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens

    def __call__(self, text: bytes) -> list[int]:
        return [*text]


class LLGuidance(Library):
    def __init__(self, vocabulary: list[bytes]) -> None:
        super().__init__(vocabulary)
        from llguidance import LLMatcher, LLTokenizer
        from llguidance import TokenizerWrapper as Wrapper

        self._matcher = LLMatcher
        self._tokenizer = LLTokenizer(Wrapper(_Vocabulary(vocabulary)))

    def compile(self, kind: str, source: str) -> Any:
        converters: dict[str, Any] = {
            "json_schema": self._matcher.grammar_from_json_schema,
            "regex": self._matcher.grammar_from_regex,
            "grammar": self._matcher.grammar_from_lark,
        }
        matcher = self._matcher(self._tokenizer, converters[kind](source), log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def fill(self, matcher: Any) -> None:
        matcher.unsafe_compute_mask_ptr(self.mask.ctypes.data, self.mask.nbytes)
        if matcher.is_error():
            raise RuntimeError(matcher.get_error())

    def accept_byte(self, matcher: Any, byte: int) -> bool:
        return bool(matcher.try_consume_tokens([byte]) == 1)

    def is_complete(self, matcher: Any) -> bool:
        return bool(matcher.is_accepting())


class XGrammar(Library):
    def __init__(self, vocabulary: list[bytes]) -> None:
        super().__init__(vocabulary)
        import torch
        import xgrammar  # type: ignore[import-not-found]

        self._xgrammar = xgrammar
        raw: list[Any] = list(vocabulary)
        info = xgrammar.TokenizerInfo(raw, xgrammar.VocabType.RAW, stop_token_ids=[_END])
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._bitmask = torch.from_numpy(self.mask)

    def compile(self, kind: str, source: str) -> Any:
        compilers: dict[str, Any] = {
            "json_schema": partial(self._compiler.compile_json_schema, strict_mode=False),
            "regex": self._compiler.compile_regex,
            "grammar": self._compiler.compile_grammar,
        }
        return self._xgrammar.GrammarMatcher(compilers[kind](source))

    def fill(self, matcher: Any) -> None:
        matcher.fill_next_token_bitmask(self._bitmask.unsqueeze(0))

    def accept_byte(self, matcher: Any, byte: int) -> bool:
        return bool(matcher.accept_token(byte))

    def is_complete(self, matcher: Any) -> bool:
        return bool(matcher.is_completed())


LIBRARIES: dict[str, type[Library]] = {"llguidance": LLGuidance, "xgrammar": XGrammar}

_TREE = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
    "$ref": "#/$defs/node",
}

# Name: a schema, a value that it allows, and one that it forbids.
FEATURES: dict[str, tuple[Any, Any, Any]] = {
    "type": ({"type": "integer"}, 1, "a"),
    "type, several": ({"type": ["integer", "null"]}, None, "a"),
    "enum": ({"enum": ["a", 1, None]}, 1, 2),
    "const": ({"const": {"a": 1}}, {"a": 1}, {"a": 2}),
    "pattern": ({"type": "string", "pattern": "^a+$"}, "aa", "ab"),
    "pattern, unanchored": ({"type": "string", "pattern": "b"}, "abc", "ac"),
    "pattern, lookahead": ({"type": "string", "pattern": "^(?=a)ab$"}, "ab", "cd"),
    "format date": ({"type": "string", "format": "date"}, "2026-01-31", "yesterday"),
    "format email": ({"type": "string", "format": "email"}, "a@b.org", "ab"),
    "format uri": ({"type": "string", "format": "uri"}, "http://a.org/", "a b"),
    "format, unknown": ({"type": "string", "format": "colour"}, "red", None),
    "minLength, maxLength": ({"type": "string", "minLength": 2, "maxLength": 3}, "ab", "abcd"),
    "minimum, maximum": ({"type": "integer", "minimum": 3, "maximum": 12}, 12, 13),
    "minimum of a number": ({"type": "number", "minimum": 0.5}, 0.75, 0.25),
    "multipleOf": ({"type": "integer", "multipleOf": 3}, 9, 10),
    "minItems, maxItems": ({"type": "array", "minItems": 1, "maxItems": 2}, [1], [1, 2, 3]),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, [1, 2], [1, 1]),
    "contains": ({"type": "array", "contains": {"const": 1}}, [2, 1], [2]),
    "prefixItems": ({"type": "array", "prefixItems": [{"type": "null"}], "items": False}, [None], [1]),
    "required": ({"type": "object", "properties": {"a": {}, "b": {}}, "required": ["b"]}, {"b": 1}, {"a": 1}),
    "additionalProperties": ({"type": "object", "additionalProperties": False}, {}, {"a": 1}),
    "patternProperties": ({"type": "object", "patternProperties": {"^a": {"type": "null"}}}, {"a": None}, {"a": 1}),
    "propertyNames": ({"type": "object", "propertyNames": {"pattern": "^a"}}, {"ab": 1}, {"b": 1}),
    "minProperties": ({"type": "object", "minProperties": 1}, {"a": 1}, {}),
    "maxProperties": ({"type": "object", "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 1}),
    "dependentRequired": ({"type": "object", "dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 1}, {"a": 1}),
    "anyOf": ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, 1, "a"),
    "oneOf, disjoint": ({"oneOf": [{"type": "null"}, {"type": "integer"}]}, 1, "a"),
    "oneOf, overlapping": ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, 0.5, 1),
    "allOf": ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, 4, 6),
    "not": ({"type": "integer", "not": {"const": 1}}, 2, 1),
    "if, then": ({"if": {"type": "integer"}, "then": {"minimum": 5}}, 6, 4),
    "$ref, recursive": (_TREE, {"next": {"next": {}}}, {"next": 1}),
    "unicode": ({"const": {"naïve": "日本"}}, {"naïve": "日本"}, {"naive": "日本"}),
    "unknown keyword": ({"type": "integer", "frobnicate": 1}, 1, "a"),
}

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}},
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
_PERSON_TEXT = json.dumps(
    {
        "name": "Ada Lovelace",
        "age": 36,
        "tags": ["mathematics", "the analytical engine"] * 8,
        "address": {"street": "12 St James's Square", "city": "London"},
    }
)


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return schema


def _fan_out(levels: int) -> dict[str, Any]:
    """Each definition names the next one twice: 2 ** levels if it is written out."""
    definitions: dict[str, Any] = {
        f"d{i}": {"type": "object", "properties": {name: {"$ref": f"#/$defs/d{i + 1}"} for name in "ab"}}
        for i in range(levels)
    }
    return {"$defs": {**definitions, f"d{levels}": {"type": "null"}}, "$ref": "#/$defs/d0"}


# Name: kind, source, and text to follow with a mask before each byte.
BOMBS: dict[str, tuple[str, str, str]] = {
    "(a{1000}){1000}": ("regex", "(a{1000}){1000}", "a" * 50),
    "((a{0,100}){0,100}){0,100}": ("regex", "((a{0,100}){0,100}){0,100}", "a" * 50),
    "(.*a){30}": ("regex", "(.*a){30}", "ab" * 50),
    ".*a.{1000}": ("regex", "(a|b)*a(a|b){1000}", "ab" * 50),
    "(x+x+)+y": ("regex", "(x+x+)+y", "x" * 100),
    "\\w{1,100000}": ("regex", r"\w{1,100000}", "a" * 50),
    "maxLength 1000000": ("json_schema", '{"type": "string", "maxLength": 1000000}', '"' + "a" * 50),
    "maxItems 1000000": ("json_schema", '{"type": "array", "items": {"type": "null"}, "maxItems": 1000000}', "[null"),
    "enum of 20000": ("json_schema", json.dumps({"enum": [f"value {i * 7919}" for i in range(20_000)]}), '"value 1'),
    "object of 5000 optional": (
        "json_schema",
        json.dumps({"type": "object", "properties": {f"property{i}": {} for i in range(5000)}}),
        '{"prop',
    ),
    "nested 200 deep": ("json_schema", json.dumps(_nested(200)), '{"a":' * 50),
    "$ref fan-out 2^30": ("json_schema", json.dumps(_fan_out(30)), '{"a":' * 25),
    "allOf of 2^12": (
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [{"minimum": i}, {"maximum": -i}]} for i in range(12)]}),
        "1",
    ),
    "ambiguous": ("grammar", 'start: s\ns: s s | "a" | s s s\n', "a" * 100),
    "left recursion": ("grammar", 'start: s\ns: s "a" | "a"\n', "a" * 100),
    "empty recursion": ("grammar", 'start: s\ns: s s | "" | "a"\n', "a" * 100),
}
_GBNF = {"ambiguous": 'root ::= s\ns ::= s s | "a" | s s s\n', "left recursion": 'root ::= s\ns ::= s "a" | "a"\n'}
_GBNF["empty recursion"] = 'root ::= s\ns ::= s s | "" | "a"\n'


def judge(library: Library, schema: Any, good: Any, bad: Any) -> str:
    """Return what becomes of one feature: a keyword is ignored if what it forbids can be written."""
    source = json.dumps(schema)
    try:
        if not any(library.matches(library.compile("json_schema", source), text) for text in _writings(good)):
            return "wrong: a valid text is not allowed"
        is_ignored = any(library.matches(library.compile("json_schema", source), text) for text in _writings(bad))
    except (ValueError, RuntimeError) as error:
        return f"refused: {' '.join(str(error).split())[:60]}"
    return "IGNORED" if is_ignored else "yes"


def _writings(value: Any) -> Iterator[str]:
    yield json.dumps(value, ensure_ascii=False)
    yield json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    yield json.dumps(value)


def mask_times_us(library: Library, matcher: Any, text: str) -> list[float]:
    """Of the mask before each byte of the text."""
    times = []
    for byte in text.encode()[:_MASKED_TEXT_BYTES]:
        started = time.perf_counter()
        library.fill(matcher)
        times.append((time.perf_counter() - started) * 1e6)
        if not library.accept_byte(matcher, byte):
            break
    return times


def longest_pause_ms(work: Callable[[], object]) -> float:
    """Return how long another thread could not run Python while `work` did. 1 is no effect on an event loop."""
    gaps = [0.0]
    is_done = threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not is_done.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        is_done.set()
        watcher.join()
    return max(gaps) * 1e3


def import_time_s(module: str) -> float:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import numpy\n{module}"], check=True)
        return time.perf_counter() - started

    return min(once() for _ in range(3))


def run_bomb(library_name: str, bomb_name: str, vocab_size: int) -> None:
    """In a process of its own: print how it went as JSON."""
    library = LIBRARIES[library_name](make_vocabulary(vocab_size))
    kind, source, text = BOMBS[bomb_name]
    if library_name == "xgrammar" and kind == "grammar":
        source = _GBNF[bomb_name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = _BOMB_MEMORY_BYTES + before * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    started = time.perf_counter()
    outcome, masks, pause = "compiled", [0.0], 0.0
    try:
        matcher: list[Any] = []
        pause = longest_pause_ms(lambda: matcher.append(library.compile(kind, source)))
        compile_s = time.perf_counter() - started
        masks = mask_times_us(library, matcher[0], text)
    except (ValueError, RuntimeError, MemoryError) as error:
        compile_s = time.perf_counter() - started
        outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:70]}"
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    row = (compile_s * 1e3, pause, max(masks) / 1e3, memory, outcome)
    print("{:9.1f} {:9.1f} {:9.1f} {:9.0f}  {}".format(*row))


def _bomb_in_process(library_name: str, bomb_name: str, vocab_size: int) -> str:
    command = [sys.executable, __file__, "--vocab-size", str(vocab_size), "--bomb", library_name, bomb_name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BOMB_TIME_S, check=False)
    except subprocess.TimeoutExpired:
        return f"killed after {_BOMB_TIME_S:.0f} s"
    if done.returncode != 0:
        return f"the process died with code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    return done.stdout.rstrip()


def report(name: str, vocab_size: int) -> None:
    statement = {"llguidance": "import llguidance", "xgrammar": "import xgrammar"}[name]
    print(f"\n# {name}: import {import_time_s(statement):.2f} s (numpy alone {import_time_s(''):.2f} s)\n")
    started = time.perf_counter()
    library = LIBRARIES[name](make_vocabulary(vocab_size))
    print(f"vocabulary of {vocab_size}: {time.perf_counter() - started:.2f} s")
    for title, schema in (("any object", {"type": "object"}), ("person", _PERSON)):
        started = time.perf_counter()
        matcher = library.compile("json_schema", json.dumps(schema))
        compile_ms = (time.perf_counter() - started) * 1e3
        times = mask_times_us(library, matcher, _PERSON_TEXT)
        print(
            f"{title}: compiled in {compile_ms:.1f} ms; {len(times)} masks, median {statistics.median(times):.0f} us,"
            f" mean {statistics.mean(times):.0f} us, most {max(times):.0f} us"
        )
    print()
    for title, (schema, good, bad) in FEATURES.items():
        print(f"{title:24} {judge(library, schema, good, bad)}")
    print(f"\n{'bomb':28} {'ms':>9} {'pause ms':>9} {'mask ms':>9} {'MiB':>9}")
    for bomb in BOMBS:
        print(f"{bomb:28} {_bomb_in_process(name, bomb, vocab_size)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare libraries for constrained decoding.")
    parser.add_argument("--vocab-size", type=int, default=128_000)
    parser.add_argument("--bomb", nargs=2, metavar=("LIBRARY", "BOMB"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bomb is not None:
        library_name, bomb_name = args.bomb
        run_bomb(library_name, bomb_name, args.vocab_size)
        return
    for name in LIBRARIES:
        if importlib.util.find_spec(name) is not None:
            report(name, args.vocab_size)


if __name__ == "__main__":
    main()
