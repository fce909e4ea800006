"""What an index of tokens finds, against a search of the whole text."""

import random
from array import array

import pytest

from orcinus.engine.runner import token_index
from orcinus.engine.runner.token_index import Matches, TokenIndex


def indexed(tokens: list[int]) -> TokenIndex:
    index = TokenIndex(len(tokens))
    index.extend(tokens)
    return index


def searched(text: list[int], tail: list[int]) -> Matches:
    """Find the longest matches of 3 to 8 tokens by looking at every place behind which the text goes on."""
    lengths = {}
    for place in range(len(text), 2, -1):
        length = 0
        while length < min(8, place, len(tail)) and text[place - 1 - length] == tail[-1 - length]:
            length += 1
        if length >= 3:
            lengths[place] = length
    longest = max(lengths.values(), default=0)
    return Matches(longest, [place for place, length in lengths.items() if length == longest])


@pytest.mark.parametrize("vocab_size", [2, 4, 12, 150_000])
def test_the_longest_matches_are_found_the_latest_first(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_index, "_MAX_PLACES", 1_000)
    rng, num_found = random.Random(vocab_size), 0
    for _ in range(60):
        some = [rng.randrange(vocab_size) for _ in range(12)]
        tokens = [rng.choice(some) for _ in range(rng.choice([0, 1, 2, 3, 30, 31, 32, 33, 150]))]
        index = indexed(tokens)
        for _ in range(20):
            assert index.text.tolist() == tokens
            assert index.own_matches() == searched(tokens[:-1], tokens)
            tail = [rng.choice(some) for _ in range(rng.randint(0, 12))]
            assert index.matches(indexed(tail)) == searched(tokens, tail)
            num_found += bool(index.own_matches().length)
            new = [rng.choice(some) for _ in range(rng.choice([1, 1, 2, 4, 40]))]
            index.extend(new)
            tokens += new
    assert num_found > 20


def test_what_happens_to_have_the_hash_of_a_text_is_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_index, "_MIN_TABLE_BITS", 0)
    monkeypatch.setattr(token_index, "_MAX_TABLE_BITS", 0)
    index = indexed([1, 2, 3, 4, 5, 6, 7, 8])
    assert index.last_place == 7
    assert index.own_matches() == Matches(0, [])
    assert index.matches(indexed([6, 7, 8])) == Matches(3, [8])


def test_few_places_are_looked_at_however_often_a_text_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    num_looked_at = 0
    count = token_index._num_alike

    def counting(left: "array[int]", right: "array[int]") -> int:
        nonlocal num_looked_at
        num_looked_at += 1
        return count(left, right)

    monkeypatch.setattr(token_index, "_num_alike", counting)
    index = indexed([token for i in range(500) for token in (1, 2, 3, 100 + i)] + [1, 2, 3])
    assert index.own_matches().places[0] == len(index.text) - 4
    assert num_looked_at == token_index._MAX_PLACES


def test_no_tokens_change_nothing() -> None:
    index = TokenIndex(0)
    index.extend([1, 2, 3, 1, 2, 3])
    before = index.own_matches()
    index.extend([])
    assert index.own_matches() == before
    assert before.length == 3
