"""Experts of a mixture whose weights are in groups, multiplied by our kernels: all of a layer's in two native calls.

Tokens are sorted by their experts, each expert multiplies the rows that it was sent, and what comes out is weighted and
summed for each token in the order of its choices, so that no row depends on what others there are. What is between the
two products is the model's own code. Knows nothing of architectures and of files.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from orcinus.engine.cpu.grouped_weight import GroupedWeight, GroupForm, RowSource
from orcinus.engine.kernels.library import Library

_PANEL = 32  # columns that lie together; PANEL of linear.h
_HALF = _PANEL // 2  # columns of a gate, or of what it gates, that do
_WEIGHTS = ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias")


def can_replace(experts: Any) -> bool:
    """Return whether a module has experts that go by transformers' interface of experts, with a gate each."""
    flags = ("is_concatenated", "has_bias", "has_gate", "has_post_expert_norm")
    weights = (getattr(experts, "gate_up_proj", None), getattr(experts, "down_proj", None))
    return (
        all(isinstance(weight, nn.Parameter) and weight.dim() == 3 for weight in weights)
        and all(isinstance(getattr(experts, flag, None), bool) for flag in flags)
        and callable(getattr(experts, "_apply_gate", None))
        and experts.has_gate
        and not experts.has_post_expert_norm
    )


def sizes_of(experts: Any) -> tuple[int, int, int]:
    """Return the number of experts, the hidden size, and an expert's width."""
    count, first, second = experts.down_proj.shape
    return (count, second, first) if experts.is_transposed else (count, first, second)


class NativeExperts(nn.Module):
    """Computes what a module of experts does: (num_tokens, hidden_size) and (num_tokens, top_k) choices and weights.

    Weights are rows of all experts, one expert after the other: gate and up (num_experts * width, hidden_size), down
    (num_experts * hidden_size, width), with biases (of as many numbers) or None. Both sizes are multiples of 32.
    """

    def __init__(
        self,
        library: Library,
        experts: Any,
        weights: Sequence[tuple[GroupForm, RowSource]],
        biases: Sequence[Tensor | None],
    ) -> None:
        super().__init__()
        self.num_experts, self._hidden_size, self._width = sizes_of(experts)
        assert self._hidden_size % _PANEL == self._width % _PANEL == 0
        (gate_form, gate), (up_form, up), (down_form, down) = weights
        alternates = gate_form == up_form
        if alternates:
            self._first = [GroupedWeight(library, gate_form, [gate, up], biases[:2], alternates=True)]
        else:
            self._first = [
                GroupedWeight(library, form, [rows], [bias])
                for (form, rows), bias in zip(weights[:2], biases[:2], strict=True)
            ]
        self._down = GroupedWeight(library, down_form, [down], [biases[2]])
        self.bytes_of_weights = [self._first[0].nbytes, self._first[-1].nbytes, self._down.nbytes]
        if alternates:
            self.bytes_of_weights[:2] = [self._first[0].nbytes // 2] * 2
        self.packed_bytes = sum(self.bytes_of_weights)
        self.num_packed = 3 * self.num_experts * self._hidden_size * self._width
        self.num_packed += sum(bias.numel() for bias in biases if bias is not None)
        self._library = library
        self._is_concatenated = experts.is_concatenated
        self._is_fused = alternates and _gates_with_silu(experts)
        self._own = _without_weights(experts)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        rows = hidden_states.to(torch.bfloat16)
        choices = top_k_index.flatten()
        order = torch.argsort(choices, stable=True)
        counts = torch.bincount(choices, minlength=self.num_experts)[: self.num_experts].tolist()
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + count)
        top_k = top_k_index.shape[1]
        sorted_rows = rows[order[: starts[-1]] // top_k].contiguous()
        chosen = self._multiply(self._down, self._gated(sorted_rows, starts), starts, self._hidden_size)
        results = chosen.new_zeros(choices.numel(), self._hidden_size)
        results[order[: starts[-1]]] = chosen
        return _weighted(results.view(-1, top_k, self._hidden_size), top_k_weights).to(hidden_states.dtype)

    def _gated(self, rows: Tensor, starts: list[int]) -> Tensor:
        """Return what goes into the second product, (count, width), of sorted rows."""
        if self._is_fused:
            return self._multiply(self._first[0], rows, starts, 2 * self._width, is_gated=True)
        if len(self._first) == 1:
            both = self._multiply(self._first[0], rows, starts, 2 * self._width)
            gate, up = (
                both.view(-1, self._width // _HALF, 2, _HALF).transpose(1, 2).reshape(-1, 2, self._width).unbind(1)
            )
        else:
            gate, up = (self._multiply(weight, rows, starts, self._width) for weight in self._first)
        joined = torch.cat([gate, up], dim=-1) if self._is_concatenated else torch.stack([gate, up], -1).flatten(1)
        result: Tensor = self._own._apply_gate(joined)
        return result.to(torch.bfloat16).contiguous()

    def _multiply(
        self, weight: GroupedWeight, rows: Tensor, starts: list[int], columns: int, *, is_gated: bool = False
    ) -> Tensor:
        out = rows.new_empty(rows.shape[0], columns // 2 if is_gated else columns)
        address, stride = rows.data_ptr(), rows.stride(0)
        self._library.expert_linear(
            weight.native, address, stride, out.data_ptr(), columns=columns, starts=starts, is_gated=is_gated
        )
        return out


def _weighted(results: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of (num_tokens, top_k, hidden_size), in float32 and one after the other."""
    factors = weights.float().unsqueeze(-1)
    total = results[:, 0].float() * factors[:, 0]
    for choice in range(1, results.shape[1]):
        total += results[:, choice].float() * factors[:, choice]
    return total


def _gates_with_silu(experts: Any) -> bool:
    """Return whether what is between the products is what our kernels do, by how it treats numbers."""
    gate, up = torch.linspace(-8, 8, 64).view(2, 1, 32).unbind()
    given = torch.cat([gate, up], -1) if experts.is_concatenated else torch.stack([gate, up], -1).flatten(1)
    apply: Callable[[Tensor], Tensor] = experts._apply_gate
    return torch.allclose(apply(given), functional.silu(gate) * up, rtol=1e-5, atol=1e-6)


def _without_weights(experts: nn.Module) -> Any:
    """Return the module with nothing but its code and what that goes by."""
    for name in _WEIGHTS:
        if hasattr(experts, name):
            delattr(experts, name)
    return experts
