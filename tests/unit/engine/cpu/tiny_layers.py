"""Tiny models of one layer or a few, before and after their layers are replaced by native ones, for tests of these."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orcinus.engine.attention.interface import PagedLayer, batch_metadata
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.serving import ATTENTION_NAME, PagedAttention, ProbingAttention
from orcinus.engine.attention.step_context import StepContext, step_context
from orcinus.engine.cpu.layer_replacement import replace_layers
from orcinus.engine.cpu.native_linear import Kind, can_multiply
from orcinus.engine.kernels.library import KERNEL_CHOICES, load_library
from orcinus.engine.recurrent.binding import bind_recurrent_layers
from orcinus.engine.startup.probe import ServedModel, probe_model
from tests.integration.tiny_models import random_model

CPU = torch.device("cpu")
BLOCK_SIZE = 8
LIBRARY = load_library()
KINDS: list[Kind] = [kind for kind in ("bfloat16", "int8") if LIBRARY is not None and can_multiply(LIBRARY, kind)]
# Of the noise that transformers' own bfloat16 has. Rounding in another order moves it by a few percent.
MARGIN: dict[Kind, float] = {"bfloat16": 1.15, "int8": 12.0}


@contextmanager
def layers_by(choice: str) -> Iterator[None]:
    """Have whole layers computed by the kernels of a choice, until the context ends."""
    if LIBRARY is not None and KINDS:
        LIBRARY.use_kernels(choice)
    try:
        yield
    finally:
        if LIBRARY is not None:
            LIBRARY.use_kernels(list(KERNEL_CHOICES)[-1])


SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Tiny:
    """A model in bfloat16 that has been run once, and the same weights in float64."""

    served: ServedModel
    exact: Any

    @classmethod
    def of(cls, class_name: str, **settings: Any) -> "Tiny":
        settings = SHAPE | settings
        model = random_model(class_name, "bfloat16", ATTENTION_NAME, **settings)
        bind_recurrent_layers(model)
        exact = random_model(class_name, "float64", ATTENTION_NAME, **settings)
        exact.config._experts_implementation = "eager"  # others do not compute in float64
        exact.load_state_dict(model.state_dict())
        return cls(probe_model(model, CPU), exact)

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.served.model.causal_lm.base_model.layers)

    def replace(self, kind: Kind = "bfloat16") -> int:
        served = self.served
        assert isinstance(served.backend, NativeBackend)
        attentions = {module: (spec.shape, served.specs[module]) for module, spec in served.kv.items()}
        return replace_layers(served.model.causal_lm, served.recorded_calls, attentions, served.backend, kind)

    def whole(self, token_ids: Tensor) -> Tensor:
        """(num_tokens, hidden_size) of one sequence, by transformers' own code in bfloat16."""
        with step_context(StepContext(ProbingAttention())):
            return self.served.model.hidden_states(token_ids, torch.arange(len(token_ids)))

    def exactly(self, token_ids: Tensor) -> Tensor:
        with step_context(StepContext(ProbingAttention())):
            hidden: Tensor = self.exact.base_model(input_ids=token_ids.unsqueeze(0), use_cache=False).last_hidden_state
        return hidden[0]

    def paged(self, sequences: list[Tensor], steps: list[list[tuple[int, int]]]) -> list[Tensor]:
        """Of several sequences from a paged cache, in steps of a span of each; an empty span is none."""
        width = max(math.ceil(len(sequence) / BLOCK_SIZE) for sequence in sequences)
        backend = self.served.backend
        num_blocks = len(sequences) * width
        caches = {
            module: PagedLayer(backend.allocate(spec.shape, num_blocks, BLOCK_SIZE, torch.bfloat16, CPU))
            for module, spec in self.served.kv.items()
        }
        attention = PagedAttention(backend, caches)
        tables = np.random.default_rng(0).permutation(num_blocks).astype(np.int32).reshape(len(sequences), width)
        self.forget_states(len(sequences) + 1)
        parts: list[list[Tensor]] = [[] for _ in sequences]
        for spans in steps:
            self._step(attention, tables, sequences, spans, parts)
        return [torch.cat(part) for part in parts]

    def forget_states(self, num_slots: int) -> None:
        """Give the states new memory, in which there are no numbers."""
        for states in self.served.states:
            states.take_memory(torch.full((num_slots, states.bytes_per_slot), 0xFF, dtype=torch.uint8))

    def _step(
        self,
        attention: PagedAttention,
        tables: Any,
        sequences: list[Tensor],
        spans: list[tuple[int, int]],
        parts: list[list[Tensor]],
    ) -> None:
        running = [i for i, (first, end) in enumerate(spans) if end > first]
        running.sort(key=lambda i: spans[i][1] - spans[i][0] > 1)  # single tokens first
        metadata = batch_metadata([spans[i] for i in running], tables[running], BLOCK_SIZE, CPU)
        token_ids = torch.cat([sequences[i][slice(*spans[i])] for i in running])
        positions = torch.cat([torch.arange(*spans[i]) for i in running])
        slots = len(sequences) - torch.tensor(running)
        with step_context(StepContext(attention, (metadata,), state_slots=slots)):
            hidden = self.served.model.hidden_states(token_ids, positions)
        for i, part in zip(running, torch.split(hidden, [len(range(*spans[i])) for i in running]), strict=True):
            parts[i].append(part)


def tokens(count: int, seed: int) -> Tensor:
    return torch.randint(4, 300, (count,), generator=torch.Generator().manual_seed(seed))


def noise(got: list[Tensor], exact: list[Tensor]) -> float:
    """Relative to the values; of the mean, which single outliers do not move."""
    off, size = torch.cat(got).double() - torch.cat(exact), torch.cat(exact)
    return float(off.abs().mean() / size.abs().mean())


def in_chunks(lengths: list[int]) -> list[list[tuple[int, int]]]:
    """Chunks of unequal sizes beside single tokens; later sequences begin later."""
    steps = []
    computed = [0] * len(lengths)
    for number in range(2 * max(lengths)):
        sizes = [(1, 7, 1, 13, 2)[(number + i) % 5] if number >= 2 * i else 0 for i in range(len(lengths))]
        ends = [min(length, done + size) for length, done, size in zip(lengths, computed, sizes, strict=True)]
        steps.append(list(zip(computed, ends, strict=True)))
        computed = ends
        if computed == lengths:
            break
    return steps
