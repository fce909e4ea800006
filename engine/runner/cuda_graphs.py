"""Steps of single tokens replayed from recordings (CUDA graphs): the host launches one thing instead of hundreds.

There is a recording for each of a few batch sizes, made before any request runs, the largest first; a batch is padded
to the next of them. Padding repeats the batch's shortest sequence: it computes what that one computes and writes the
same into the same slots, so that nothing has to be told which rows are real. All recordings read the same inputs and
leave their logits in the same place, and so serve sequences of every length. What is recorded, and how, is handed in:
on a CPU the tests record by calling again. The CUDA side has not yet run on a GPU.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.attention.interface import AttentionMetadata
from orcinus.engine.attention.step_layout import StepLayout
from orcinus.engine.platform.device import is_out_of_memory
from orcinus.engine.platform.device_copy import to_device

logger = logging.getLogger(__name__)

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

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run `function`, any number of times; return what replays it."""


class _Inputs:
    """Holds what recorded steps read, for the largest of them; those of fewer sequences read the first rows.

    As it is made it describes sequences of one token, all of them in the first slot, with the spare state slot.
    """

    def __init__(self, num_seqs: int, table_width: int, num_groups: int, spare_slot: int, device: torch.device) -> None:
        # Token ids, positions, state slots, adapter rows; then the slots of each group.
        self.numbers = torch.zeros(4 + num_groups, num_seqs, dtype=torch.int64, device=device)
        self.numbers[2] = spare_slot
        self.seq_lens = torch.ones(num_seqs, dtype=torch.int32, device=device)
        self.query_start = torch.arange(num_seqs + 1, dtype=torch.int32, device=device)
        self.block_tables = torch.zeros(num_groups, num_seqs, table_width, dtype=torch.int32, device=device)

    def fill(self, own: Sequence[NDArray[np.int64]], layout: StepLayout) -> None:
        """Take in a step; `own` are token ids, state slots and adapter rows. Columns beyond its tables stay as are."""
        token_ids, state_slots, adapter_rows = own
        numbers = np.stack([token_ids, layout.positions, state_slots, adapter_rows, *layout.slots])
        arrays = to_device([numbers, layout.seq_lens, *layout.block_tables], self.numbers.device)
        size, width = layout.block_tables[0].shape
        self.numbers[:, :size].copy_(arrays[0])
        self.seq_lens[:size].copy_(arrays[1])
        for own_tables, tables in zip(self.block_tables, arrays[2:], strict=True):
            own_tables[:size, :width].copy_(tables)

    def metadata(self, size: int, block_size: int) -> tuple[AttentionMetadata, ...]:
        """Return the metadata of a step of so many sequences, each as long as a table has room for."""
        longest = self.block_tables.shape[2] * block_size
        first = AttentionMetadata(
            query_start=list(range(size + 1)),
            seq_lens=[longest] * size,
            max_query_len=1,
            max_seq_len=longest,
            num_decodes=size,
            block_size=block_size,
            slots=self.numbers[4, :size],
            block_tables=self.block_tables[0, :size],
            query_start_tensor=self.query_start[: size + 1],
            seq_lens_tensor=self.seq_lens[:size],
            is_recorded=True,
        )
        others = range(1, len(self.block_tables))
        return first, *(
            replace(first, slots=self.numbers[4 + i, :size], block_tables=self.block_tables[i, :size], group=i)
            for i in others
        )


