"""Positions for decoders that count them themselves."""

import torch
from torch import Tensor, nn

from orcinus.engine.models.positions import PositionFeed


class Table(nn.Embedding):
    def forward(self, input_ids: Tensor, cache_length: int = 0, position_ids: Tensor | None = None) -> Tensor:
        assert position_ids is not None
        return super().forward(position_ids)


class Counting(nn.Module):
    """Counts positions from 0, as decoders of encoder-decoder families do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(16, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        counted: Tensor = self.table(input_ids, 0, position_ids=torch.arange(input_ids.shape[1]))
        return counted


class Taking(Counting):
    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        return super().forward(input_ids)


IDS = torch.zeros(1, 3, dtype=torch.long)


def test_decoder_that_counts_positions_gets_those_of_the_step() -> None:
    decoder = Counting()
    feed = PositionFeed(decoder)
    feed.positions = torch.tensor([4, 0, 9])
    assert torch.equal(decoder(IDS), decoder.table.weight[[4, 0, 9]])


def test_decoder_runs_by_its_own_count_where_no_positions_are_given() -> None:
    decoder = Counting()
    feed = PositionFeed(decoder)
    assert torch.equal(decoder(IDS), decoder.table.weight[:3])
    feed.positions = torch.arange(5)  # of another run
    assert torch.equal(decoder(IDS), decoder.table.weight[:3])


def test_decoder_that_takes_positions_is_left_alone() -> None:
    decoder = Taking()
    PositionFeed(decoder).positions = torch.tensor([4, 0, 9])
    assert torch.equal(decoder(IDS), decoder.table.weight[:3])
