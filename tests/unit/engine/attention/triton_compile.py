"""Compiles the Triton kernels for a GPU that need not be there, and prints the shared memory of each: run as a script.

python tests/unit/engine/attention/triton_compile.py 90
"""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parents[4]))

from orcinus.engine.attention import triton_backend as triton_attention
from orcinus.engine.attention.interface import AttentionSpec, LayerShape, batch_metadata
from orcinus.engine.attention.triton_backend import TritonBackend
from orcinus.engine.kernels import triton_attention as triton_kernels

CPU = torch.device("cpu")
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
}
OPTIONS = {"num_stages": 3, "num_warps": 4, "enable_fp_fusion": True}
SINKS = torch.zeros(16)
LAYERS = [
    (LayerShape(8, 128, 128), 16, torch.bfloat16, AttentionSpec(0.1)),
    (LayerShape(1, 192, 128), 16, torch.float16, AttentionSpec(0.1)),
    (LayerShape(2, 64, 64), 16, torch.bfloat16, AttentionSpec(0.1, window=128, sinks=SINKS)),
    (LayerShape(8, 256, 256), 16, torch.bfloat16, AttentionSpec(0.1, window=4096, softcap=50.0)),
    (LayerShape(4, 512, 512), 16, torch.bfloat16, AttentionSpec(0.1)),
    (LayerShape(4, 16, 16), 8, torch.float32, AttentionSpec(0.1)),
]


class Compiler:
    """Stands in for a kernel: what would be launched is compiled."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self.kernel, self.capability = kernel, capability

    def __getitem__(self, grid: tuple[int, ...]) -> "Compiler":
        assert all(grid)
        return self

    def __call__(self, *args: Any, **named: Any) -> None:
        names = self.kernel.arg_names
        options = {name: named.get(name, default) for name, default in OPTIONS.items()}
        constants = {name: value for name, value in named.items() if name not in OPTIONS}
        types = {name: kind_of(value) for name, value in zip(names, args, strict=False)}
        signature = types | dict.fromkeys(constants, "constexpr")
        aligned = {(i,): [["tt.divisibility", 16]] for i, value in enumerate(args) if is_aligned(value)}
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=aligned)
        target = GPUTarget("cuda", self.capability, 32)
        compiled = triton.compile(source, target=target, options=options)
        print(self.kernel.__name__, constants, compiled.metadata.shared)


def kind_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def is_aligned(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)


def main(capability: int) -> None:
    attend, combine = (
        Compiler(kernel, capability) for kernel in (triton_kernels.attend_kernel, triton_kernels.combine_kernel)
    )
    meta = batch_metadata([(20, 21), (0, 40)], np.zeros((2, 3), dtype=np.int32), 16, CPU)
    with (
        patch.object(triton_attention, "attend_kernel", attend),
        patch.object(triton_attention, "combine_kernel", combine),
    ):
        for shape, num_heads, dtype, spec in LAYERS:
            query = torch.zeros(41, num_heads, shape.key_dim, dtype=dtype)
            backend = TritonBackend(num_multiprocessors=100)
            backend.attend(backend.allocate(shape, 1, 16, dtype, CPU), query, spec, meta)


if __name__ == "__main__":
    main(int(sys.argv[1]))
