"""What is asked: random prompts of given lengths, reproducible from a seed, or the lines of a file.

Random prompts are made of units, which are token ids or common words; how many tokens a word is on some server is
told by whoever has asked it. This module talks to nobody.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from orcinus.config.settings import SettingsError
from orcinus.config.text_files import BOM, TextFileError, check_encoding
from orcinus.server.load.answers import NOT_JSON
from orcinus.server.load.lengths import Lengths

Prompt = str | list[int] | list[dict[str, Any]]

_COMMON_WORDS = """
able about above across after again against air all almost along also always among animal another answer any apple
area around ask away back bad bank base bear beautiful because become bed before begin behind believe below best
better between big bird black blue boat body book both bottom box boy bread break bring brother brown build burn busy
but buy call came can car care carry case cat catch cause center change check child city class clear climb close cloud
cold color come common complete contain cook cool copy corner cost could count country course cover cross cry current
cut dance dark day deep did different dinner direct dog door down draw dream dress drink drive drop dry during each
early earth east easy eat edge
"""
WORDS = _COMMON_WORDS.split()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadItem:
    """One request to be: what is asked, and for how many tokens. `prompt_tokens` is None where nobody chose it."""

    prompt: Prompt
    max_tokens: int
    prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptShape:
    """Says how many tokens random requests have. The shared prefix comes in front of the prompt's own tokens."""

    prompt_tokens: Lengths
    output_tokens: Lengths
    shared_prefix_tokens: int = 0
    num_prefixes: int = 1


@dataclass(frozen=True, slots=True)
class Writer:
    """Makes prompts of random units: token ids, or words of `tokens_per_unit` tokens and `overhead` for the whole."""

    units: Sequence[int] | Sequence[str]
    tokens_per_unit: float = 1.0
    overhead: float = 0.0

    @property
    def writes_text(self) -> bool:
        return isinstance(self.units[0], str)

    def draw(self, rng: random.Random, num_tokens: float) -> list[Any]:
        return rng.choices(self.units, k=max(round(num_tokens / self.tokens_per_unit), 0))

    def compose(self, units: list[Any]) -> str | list[int]:
        return " ".join(units) if self.writes_text else units


def random_items(shape: PromptShape, writer: Writer, count: int, seed: str, content: str = "") -> list[LoadItem]:
    """`count` requests. Their lengths depend on `seed` alone, whatever the writer; what they say on `content` too."""
    lengths = random.Random(f"lengths {seed}")  # noqa: S311 - a load, not a secret
    words = random.Random(f"content {seed} {content}")  # noqa: S311
    prefixes = [writer.draw(words, shape.shared_prefix_tokens) for _ in range(shape.num_prefixes)]
    return [_random_item(shape, writer, prefixes[i % len(prefixes)], lengths, words) for i in range(count)]


def read_dataset(file: Path, count: int | None, output_tokens: Lengths, seed: str) -> list[LoadItem]:
    """The requests of a JSONL file, from its beginning again where `count` is above its lines.

    Raises `SettingsError` for a file that cannot be read and a line that is no request.
    """
    rng = random.Random(f"lengths {seed}")  # noqa: S311 - a load, not a secret
    lines = list(_lines(file))
    if not lines:
        raise SettingsError(f"{file} has no request in it")
    return [_dataset_item(lines[i % len(lines)], output_tokens, rng) for i in range(count or len(lines))]


class _Line(msgspec.Struct):
    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("it needs either a prompt or messages")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}, but starts at 1")


def _random_item(
    shape: PromptShape, writer: Writer, prefix: list[Any], lengths: random.Random, words: random.Random
) -> LoadItem:
    own_tokens = shape.prompt_tokens.draw(lengths)
    own = writer.draw(words, own_tokens - writer.overhead) or writer.draw(words, writer.tokens_per_unit)
    return LoadItem(
        prompt=writer.compose(prefix + own),
        max_tokens=shape.output_tokens.draw(lengths),
        prompt_tokens=shape.shared_prefix_tokens + own_tokens,
    )


def _lines(file: Path) -> Iterator[_Line]:
    try:
        content = file.read_bytes()
        check_encoding(content, file)
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from None
    except TextFileError as error:
        raise SettingsError(str(error)) from None
    for number, line in enumerate(content.removeprefix(BOM).splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield msgspec.json.decode(line, type=_Line)
        except NOT_JSON as error:
            raise SettingsError(f"{file}, line {number} is no request: {error}") from None


def _dataset_item(line: _Line, output_tokens: Lengths, rng: random.Random) -> LoadItem:
    prompt = line.messages if line.prompt is None else line.prompt
    assert prompt is not None
    return LoadItem(prompt=prompt, max_tokens=line.max_tokens or output_tokens.draw(rng))
