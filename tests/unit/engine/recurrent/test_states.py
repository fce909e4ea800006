"""The memory of states: rows that modules write to, and their copies."""

import pytest
import torch
from torch import Tensor

from orcinus.engine.attention.step_context import SlotState
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.recurrent.states import StatePool

CPU = torch.device("cpu")


class Module:
    def __init__(self, bytes_per_slot: int, dtype: torch.dtype) -> None:
        self.bytes_per_slot = bytes_per_slot
        self._dtype = dtype

    def take_memory(self, memory: Tensor) -> None:
        assert memory.shape[1] == self.bytes_per_slot
        self.states = memory.view(self._dtype)


def modules() -> list[Module]:
    return [Module(64, torch.float32), Module(192, torch.bfloat16), Module(64, torch.float32)]


def test_each_module_has_its_own_bytes_of_each_slot() -> None:
    states = modules()
    assert all(isinstance(module, SlotState) for module in states)
    pool = StatePool(states, 3, device=CPU)
    assert pool.slots.shape == (3, 320)
    assert not pool.slots.any()
    for number, module in enumerate(states, 1):
        module.states.fill_(number)
    for number, module in enumerate(states, 1):
        assert (module.states == number).all()
    assert all(module.states.data_ptr() % 64 == 0 for module in states)


def test_a_snapshot_is_all_that_modules_keep_for_a_slot_whatever_becomes_of_it() -> None:
    states = modules()
    pool = StatePool(states, 3, 2, device=CPU)
    for number, module in enumerate(states, 1):
        module.states.copy_(torch.randn(module.states.shape, generator=torch.Generator().manual_seed(number)))
    before = [module.states.clone() for module in states]
    pool.save(1, 0)
    pool.save(2, 1)
    for module in states:
        module.states.fill_(-1)
    pool.restore(0, 2)
    for module, old in zip(states, before, strict=True):
        assert torch.equal(module.states[2], old[1])
        assert (module.states[:2] == -1).all()
    pool.restore(1, 2)
    assert all(torch.equal(module.states[2], old[2]) for module, old in zip(states, before, strict=True))


def test_a_model_without_states_needs_no_memory() -> None:
    pool = StatePool([], 5, device=CPU)
    assert (pool.row_bytes, pool.slots.nbytes, pool.snapshots.nbytes) == (0, 0, 0)


def test_snapshots_that_the_machine_has_no_room_for_are_refused_by_the_name_of_their_setting() -> None:
    with pytest.raises(ModelLoadError, match="state_cache_memory: no memory for"):
        StatePool(modules(), 1, 2**50, device=CPU)
