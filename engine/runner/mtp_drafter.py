"""Drafts from the model's own head for multi-token prediction: a guess behind each token that a step samples.

The head runs over all tokens of each step, right after the model and at the same positions, so that its keys and values
lie in the same blocks and are there whenever the model's are: behind a reused prefix, after a preemption, and in place
of those of rejected drafts. What it takes for the token behind a position is the next one of a prompt, or what was
sampled there. At the last position of a reused block that is the token which followed when the block was computed; a
guess may be worse for that. No keys are written where the head rests, which is in steps without prompts alone: later
guesses see what was in that place before, zeros or another text's keys. Knows nothing of what is accepted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from orcinus.engine.messages import NewRequest, Proposal
from orcinus.engine.models.language_model import LanguageModel
from orcinus.engine.platform.device_copy import to_host
from orcinus.engine.runner.drafts import Drafter


@dataclass(frozen=True, slots=True)
class StepStates:
    """Holds what a step computed: hidden states, the tokens that follow, and the positions, all (num_tokens, ...).

    `samples` (num_samples,) says after which of them something was sampled, and `lengths` how many tokens each of
    these `request_ids` has with it.
    """

    hidden: Tensor
    next_ids: Tensor
    positions: Tensor
    samples: Tensor
    request_ids: Sequence[str]
    lengths: Sequence[int]


class MtpDrafter:
    """Proposes the head's guess, and beside it `texts`' drafts if they begin with the same token.

    `launch` is called for each step in which the head does not rest, whether its guesses are asked for or not.
    """

    def __init__(self, model: LanguageModel, texts: Drafter | None = None) -> None:
        assert model.mtp_head is not None
        self._model = model
        self._texts = texts
        self._lengths: dict[str, int] = {}
        self._guesses: dict[str, dict[int, int]] = {}  # of the latest step, by how many tokens come before them

    def launch(self, step: StepStates, *, wants_guesses: bool) -> Callable[[], None]:
        """Begin to run the head, inside the step's `step_context`. Returns what waits for guesses and keeps them."""
        states = self._model.mtp_states(step.next_ids, step.hidden, step.positions)
        if not wants_guesses or not len(step.request_ids):
            return lambda: None
        look = to_host(self._model.logits(states[step.samples]).argmax(dim=-1))

        def keep() -> None:
            (token_ids,) = look()
            self._guesses = {}
            for request_id, length, token_id in zip(step.request_ids, step.lengths, token_ids, strict=True):
                self._guesses.setdefault(request_id, {})[length] = token_id

        return keep

    def begin(self, new: NewRequest) -> None:
        self._lengths[new.request_id] = len(new.token_ids)
        if self._texts is not None:
            self._texts.begin(new)

    def take_in(self, grown: Mapping[str, Sequence[int]]) -> None:
        for request_id, token_ids in grown.items():
            self._lengths[request_id] += len(token_ids)
        if self._texts is not None:
            self._texts.take_in(grown)

    def propose(self, request_ids: Sequence[str]) -> dict[str, Proposal]:
        """Return one draft for each request that has just got a token, or several where a text agrees."""
        proposals = {} if self._texts is None else self._texts.propose(request_ids)
        guesses, self._guesses = self._guesses, {}  # the head may rest in the next step
        for request_id in request_ids:
            guess = guesses.get(request_id, {}).get(self._lengths[request_id])
            if guess is None:
                continue
            of_text = proposals.get(request_id)
            if of_text is None or of_text.token_ids[0] != guess:
                proposals[request_id] = Proposal([guess], "head")
        return proposals

    def release(self, request_id: str) -> None:
        self._lengths.pop(request_id, None)
        if self._texts is not None:
            self._texts.release(request_id)
