"""The memory of all states: a row for each slot, on the device, and rows for copies of them, in the host's memory.

A row has what all modules keep for one sequence, in the order of the modules. Which slot is whose, and what a copy is
of, is not known here.
"""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from orcinus.engine.attention.step_context import SlotState
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.platform.memory import zeroed_bytes


class StatePool:
    """Gives modules the memory of their states, and copies the states of slots to snapshots and back.

    `slots` is (num_slots, row_bytes) uint8 on the device, `snapshots` (num_snapshots, row_bytes) on the host. On a GPU
    copies are in the order of its stream: they begin when what was launched before them is done, and nothing waits for
    them on the host. Raises `ModelLoadError` where the host cannot give the memory for snapshots.
    """

    def __init__(
        self, states: Sequence[SlotState], num_slots: int, num_snapshots: int = 0, *, device: torch.device
    ) -> None:
        self.row_bytes = sum(module.bytes_per_slot for module in states)
        size = num_slots * self.row_bytes
        memory = zeroed_bytes(size) if device.type == "cpu" else torch.zeros(size, dtype=torch.uint8, device=device)
        self.slots = memory.view(num_slots, self.row_bytes)
        self.snapshots = _host_rows(num_snapshots, self.row_bytes, device)
        offset = 0
        for module in states:
            module.take_memory(self.slots[:, offset : offset + module.bytes_per_slot])
            offset += module.bytes_per_slot

    def save(self, slot: int, snapshot: int) -> None:
        """Copy the state of a slot to a snapshot."""
        self.snapshots[snapshot].copy_(self.slots[slot], non_blocking=True)

    def restore(self, snapshot: int, slot: int) -> None:
        """Copy a snapshot to the state of a slot."""
        self.slots[slot].copy_(self.snapshots[snapshot], non_blocking=True)


def _host_rows(num_rows: int, row_bytes: int, device: torch.device) -> Tensor:
    """Return (num_rows, row_bytes) uint8 on the host, pinned where a GPU is to read and write it.

    Torch's own pinned memory comes in powers of two, of which up to half would be wasted. Not yet run on a GPU.
    """
    try:
        memory = zeroed_bytes(num_rows * row_bytes)
    except MemoryError as error:
        raise ModelLoadError(f"state_cache_memory: {error}") from error
    rows = memory.view(num_rows, row_bytes)
    if device.type == "cuda" and rows.nbytes:
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        failure = int(runtime.cudaHostRegister(rows.data_ptr(), rows.nbytes, 0))
        if failure:
            raise ModelLoadError(f"state_cache_memory: {rows.nbytes} bytes cannot be pinned (CUDA error {failure})")
        weakref.finalize(rows, runtime.cudaHostUnregister, rows.data_ptr()).atexit = False
    return rows
