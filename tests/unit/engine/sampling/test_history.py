"""What the device remembers of tokens, and that rows which ask it are processed as those that remember themselves."""

from typing import Any

import numpy as np
import pytest
import torch

from orcinus.engine.sampling.history import PROMPT_FLAG, TokenHistory
from orcinus.engine.sampling.row import SamplingRow
from orcinus.engine.sampling.sampler import Sampler
from orcinus.engine.sampling_params import SamplingParams
from tests.unit.engine.sampling.rows import EOS, row

CPU = torch.device("cpu")
VOCAB_SIZE = 8


def test_prompt_and_output_are_counted_apart_and_slots_for_themselves() -> None:
    history = TokenHistory(3, VOCAB_SIZE, CPU)
    assert not history.is_counting
    history.begin(1, SamplingParams(repetition_penalty=1.1), [2, 2, -1, 2**40, 8, 3, 3], 4)
    history.begin(2, SamplingParams(presence_penalty=1.0), [2, 3], 1)
    history.add(np.array([1, 0, 2]), torch.tensor([2, 7, 5]), np.array([True, False, True]))
    assert history.last_tokens.tolist() == [7, 2, 5]
    assert history.seen.tolist() == [
        [0] * 8,
        [0, 0, PROMPT_FLAG + 1, 2, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 1, 0, 0],
    ]


def test_a_slot_forgets_the_request_that_it_had_before() -> None:
    history, sampling = TokenHistory(1, VOCAB_SIZE, CPU), SamplingParams(frequency_penalty=1.0)
    history.begin(0, sampling, [1, 2, 3], 1)
    history.begin(0, sampling, [4, 5], 1)
    assert history.seen.tolist() == [[0, 0, 0, 0, 0, 1, 0, 0]]


def behind(made: SamplingRow, prompt: list[int], output: list[int], history: TokenHistory, slot: int) -> SamplingRow:
    """Return the same request as the host knows it if it does not know the last token."""
    again = row(prompt=prompt, output=output[:-1], **{name: getattr(made.sampling, name) for name in ASKED})
    again.counts, again.slot = None, slot
    history.begin(slot, again.sampling, prompt + output[:-1], len(prompt))
    history.add(np.array([slot]), torch.tensor(output[-1:]), np.array([again.sampling.has_penalties]))
    return again


ASKED = (
    "temperature",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "bad_words_token_ids",
    "logprobs",
    "seed",
)


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.7},
        {"frequency_penalty": 0.7, "presence_penalty": -0.4},
        {"repetition_penalty": 0.6, "presence_penalty": 1.5, "logprobs": 3},
        {"bad_words_token_ids": ((1,), (3, 2), (4, 3, 2), (5, 4, 3, 6), (7, 4))},
    ],
    ids=str,
)
@pytest.mark.usefixtures("way")
def test_a_token_that_only_the_device_knows_counts_like_any(params: dict[str, Any]) -> None:
    """Some rows beside them ask for nothing, and one is known to its last token."""
    generator = torch.Generator().manual_seed(0)
    history = TokenHistory(6, VOCAB_SIZE, CPU)
    rows, known, positions = [], [], []
    for i, output in enumerate([[3], [4, 3], [5, 4, 3], [4, 4, 4], [3, 4, 7, 2]]):
        prompt = [2, 5, 5]
        made = row(prompt=prompt, output=output, temperature=0, **params)
        rows.append(behind(made, prompt, output, history, 4 - i))
        known.append(made)
        positions.append(len(prompt) + len(output))
    plain = row(temperature=0)
    rows.append(plain)
    known.append(plain)
    positions.append(1)
    for _ in range(20):
        logits = 2 * torch.randn(6, VOCAB_SIZE, generator=generator)
        expected = Sampler([EOS]).sample(logits.clone(), known, positions)
        assert Sampler([EOS]).launch(logits.clone(), rows, positions, history).wait() == expected