class DecodeGraphs:
    """Used by one thread. The logits of a step are valid until the next one.

    `max_model_len` is the most tokens that a sequence may have. `spare_slot` is a state slot that no request has. A
    recording runs its step before the replay does: were the slots those of the requests, their states would go on by
    one token twice.
    """

    def __init__(
        self,
        compute: Compute,
        record: Recorder,
        device: torch.device,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        spare_slot: int,
        num_groups: int = 1,
    ) -> None:
        self._compute = compute
        self._record = record
        self._max_num_seqs = max_num_seqs
        self._block_size = block_size
        self._spare_slot = spare_slot
        self._table_width = -(-max_model_len // block_size)
        self._inputs = _Inputs(padded_size(max_num_seqs), self._table_width, num_groups, spare_slot, device)
        self._logits: Tensor | None = None  # of the last step, with room for the largest
        self._replays: dict[tuple[int, bool], Callable[[], None]] = {}  # by batch size, and whether there are adapters
        self._too_large: set[tuple[int, bool]] = set()  # for the memory that there was
        self._has_failed = False

    @property
    def sizes(self) -> list[int]:
        """Return the batch sizes that are recorded, without adapters."""
        return sorted(size for size, has_adapters in self._replays if not has_adapters)

    def record_sizes(self, sizes: Sequence[int]) -> None:
        """Record steps of so many sequences, the largest first: the others use the memory that it took.

        Writes into the first slot, and is to be called before any request has it.
        """
        started = time.monotonic()
        for size in sizes:
            self._add((size, False))
        if self._replays:
            elapsed_s = time.monotonic() - started
            logger.info("recorded steps of %s sequences in %.1f s", ", ".join(map(str, self.sizes)), elapsed_s)

    def logits(
        self,
        token_ids: NDArray[np.int64],
        layout: StepLayout,
        state_slots: NDArray[np.int64],
        adapter_rows: NDArray[np.int64] | None = None,
    ) -> Tensor | None:
        """(num_seqs, vocab_size) of a step of single tokens; None if this one cannot be replayed.

        `state_slots` and `adapter_rows` as in `StepContext`.
        """
        num_seqs, has_adapters = len(token_ids), adapter_rows is not None
        has_room = layout.block_tables[0].shape[1] <= self._table_width and num_seqs <= self._max_num_seqs
        if self._has_failed or not has_room:
            return None
        own = [token_ids, state_slots, np.zeros_like(token_ids) if adapter_rows is None else adapter_rows]
        key = self._key(num_seqs, has_adapters)
        if key not in self._replays and key not in self._too_large:
            spare = [token_ids, np.full_like(state_slots, self._spare_slot), own[2]]
            self._inputs.fill(*padded(spare, layout, key[0]))
            self._add(key)
            key = self._key(num_seqs, has_adapters)
        if key not in self._replays:
            return None
        self._inputs.fill(*padded(own, layout, key[0]))
        self._replays[key]()
        assert self._logits is not None
        return self._logits[:num_seqs]

    def _key(self, num_seqs: int, has_adapters: bool) -> tuple[int, bool]:
        """Return which recording serves so many sequences; if the right one has no room, the next larger one."""
        right = padded_size(num_seqs), has_adapters
        if right not in self._too_large:
            return right
        larger = [key for key in self._replays if key[0] > right[0] and key[1] == has_adapters]
        return min(larger, default=right)

    def _add(self, key: tuple[int, bool]) -> None:
        """Record the step that the inputs describe, unless none of this model can be recorded."""
        if self._has_failed:
            return
        try:
            self._replays[key] = self._record(self._step(*key))
        except RuntimeError as error:  # what CUDA, torch and Triton raise over what cannot be recorded
            if lacks_memory(error):
                self._too_large.add(key)
                logger.warning("steps of %d sequences are not recorded, for want of memory: %s", key[0], error)
                return
            logger.warning("steps are launched one operation at a time, as they cannot be recorded: %s", error)
            self._has_failed = True
            self._replays.clear()
            self._logits = None

    def _step(self, size: int, has_adapters: bool) -> Callable[[], None]:
        """Return a function that computes the logits of the first `size` inputs, into their one place."""
        inputs = self._inputs
        token_ids, positions, state_slots, adapter_rows, *_ = inputs.numbers[:, :size]
        metas = inputs.metadata(size, self._block_size)

        def compute() -> None:
            logits = self._compute(token_ids, positions, metas, state_slots, adapter_rows if has_adapters else None)
            if self._logits is None:
                self._logits = logits.new_empty(inputs.numbers.shape[1], *logits.shape[1:])
            self._logits[:size].copy_(logits)

        return compute


def lacks_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came after, was want of memory: a capture that breaks off fails, too."""
    while error is not None:
        if isinstance(error, Exception) and is_out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def padded_size(num_seqs: int) -> int:
    """The batch size whose recording serves this many sequences: 1, 2, 4, 8, 16, 24, 32 and so on."""
    if num_seqs <= _SIZE_STEP:
        return 1 << (num_seqs - 1).bit_length()
    return -(-num_seqs // _SIZE_STEP) * _SIZE_STEP


def recorded_sizes(max_num_seqs: int) -> list[int]:
    """Return the batch sizes that serve up to so many sequences, the largest first."""
    return sorted({padded_size(n) for n in range(1, max_num_seqs + 1)}, reverse=True)


def padded(own: list[NDArray[np.int64]], layout: StepLayout, size: int) -> tuple[list[NDArray[np.int64]], StepLayout]:
    """Repeat a step's shortest sequence until there are `size`.

    `own` are arrays with a number for each sequence, which are repeated in the same way.
    """
    assert layout.is_decode
    num_seqs = len(layout.seq_lens)
    rows = np.full(size, layout.seq_lens.argmin())
    rows[:num_seqs] = np.arange(num_seqs)
    return [array[rows] for array in own], StepLayout(
        positions=layout.positions[rows],
        sequences=np.arange(size),
        slots=tuple(slots[rows] for slots in layout.slots),
        block_tables=tuple(tables[rows] for tables in layout.block_tables),
        query_start=np.arange(size + 1, dtype=np.int32),
        seq_lens=layout.seq_lens[rows],
        num_decodes=size,
        block_size=layout.block_size,
    )


class CudaRecorder:
    """Records by CUDA graphs, which share their memory: none of them is used while another one runs.

    They share a stream, too, as cuBLAS keeps memory of its own for each.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool: Any = None  # a handle, once there is a graph

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        around = torch.cuda.current_stream()
        self._stream.wait_stream(around)
        # Around the recording too, so that whatever happens in it the stream of before is back.
        with torch.cuda.stream(self._stream):
            function()  # once before: libraries set themselves up, kernels are compiled
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                function()
        around.wait_stream(self._stream)
        self._pool = graph.pool()
        return graph.replay
