"""Whether there is room for a request now: the bounded queue, and what a client may have at once and in a minute.

Owns the counts of what is in flight at all engines together. Knows nothing of models (what can never be served is
refused by `engine.admission.request_checks`), of how requests run, and of who the clients are: each is an opaque name.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orcinus.config.limits import ClientLimits
from orcinus.engine.admission.answer_size import check_logprobs
from orcinus.engine.admission.quotas import ClientAccount, ClientAccounts
from orcinus.engine.admission.service_rate import ServiceRate
from orcinus.engine.errors import InvalidRequestError, QueueFullError, QuotaError
from orcinus.engine.outputs import GenerationRequest, Outcome

if TYPE_CHECKING:
    from orcinus.config.settings import Settings

_SERVED = frozenset({"stop", "length"})  # got all that it asked for


class _Reservation:
    """Holds what a request has taken from its client's bucket until its last choice ends."""

    __slots__ = ("account", "num_open", "num_reserved", "num_used")

    def __init__(self, account: ClientAccount, num_choices: int, num_reserved: int) -> None:
        self.account = account
        self.num_open = num_choices
        self.num_reserved = num_reserved
        self.num_used = 0


@dataclass(slots=True)
class _Choice:
    """One choice in flight."""

    reservation: _Reservation
    num_prompt_tokens: int
    num_counted_tokens: int  # of the prompt, as in usage: 0 for all choices of a prompt but the first
    is_running: bool = False


