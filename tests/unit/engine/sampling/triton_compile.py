"""Compiles the sampling kernels for a GPU that need not be there, and prints their shared memory: run as a script.

python tests/unit/engine/sampling/triton_compile.py 90
"""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[4]))

from orcinus.engine.kernels import triton_sampling as kernels
from orcinus.engine.sampling import triton_sampler
from orcinus.engine.sampling.history import TokenHistory
from orcinus.engine.sampling.triton_sampler import TritonSampler
from tests.unit.engine.attention.triton_compile import Compiler
from tests.unit.engine.sampling.rows import EOS, row


def main(capability: int) -> None:
    names = ["choose_kernel", "change_kernel", "logprobs_kernel"]
    plain = row(top_k=20, top_p=0.8)
    penalized = row(top_p=0.8, repetition_penalty=1.1)
    penalized.counts, penalized.slot = None, 0
    compilers: dict[str, Any] = {name: Compiler(getattr(kernels, name), capability) for name in names}
    with patch.multiple(triton_sampler, **compilers):
        sampler = TritonSampler()
        for vocab_size in (32_001, 262_144):
            history = TokenHistory(1, vocab_size, torch.device("cpu"))
            history.begin(0, penalized.sampling, [1], 1)
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                logits = torch.zeros(1, vocab_size, dtype=dtype)
                for each in (plain, penalized):
                    sampler.choose(logits, [each], np.ones(1, np.int64), eos_token_ids=[EOS], history=history)
                sampler.logprobs_of(logits, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 20)


if __name__ == "__main__":
    main(int(sys.argv[1]))
