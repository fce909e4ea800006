import pytest

from orcinus.engine.scheduler.chunk_costs import ChunkCosts


def costs_of(*chunks: tuple[int, float]) -> ChunkCosts:
    costs = ChunkCosts()
    for num_tokens, seconds in chunks:
        costs.observe(num_tokens, seconds)
    return costs


def test_nothing_is_known_before_the_first_chunk() -> None:
    costs = costs_of()
    assert (costs.token_s, costs.fixed_s, costs.amortising_tokens, costs.telling_tokens) == (0.0, 0.0, 0, 0)
    assert costs.tokens_in(1.0) == 0


def test_two_sizes_tell_what_a_token_takes_and_what_any_chunk_does() -> None:
    costs = costs_of((100, 0.03), (300, 0.05))
    assert costs.token_s == pytest.approx(0.0001)
    assert costs.fixed_s == pytest.approx(0.02)
    assert costs.amortising_tokens == pytest.approx(200, abs=1)
    assert costs.telling_tokens == 0
    assert costs.tokens_in(0.04) == pytest.approx(200, abs=1)


def test_a_single_size_does_not_and_a_chunk_twice_as_large_would_tell() -> None:
    costs = costs_of((100, 0.03))
    assert costs.fixed_s == 0.0
    assert costs.token_s == pytest.approx(0.0003)
    assert costs.amortising_tokens == 0
    assert costs.telling_tokens == 200


def test_tokens_that_come_with_the_weights_make_no_fixed_cost() -> None:
    costs = costs_of((16, 0.0), (200, 0.184))
    assert costs.fixed_s == 0.0
    assert costs.amortising_tokens == 0


def test_between_the_sizes_that_were_seen_the_nearest_two_count() -> None:
    costs = costs_of((10, 0.001), (20, 0.002), (100, 0.05))
    assert costs.tokens_in(0.0015) == pytest.approx(15, abs=1)
    assert costs.tokens_in(0.026) == pytest.approx(60, abs=1)


def test_no_chunk_is_more_than_twice_as_large_as_any_before() -> None:
    assert costs_of((100, 0.001)).tokens_in(60.0) == 200
    assert costs_of((8, 0.001), (100, 0.001)).tokens_in(60.0) == 200


def test_a_larger_chunk_that_took_less_time_long_ago_does_not_count() -> None:
    costs = costs_of((100, 0.05), *[(30, 0.06)] * 3)
    assert costs.tokens_in(0.06) == pytest.approx(30, abs=1)


def test_a_size_that_did_not_come_for_long_is_forgotten() -> None:
    costs = costs_of((1000, 1.0), *[(100, 0.05)] * 32)
    assert costs.fixed_s == 0.0
    assert costs.tokens_in(0.1) == 200


def test_one_chunk_that_was_held_up_changes_nothing() -> None:
    costs = costs_of((100, 0.03), (300, 0.05), (100, 0.03), (100, 9.0))
    assert costs.tokens_in(0.04) == pytest.approx(200, abs=1)


def test_two_sizes_that_hardly_differ_tell_no_fixed_cost() -> None:
    costs = costs_of((120, 0.150), (130, 0.151))
    assert costs.fixed_s == 0.0
    assert costs.token_s == pytest.approx(0.151 / 130)
    assert costs.telling_tokens == 260


def test_no_more_tokens_are_said_to_amortise_a_fixed_cost_than_twice_the_most_that_were_seen() -> None:
    assert costs_of((16, 0.02032), (32, 0.02064)).amortising_tokens == 64
