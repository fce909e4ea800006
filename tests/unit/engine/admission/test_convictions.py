"""Requests that ended engines: which are refused, for how long, and how many are remembered."""

from typing import Any

import pytest

from orcinus.engine.admission import convictions
from orcinus.engine.admission.convictions import Convictions
from orcinus.engine.errors import RequestQuarantinedError
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import SamplingParams


def asked(prompt: int = 1, request_id: str = "a", client: str = "", **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id, prompts=[[prompt]], sampling=SamplingParams(**sampling), client=client
    )


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_same_request_is_refused_whoever_sends_it_until_it_is_forgotten() -> None:
    clock = Clock()
    convicted = Convictions(clock)
    convicted.add(asked())
    clock.now = 100
    with pytest.raises(RequestQuarantinedError, match="refused for 500 s more"):
        convicted.check(asked(request_id="b", client="other"))
    for other in (asked(prompt=2), asked(seed=1), asked(max_tokens=2)):
        convicted.check(other)
    clock.now = 600
    convicted.check(asked())
    assert not convicted._until


def test_the_oldest_are_forgotten_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convictions, "_MAX_REMEMBERED", 2)
    convicted = Convictions(Clock())
    for prompt in (1, 2, 1, 3):
        convicted.add(asked(prompt))
    convicted.check(asked(2))
    for prompt in (1, 3):
        with pytest.raises(RequestQuarantinedError):
            convicted.check(asked(prompt))
