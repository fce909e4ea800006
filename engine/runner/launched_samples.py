"""What a step has begun to sample. Plain data; knows nothing of how tokens are chosen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.messages import StepResult


@dataclass(frozen=True, slots=True)
class LaunchedSamples:
    """Says after which tokens of a step's flat batch something is sampled, for whom, and at which positions it will be.

    `tokens` (num_samples,) are on the device, and None without any. `take_in` waits for them, and keeps those that
    stand.
    """

    places: NDArray[np.int64]  # (num_samples,)
    request_ids: Sequence[str]
    positions: NDArray[np.int64]  # (num_samples,)
    tokens: Tensor | None
    take_in: Callable[[], StepResult]

    @classmethod
    def none(cls) -> "LaunchedSamples":
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, [], nothing, None, lambda: StepResult(sampled_token_ids={}))