class AdmissionControl:
    """`check` and `enter` a request, then tell it of each choice when it starts to run and when it leaves.

    A queued token is one of a prompt that waits for a slot. What may be generated is not counted: it needs no memory
    while it waits, and where `max_tokens` is left open it would be the whole context. A choice that is preempted in the
    engine counts as running: there are no more of those than slots.
    """

    def __init__(self, settings: "Settings", clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        limits = settings.limits_per_key
        self.limits_of: Callable[[str], ClientLimits] = lambda client: limits
        self._clients = ClientAccounts(clock)
        self._choices: dict[str, _Choice] = {}
        self._num_queued_tokens = 0
        self._num_running = 0
        self._num_clients = 0  # with something in flight
        self._num_slots = 1
        self._num_promised = 0  # places that refused requests were told to come back for
        self._service = ServiceRate(clock)

    @property
    def num_in_flight(self) -> int:
        """Choices that have entered and not left."""
        return len(self._choices)

    @property
    def num_queued_tokens(self) -> int:
        return self._num_queued_tokens

    def share_of(self, client: str) -> str:
        """Return the name that the client has in the engine's queue: one for all where there are no fair shares."""
        return client if self._settings.scheduling_policy == "fair" else ""

    def check_room(self, client: str, num_slots: int) -> None:
        """Raise as `check` does where it would for every request of this client. Costs next to nothing."""
        self._num_slots = num_slots
        self._check_queue(1)
        self._check_queued_tokens(1)
        account = self._account_of(client)
        self._check_in_flight(account, 1)
        self._check_request_rate(account)
        self._check_bucket(account, 1)

    def check(self, request: GenerationRequest, num_slots: int, max_model_len: int) -> None:
        """Raise unless there is room for the request now.

        Raises `QueueFullError`, `QuotaError`, or `InvalidRequestError` for more choices than there can ever be, or more
        log-probabilities than one request may ask for.
        """
        self._num_slots = num_slots
        account = self._account_of(request.client)
        self._check_possible(request, account)
        check_logprobs(request, self._settings.max_logprobs_per_request, max_model_len)
        self._check_queue(request.num_choices)
        self._check_queued_tokens(sum(map(len, request.prompts)) * request.sampling.n)
        self._check_in_flight(account, request.num_choices)
        self._check_request_rate(account)
        self._check_bucket(account, _num_asked_tokens(request, max_model_len))

    def enter(self, request: GenerationRequest, choice_ids: Sequence[str], max_model_len: int) -> None:
        """Count a request that passed `check`. Its choices are known by `choice_ids`, which must be unique."""
        account = self._account_of(request.client)
        self._num_clients += account.num_in_flight == 0
        account.num_in_flight += len(choice_ids)
        reservation = _Reservation(account, len(choice_ids), _reservation(request, account, max_model_len))
        if account.requests is not None:
            account.requests.take(1, self._clock())
        if account.bucket is not None:
            account.bucket.take(reservation.num_reserved, self._clock())
        for index, choice_id in enumerate(choice_ids):
            prompt, sample = divmod(index, request.sampling.n)
            num_tokens = len(request.prompts[prompt])
            self._choices[choice_id] = _Choice(reservation, num_tokens, 0 if sample else num_tokens)
            self._num_queued_tokens += num_tokens
        self._service.set_load(len(self._choices), self._num_slots)

    def start(self, choice_ids: Sequence[str]) -> None:
        """Count choices as running, which have slots now. Unknown ids, and choices that run already, are fine."""
        for choice_id in choice_ids:
            choice = self._choices.get(choice_id)
            if choice is not None and not choice.is_running:
                choice.is_running = True
                self._num_running += 1
                self._num_queued_tokens -= choice.num_prompt_tokens

    def requeue(self, choice_ids: Sequence[str]) -> None:
        """Count choices as waiting again, whose slots were lost with an engine."""
        for choice_id in choice_ids:
            choice = self._choices[choice_id]
            if choice.is_running:
                choice.is_running = False
                self._num_running -= 1
                self._num_queued_tokens += choice.num_prompt_tokens

    def leave(self, choice_id: str, outcome: Outcome, num_output_tokens: int) -> None:
        """Stop counting a choice that has ended, in whatever way, and give back what it reserved and did not use."""
        choice = self._choices.pop(choice_id)
        self._leave_slot_or_queue(choice, outcome)
        reservation = choice.reservation
        reservation.num_used += choice.num_counted_tokens + num_output_tokens
        reservation.num_open -= 1
        account = reservation.account
        account.num_in_flight -= 1
        self._num_clients -= account.num_in_flight == 0
        if reservation.num_open == 0 and account.bucket is not None:
            account.bucket.take(reservation.num_used - reservation.num_reserved, self._clock())

    def _leave_slot_or_queue(self, choice: _Choice, outcome: Outcome) -> None:
        if outcome in _SERVED:
            self._service.on_served()
        elif choice.is_running:
            self._service.on_unserved(self._num_running)
        if choice.is_running:
            self._num_running -= 1
        else:
            self._num_queued_tokens -= choice.num_prompt_tokens
        self._num_promised = max(0, self._num_promised - 1)
        self._service.set_load(len(self._choices), self._num_slots)

    # --- the limits, one by one -----------------------------------------------------------------------------

    def _account_of(self, client: str) -> ClientAccount:
        return self._clients.of(client, self.limits_of(client))

    def _check_possible(self, request: GenerationRequest, account: ClientAccount) -> None:
        most = self._num_places
        param = "prompt" if request.sampling.n == 1 else "n"  # what there are too many of
        num_choices = request.num_choices
        if num_choices > most:
            raise InvalidRequestError(
                f"at most {most} choices fit slots and queue (max_queue_len is {self._settings.max_queue_len}),"
                f" got {num_choices}",
                param,
            )
        limit = account.limits.max_requests
        if limit is not None and num_choices > limit.value:
            raise InvalidRequestError(
                f"at most {limit.value} choices of one client run or wait at once ({limit.source}), got {num_choices}",
                param,
            )

    @property
    def _num_places(self) -> int:
        return self._num_slots + self._settings.max_queue_len

    def _check_queue(self, num_choices: int) -> None:
        num_missing = len(self._choices) + num_choices - self._num_places
        if num_missing > 0:
            raise QueueFullError(
                f"the queue is full: it has {self._settings.max_queue_len} places (max_queue_len), and this request"
                f" needs {num_missing} more",
                self._retry_after_s(num_missing),
            )

    def _check_queued_tokens(self, num_tokens: int) -> None:
        """Raise where too many tokens of prompts would wait. Where none waits, any prompt is admitted."""
        most = self._settings.max_queue_tokens
        if self._num_queued_tokens == 0:
            return
        num_missing = self._num_queued_tokens + num_tokens - most
        if num_missing > 0:
            num_waiting = len(self._choices) - self._num_running
            num_starts = num_waiting * min(1.0, num_missing / self._num_queued_tokens)
            raise QueueFullError(
                f"the queue is full: {self._num_queued_tokens} tokens of prompts wait of at most {most}"
                f" (max_queue_tokens), and this request needs {num_missing} more than are left",
                self._retry_after_s(math.ceil(num_starts)),
            )

    def _retry_after_s(self, num_places: int) -> float:
        """Return when `num_places` will be free beside those that other refused requests were told of.

        So not every request of a crowd is told the same. A client that was refused may not come back, or come too
        early: no more are counted than there are places.
        """
        retry_after_s = self._service.seconds_to_serve(self._num_promised + num_places)
        self._num_promised = min(self._num_promised + num_places, self._num_places)
        return retry_after_s

    def _check_in_flight(self, account: ClientAccount, num_choices: int) -> None:
        limit = account.limits.max_requests
        if limit is None:
            return
        num_missing = account.num_in_flight + num_choices - limit.value
        if num_missing > 0:
            raise QuotaError(
                f"a client may have {limit.value} choices running and waiting ({limit.source}): this one has"
                f" {account.num_in_flight}, and the request asks for {num_choices} more",
                self._service.seconds_to_serve(num_missing * self._num_served_per_choice_of(account)),
            )

    def _num_served_per_choice_of(self, account: ClientAccount) -> float:
        """Return how many choices a full server serves for each one of this client, which has some in flight."""
        if self._settings.scheduling_policy == "fcfs":
            return max(self._num_slots, len(self._choices)) / account.num_in_flight
        return max(self._num_slots / account.num_in_flight, self._num_clients)

    def _check_request_rate(self, account: ClientAccount) -> None:
        limit, bucket = account.limits.max_requests_per_minute, account.requests
        if limit is None or bucket is None:
            return
        wait_s = bucket.seconds_until(1, self._clock())
        if wait_s > 0:
            raise QuotaError(f"a client may send {limit.value} requests a minute ({limit.source})", wait_s)

    def _check_bucket(self, account: ClientAccount, num_tokens: int) -> None:
        """Raise where fewer tokens are left than a request asks for. One that asks for more than all needs them all."""
        limit, bucket = account.limits.max_tokens_per_minute, account.bucket
        if limit is None or bucket is None:
            return
        wait_s = bucket.seconds_until(min(num_tokens, bucket.capacity), self._clock())
        if wait_s > 0:
            raise QuotaError(
                f"a client may use {bucket.capacity} tokens a minute ({limit.source}), of which"
                f" {max(0, int(bucket.level(self._clock())))} are left: prompt and max_tokens need {num_tokens}",
                wait_s,
            )


def _reservation(request: GenerationRequest, account: ClientAccount, max_model_len: int) -> int:
    """Return the tokens of prompts and of all that may be generated, as usage counts them, up to a full bucket.

    So a client that asks for more than a minute's tokens waits for a full bucket, and then pays off the rest.
    """
    if account.bucket is None:
        return 0
    return min(_num_asked_tokens(request, max_model_len), account.bucket.capacity)


def _num_asked_tokens(request: GenerationRequest, max_model_len: int) -> int:
    """Return the tokens of prompts and of all that may be generated, as usage counts them."""
    asked, n = request.sampling.max_tokens, request.sampling.n
    return sum(
        len(prompt) + n * (max_model_len - len(prompt) if asked is None else asked) for prompt in request.prompts
    )
