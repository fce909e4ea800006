"""Blocks of GGUF's quantized types with anything in them: gguf itself quantizes to a few of the types alone."""

from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

# Where a block has its float16, which random bytes would make infinite.
_FLOATS = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "MXFP4": (), "NVFP4": ()}
_FLOATS |= dict.fromkeys(("Q4_K", "Q5_K"), (0, 2))
# What scales are to be, so that weights have about the size of 1.
_SIZES = {"Q8_0": 1 / 70, "IQ4_NL": 1 / 70, "Q2_K": 0.07, "Q3_K": 0.02, "Q6_K": 1 / 1400, "IQ4_XS": 1 / 1400}
_SIZES |= {"Q4_K": 1 / 300, "Q5_K": 1 / 600, "Q5_0": 0.1, "Q5_1": 0.06}


def random_blocks(type_name: str, rows: int, columns: int, *, size: float = 1.0, seed: int = 0) -> NDArray[np.uint8]:
    """Return (rows, bytes) of a type, whose weights have about this size."""
    kind = gguf.GGMLQuantizationType[type_name]
    block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows * columns // block, num_bytes), dtype=np.uint8)
    for at in _FLOATS.get(type_name, (0,)):
        scales = np.asarray(rng.uniform(0.5, 1.5, raw.shape[0]) * _SIZES.get(type_name, 0.15) * size, np.float16)
        raw[:, at : at + 2] = scales[:, None].view(np.uint8)
    if type_name == "MXFP4":
        raw[:, 0] = rng.integers(124, 127, raw.shape[0]) + round(np.log2(size))
    if type_name in ("Q4_1", "Q5_1"):
        raw[:, 3] |= 0x80  # a minimum is below 0
    return raw.reshape(rows, -1)


def dequantized(blocks: Any, type_name: str) -> NDArray[np.float32]:
    values: NDArray[np.float32] = gguf.dequantize(blocks, gguf.GGMLQuantizationType[type_name])
    return values
