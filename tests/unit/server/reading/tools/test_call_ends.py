"""Where the grammars of calls end: at once after a complete call, and without room for filler anywhere."""

from functools import cache
from typing import Any

import pytest

from orcinus.engine.grammar.compiler import GrammarCompiler
from orcinus.engine.grammar.masks import tokens_in
from orcinus.engine.text.tokenizer import Tokenizer
from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.pieces import ToolCallStart
from orcinus.server.reading.tools.formats import FORMAT_NAMES, named_format
from orcinus.server.reading.tools.lark import MAX_CALLS
from tests.unit.engine.grammar.grammars import DEMO_ENDS, DEMO_MODEL, demo_compiler
from tests.unit.server.reading.tools.calling import function, read_all, tool_use

CHOICES = {"type": "object", "properties": {"a": {"enum": ["x y", "z"]}, "b": {"enum": [1, 2]}}, "required": ["a"]}
USE_ONE: list[dict[str, Any]] = [
    {"choice": "required", "parallel": False},
    {"choice": {"type": "function", "function": {"name": "f"}}},
]
MAX_TOKENS = 3000  # of 16 calls in the format with the longest markers


@cache
def compiler() -> GrammarCompiler:
    return demo_compiler()


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(str(DEMO_MODEL))


def format_of(name: str) -> MessageFormat:
    return MessageFormat(named_format(name, ""), None, "", False, frozenset(), tokenizer().added_token_id)


def longest_text(name: str, **use: Any) -> tuple[str, list[int]]:
    """Follow the grammar and avoid its end, with white space wherever there can be some.

    Returns the text, and where in it the end could have come.
    """
    grammar = format_of(name).grammar("", tool_use([function("f", CHOICES)], **use))
    assert grammar is not None
    matcher = compiler().compile(grammar.kind, grammar.source).matcher()
    written: list[int] = []
    ends: list[int] = []
    while not matcher.is_finished and len(written) < MAX_TOKENS:
        matcher.fill_mask()
        assert matcher.mask is not None
        assert matcher.error is None
        ids = [int(token_id) for token_id in tokens_in(matcher.mask)]
        others = [token_id for token_id in ids if token_id not in DEMO_ENDS]
        if len(others) < len(ids):
            ends.append(len(tokenizer().decode(written, skip_special_tokens=False)))
        if not others:
            break
        written.append(max(others, key=_whiteness))
        matcher.accept(written[-1])
    else:
        assert matcher.is_finished, "the grammar has no end"
        ends.append(len(tokenizer().decode(written, skip_special_tokens=False)))
    return tokenizer().decode(written, skip_special_tokens=False), ends


def _whiteness(token_id: int) -> tuple[int, bool, int, int]:
    token = tokenizer().token_bytes(token_id)
    return len(token) - len(token.strip()), not token.startswith(b"]"), -len(token), token_id


def num_calls(name: str, text: str) -> int:
    pieces = read_all(format_of(name), [text], use=tool_use([function("f", CHOICES)]))
    return sum(isinstance(piece, ToolCallStart) for piece in pieces)


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("use", USE_ONE)
def test_one_call_ends_the_text_at_once(name: str, use: dict[str, Any]) -> None:
    text, ends = longest_text(name, **use)
    assert num_calls(name, text) == 1
    assert ends == [len(text)]


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_several_calls_end_after_the_last_that_is_allowed(name: str) -> None:
    text, ends = longest_text(name, choice="required")
    most = num_calls(name, text)
    assert most == 1 if name == "openai" else 1 <= most <= MAX_CALLS
    assert ends[-1] == len(text)
    assert [num_calls(name, text[:end]) for end in ends] in ([most], [*range(1, most + 1)])
    one, _ = longest_text(name, choice="required", parallel=False)
    assert len(text) <= most * (len(one) + len(">>>"))
