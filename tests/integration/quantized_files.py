"""Writes models as quantized checkpoints: AWQ's, GPTQ's, compressed-tensors' and MXFP4's tensors, value by value."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.integration.tiny_models import set_config

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
_TOWERS = ("vision", "visual", "multi_modal_projector", "audio")
_GATES = ("gate", "shared_expert_gate")  # of experts


@dataclass(frozen=True)
class Rounded:
    """A weight (out_features, in_features) as `scales * (values - zeros)`, a scale for each group of inputs."""

    values: Tensor  # without a sign
    scales: Tensor  # (out_features, num_groups)
    zeros: Tensor
    group_of: Tensor

    @property
    def plain(self) -> Tensor:
        """Return what it stands for, in float32."""
        return (self.values - self.zeros[:, self.group_of]) * self.scales[:, self.group_of].float()


def rounded(
    weight: Tensor, bits: int, group: int, *, symmetric: bool, dtype: torch.dtype, group_of: Tensor | None = None
) -> Rounded:
    """Return a weight rounded to the nearest values; a group of -1 is the whole row."""
    in_features = weight.shape[1]
    group = in_features if group == -1 else group
    group_of = torch.arange(in_features) // group if group_of is None else group_of
    order = group_of.argsort(stable=True)
    grouped = weight.float()[:, order].view(weight.shape[0], -1, group)
    top = (1 << bits) - 1
    if symmetric:
        scales = grouped.abs().amax(dim=2) / (top // 2)
        zeros = torch.full_like(scales, 1 << (bits - 1))
    else:
        low, high = grouped.amin(dim=2).clamp(max=0), grouped.amax(dim=2).clamp(min=0)
        scales = (high - low) / top
        zeros = (-low / scales).round().clamp(1, top)
    scales = scales.to(dtype)
    by_input = scales.float()[:, group_of]
    values = (weight.float() / by_input + zeros[:, group_of]).round().clamp(0, top)
    return Rounded(values.int(), scales, zeros.int(), group_of)


def in_words(values: Tensor, bits: int) -> Tensor:
    """Return values (rows, n), padded to whole words, as int32 (rows, n * bits / 32), the first in the lowest bits."""
    per_word = 32 // bits
    padded = torch.nn.functional.pad(values.long(), (0, -values.shape[1] % per_word))
    words = torch.zeros(padded.shape[0], padded.shape[1] // per_word, dtype=torch.int64)
    for i in range(per_word):
        words |= padded[:, i::per_word] << (i * bits)
    return (words - ((words >> 31) << 32)).int().contiguous()


def awq_tensors(weight: Rounded) -> dict[str, Tensor]:
    columns = torch.cat([torch.tensor(AWQ_COLUMNS) + first for first in range(0, weight.values.shape[0], 8)])
    return {
        "qweight": in_words(weight.values.t()[:, columns], 4),
        "qzeros": in_words(weight.zeros.t()[:, columns], 4),
        "scales": weight.scales.t().contiguous(),
    }


def gptq_tensors(weight: Rounded, bits: int, *, first_format: bool) -> dict[str, Tensor]:
    return {
        "qweight": in_words(weight.values, bits).t().contiguous(),
        "qzeros": in_words(weight.zeros.t() - int(first_format), bits),
        "scales": weight.scales.t().contiguous(),
        "g_idx": weight.group_of.int(),
    }


def packed_tensors(weight: Rounded, bits: int, *, symmetric: bool, ordered: bool) -> dict[str, Tensor]:
    tensors = {
        "weight_packed": in_words(weight.values, bits),
        "weight_scale": weight.scales,
        "weight_shape": torch.tensor(weight.values.shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = in_words(weight.zeros.t(), bits).t().contiguous()
    return tensors | ({"weight_g_idx": weight.group_of.int()} if ordered else {})


def int8_tensors(weight: Rounded) -> dict[str, Tensor]:
    return {"weight": (weight.values - 128).to(torch.int8), "weight_scale": weight.scales}


@dataclass(frozen=True)
class Kind:
    """Says how the linear layers of a checkpoint are quantized."""

    method: str
    bits: int = 4
    group: int = 128
    symmetric: bool = False
    first_format: bool = True
    ordered: bool = False  # groups have inputs from anywhere
    packed: bool = True
    dtype: torch.dtype = torch.float16

    @property
    def settings(self) -> dict[str, Any]:
        """Return what config.json says of it."""
        if self.method == "awq":
            return {"quant_method": "awq", "bits": 4, "group_size": self.group, "zero_point": True, "version": "gemm"}
        if self.method == "gptq":
            layout = "gptq" if self.first_format else "gptq_v2"
            return {
                "quant_method": "gptq",
                "bits": self.bits,
                "group_size": self.group,
                "desc_act": self.ordered,
                "sym": self.symmetric,
                "checkpoint_format": layout,
            }
        weights: dict[str, Any] = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric}
        weights |= {"strategy": "channel"} if self.group == -1 else {"strategy": "group", "group_size": self.group}
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized" if self.packed else "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": weights,
                    "input_activations": None if self.packed else inputs,
                }
            },
            "ignore": ["lm_head"],
        }

    def rounded(self, weight: Tensor, seed: int) -> Rounded:
        group_of = None
        if self.ordered:
            shuffled = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed))
            group_of = (torch.arange(weight.shape[1]) // self.group)[shuffled]
        return rounded(weight, self.bits, self.group, symmetric=self.symmetric, dtype=self.dtype, group_of=group_of)

    def tensors(self, weight: Rounded) -> dict[str, Tensor]:
        if self.method == "awq":
            return awq_tensors(weight)
        if self.method == "gptq":
            return gptq_tensors(weight, self.bits, first_format=self.first_format)
        if self.packed:
            return packed_tensors(weight, self.bits, symmetric=self.symmetric, ordered=self.ordered)
        return int8_tensors(weight)


def write_quantized(model: Any, directory: Path, kind: Kind) -> tuple[Path, Path]:
    """Write a model's linear layers but its head in a kind, and next to it what they stand for in float32.

    Names are those that checkpoints are published with: of experts, each has its own.
    """
    packed, plain = directory / "packed", directory / "plain"
    model.save_pretrained(plain)
    twin = load_file(plain / "model.safetensors")
    tensors: dict[str, Tensor] = {}
    for seed, (name, weight) in enumerate(twin.items()):
        if not is_quantized(name, weight):
            tensors[name] = weight.to(kind.dtype).contiguous()
            twin[name] = tensors[name].float()
            continue
        quantized = kind.rounded(weight, seed)
        twin[name] = quantized.plain
        parts = kind.tensors(quantized)
        tensors |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
    save_file(twin, plain / "model.safetensors", {"format": "pt"})
    model.config.save_pretrained(packed)
    save_file(tensors, packed / "model.safetensors", {"format": "pt"})
    set_config(packed, quantization_config=kind.settings, dtype=str(kind.dtype).removeprefix("torch."))
    return packed, plain


def is_quantized(name: str, weight: Tensor) -> bool:
    """Return whether quantizers take a weight: of linear layers, but not of heads, routers and towers."""
    if any(part in name for part in _TOWERS):
        return False
    last = name.removesuffix(".weight").rpartition(".")[2]
    return weight.dim() == 2 and not any(part in last for part in ("embed", "lm_head", "router")) and last not in _GATES


def write_mxfp4(model: Any, directory: Path) -> tuple[Path, Path]:
    """Write a gpt-oss model with random experts in MXFP4, and next to it what transformers makes of them in float32.

    Blocks are 32 values by a table, two in a byte, with a power of two.
    """
    packed, plain = directory / "packed", directory / "plain"
    tensors: dict[str, Tensor] = {}
    twin: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.state_dict().items():
        if weight.dim() < 3:
            tensors[name] = weight.bfloat16()
            twin[name] = tensors[name].float()
            continue
        experts, inputs, outputs = weight.shape
        shape = (experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        exponents = torch.randint(120, 123, shape, dtype=torch.uint8, generator=generator)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": exponents}
        twin[name] = convert_moe_packed_tensors(blocks, exponents, dtype=torch.float32)
    for where, weights in ((packed, tensors), (plain, twin)):
        model.config.save_pretrained(where)
        save_file(weights, where / "model.safetensors", {"format": "pt"})
    set_config(packed, quantization_config={"quant_method": "mxfp4"}, dtype="bfloat16")
    return packed, plain
