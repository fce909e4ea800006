"""Walks at random through texts in which calls are held to their schemas, for the tests of every format."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from numpy.typing import NDArray

from orcinus.engine.grammar.compiler import CompiledGrammar, GrammarCompiler
from orcinus.engine.grammar.masks import has_token, tokens_in
from orcinus.engine.grammar.matcher import GrammarMatcher
from orcinus.engine.sampling_params import Opening
from orcinus.engine.text.tokenizer import Tokenizer
from orcinus.server.apis.call_forms import held_to_strict
from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.pieces import ToolCallArguments, ToolCallStart
from orcinus.server.reading.tools.request import ToolUse
from tests.unit.engine.grammar.grammars import DEMO_ENDS, DEMO_MODEL, DEMO_VOCAB_SIZE
from tests.unit.server.reading.tools.calling import function, read_all, tool_use

NOTE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "days": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["title", "days", "tags"],
    "additionalProperties": False,
}
UNIT: dict[str, Any] = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
TOOLS = [function("note", NOTE, strict=True), function("set_unit", UNIT, strict=True), function("any", NOTE)]
SCHEMAS: dict[str, Any] = {"note": NOTE, "set_unit": UNIT, "any": {"type": "object"}}


def strict_use(*, parallel: bool = True) -> ToolUse:
    return tool_use(TOOLS, parallel=parallel)


def write_tokenizer(directory: Path, special: Sequence[str], plain: Sequence[str] = ()) -> Path:
    """Write the demo model's tokenizer with more tokens, after its own."""
    directory.mkdir(parents=True, exist_ok=True)
    description = json.loads((DEMO_MODEL / "tokenizer.json").read_text())
    entries = [(text, True) for text in special] + [(text, False) for text in plain]
    known = {token["content"] for token in description["added_tokens"]}
    more = [(text, is_special) for text, is_special in entries if text not in known]
    description["added_tokens"] += [
        {
            "id": DEMO_VOCAB_SIZE + i,
            "content": text,
            "special": is_special,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for i, (text, is_special) in enumerate(more)
    ]
    (directory / "tokenizer.json").write_text(json.dumps(description))
    (directory / "tokenizer_config.json").write_text((DEMO_MODEL / "tokenizer_config.json").read_text())
    return directory


@dataclass(frozen=True)
class Model:
    """A tokenizer and a chat template, and what is made of them."""

    directory: Path
    tokenizer: Tokenizer
    form: MessageFormat
    compiler: GrammarCompiler

    @classmethod
    def load(cls, directory: Path, template: str, **options: Any) -> "Model":
        tokenizer = Tokenizer.load(str(directory))
        form = MessageFormat.detect(
            template, tokenizer.added_token_id, special_tokens=tokenizer.special_tokens, **options
        )
        return cls(directory, tokenizer, form, GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size, DEMO_ENDS))

    def compile(self, use: ToolUse, tail: str = "") -> CompiledGrammar:
        grammar = self.form.grammar(tail, held_to_strict(use))
        assert grammar is not None
        assert grammar.openings is not None
        return self.compiler.compile(grammar.kind, grammar.source, grammar.openings)

    def openings(self, use: ToolUse, tail: str = "") -> list[Opening]:
        grammar = self.form.grammar(tail, held_to_strict(use))
        assert grammar is not None
        assert grammar.openings is not None
        return [*grammar.openings.openings]

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return what the reader is given."""
        keeps = self.form.needs_special_tokens
        ids = [i for i in token_ids if i not in DEMO_ENDS]
        return b"".join(
            self.tokenizer.token_bytes(i) for i in ids if keeps or i not in self.tokenizer.special_ids
        ).decode(errors="replace")


@cache
def prefixes(tokenizer: Tokenizer) -> list[tuple[int, bytes]]:
    ids = range(tokenizer.vocab_size)
    return [(i, text) for i in ids if (text := tokenizer.token_bytes(i)) and i not in DEMO_ENDS]


@cache
def prefixes_by_first_byte(tokenizer: Tokenizer) -> dict[bytes, list[tuple[int, bytes]]]:
    found: dict[bytes, list[tuple[int, bytes]]] = {}
    for token_id, text in prefixes(tokenizer):
        found.setdefault(text[:1], []).append((token_id, text))
    return found


@cache
def begins_with_one_of(tokenizer: Tokenizer, first_bytes: frozenset[bytes]) -> NDArray[np.bool_]:
    """Return of each token whether it does, (vocab_size,)."""
    return np.array([tokenizer.token_bytes(i)[:1] in first_bytes for i in range(tokenizer.vocab_size)])


@dataclass
class Walk:
    """One text, token by token."""

    model: Model
    matcher: GrammarMatcher
    rng: random.Random
    tail: str = ""
    token_ids: list[int] = field(default_factory=list)
    num_limited: int = 0  # steps at which not every token might come
    limit: int | None = None  # of tokens

    def may_come(self) -> NDArray[np.int64]:
        """Return the tokens that are allowed now, in order."""
        self.matcher.fill_mask()
        assert self.matcher.error is None, self.matcher.error
        vocab_size = self.model.tokenizer.vocab_size
        if self.matcher.mask is None:
            return np.arange(vocab_size)
        self.num_limited += 1
        ids = tokens_in(self.matcher.mask)
        ids = ids[ids < vocab_size]
        assert len(ids), "nothing may come"
        return ids

    def take(self, token_id: int) -> None:
        token_id = self.matcher.replacement_for(token_id)
        self.matcher.accept(token_id)
        assert self.matcher.error is None, self.matcher.error
        self.token_ids.append(token_id)

    def write(self, text: str) -> None:
        """Write a text in tokens of any length, the last of which may go on beyond it where that is allowed."""
        left = text.encode()
        while left:
            self.may_come()
            mask = self.matcher.mask
            fitting = [
                (i, own)
                for i, own in prefixes_by_first_byte(self.model.tokenizer).get(left[:1], [])
                if (left.startswith(own) or own.startswith(left)) and (mask is None or has_token(mask, i))
            ]
            assert fitting, f"{left!r} cannot be written after {self.text!r}"
            beyond = [pair for pair in fitting if len(pair[1]) > len(left)]
            token_id, own = self.rng.choice(beyond if beyond and self.rng.random() < 0.5 else fitting)
            self.take(token_id)
            if self.is_over:  # there was no room for what the text begins
                return
            left = left[len(own) :]

    def ramble(self, num_tokens: int) -> None:
        for _ in range(num_tokens):
            self.take(self.rng.choice([i for i in self.may_come().tolist() if i not in DEMO_ENDS]))

    def finish_call(self, max_tokens: int = 600) -> None:
        """Go on until what was opened is complete, mostly with what ends things."""
        for _ in range(max_tokens):
            if self.is_over or getattr(self.matcher, "_is_inside", None) is False:
                return
            ids = self.may_come()
            ending = ids[begins_with_one_of(self.model.tokenizer, self._first_bytes_of_ends())[ids]]
            chosen = ending if len(ending) and self.rng.random() < 0.5 else ids
            self.take(int(chosen[self.rng.randrange(len(chosen))]))
        raise AssertionError(f"no end of a call: {self.text!r}")

    def _first_bytes_of_ends(self) -> frozenset[bytes]:
        """Return with what a token begins that may end what is open, or that goes on with a closing tag."""
        form = self.model.form.tool_format
        if form is not None and self.model.text_of(self.token_ids[-4:]).endswith("<"):
            return frozenset(tag[1:2].encode() for tag in form.markers if tag.startswith("<"))
        return frozenset((b'"', b"}", b"]", b",", b"<", b")"))

    @property
    def is_over(self) -> bool:
        if self.limit is not None and len(self.token_ids) >= self.limit:
            return True
        return self.matcher.is_finished or (bool(self.token_ids) and self.token_ids[-1] in DEMO_ENDS)

    @property
    def text(self) -> str:
        return self.model.text_of(self.token_ids)

    def calls(self, use: ToolUse, *, is_cut: bool = False) -> list[tuple[str, Any]]:
        """Return what the reader reads, names and arguments."""
        return calls_in(self.model.form, self.text, use, tail=self.tail, is_cut=is_cut)


def calls_in(
    form: MessageFormat, text: str, use: ToolUse, *, tail: str = "", is_cut: bool = False
) -> list[tuple[str, Any]]:
    """Return what the reader reads, names and arguments."""
    pieces = read_all(form, [text], tail=tail, use=use, is_cut=is_cut)
    names = {piece.index: piece.name for piece in pieces if isinstance(piece, ToolCallStart)}
    arguments = {piece.index: piece.text for piece in pieces if isinstance(piece, ToolCallArguments)}
    assert names.keys() == arguments.keys(), text
    return [(name, json.loads(arguments[index])) for index, name in names.items()]


def check(calls: Sequence[tuple[str, Any]], text: str = "") -> None:
    for name, arguments in calls:
        faults = [error.message for error in jsonschema.Draft202012Validator(SCHEMAS[name]).iter_errors(arguments)]
        assert not faults, (text, name, arguments)


def written(opening: Opening, rng: random.Random) -> str:
    """Return an opening as a model may write it."""
    spaces = ["", *(set(opening.between or "") & set(" \n\t"))]
    parts = []
    for i, part in enumerate(opening.parts):
        if i or opening.is_first:
            parts.append(" " if opening.between is None else rng.choice(sorted(spaces)))
        parts.append(part)
    return "".join(parts)
