"""What a row keeps of the tokens that were chosen."""

from orcinus.engine.grammar.masks import pack_tokens
from tests.unit.engine.sampling.rows import FakeMatcher, masked, row, sample


def test_penalty_counts_grow_with_what_is_generated() -> None:
    made = row(prompt=[2], temperature=0, frequency_penalty=2.0)
    assert made.counts is not None
    assert sample([0, 0, 0, 1.0, 0.5, 0, 0, 0], made) == 3
    made.counts.add(3)
    assert sample([0, 0, 0, 1.0, 0.5, 0, 0, 0], made) == 4


def test_a_row_takes_its_token_in_wherever_it_is_followed() -> None:
    made = masked([3], presence_penalty=1.0, bad_words_token_ids=((3, 4),))
    was_finished = made.is_finished
    made.add(3)
    assert (was_finished, made.is_finished) == (False, True)
    assert made.counts is not None
    assert (made.counts.token_ids.tolist(), made.counts.counts.tolist()) == ([3], [1])
    assert made.bad_words is not None
    assert made.bad_words.last_tokens() == [4]
    assert not row().is_finished


def test_a_row_whose_grammar_allows_everything_has_no_mask_of_it() -> None:
    made = masked([3])
    assert made.matcher is not None
    assert made.mask() is not None
    made.matcher = FakeMatcher(None)
    assert made.mask() is None
    assert sample([0, 0, 0, 0, 9.0, 0, 0, 0], made) == 4
    assert not made.rules_out(4)
    made.allowed = pack_tokens([5], 8)
    assert sample([0, 0, 0, 0, 9.0, 0, 0, 0], made) == 5
