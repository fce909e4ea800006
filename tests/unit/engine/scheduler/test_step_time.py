import pytest

from orcinus.engine.scheduler.step_time import StepTimeModel
from tests.unit.engine.scheduler.traffic import StepCost, cpu_step_s, gpu_step_s


@pytest.fixture
def model() -> StepTimeModel:
    return StepTimeModel()


def test_nothing_is_known_before_the_first_step(model: StepTimeModel) -> None:
    assert not model.knows_decodes(1)
    assert model.decode_s(1) == 0.0
    assert model.chunks.tokens_in(1.0) == 0


def test_a_step_that_something_foreign_held_up_changes_nothing(model: StepTimeModel) -> None:
    for _ in range(8):
        model.observe(4, 0, 0.03)
        model.observe(4, 20, 0.05)
    model.observe(4, 0, 3.0)
    model.observe(4, 20, 5.0)
    assert model.decode_s(4) == pytest.approx(0.03)
    assert model.chunks.tokens_in(0.03) == pytest.approx(30, abs=1)


def test_what_lasts_is_known_a_few_steps_later(model: StepTimeModel) -> None:
    for seconds in [0.03] * 100 + [0.06] * 9:
        model.observe(4, 0, seconds)
        model.observe(4, 20, seconds + 0.02)
    assert model.decode_s(4) == pytest.approx(0.06)
    for _ in range(16):
        model.observe(4, 20, 0.1)
    assert model.chunks.tokens_in(0.02) == pytest.approx(10, abs=1)


def test_a_chunk_is_at_most_twice_as_large_as_those_of_late(model: StepTimeModel) -> None:
    model.observe(1, 0, 0.03)
    model.observe(1, 16, 0.03)
    assert model.chunks.tokens_in(0.03) == 32


def test_a_prompt_without_decodes_beside_it_is_not_charged_with_what_every_step_takes(model: StepTimeModel) -> None:
    model.observe(0, 32, 0.05)
    model.observe(1, 0, 0.03)
    assert model.chunks.tokens_in(0.01) == pytest.approx(16, abs=1)


@pytest.mark.parametrize("step_cost", [cpu_step_s, gpu_step_s])
@pytest.mark.parametrize("num_decodes", [1, 4, 16])
def test_a_chunk_comes_to_take_as_long_as_is_asked_for(
    model: StepTimeModel, step_cost: StepCost, num_decodes: int
) -> None:
    """Though the first rows are free, so that no token costs what another one does."""
    decode_s = step_cost(num_decodes, 0)
    model.observe(num_decodes, 0, decode_s)
    for _ in range(20):
        num_tokens = max(16, model.chunks.tokens_in(decode_s))
        model.observe(num_decodes, num_tokens, step_cost(num_decodes, num_tokens))
    assert step_cost(num_decodes, num_tokens) == pytest.approx(2 * decode_s, rel=0.03)


def test_one_more_decode_counts_as_a_prompt_token_does(model: StepTimeModel) -> None:
    model.observe(6, 0, 0.03)
    model.observe(6, 20, 0.05)
    assert model.decode_s(7) == pytest.approx(0.031)


def test_decodes_are_to_run_alone_once_many_steps_had_prompts_beside_them(model: StepTimeModel) -> None:
    for _ in range(16):
        model.observe(4, 0, 0.03)
    for _ in range(32):
        assert model.knows_decodes(4)
        model.observe(4, 20, 0.05)
    assert not model.knows_decodes(4)


def test_a_single_step_of_decodes_alone_vouches_for_fewer_steps(model: StepTimeModel) -> None:
    model.observe(4, 0, 0.03)
    for _ in range(8):
        assert model.knows_decodes(4)
        model.observe(4, 20, 0.05)
    assert not model.knows_decodes(4)


def test_a_few_more_decodes_than_have_run_are_tried_at_a_time(model: StepTimeModel) -> None:
    model.observe(1, 0, 0.03)
    assert model.has_run(2)
    assert not model.has_run(3)
    model.observe(16, 0, 0.03)
    assert model.has_run(18)
    assert not model.has_run(19)


def test_decodes_are_to_run_alone_once_there_are_many_more_of_them(model: StepTimeModel) -> None:
    model.observe(12, 0, 0.03)
    assert model.knows_decodes(16)
    assert not model.knows_decodes(20)
    assert not model.knows_decodes(4)
