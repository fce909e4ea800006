"""Log-probabilities: whose they are, of which distribution, and how ties are told."""

import pytest
import torch

from orcinus.engine.sampling.logprobs import token_logprobs
from orcinus.engine.sampling.sampler import Sampler
from tests.unit.engine.sampling.rows import EOS, masked, row

pytestmark = pytest.mark.usefixtures("way")


def test_logprobs_are_those_before_temperature_penalties_and_bias() -> None:
    logits = [0.5, 0, 2.0, 1.0, 0, 0, 0, 0]
    expected = torch.log_softmax(torch.tensor(logits), dim=-1)
    made = row(prompt=[2], temperature=0, repetition_penalty=1.5, logit_bias={3: 50.0}, logprobs=2)
    entry = Sampler([EOS]).sample(torch.tensor([logits]), [made], [1]).logprobs[0]
    assert entry is not None
    assert entry.token_id == 3
    assert entry.logprob == pytest.approx(float(expected[3]))
    assert [token for token, _ in entry.top] == [2, 3]
    assert [logprob for _, logprob in entry.top] == pytest.approx([float(expected[2]), float(expected[3])])


def test_only_rows_that_ask_get_logprobs() -> None:
    rows = [row(temperature=0), row(temperature=0, logprobs=0)]
    first, second = Sampler([EOS]).sample(torch.rand(2, 8), rows, [1, 1]).logprobs
    assert first is None
    assert second is not None
    assert second.top == []


def test_token_logprobs_gives_each_row_as_many_as_it_asks_for() -> None:
    table = torch.log_softmax(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), dim=-1)
    few, many = token_logprobs(table, torch.tensor([0, 0]), [1, 3])()
    assert [token for token, _ in few.top] == [2]
    assert [token for token, _ in many.top] == [0, 1, 2]


@pytest.mark.parametrize("num_rows", [1, 16])
@pytest.mark.parametrize("count", [0, 1, 5, 300])
def test_of_equally_likely_tokens_those_with_the_lower_ids_are_told(num_rows: int, count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = -torch.randint(1, 4, (num_rows, 300), generator=generator).float()
    entries = token_logprobs(logits, torch.zeros(num_rows, dtype=torch.int64), [count] * num_rows)()
    best = [sorted((-logprob, token) for token, logprob in enumerate(row))[:count] for row in logits.tolist()]
    assert [[token for token, _ in entry.top] for entry in entries] == [[token for _, token in row] for row in best]
    expected = torch.log_softmax(logits, dim=-1)
    for entry, values in zip(entries, expected, strict=True):
        assert [logprob for _, logprob in entry.top] == pytest.approx([float(values[token]) for token, _ in entry.top])


def test_logprobs_are_those_before_any_mask() -> None:
    logits = [0.5, 0, 2.0, 1.0, 0, 0, 0, 0]
    expected = torch.log_softmax(torch.tensor(logits), dim=-1)
    made = masked([3], temperature=0, logprobs=1)
    (entry,) = Sampler([EOS]).sample(torch.tensor([logits]), [made], [1]).logprobs
    assert entry is not None
    assert (entry.token_id, entry.top[0][0]) == (3, 2)
    assert entry.logprob == pytest.approx(float(expected[3]))
