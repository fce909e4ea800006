"""Where the states of running requests are: each has two slots, so that there is a state to go back to behind drafts.

Such a step goes on from the slot that a request's state is in, leaves there what the state was in front of the drafts,
and puts what it is behind them into the other one, which counts from then on if all are accepted. Knows nothing of
layers and of memory.
"""

import numpy as np
from numpy.typing import NDArray


class StateSlots:
    """Gives rows of `RequestRows` their slots. Slot `max_num_seqs` is no request's (`StepContext`)."""

    def __init__(self, max_num_seqs: int) -> None:
        self._current = np.arange(max_num_seqs)
        self._other = self._current + max_num_seqs + 1

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots that the rows' states are in."""
        return self._current[rows]

    def behind_drafts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots for states behind drafts."""
        return self._other[rows]

    def accept_drafts(self, rows: NDArray[np.int64]) -> None:
        """Go on behind the drafts of these rows' last step."""
        self._current[rows], self._other[rows] = self._other[rows], self._current[rows]
