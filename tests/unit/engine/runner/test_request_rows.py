"""Requests as rows of arrays, against requests as lists."""

import random

import numpy as np

from orcinus.engine.runner.request_rows import RequestRows

BLOCK = 4


def rows_of(*rows: int) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def tokens_of(rows: RequestRows, row: int) -> list[int]:
    return [int(token) for token in rows.tokens(row, np.arange(rows.num_tokens[row]))]


def tables_of(rows: RequestRows, longest: int, *chosen: int) -> list[list[list[int]]]:
    return [table.tolist() for table in rows.tables(rows_of(*chosen), longest)]


def test_rows_hold_what_lists_would_whatever_comes_and_goes() -> None:
    """More requests than there are rows at first, longer than there is room at first."""
    rng, rows = random.Random(0), RequestRows(BLOCK)
    tokens: dict[int, list[int]] = {}
    blocks: dict[int, list[int]] = {}
    for _ in range(600):
        if len(tokens) < 80 and rng.random() < 0.4:
            prompt = [rng.randrange(1000) for _ in range(rng.choice([1, 5, 300]))]
            row = rows.add(prompt)
            assert row not in tokens
            tokens[row], blocks[row] = prompt, []
        elif tokens and rng.random() < 0.3:
            row = rng.choice([*tokens])
            rows.remove(row)
            del tokens[row], blocks[row]
        chosen = rng.sample([*tokens], rng.randint(0, len(tokens)))
        sampled = [rng.randrange(1000) for _ in chosen]
        rows.append(rows_of(*chosen), sampled)
        several = [[rng.randrange(1000) for _ in range(rng.choice([0, 1, 40]))] for _ in chosen]
        rows.extend(rows_of(*chosen), several)
        for row, token, more in zip(chosen, sampled, several, strict=True):
            tokens[row] += [token, *more]
            new = [rng.randrange(1, 99) for _ in range(rng.choice([0, 1, 9]))]
            rows.block_tables[0].extend(row, new)
            blocks[row] += new
    assert len(tokens) > 40
    for row, own in tokens.items():
        assert tokens_of(rows, row) == rows.known_tokens(row).tolist() == own
        assert rows.block_tables[0].blocks(row).tolist() == blocks[row]


def test_tables_are_as_wide_as_the_longest_and_end_in_zeros() -> None:
    rows = RequestRows(BLOCK)
    long, short = rows.add([1] * 9), rows.add([2])
    rows.block_tables[0].extend(long, [7, 8, 9])
    rows.block_tables[0].extend(short, [5])
    assert tables_of(rows, 9, short, long) == [[[5, 0, 0], [7, 8, 9]]]
    assert tables_of(rows, 8, long) == [[[7, 8]]]


def test_each_group_has_a_table_of_its_own() -> None:
    rows = RequestRows(BLOCK, num_rows=1, num_groups=2)
    first, second = rows.add([1] * 9), rows.add([2])
    rows.block_tables[0].extend(first, [7, 8, 9])
    rows.block_tables[1].extend(first, [3])
    rows.block_tables[1].extend(second, [4, 5])
    assert tables_of(rows, 9, first, second) == [[[7, 8, 9], [0, 0, 0]], [[3, 0, 0], [4, 5, 0]]]
    assert rows.block_tables[1].named_by(np.array([True, False]), [5, 3, 6]) == {3}
    rows.remove(first)
    assert tables_of(rows, 9, first, second) == [[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [4, 5, 0]]]


def test_a_row_that_is_used_again_remembers_nothing() -> None:
    rows = RequestRows(BLOCK)
    first = rows.add([1, 2, 3])
    rows.block_tables[0].extend(first, [4, 5, 6])
    rows.is_broken[first], rows.num_steps_under_way[first] = True, 2
    rows.remove(first)
    again = rows.add([9])
    rows.block_tables[0].extend(again, [8])
    assert again == first
    assert not rows.is_broken[again]
    assert rows.num_steps_under_way[again] == 0
    assert tokens_of(rows, again) == [9]
    assert tables_of(rows, 12, again) == [[[8, 0, 0]]]
