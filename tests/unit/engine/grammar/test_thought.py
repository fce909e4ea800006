import random
from collections.abc import Callable, Iterable, Sequence

import pytest

from orcinus.engine.grammar.masks import tokens_in
from orcinus.engine.grammar.thought import Thought, ThoughtMatcher
from orcinus.engine.sampling_params import Thinking
from tests.unit.engine.sampling.rows import FakeMatcher

START, END, NEWLINE, X, Y = 1, 2, 3, 4, 5
FORCED = (NEWLINE, END, NEWLINE)
VOCAB_SIZE = 40


def assert_free(matcher: ThoughtMatcher) -> None:
    assert matcher.mask is None


def generate(thinking: Thinking, drawn: Iterable[int], max_tokens: int | None = None) -> list[int]:
    """Return the tokens that are taken where these are drawn; the same whether or not it is resumed at each of them."""
    thought = Thought(thinking, max_tokens)
    taken: list[int] = []
    for token_id in drawn:
        resumed = Thought(thinking, max_tokens)
        for earlier in taken:
            resumed.add(earlier)
        chosen = thought.replacement_for(token_id)
        assert resumed.replacement_for(token_id) == chosen
        assert (resumed.is_on, resumed.is_spent, resumed.start) == (thought.is_on, thought.is_spent, thought.start)
        assert thought.takes(chosen) == thought.add(chosen)
        taken.append(chosen)
    return taken


def test_a_thought_beyond_its_budget_is_ended_in_place_of_what_was_drawn() -> None:
    opened = Thinking(end=(END,), budget=4, forced=FORCED)
    assert generate(opened, [X] * 10) == [X, X, X, X, *FORCED, X, X, X]
    assert generate(Thinking(end=(END,), budget=4), [X] * 6) == [X, X, X, X, END, X]


@pytest.mark.parametrize("place", [0, 1, 3, 4])
def test_a_thought_that_ends_by_itself_is_left_alone(place: int) -> None:
    drawn = [X] * place + [END] + [X, END, NEWLINE, Y] * 4
    assert generate(Thinking(end=(END,), budget=4, forced=FORCED), drawn) == drawn


def test_a_thought_that_ends_by_the_first_token_that_is_forced_counts_as_forced() -> None:
    thinking = Thinking(end=(END,), budget=2, forced=(END, NEWLINE))
    assert generate(thinking, [X, X, END, Y, Y]) == [X, X, END, NEWLINE, Y]
    assert generate(thinking, [X, END, Y, Y]) == [X, END, Y, Y]


def test_tags_that_open_a_thought_are_not_counted_and_later_ones_open_none() -> None:
    thinking = Thinking(end=(END,), start=START, budget=2, forced=FORCED)
    assert generate(thinking, [START, X, X, X, X, X, X]) == [START, X, X, *FORCED, X]
    assert generate(thinking, [X, START, X, X, X]) == [X, START, X, X, X]
    assert generate(thinking, [START, END, START, X, X, X]) == [START, END, START, X, X, X]


def test_a_budget_of_nothing_ends_a_thought_at_once() -> None:
    assert generate(Thinking(end=(END,), budget=0, forced=FORCED), [X] * 5) == [*FORCED, X, X]
    started = Thinking(end=(END,), start=START, budget=0, forced=FORCED)
    assert generate(started, [START, X, X, X, X]) == [START, *FORCED, X]
    assert generate(started, [X, START, X]) == [X, START, X]


def test_an_answer_follows_within_max_tokens() -> None:
    thinking = Thinking(end=(END,), budget=100, forced=FORCED)
    assert generate(thinking, [X] * 20, max_tokens=20) == [X] * 12 + [*FORCED] + [X] * 5
    assert generate(thinking, [X] * 4, max_tokens=4) == [*FORCED, X]


def test_tags_of_several_tokens_are_read_and_written_whole() -> None:
    end, spaced = (10, 11, 12), (10, 11, 13)
    thinking = Thinking(end=end, more_ends=(spaced,), openings=((20, 21), (20, 22)), budget=3, forced=(NEWLINE, *end))
    assert generate(thinking, [20, 22] + [X] * 9) == [20, 22, X, X, X, NEWLINE, *end, X, X]
    for tag in (end, spaced):
        drawn = [20, 21, X, X, *tag, X, X, X]  # the budget is used up in the midst of it
        assert generate(thinking, drawn) == drawn
    assert generate(thinking, [20, X, 21, X, X, X, X]) == [20, X, 21, X, X, X, X]
    assert generate(thinking, [20, 21, X, X, X, 10, 10, X, X, X, X]) == [20, 21, X, X, X, 10, NEWLINE, *end, X]


