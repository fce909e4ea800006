"""Padding, filling and replaying recorded steps; a recording is a function that is called again."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from orcinus.engine.attention.interface import AttentionMetadata
from orcinus.engine.attention.step_layout import StepLayout, lay_out
from orcinus.engine.runner.cuda_graphs import DecodeGraphs, padded, padded_size, recorded_sizes

CPU = torch.device("cpu")
BLOCK = 4
SPARE = 777


class Recorder:
    """Replays what reads its inputs where they were when it was recorded."""

    def __init__(self) -> None:
        self.num_recordings = self.num_replays = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.num_recordings += 1
        function()

        def replay() -> None:
            self.num_replays += 1
            function()

        return replay


def graphs_of(model: "Model", record: Any, max_num_seqs: int = 8, max_model_len: int = 512) -> DecodeGraphs:
    return DecodeGraphs(
        model,
        record,
        CPU,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        block_size=BLOCK,
        spare_slot=SPARE,
        num_groups=2,
    )


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


def test_recorded_sizes_serve_every_batch_and_come_largest_first() -> None:
    assert recorded_sizes(33) == [40, 32, 24, 16, 8, 4, 2, 1]
    assert recorded_sizes(3) == [4, 2, 1]
    for most in range(1, 70):
        assert {padded_size(n) for n in range(1, most + 1)} == set(recorded_sizes(most))


def test_padding_repeats_the_shortest_sequence() -> None:
    (ids, state_slots), layout = padded([np.array([10, 11, 12]), np.array([2, 0, 1])], step_of([9, 3, 7], 3), 5)
    assert ids.tolist() == [10, 11, 12, 11, 11]
    assert state_slots.tolist() == [2, 0, 1, 0, 0]
    assert layout.positions.tolist() == [8, 2, 6, 2, 2]
    assert layout.seq_lens.tolist() == [9, 3, 7, 3, 3]
    for slots in layout.slots:
        assert slots.tolist()[3:] == [slots[1]] * 2
    assert layout.block_tables[0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [4, 5, 6], [4, 5, 6]]
    assert layout.query_start.tolist() == [0, 1, 2, 3, 4, 5]
    assert (layout.num_decodes, layout.block_size) == (5, BLOCK)


STEPS = ([9, 3, 7], [10, 4, 8], [5, 6, 7, 8], [3], [1, 2], [8, 8, 8])


@pytest.mark.parametrize("is_recorded_before", [True, False])
def test_replayed_steps_compute_what_they_are_given_and_no_more_is_written(is_recorded_before: bool) -> None:
    model, record = Model(), Recorder()
    graphs = graphs_of(model, record)
    if is_recorded_before:
        graphs.record_sizes(recorded_sizes(8))
    written: set[int] = {0} if is_recorded_before else set()
    for lengths in STEPS:
        layout = step_of(lengths, 3)
        token_ids = np.arange(20, 20 + len(lengths))
        written |= set(layout.slots[0].tolist())
        logits = graphs.logits(token_ids, layout, slots_of(token_ids))
        assert logits is not None
        assert logits.tolist() == expected(token_ids, layout)
        assert model.cache[torch.from_numpy(layout.slots[0])].tolist() == token_ids.tolist()
    assert set(model.cache.ne(-1).nonzero().flatten().tolist()) == written
    assert (record.num_recordings, record.num_replays) == (4 if is_recorded_before else 3, 6)


def test_all_recordings_are_made_before_there_are_requests_and_never_again() -> None:
    model, record = Model(), Recorder()
    graphs = graphs_of(model, record)
    graphs.record_sizes(recorded_sizes(8))
    assert [len(slots) for slots in model.state_slots] == [8, 4, 2, 1]
    assert {slot for slots in model.state_slots for slot in slots} == {SPARE}
    assert {meta.seq_lens_tensor.tolist()[0] for meta in model.metas} == {1}
    assert graphs.sizes == [1, 2, 4, 8]
    for lengths in ([1], [3] * 2, [500] * 3, [7] * 8):
        assert graphs.logits(np.arange(len(lengths)), step_of(lengths, 125), np.arange(len(lengths))) is not None
    assert record.num_recordings == 4


def test_all_recordings_leave_their_logits_in_one_place() -> None:
    graphs, pointers = graphs_of(Model(), Recorder()), set()
    for count in (3, 8, 1, 3):
        logits = graphs.logits(np.arange(count), step_of([3] * count, 1), np.arange(count))
        assert logits is not None
        assert len(logits) == count
        pointers.add(logits.data_ptr())
    assert len(pointers) == 1


def test_a_recording_takes_the_lengths_that_it_is_replayed_with_for_granted() -> None:
    """The host's lengths are the most that there can be."""
    model = Model()
    graphs_of(model, Recorder(), max_model_len=511).logits(np.arange(3), step_of([9, 3, 7], 3), np.arange(3))
    for group, meta in enumerate(model.metas[:2]):
        assert (meta.seq_lens, meta.max_seq_len, meta.max_query_len) == ([512] * 4, 512, 1)
        assert meta.query_start == meta.query_start_tensor.tolist() == [0, 1, 2, 3, 4]
        assert (meta.is_recorded, meta.group, meta.num_decodes) == (True, group, 4)
        assert meta.block_tables.shape == (4, 128)


