"""What the n-gram drafter proposes, against a search of the whole text."""

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from orcinus.engine.runner import ngram_drafter
from orcinus.engine.runner.ngram_drafter import NgramDrafter, NgramIndex


def ids(tokens: list[int]) -> NDArray[np.int32]:
    return np.array(tokens, dtype=np.int32)


def searched(tokens: list[int], most: int) -> list[int]:
    """Find the longest match of 3 to 8 tokens, the latest of several, by looking at every place."""
    end, best, longest = len(tokens), None, 2
    for place in range(end - 1, 2, -1):
        length = 0
        while length < min(8, place) and tokens[place - 1 - length] == tokens[end - 1 - length]:
            length += 1
        if length > longest:
            best, longest = place, length
    return [] if best is None else [tokens[best + i % (end - best)] for i in range(most)]


@pytest.mark.parametrize("vocab_size", [2, 4, 12, 150_000])
def test_proposals_are_what_followed_the_longest_match_and_the_latest_of_several(
    vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngram_drafter, "_MAX_PLACES", 1_000)
    rng, num_found = random.Random(vocab_size), 0
    for _ in range(60):
        some = [rng.randrange(vocab_size) for _ in range(12)]
        tokens = [rng.choice(some) for _ in range(rng.choice([0, 1, 2, 3, 30, 31, 32, 33, 150]))]
        index = NgramIndex(len(tokens))
        for _ in range(20):
            found = index.following(ids(tokens), 5)
            assert found == searched(tokens, 5)
            num_found += bool(found)
            tokens += [rng.choice(some) for _ in range(rng.randint(1, 4))]
    assert num_found > 20


def test_what_repeats_itself_goes_on_beyond_the_end_of_the_text() -> None:
    assert NgramIndex(5).following(ids([9, 1, 2, 1, 2, 1, 2]), 5) == [1, 2, 1, 2, 1]


def test_a_text_without_repetition_and_one_of_two_tokens_bring_no_drafts() -> None:
    drafter = NgramDrafter(4)
    assert drafter.propose({"a": ids([*range(100)]), "b": ids([7, 7])}) == {}


def test_few_places_are_looked_at_however_often_a_text_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[list[int]] = []
    count = ngram_drafter._num_alike

    def counting(left: list[int], right: list[int]) -> int:
        looked_at.append(left)
        return count(left, right)

    monkeypatch.setattr(ngram_drafter, "_num_alike", counting)
    tokens = [token for i in range(500) for token in (1, 2, 3, 100 + i)]
    assert NgramIndex(len(tokens)).following(ids([*tokens, 1, 2, 3]), 1) == [599]
    assert len(looked_at) == ngram_drafter._MAX_PLACES


def test_a_request_has_an_index_of_its_own_until_it_is_released() -> None:
    drafter = NgramDrafter(2)
    assert drafter.propose({"a": ids([1, 2, 3, 4, 1, 2, 3]), "b": ids([1, 2, 3])}) == {"a": [4, 1]}
    drafter.release("a")
    drafter.release("never known")
    assert drafter.propose({"a": ids([5, 6, 7, 8, 5, 6, 7])}) == {"a": [8, 5]}
    assert drafter._indexes.keys() == {"a", "b"}