def test_whatever_is_drawn_an_end_of_several_tokens_comes() -> None:
    end, other = (10, 11, 12), (14, 10, 11, 13)
    thinking = Thinking(end=end, more_ends=(other,), budget=5, forced=(NEWLINE, *end))
    for seed in range(200):
        rng = random.Random(seed)
        taken = generate(thinking, [rng.choice([10, 11, 14, X]) for _ in range(20)])
        joined = " ".join(map(str, taken[: 5 + len(other) + 4]))
        assert "10 11 12" in joined or "14 10 11 13" in joined


def test_thoughts_that_recur_share_a_budget() -> None:
    thinking = Thinking(end=(END,), openings=((START, 30, 31),), budget=4, forced=(END, 32), recurs=True)
    again = [END, Y, START, 30, 31]
    drawn = [START, 30, 31, X, X, *again, X, X, X, X, START, 30, 31, X, X, X]
    taken = [START, 30, 31, X, X, *again, X, END, 32, X, START, 30, 31, END, 32, X]
    assert generate(thinking, drawn) == taken
    assert generate(thinking, [START, 33, X, X, X, START, 30, 31]) == [START, 33, X, X, X, START, 30, 31]


def run(matcher: ThoughtMatcher, draw: Callable[[], int], count: int) -> list[int]:
    taken = []
    for _ in range(count):
        matcher.fill_mask()
        token_id = matcher.replacement_for(draw())
        matcher.accept(token_id)
        taken.append(token_id)
    return taken


def matcher_of(thinking: Thinking, tokens: Sequence[int] = (), inside: FakeMatcher | None = None) -> ThoughtMatcher:
    return ThoughtMatcher(Thought(thinking), VOCAB_SIZE, inside, tokens)


def test_a_matcher_without_a_grammar_rules_nothing_out_and_never_steers() -> None:
    matcher = matcher_of(Thinking(end=(END,), budget=2, forced=FORCED))
    assert run(matcher, lambda: X, 6) == [X, X, *FORCED, X]
    assert (matcher.mask, matcher.error, matcher.is_finished, matcher.is_steered) == (None, None, False, False)
    assert matcher.overrules
    matcher.fail("nothing can")
    assert matcher.error is None


def test_a_matcher_goes_on_where_another_one_ended() -> None:
    thinking = Thinking(end=(END,), budget=2, forced=FORCED)
    whole = run(matcher_of(thinking), lambda: X, 8)
    for place in range(8):
        assert run(matcher_of(thinking, whole[:place]), lambda: X, 8 - place) == whole[place:]


def test_a_budget_of_nothing_has_no_thought_begun_by_the_output() -> None:
    thinking = Thinking(end=(END,), start=START, budget=0, forced=FORCED)
    matcher = matcher_of(thinking)
    mask = matcher.mask
    assert mask is not None
    assert set(tokens_in(mask).tolist()) >= set(range(VOCAB_SIZE)) - {START}
    assert START not in tokens_in(mask)
    matcher.accept(X)
    assert_free(matcher)
    assert matcher_of(thinking, [X]).mask is None
    assert matcher_of(Thinking(end=(END,), start=START, budget=1)).mask is None
    assert matcher_of(Thinking(end=(END,), budget=0)).mask is None


def test_a_grammar_inside_is_asked_and_keeps_the_last_word() -> None:
    thinking = Thinking(end=(END,), openings=((START,),), budget=0, recurs=True)
    inside = FakeMatcher([X, END], VOCAB_SIZE, replacement=X)
    inside.fill_mask = lambda: None  # type: ignore[method-assign]
    matcher = matcher_of(thinking, [START], inside)
    assert not matcher.overrules
    assert matcher.mask is inside.mask
    assert run(matcher, lambda: Y, 2) == [END, X]
    assert matcher.is_finished
    unwilling = FakeMatcher([X], VOCAB_SIZE, replacement=X)
    assert matcher_of(thinking, [START], unwilling).replacement_for(Y) == X
    matcher.fail("why")
    assert (matcher.error, inside.error) == ("why", "why")
