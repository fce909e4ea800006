"""`orcinus` with the demo model, whose steps some requests make fail: those that ask for certain seeds.

`python -m tests.integration.faulty_server serve ...` starts it; the engine process is this module, too.
"""

import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.core import Executor
from orcinus.engine.messages import EngineInfo, StepPlan, StepResult
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling.history import TokenHistory
from orcinus.engine.sampling.row import SamplingRow
from orcinus.engine.sampling.sampler import PendingSample
from orcinus.engine.supervision import engine_process
from orcinus.engine.supervision.transport import ProcessTransport
from orcinus.server import cli
from tests.integration.culprits import NUM_TOKENS, Culprits

RAISING_SEED = 668  # every step fails in which it takes part
NAN_SEED = 669  # the model's logits for it are broken
HUNGRY_SEED = 670  # a step with it and more than two others does not fit into memory


def build_faulty_executor(config: EngineConfig) -> tuple[EngineInfo, Executor]:
    info, runner = _build_executor(config)
    assert isinstance(runner, ModelRunner)
    launch, sample = runner.launch, runner._sampler.launch
    culprits = Culprits()

    def launch_or_fail(plan: StepPlan) -> Callable[[], StepResult]:
        result = launch(plan)  # so that it has begun
        grown = culprits.meet(plan)
        if RAISING_SEED in grown:
            raise ValueError("a step with 0xdeadbeef in it")
        if HUNGRY_SEED in grown and len(plan.scheduled) > 3:
            raise torch.OutOfMemoryError("no memory")
        return result

    def sample_or_break(
        logits: Tensor,
        rows: Sequence[SamplingRow],
        positions: Sequence[int] | NDArray[np.int64],
        history: TokenHistory | None = None,
    ) -> PendingSample:
        broken = [i for i, row in enumerate(rows) if row.seed == NAN_SEED and positions[i] > NUM_TOKENS]
        logits[broken] = torch.nan
        return sample(logits, rows, positions, history)

    runner.launch = launch_or_fail  # type: ignore[method-assign]
    runner._sampler.launch = sample_or_break  # type: ignore[method-assign]
    return info, runner


_build_executor = engine_process._build_executor


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        ProcessTransport.module = "tests.integration.faulty_server"
        sys.exit(cli.main())
    engine_process._build_executor = build_faulty_executor
    engine_process.main()
