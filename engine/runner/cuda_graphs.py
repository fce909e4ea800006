"""Steps of single tokens replayed from recordings (CUDA graphs): the host launches one thing instead of hundreds.

There is a recording for each of a few batch sizes, made when one is first needed; a batch is padded to the next of
them. Padding repeats the batch's shortest sequence: it computes what that one computes and writes the same into the
same slots, so that nothing has to be told which rows are real. What is recorded, and how, is handed in: on a CPU the
tests record by calling again. The CUDA side has not yet run on a GPU.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.attention.interface import AttentionMetadata, metadata_of
from orcinus.engine.attention.step_layout import StepLayout
from orcinus.engine.platform.device_copy import pack, unpack

logger = logging.getLogger(__name__)

_MIN_TABLE_WIDTH = 128
# Below it a few sizes double, from it on they are multiples of it.
_SIZE_STEP = 8


class Compute(Protocol):
    """Computes the step that is recorded."""

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        metas: tuple[AttentionMetadata, ...],
        state_slots: Tensor,
        adapter_rows: Tensor | None = None,
    ) -> Tensor:
        """Return the logits, (num_seqs, vocab_size)."""


class Recorder(Protocol):
    """Makes functions replayable: `CudaRecorder`, or one in the tests that calls them again."""

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Run `function`; return what replays it, and the tensor that each replay fills."""


@dataclass(frozen=True, slots=True)
class _Recording:
    """The step reads `inputs`, one piece of bytes, and leaves `logits`."""

    inputs: Tensor
    table_width: int
    replay: Callable[[], None]
    logits: Tensor


class DecodeGraphs:
    """Used by one thread. The logits of a step are valid until the next one.

    `spare_slot` is a state slot that no request has. A recording runs its step once before the replay does: were the
    slots those of the requests, their states would go on by one token twice.
    """

    def __init__(self, compute: Compute, record: Recorder, device: torch.device, spare_slot: int) -> None:
        self._compute = compute
        self._record = record
        self._device = device
        self._spare_slot = spare_slot
        self._recordings: dict[tuple[int, bool], _Recording] = {}  # by batch size, and whether there are adapters
        self._has_failed = False

    @property
    def can_record(self) -> bool:
        """As far as is known: it turns False with the first step that could not be recorded."""
        return not self._has_failed

    def logits(
        self,
        token_ids: NDArray[np.int64],
        layout: StepLayout,
        state_slots: NDArray[np.int64],
        adapter_rows: NDArray[np.int64] | None = None,
    ) -> Tensor | None:
        """(num_seqs, vocab_size) of a step of single tokens; None if steps of this model cannot be recorded.

        `state_slots` and `adapter_rows` as in `StepContext`.
        """
        if self._has_failed:
            return None
        num_seqs, size = len(token_ids), padded_size(len(token_ids))
        adapters = [] if adapter_rows is None else [adapter_rows]
        key = size, bool(adapters)
        recording = self._recordings.get(key)
        needed = layout.block_tables[0].shape[1]
        if recording is None or recording.table_width < needed:
            width = max(_MIN_TABLE_WIDTH, 1 << (needed - 1).bit_length())
            spare_slots = np.full_like(state_slots, self._spare_slot)
            recording = self._recorded(*padded([token_ids, spare_slots, *adapters], layout, size, width))
            if recording is None:
                return None
            self._recordings[key] = recording
        own, step = padded([token_ids, state_slots, *adapters], layout, size, recording.table_width)
        packed = pack([*own, step.positions, *step.cache_arrays])
        recording.inputs.copy_(packed.pin_memory() if self._device.type == "cuda" else packed, non_blocking=True)
        recording.replay()
        return recording.logits[:num_seqs]

    def _recorded(self, own: list[NDArray[np.int64]], layout: StepLayout) -> _Recording | None:
        started = time.monotonic()
        arrays = [*own, layout.positions, *layout.cache_arrays]
        inputs = pack(arrays).to(self._device)
        tensors = unpack(inputs, arrays)
        (ids, *others), (positions, *cache_tensors) = tensors[: len(own)], tensors[len(own) :]
        # For whoever looks at the host's lengths: as long as a sequence of this recording can get.
        table_width = layout.block_tables[0].shape[1]
        longest = table_width * layout.block_size
        metas = tuple(
            replace(meta, seq_lens=[longest] * len(ids), max_seq_len=longest, is_recorded=True)
            for meta in metadata_of(layout, cache_tensors)
        )
        try:
            replay, logits = self._record(lambda: self._compute(ids, positions, metas, *others))
        except RuntimeError as error:  # what CUDA, torch and Triton raise over what cannot be recorded
            logger.warning("steps are launched one operation at a time, as they cannot be recorded: %s", error)
            self._has_failed = True
            self._recordings.clear()
            return None
        logger.info("recorded a step of %d sequences in %.2f s", len(ids), time.monotonic() - started)
        return _Recording(inputs, table_width, replay, logits)


def padded_size(num_seqs: int) -> int:
    """The batch size whose recording serves this many sequences: 1, 2, 4, 8, 16, 24, 32 and so on."""
    if num_seqs <= _SIZE_STEP:
        return 1 << (num_seqs - 1).bit_length()
    return -(-num_seqs // _SIZE_STEP) * _SIZE_STEP


def padded(
    own: list[NDArray[np.int64]], layout: StepLayout, size: int, table_width: int
) -> tuple[list[NDArray[np.int64]], StepLayout]:
    """Repeat a step's shortest sequence until there are `size`, and put zeros to the right of the block tables.

    `own` are arrays with a number for each sequence, which are repeated in the same way.
    """
    assert layout.is_decode
    num_seqs, num_blocks = layout.block_tables[0].shape
    rows = np.full(size, layout.seq_lens.argmin())
    rows[:num_seqs] = np.arange(num_seqs)
    tables = np.zeros((len(layout.block_tables), size, table_width), dtype=np.int32)
    for table, own_blocks in zip(tables, layout.block_tables, strict=True):
        table[:, :num_blocks] = own_blocks[rows]
    return [array[rows] for array in own], StepLayout(
        positions=layout.positions[rows],
        sequences=np.arange(size),
        slots=tuple(slots[rows] for slots in layout.slots),
        block_tables=tuple(tables),
        query_start=np.arange(size + 1, dtype=np.int32),
        seq_lens=layout.seq_lens[rows],
        num_decodes=size,
        block_size=layout.block_size,
    )


class CudaRecorder:
    """Records by CUDA graphs, which share their memory: none of them is used while another one runs."""

    def __init__(self) -> None:
        self._pool: Any = None  # a handle, once there is a graph

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        around = torch.cuda.current_stream()
        stream.wait_stream(around)
        # Around the recording too, so that whatever happens in it the stream of before is back.
        with torch.cuda.stream(stream):
            function()  # once before: libraries set themselves up, kernels are compiled
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                output = function()
        around.wait_stream(stream)
        self._pool = graph.pool()
        return graph.replay, output
