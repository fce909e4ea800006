"""Padding, filling and replaying recorded steps; a recording is a function that is called again."""

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from orcinus.engine.attention.interface import AttentionMetadata
from orcinus.engine.attention.step_layout import StepLayout, lay_out
from orcinus.engine.runner.cuda_graphs import DecodeGraphs, padded, padded_size

CPU = torch.device("cpu")
BLOCK = 4
SPARE = 777


class Recorder:
    """Replays what reads its inputs where they were when it was recorded."""

    def __init__(self) -> None:
        self.num_recordings = self.num_replays = 0

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.num_recordings += 1
        output = function()

        def replay() -> None:
            self.num_replays += 1
            output.copy_(function())

        return replay, output


class Model:
    """Logits that tell everything a step was told, and a cache of the tokens in their slots."""

    def __init__(self) -> None:
        self.cache = torch.full((4000,), -1, dtype=torch.int64)
        self.metas: list[AttentionMetadata] = []
        self.state_slots: list[list[int]] = []
        self.adapter_rows: list[list[int] | None] = []

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        metas: tuple[AttentionMetadata, ...],
        state_slots: Tensor,
        adapter_rows: Tensor | None = None,
    ) -> Tensor:
        self.metas += metas
        meta, windowed = metas
        self.state_slots.append(state_slots.tolist())
        self.adapter_rows.append(None if adapter_rows is None else adapter_rows.tolist())
        self.cache[meta.slots] = token_ids
        columns = [token_ids, state_slots, positions, meta.slots, meta.seq_lens_tensor, meta.block_tables.sum(dim=1)]
        columns += [windowed.slots, windowed.block_tables.sum(dim=1)]
        assert meta.query_start_tensor.tolist() == list(range(len(token_ids) + 1))
        return torch.stack([column.float() for column in columns], dim=1)


def step_of(lengths: list[int], width: int) -> StepLayout:
    ends = np.array(lengths, dtype=np.int64)
    tables = np.arange(1, len(lengths) * width + 1, dtype=np.int32).reshape(len(lengths), width)
    return lay_out(ends - 1, ends, [tables, tables[::-1]], BLOCK)


def slots_of(token_ids: np.ndarray) -> np.ndarray:
    """State slots that lie in another order than the step's sequences."""
    return token_ids[::-1] * 3


def expected(token_ids: np.ndarray, layout: StepLayout) -> list[list[float]]:
    columns = (
        token_ids,
        slots_of(token_ids),
        layout.positions,
        layout.slots[0],
        layout.seq_lens,
        layout.block_tables[0].sum(axis=1),
        layout.slots[1],
        layout.block_tables[1].sum(axis=1),
    )
    return np.stack(columns, axis=1).astype(float).tolist()  # type: ignore[no-any-return]


def test_sizes_double_and_then_go_up_in_eights() -> None:
    assert [padded_size(n) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17, 250, 256)] == [1, 2, 4, 4, 8, 8, 16, 16, 24, 256, 256]
    assert all(n <= padded_size(n) < n + 8 for n in range(1, 300))


def test_padding_repeats_the_shortest_sequence() -> None:
    (ids, state_slots), layout = padded([np.array([10, 11, 12]), np.array([2, 0, 1])], step_of([9, 3, 7], 3), 5, 4)
    assert ids.tolist() == [10, 11, 12, 11, 11]
    assert state_slots.tolist() == [2, 0, 1, 0, 0]
    assert layout.positions.tolist() == [8, 2, 6, 2, 2]
    assert layout.seq_lens.tolist() == [9, 3, 7, 3, 3]
    for slots in layout.slots:
        assert slots.tolist()[3:] == [slots[1]] * 2
    assert layout.block_tables[0].tolist() == [[1, 2, 3, 0], [4, 5, 6, 0], [7, 8, 9, 0], [4, 5, 6, 0], [4, 5, 6, 0]]
    assert layout.query_start.tolist() == [0, 1, 2, 3, 4, 5]
    assert (layout.num_decodes, layout.block_size) == (5, BLOCK)


def test_replayed_steps_compute_what_they_are_given_and_no_more_is_written() -> None:
    model, record = Model(), Recorder()
    graphs = DecodeGraphs(model, record, CPU, SPARE)
    written: set[int] = set()
    for lengths in ([9, 3, 7], [10, 4, 8], [5, 6, 7, 8], [3], [1, 2], [8, 8, 8]):
        layout = step_of(lengths, 3)
        token_ids = np.arange(20, 20 + len(lengths))
        written |= set(layout.slots[0].tolist())
        logits = graphs.logits(token_ids, layout, slots_of(token_ids))
        assert logits is not None
        assert logits.tolist() == expected(token_ids, layout)
        assert model.cache[torch.from_numpy(layout.slots[0])].tolist() == token_ids.tolist()
    assert set(model.cache.ne(-1).nonzero().flatten().tolist()) == written
    assert (record.num_recordings, record.num_replays) == (3, 6)


def test_a_recording_takes_the_lengths_that_it_is_replayed_with_for_granted() -> None:
    """The host's lengths are the most that there can be."""
    model = Model()
    layout = step_of([9, 3, 7], 3)
    DecodeGraphs(model, Recorder(), CPU, SPARE).logits(np.arange(3), layout, np.arange(3))
    assert model.metas[0].seq_lens == [128 * BLOCK] * 4
    assert model.metas[0].query_start == [0, 1, 2, 3, 4]
    assert model.metas[0].is_recorded


def test_a_recording_is_made_with_a_state_slot_that_no_request_has() -> None:
    """A recording has run once when it is replayed: a state would have gone on twice."""
    model = Model()
    DecodeGraphs(model, Recorder(), CPU, SPARE).logits(np.arange(3), step_of([9, 3, 7], 3), np.array([2, 0, 1]))
    assert model.state_slots == [[SPARE] * 4, [2, 0, 1, 0]]


def test_steps_with_adapters_have_recordings_of_their_own() -> None:
    model, record, layout = Model(), Recorder(), step_of([9, 3, 7], 3)
    graphs = DecodeGraphs(model, record, CPU, SPARE)
    for rows in ([0, 2, 1], None, [1, 1, 0]):
        graphs.logits(np.arange(3), layout, np.arange(3), None if rows is None else np.array(rows))
    assert record.num_recordings == 2
    assert model.adapter_rows[1::2] == [[0, 2, 1, 2], None]
    assert model.adapter_rows[-1] == [1, 1, 0, 1]


def test_longer_sequences_than_a_recording_has_room_for_are_recorded_anew() -> None:
    model, record = Model(), Recorder()
    graphs = DecodeGraphs(model, record, CPU, SPARE)
    for width in (3, 128, 129, 3, 300):
        layout, token_ids = step_of([2, 3], width), np.array([4, 5])
        logits = graphs.logits(token_ids, layout, slots_of(token_ids))
        assert logits is not None
        assert logits.tolist() == expected(token_ids, layout)
    assert [meta.block_tables.shape[1] for meta in model.metas] == [128] * 6 + [256] * 6 + [512] * 4
    assert record.num_recordings == 3


def test_what_cannot_be_recorded_is_said_once_and_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = DecodeGraphs(Model(), refuse, CPU, SPARE)
    with caplog.at_level(logging.WARNING):
        assert [graphs.logits(np.array([1]), step_of([3], 1), np.array([0])) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert "not permitted when stream is capturing" in caplog.text
