"""A head's guesses become drafts: behind the token that each of them takes for granted, and beside those of texts."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from orcinus.engine.messages import NewRequest, Proposal
from orcinus.engine.models.language_model import LanguageModel
from orcinus.engine.runner.mtp_drafter import MtpDrafter, StepStates
from orcinus.engine.sampling_params import SamplingParams

VOCAB_SIZE = 50


class Head:
    """Guesses that the token after the next one is one more than it."""

    mtp_head = SimpleNamespace()

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.num_logits = 0

    def mtp_states(self, next_ids: Tensor, hidden: Tensor, positions: Tensor) -> Tensor:
        assert len(hidden) == len(next_ids) == len(positions)
        self.seen += positions.tolist()
        return next_ids[:, None]

    def logits(self, states: Tensor) -> Tensor:
        self.num_logits += len(states)
        return torch.nn.functional.one_hot(states[:, 0] + 1, VOCAB_SIZE).float()


class Texts:
    """Proposes the same drafts for every request."""

    def __init__(self, drafts: list[int]) -> None:
        self.drafts = drafts
        self.heard: list[Any] = []

    def begin(self, new: NewRequest) -> None:
        self.heard.append(new.request_id)

    def take_in(self, grown: Mapping[str, Sequence[int]]) -> None:
        self.heard.append(dict(grown))

    def propose(self, request_ids: Sequence[str]) -> dict[str, Proposal]:
        return {request_id: Proposal([*self.drafts], "short match") for request_id in request_ids if self.drafts}

    def release(self, request_id: str) -> None:
        self.heard.append(f"-{request_id}")


def drafter_of(head: Head, texts: Texts | None = None) -> MtpDrafter:
    drafter = MtpDrafter(cast(LanguageModel, head), texts)
    drafter.begin(NewRequest("a", [1, 2, 3], 3, SamplingParams()))
    return drafter


def step(next_ids: list[int], samples: list[int], lengths: list[int], names: list[str], first: int = 0) -> StepStates:
    ids = torch.tensor(next_ids)
    positions = torch.arange(first, first + len(next_ids))
    return StepStates(torch.zeros(len(next_ids), 4), ids, positions, torch.tensor(samples), names, lengths)


def test_the_guess_behind_the_last_accepted_token_is_proposed() -> None:
    for accepted, expected in (([10], 11), ([10, 20], 21), ([10, 20, 30], 31)):
        drafter = drafter_of(Head())
        keep = drafter.launch(step([10, 20, 30], [0, 1, 2], [4, 5, 6], ["a"] * 3, first=2), wants_guesses=True)
        keep()
        drafter.take_in({"a": accepted})
        assert drafter.propose(["a"]) == {"a": Proposal([expected], "head")}


def test_a_request_that_samples_nothing_or_is_not_guessed_for_has_no_draft() -> None:
    drafter = drafter_of(Head())
    drafter.launch(step([2, 3, 9], [2], [4], ["another"]), wants_guesses=True)()
    drafter.take_in({"a": [7]})
    assert drafter.propose(["a"]) == {}


def test_a_step_whose_guesses_nobody_wants_runs_the_layer_and_makes_no_logits() -> None:
    head = Head()
    drafter = drafter_of(head)
    drafter.launch(step([2, 3, 9], [2], [4], ["a"]), wants_guesses=False)()
    drafter.launch(step([5, 6], [], [], [], first=3), wants_guesses=True)()
    drafter.take_in({"a": [9]})
    assert (head.seen, head.num_logits) == ([0, 1, 2, 3, 4], 0)
    assert drafter.propose(["a"]) == {}


def test_guesses_of_an_earlier_step_are_no_drafts_of_a_later_one() -> None:
    drafter = drafter_of(Head())
    drafter.launch(step([9], [0], [4], ["a"]), wants_guesses=True)()
    drafter.take_in({"a": [9]})
    drafter.launch(step([12], [0], [5], ["a"]), wants_guesses=False)()
    drafter.take_in({"a": [12]})
    assert drafter.propose(["a"]) == {}


def test_a_guess_behind_a_rejected_draft_is_no_draft_of_a_step_in_which_the_head_rests() -> None:
    drafter = drafter_of(Head())
    drafter.launch(step([10, 20], [0, 1], [4, 5], ["a"] * 2, first=2), wants_guesses=True)()
    drafter.take_in({"a": [10]})
    assert drafter.propose(["a"]) == {"a": Proposal([11], "head")}
    drafter.take_in({"a": [7]})
    assert drafter.propose(["a"]) == {}


def test_a_steps_guesses_are_kept_when_it_is_waited_for_though_another_is_launched() -> None:
    drafter = drafter_of(Head())
    keep_first = drafter.launch(step([9], [0], [4], ["a"]), wants_guesses=True)
    keep_second = drafter.launch(step([12], [0], [5], ["a"]), wants_guesses=True)
    for keep, token_id, guess in ((keep_first, 9, 10), (keep_second, 12, 13)):
        keep()
        drafter.take_in({"a": [token_id]})
        assert drafter.propose(["a"]) == {"a": Proposal([guess], "head")}


def test_a_texts_drafts_are_tried_where_they_begin_with_the_guess() -> None:
    guess = Proposal([10], "head")
    for drafts, expected in (([10, 11, 12], Proposal([10, 11, 12], "short match")), ([30, 31], guess), ([], guess)):
        texts = Texts(drafts)
        drafter = drafter_of(Head(), texts)
        drafter.launch(step([9], [0], [4], ["a"]), wants_guesses=True)()
        drafter.take_in({"a": [9]})
        assert drafter.propose(["a"]) == {"a": expected}
        drafter.release("a")
        assert texts.heard == ["a", {"a": [9]}, "-a"]