def test_a_recording_is_made_with_a_state_slot_that_no_request_has() -> None:
    """A recording has run once when it is replayed: a state would have gone on twice."""
    model = Model()
    graphs_of(model, Recorder()).logits(np.arange(3), step_of([9, 3, 7], 3), np.array([2, 0, 1]))
    assert model.state_slots == [[SPARE] * 4, [2, 0, 1, 0]]


def test_steps_with_adapters_have_recordings_of_their_own() -> None:
    model, record, layout = Model(), Recorder(), step_of([9, 3, 7], 3)
    graphs = graphs_of(model, record)
    for rows in ([0, 2, 1], None, [1, 1, 0]):
        graphs.logits(np.arange(3), layout, np.arange(3), None if rows is None else np.array(rows))
    assert record.num_recordings == 2
    assert model.adapter_rows[1::2] == [[0, 2, 1, 2], None]
    assert model.adapter_rows[-1] == [1, 1, 0, 1]


def test_a_step_beyond_what_was_made_room_for_is_not_replayed() -> None:
    model, record = Model(), Recorder()
    graphs = graphs_of(model, record, max_num_seqs=4, max_model_len=12)
    assert graphs.logits(np.arange(2), step_of([12, 3], 3), np.arange(2)) is not None
    assert graphs.logits(np.arange(2), step_of([13, 3], 4), np.arange(2)) is None
    assert graphs.logits(np.arange(5), step_of([3] * 5, 1), np.arange(5)) is None


def test_what_cannot_be_recorded_is_said_once_and_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(function: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = graphs_of(Model(), refuse)
    with caplog.at_level(logging.WARNING):
        graphs.record_sizes(recorded_sizes(8))
        assert [graphs.logits(np.array([1]), step_of([3], 1), np.array([0])) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert "not permitted when stream is capturing" in caplog.text
    assert graphs.sizes == []


class ShortOfMemory(Recorder):
    """Has no room for some batch sizes. Like torch, it breaks the capture off, and that fails, too."""

    def __init__(self, sizes: set[int], model: Model, *, breaks_off: bool) -> None:
        super().__init__()
        self.sizes, self.model, self.breaks_off = sizes, model, breaks_off

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        replay = super().__call__(function)
        if len(self.model.state_slots[-1]) not in self.sizes:
            return replay
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            if self.breaks_off:
                raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize("breaks_off", [False, True])
def test_a_batch_size_that_there_is_no_memory_for_leaves_the_others_as_they_are(
    breaks_off: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    record = ShortOfMemory({2, 8}, model, breaks_off=breaks_off)
    graphs = graphs_of(model, record)
    with caplog.at_level(logging.WARNING):
        graphs.record_sizes(recorded_sizes(8))
    assert graphs.sizes == [1, 4]
    assert "steps of 8 sequences are not recorded, for want of memory" in caplog.text
    assert "steps of 2 sequences are not recorded" in caplog.text
    for lengths in ([1, 2], [5], [9, 3, 7], [3, 3]):
        layout, token_ids = step_of(lengths, 3), np.arange(len(lengths))
        logits = graphs.logits(token_ids, layout, slots_of(token_ids))
        assert logits is not None
        assert logits.tolist() == expected(token_ids, layout)
    assert graphs.logits(np.arange(5), step_of([3] * 5, 1), np.arange(5)) is None
    assert record.num_recordings == 4
