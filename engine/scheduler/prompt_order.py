"""In which order prompts that have slots are computed. Pure."""

from collections.abc import Sequence
from itertools import groupby

from orcinus.engine.scheduler.request import Request

# A prompt lets others pass that arrive after it within so many times what its own tokens take.
_PATIENCE = 2


def soonest_first(prompts: Sequence[Request], token_s: float) -> list[Request]:
    """Return prompts in the order to compute them: clients as they come, and among the requests of each the shortest.

    A short prompt that waits for a long one has waited in vain; the long one loses little. So that none starves, each
    has a time by which it is due: its arrival, and as long again as its tokens take, times `_PATIENCE`. `priority` goes
    before.
    """
    ordered: list[Request] = []
    for _, share in groupby(prompts, key=lambda request: request.client):
        ordered += sorted(share, key=lambda request: (request.priority, _due_s(request, token_s)))
    return ordered


def _due_s(request: Request, token_s: float) -> float:
    return request.arrival_time + _PATIENCE * token_s * request.num_tokens_to_compute
