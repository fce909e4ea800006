"""The requests of one step in the order of its flat tokens. Plain data; knows nothing of the model and of devices."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orcinus.engine.attention.step_layout import StepLayout
from orcinus.engine.messages import ScheduledRequest
from orcinus.engine.runner.pooling import PooledPrompt
from orcinus.engine.sampling.row import SamplingRow


@dataclass(slots=True)
class RunningRequest:
    """Holds what the runner remembers of a request between steps, beside its row in `RequestRows`."""

    index: int
    row: SamplingRow
    adapter_row: int = 0  # in the table of adapters; 0 is none
    pooled: PooledPrompt | None = None
    num_shown: int | None = None  # tokens that the drafter knows; None: no drafts are tried
    is_released: bool = False


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The requests of a step: those with a single token first, as the attention takes them together."""

    scheduled: list[ScheduledRequest]
    requests: list[RunningRequest]
    rows: NDArray[np.int64]  # those of `requests`
    layout: StepLayout
    has_drafts: bool

    @property
    def is_plain(self) -> bool:
        """Whether each request computes one token and samples the next, and nothing else is asked for."""
        return self.layout.is_decode and all(item.num_samples for item in self.scheduled)

    def chunk(self, i: int) -> "Chunk":
        """Return the share of the i-th request."""
        item = self.scheduled[i]
        offset = int(self.layout.query_start[i])
        return Chunk(item.request_id, self.requests[i], item.num_computed_tokens, item.num_tokens, offset)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One request's share of a step, and where its tokens lie in the flat batch."""

    request_id: str
    request: RunningRequest
    first: int  # position of its first token of this step
    num_tokens: int
    offset: int  # of its first token in the flat batch

    @property
    def end(self) -> int:
        return self.first + self.num_tokens
