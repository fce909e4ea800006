"""What one layer keeps for each running sequence besides keys and values. Knows not what it is computed from."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ALIGNMENT = 64  # bytes


@dataclass(frozen=True, slots=True)
class _Place:
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int  # bytes, within a slot

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class LayerStates(nn.Module):
    """Holds the states of one layer (a `SlotState`), in the order in which its code asks for them.

    A run without slots tells how many there are and of which shapes; those with slots are given their tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: list[_Place] = []
        self._tensors: list[Tensor] = []
        self._next = 0

    @property
    def bytes_per_slot(self) -> int:
        """Return the size of what a slot holds for this layer, a multiple of 64 bytes."""
        return _aligned(self._places[-1].offset + self._places[-1].num_bytes) if self._places else 0

    def take_memory(self, memory: Tensor) -> None:
        """Keep the states in these bytes, uint8 (num_slots, bytes_per_slot), whose slots may be apart."""
        self._tensors = [
            memory[:, place.offset : place.offset + place.num_bytes].view(place.dtype).view(-1, *place.shape)
            for place in self._places
        ]

    def begin(self) -> None:
        """Begin a run of the layer."""
        self._next = 0

    def note(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Note that the layer's code keeps a state of this shape next."""
        if self._next == len(self._places):
            self._places.append(_Place(shape, dtype, self.bytes_per_slot))
        assert (self._places[self._next].shape, self._places[self._next].dtype) == (shape, dtype)
        self._next += 1

    def take_next(self) -> Tensor:
        """Return the state that the layer's code asks for next, of all slots: (num_slots, ...)."""
        self._next += 1
        return self._tensors[self._next - 1]

    @property
    def tensors(self) -> list[Tensor]:
        """Return all states of the layer, of all slots."""
        return self._tensors


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
