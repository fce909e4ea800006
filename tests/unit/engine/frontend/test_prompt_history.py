"""Where a prompt stops being like an earlier one, told by hashes of blocks and within bounds."""

import random

import pytest

from orcinus.engine.frontend.prompt_history import Comparison, PromptHistory

BLOCK = 4
SCOPE = ("client", None)
PROMPT = [*range(100, 122)]  # five blocks and two tokens


def seen(history: PromptHistory, token_ids: list[int], scope: object = SCOPE) -> Comparison:
    found = history.compare(token_ids, scope)
    history.add(found)
    return found


def test_the_first_prompt_of_a_scope_has_nothing_to_be_compared_with() -> None:
    history = PromptHistory(BLOCK)
    assert seen(history, PROMPT).is_first
    assert history.compare(PROMPT, ("another client", None)).is_first
    assert history.compare(PROMPT, ("client", "salt")).is_first


@pytest.mark.parametrize("position", range(len(PROMPT)))
def test_the_block_is_found_in_which_two_prompts_part(position: int) -> None:
    history = PromptHistory(BLOCK)
    seen(history, PROMPT)
    changed = [*PROMPT[:position], 7, *PROMPT[position + 1 :]]
    found = history.compare(changed, SCOPE)
    assert (found.num_common, found.is_first) == (position // BLOCK, False)
    assert found.differs == (position < 20)  # what fills no block is not compared


def test_the_most_similar_prompt_counts_whenever_it_came() -> None:
    rng = random.Random(1)
    history = PromptHistory(BLOCK)
    lengths = [rng.randrange(21) for _ in range(30)]
    for number, length in enumerate(lengths):
        seen(history, [*PROMPT[:length], *([1000 + number] * 8)])
    assert history.compare(PROMPT, SCOPE).num_common == max(lengths) // BLOCK


def test_a_prompt_that_goes_on_takes_the_place_of_the_earlier_one() -> None:
    history = PromptHistory(BLOCK)
    for end in range(4, len(PROMPT) + 1):
        found = seen(history, PROMPT[:end])
        assert not found.differs
    assert (len(history), history.num_blocks) == (1, 5)
    seen(history, [*PROMPT[:8], 1, 2, 3, 4])
    assert len(history) == 2


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 9])
def test_an_answer_belongs_to_what_was_computed(cut: int) -> None:
    history = PromptHistory(BLOCK)
    found = seen(history, PROMPT[:9])
    history.extend(found.prompt, PROMPT[9 : 9 + cut])
    history.extend(found.prompt, PROMPT[9 + cut :])
    later = history.compare([*PROMPT[:17], 7, 7, 7], SCOPE)
    assert (later.num_common, later.differs) == (4, True)
    assert not history.compare([*PROMPT, 1, 2, 3], SCOPE).differs


def test_what_was_forgotten_is_not_extended() -> None:
    history = PromptHistory(BLOCK, most_prompts=1)
    first = seen(history, PROMPT)
    seen(history, [1] * 9)
    history.extend(first.prompt, [2] * 40)
    assert (len(history), history.num_blocks) == (1, 2)


def test_memory_is_bounded_by_prompts_and_by_blocks() -> None:
    history = PromptHistory(BLOCK, most_blocks=40, most_prompts=10)
    for number in range(100):
        found = seen(history, [number] * 20, (number % 3, None))
        history.extend(found.prompt, [number] * (number % 30))
        assert len(history) <= 10
        assert history.num_blocks <= 40
    assert len(history) >= 3


def test_one_scope_keeps_so_many_prompts() -> None:
    history = PromptHistory(BLOCK)
    for number in range(200):
        seen(history, [number] * 8)
    assert len(history) == 64
    assert history.compare([0] * 8, SCOPE).num_common == 0
    assert history.compare([199] * 8, SCOPE).num_common == 2
