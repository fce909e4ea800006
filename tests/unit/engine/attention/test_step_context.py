"""What the modules of a running model are told."""

import pytest

from orcinus.engine.attention.serving import ProbingAttention
from orcinus.engine.attention.step_context import StepContext, current_step, step_context


def test_modules_see_the_innermost_step_and_then_the_one_around_it() -> None:
    outer, inner = StepContext(ProbingAttention()), StepContext(ProbingAttention())
    with step_context(outer):
        with step_context(inner):
            assert current_step() is inner
        assert current_step() is outer


def test_a_step_that_fails_is_left_behind() -> None:
    with pytest.raises(ValueError, match="broken"), step_context(StepContext(ProbingAttention())):
        raise ValueError("broken")
    with pytest.raises(AssertionError, match="outside of any step_context"):
        current_step()
