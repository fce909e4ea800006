"""When requests are sent: all at once, or at a mean rate with gaps that are more or less even.

It knows no clock: the times it gives are seconds after the first request.
"""

import itertools
import math
import random


def arrival_times(count: int, rate: float, burstiness: float, rng: random.Random) -> list[float]:
    """`count` times, of which the first is 0; `rate` is in requests a second and may be infinite.

    The gaps are gamma-distributed with mean 1 / rate and shape `burstiness`: 1 makes them a Poisson process, less
    makes bursts, more makes them even.
    """
    if math.isinf(rate):
        return [0.0] * count
    gaps = (rng.gammavariate(burstiness, 1 / (rate * burstiness)) for _ in range(count - 1))
    return list(itertools.accumulate(gaps, initial=0.0))
