"""What transformers' attention layers call: what it answers, and what it refuses."""

from copy import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orcinus.engine.attention.cache import allocate_cache
from orcinus.engine.attention.interface import AttentionSpec, KVCacheSpec, LayerShape, batch_metadata
from orcinus.engine.attention.serving import (
    LaterCall,
    PagedAttention,
    ProbingAttention,
    UnsupportedAttentionError,
    attention_function,
)
from orcinus.engine.attention.step_context import StepContext, step_context
from orcinus.engine.attention.torch_backend import TorchBackend
from tests.unit.engine.attention.cases import DIM, KV_HEADS, VALUE_DIM, Sequence, plain_attention


class Layer(nn.Module):
    is_causal = True


def call(module: nn.Module, sequence: Sequence, **kwargs: object) -> Tensor:
    def batched(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).unsqueeze(0)

    out, weights = attention_function(
        module,
        batched(sequence.query),
        batched(sequence.keys),
        batched(sequence.values),
        None,
        **kwargs,  # type: ignore[arg-type]
    )
    assert weights is None
    return out


def test_probe_attends_causally_and_notes_the_layers_shape() -> None:
    module, sequence, probe = Layer(), Sequence(7, 3), ProbingAttention()
    with step_context(StepContext(probe)):
        out = call(module, sequence, scaling=0.2, sliding_window=4, softcap=1.0)
    torch.testing.assert_close(out[0], plain_attention(sequence, AttentionSpec(0.2, 4, 1.0)))
    assert probe.kv == {module: KVCacheSpec(LayerShape(KV_HEADS, DIM, VALUE_DIM))}
    assert LayerShape(KV_HEADS, DIM, VALUE_DIM).elements_per_token == 2 * (8 + 6)


def test_each_call_of_a_layer_that_runs_twice_per_token_has_a_cache_of_its_own() -> None:
    module, probe, backend = Layer(), ProbingAttention(), TorchBackend()
    sequences = [Sequence(6, seed) for seed in (0, 1)]
    with step_context(StepContext(probe)):
        expected = [call(module, sequence, scaling=0.2) for sequence in sequences]
    first, second = probe.kv
    assert isinstance(second, LaterCall)
    assert (first, second.layer) == (module, module)
    cpu = torch.device("cpu")
    paged = PagedAttention(backend, allocate_cache(backend, probe.kv, [2], 4, dtype=torch.float32, device=cpu))
    table = np.array([[0, 1]], dtype=np.int32)
    out: list[list[Tensor]] = [[], []]
    for span in ((0, 4), (4, 6)):
        with step_context(StepContext(paged, (batch_metadata([span], table, 4, cpu),))):
            for i, sequence in enumerate(sequences):
                out[i].append(call(module, part(sequence, *span), scaling=0.2))
            with pytest.raises(UnsupportedAttentionError, match="more often than 2 times"):
                call(module, part(sequences[0], *span), scaling=0.2)
    for chunks, whole in zip(out, expected, strict=True):
        torch.testing.assert_close(torch.cat(chunks, dim=1), whole)


@pytest.mark.parametrize("name", ["position_bias", "indices", "block_indices", "cache"])
def test_what_attention_cannot_take_is_refused_by_name(name: str) -> None:
    module, sequence = Layer(), Sequence(3, 0)
    with step_context(StepContext(ProbingAttention())):
        with pytest.raises(UnsupportedAttentionError, match=rf"\({name}\)"):
            call(module, sequence, **{name: torch.ones(1)})
        call(module, sequence, **{name: torch.empty(0)})


def part(sequence: Sequence, first: int, end: int) -> Sequence:
    chunk = copy(sequence)
    chunk.query, chunk.keys, chunk.values = (
        tensor[first:end] for tensor in (sequence.query, sequence.keys, sequence.values)
    )
    return chunk


def test_probe_finds_the_layer_whose_keys_and_values_another_one_attends_to() -> None:
    own, reader, wider, equal = Layer(), Layer(), Layer(), Layer()
    probe, sequence, copy = ProbingAttention(), Sequence(5, 1), Sequence(5, 1)
    with step_context(StepContext(probe)):
        for module, keys_of, window in (
            (own, sequence, 3),
            (reader, sequence, 3),
            (wider, sequence, 4),
            (equal, copy, 3),
        ):
            call(module, keys_of, sliding_window=window)
    sources = {module: spec.source for module, spec in probe.kv.items()}
    assert sources == {own: None, reader: own, wider: None, equal: None}


def test_probe_does_not_take_memory_that_is_used_again_for_keys_that_are_shared() -> None:
    probe, modules = ProbingAttention(), [Layer() for _ in range(20)]
    with step_context(StepContext(probe)):
        for seed, module in enumerate(modules):
            call(module, Sequence(5, seed))
    assert all(spec.source is None for spec in probe.kv.values())


def test_attention_that_is_not_causal_is_refused() -> None:
    module = Layer()
    module.is_causal = False
    with (
        step_context(StepContext(ProbingAttention())),
        pytest.raises(UnsupportedAttentionError, match="both directions"),
    ):
        call(module, Sequence(3, 0))
    with step_context(StepContext(ProbingAttention())), pytest.raises(UnsupportedAttentionError, match="bias"):
        call(Layer(), Sequence(3, 0), position_bias=torch.zeros(1))
