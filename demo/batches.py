"""Training rows: documents, packed side by side, with the masks that keep them apart.

Owns rendering, encoding and packing. It does not know the model or the optimiser.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo import corpus, prose
from demo.corpus import Example
from demo.tokenizer import CONTEXT, END_OF_TEXT, TURN_END, TURN_START, render, token_id

ROW: Final = 256
PROSE_SHARE: Final = 0.06
# What users and systems say is mostly drawn at random: little can be learned from guessing it.
OTHER_WEIGHT: Final = 0.1


@dataclass(frozen=True)
class Document:
    """The tokens of one document and, for each, the weight of its loss."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents; `documents` numbers them within a row, from 1, with 0 for padding."""

    ids: Tensor
    weights: Tensor
    positions: Tensor
    documents: Tensor

    def mask(self) -> Tensor:
        """Return which tokens may see which: those before them in the same document."""
        same = self.documents[:, None, :, None] == self.documents[:, None, None, :]
        return same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()


class Encoder:
    """Turns conversations and prose into documents."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._end = token_id(tokenizer, END_OF_TEXT)
        self._turn_end = token_id(tokenizer, TURN_END)
        self._opening = self._encode(f"{TURN_START}assistant\n")

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def chat(self, example: Example) -> Document:
        text = render(self._tokenizer, example.messages, example.tools)
        ids = [*self._encode(text), self._end]
        return Document(ids, self._weights(ids))

    def _weights(self, ids: list[int]) -> list[float]:
        """Full weight for what the assistant says, up to the end of its turn."""
        weights, speaking, head = [], False, len(self._opening)
        for i, token in enumerate(ids):
            weights.append(1.0 if speaking else OTHER_WEIGHT)
            if token == self._turn_end:
                speaking = False
            elif ids[max(0, i + 1 - head) : i + 1] == self._opening:
                speaking = True
        return weights

    def prose(self, text: str) -> Document:
        ids = [*self._encode(text), self._end]
        return Document(ids, [1.0] * len(ids))


Row = tuple[list[int], list[float], list[int], list[int]]


def pack(documents: list[Document], length: int) -> list[list[Document]]:
    """Groups of documents that fit into `length` together: longest first, into the first row with room."""
    rows: list[list[Document]] = []
    room: list[int] = []
    for document in sorted(documents, key=lambda d: -len(d.ids)):
        size = len(document.ids)
        at = next((i for i, left in enumerate(room) if left >= size), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(length)
        rows[at].append(document)
        room[at] -= size
    return rows


def _row(documents: list[Document]) -> Row:
    """The documents side by side: tokens, weights, positions and document numbers."""
    ids: list[int] = []
    weights: list[float] = []
    positions: list[int] = []
    numbers: list[int] = []
    for number, document in enumerate(documents, 1):
        ids += document.ids
        weights += document.weights
        positions += range(len(document.ids))
        numbers += [number] * len(document.ids)
    return ids, weights, positions, numbers


def _tensor(rows: list[list[float]] | list[list[int]], length: int, pad: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows], dtype=dtype)


def collate(groups: list[list[Document]], length: int) -> Batch:
    """One row of `length` for each group of documents."""
    rows = [_row(group) for group in groups]
    return Batch(
        ids=_tensor([row[0] for row in rows], length, 0, torch.long),
        weights=_tensor([row[1] for row in rows], length, 0, torch.float),
        positions=_tensor([row[2] for row in rows], length, 0, torch.long),
        documents=_tensor([row[3] for row in rows], length, 0, torch.long),
    )


class Source:
    """An endless, seeded stream of batches of about `tokens` tokens."""

    def __init__(self, encoder: Encoder, seed: int, tokens: int) -> None:
        self.rng = Random(seed)
        self._encoder = encoder
        self._tokens = tokens
        self._waiting: dict[int, list[Document]] = {ROW: [], CONTEXT: []}

    def short(self) -> Batch:
        """Rows of the usual length; documents that do not fit wait for a long batch."""
        return self._batch(self._short_document, ROW)

    def long(self) -> Batch:
        """Rows as long as the context."""
        return self._batch(self._long_document, CONTEXT)

    def _batch(self, draw: Callable[[], Document], length: int) -> Batch:
        """A batch of always the same shape, for which a compiled model is compiled once; the rest waits."""
        self._fill(draw, length)
        groups = pack(self._waiting[length], length)
        count = self._tokens // length
        self._waiting[length] = [document for group in groups[count:] for document in group]
        return collate(groups[:count], length)

    def _fill(self, draw: Callable[[], Document], length: int) -> None:
        """Draws until a little more than a batch of documents of this length is waiting."""
        while sum(len(document.ids) for document in self._waiting[length]) < self._tokens * 1.04:
            document = draw()
            size = len(document.ids)
            if size <= CONTEXT:
                self._waiting[ROW if size <= ROW and length == ROW else CONTEXT].append(document)

    def _short_document(self) -> Document:
        if self.rng.random() < PROSE_SHARE:
            return self._encoder.prose(prose.paragraph(self.rng))
        return self._encoder.chat(corpus.conversation(self.rng))

    def _long_document(self) -> Document:
        if self.rng.random() < 0.3:
            return self._encoder.prose(corpus.long_prose(self.rng))
        return self._encoder.chat(corpus.long_conversation(self.rng))
