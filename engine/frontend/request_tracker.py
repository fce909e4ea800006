"""The requests in flight, from admission to their end: tokens become text for readers, and the books are kept.

Every choice ends here exactly once, in whatever way: for its reader, for admission, for the observer and for its
replica. Owns deadlines. Knows nothing of how engines are run and replaced.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from orcinus.engine.admission.control import AdmissionControl
from orcinus.engine.admission.convictions import Convictions
from orcinus.engine.errors import (
    EngineUnavailableError,
    OrcinusError,
    RequestFailedError,
    RequestQuarantinedError,
    RequestTimeoutError,
)
from orcinus.engine.frontend.choice_clock import clock_of
from orcinus.engine.frontend.live_request import LiveChoice, LiveRequest
from orcinus.engine.frontend.observer import EngineObserver
from orcinus.engine.frontend.output_processor import OutputProcessor
from orcinus.engine.messages import NOTHING_LEFT, AddRequest, RequestDelta
from orcinus.engine.outputs import GenerationRequest, Outcome, RequestOutput

if TYPE_CHECKING:
    from orcinus.engine.frontend.replica import EngineReplica
    from orcinus.engine.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class RequestTracker:
    """`open` a request and `abort` it; replicas report what their engines bring and how they end."""

    def __init__(self, admission: AdmissionControl, convictions: Convictions, observer: EngineObserver) -> None:
        self.observer = observer
        self._admission = admission
        self._convictions = convictions
        self._idle = asyncio.Event()
        self._idle.set()

    def open(
        self,
        request: GenerationRequest,
        sequences: Sequence[AddRequest],
        replica: "EngineReplica",
        tokenizer: "Tokenizer",
        max_model_len: int,
    ) -> LiveRequest:
        """Enter an admitted request, whose choices are `sequences`, and start its deadline's timer."""
        live = LiveRequest(request)
        for index, added in enumerate(sequences):
            prompt_index, sample = divmod(index, request.sampling.n)
            processor = OutputProcessor(
                tokenizer, index, added.prompt_token_ids, added.sampling, prompt_index=prompt_index
            )
            # A prompt is counted once, as in usage, however many samples are drawn from it.
            num_counted = 0 if sample else len(added.prompt_token_ids)
            live.choices[added.request_id] = LiveChoice(
                added,
                live,
                replica,
                processor,
                num_counted,
                asked_at=request.asked_at,
                clock=clock_of(request, index, added),
            )
        self._admission.enter(request, [*live.choices], max_model_len)
        self._idle.clear()
        if request.timeout_s is not None:
            spent_s = 0.0 if request.asked_at is None else time.monotonic() - request.asked_at
            left_s = request.timeout_s - spent_s
            live.timer = asyncio.get_running_loop().call_later(left_s, self._expire, live, request.timeout_s)
        return live

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()

    def abort(self, live: LiveRequest) -> None:
        """End a request whose reader has left. Idempotent."""
        if live.choices:
            logger.info("request %s aborted", live.request_id)
            live.discard_pending()
            self._end(live, "abort", None)

    def fail(self, choices: Iterable[LiveChoice], error: OrcinusError) -> None:
        """End the requests of these choices: no more tokens will come of the engine that had them."""
        for live in {id(choice.live): choice.live for choice in choices}.values():
            self._end(live, "error", EngineUnavailableError(str(error)))

    # --- what replicas report -------------------------------------------------------------------------------

    def on_started(self, choice_ids: list[str]) -> None:
        """Note that these choices have slots now."""
        self._admission.start(choice_ids)

    def on_engine_end(self, choice_ids: list[str]) -> None:
        """Note that an engine has ended with these choices in flight, which wait for another one."""
        self._admission.requeue(choice_ids)

    def on_restart(self) -> None:
        """Note that another engine is to take the place of one that has ended."""
        self.observer.on_restart()

    def on_resumed(self, num_choices: int) -> None:
        """Note that choices go on in another engine than the one that had begun with them."""
        self.observer.on_resumed(num_choices)

    def quarantine(self, choice: LiveChoice, reason: str) -> None:
        """End the request of a choice because engines end while they run it."""
        logger.error("request %s is given up: an engine ended again while it ran (%s)", choice.live.request_id, reason)
        self.observer.on_quarantined()
        self._convictions.add(choice.live.request)
        self._end(choice.live, "error", RequestQuarantinedError("the engine ended again while it ran this request"))

    def on_delta(self, choice: LiveChoice, delta: RequestDelta, now: float, ended_at: float) -> None:
        """Take in what one step, which ended at `ended_at`, brought one choice. A fault here ends its request alone."""
        live = choice.live
        if choice.clock is not None:
            choice.clock.on_delta(delta, ended_at)
        try:
            output = choice.processor.process(delta)
        except Exception:
            logger.exception("request %s: reading its tokens failed", live.request_id)
            self._end(live, "error", RequestFailedError("the output could not be read"))
            return
        self._observe(choice, output, now)
        if output.finish_reason is None:
            live.put(output)
        elif output.finish_reason in ("error", "abort"):
            choice.replica.remove(choice)
            self._finish(choice, output.finish_reason)
            self._end(live, "error", _failure(choice, output))
        else:
            timing = choice.timing(now, output.num_preemptions)
            self.observer.on_choice_complete(timing, choice.processor.num_output_tokens)
            self._complete(choice, msgspec.structs.replace(output, timing=timing), output.finish_reason)

    def _complete(self, choice: LiveChoice, output: RequestOutput, outcome: Outcome) -> None:
        live = choice.live
        live.put(output)
        if choice.processor.needs_abort:
            choice.replica.abort(choice)
        else:
            choice.replica.remove(choice)
        self._finish(choice, outcome)
        if not live.choices:
            live.close()

    def _observe(self, choice: LiveChoice, output: RequestOutput, now: float) -> None:
        if output.queue_time_s is not None:
            choice.queue_time_s = output.queue_time_s
            self.observer.on_first_output(output.queue_time_s)
        if output.num_cached_tokens and choice.num_prompt_tokens:  # counted once for a prompt, as in usage
            choice.num_cached_tokens = output.num_cached_tokens
        if num_tokens := len(output.token_ids):
            self._observe_tokens(choice, num_tokens, now)

    def _observe_tokens(self, choice: LiveChoice, num_tokens: int, now: float) -> None:
        if choice.last_token_time is None:
            choice.first_token_time = now
            self.observer.on_first_token(now - choice.asked_at)
            num_tokens -= 1
        if num_tokens:
            self.observer.on_next_tokens(now - (choice.last_token_time or now), num_tokens)
        choice.last_token_time = now

    # --- how requests end -----------------------------------------------------------------------------------

    def _expire(self, live: LiveRequest, timeout_s: float) -> None:
        logger.info("request %s timed out", live.request_id)
        self._end(live, "timeout", RequestTimeoutError(f"the request did not finish within {timeout_s:g} s"))

    def _end(self, live: LiveRequest, outcome: Outcome, error: OrcinusError | None) -> None:
        """End all unfinished choices of a request before their time, here and in the engine."""
        choices = [*live.choices.values()]
        for choice in choices:
            choice.replica.abort(choice)
            self._finish(choice, outcome)
        live.close(error)
        for replica in {id(choice.replica): choice.replica for choice in choices}.values():
            replica.flush()

    def _finish(self, choice: LiveChoice, outcome: Outcome) -> None:
        """Close the books on a choice that its replica has let go. Called once for each."""
        del choice.live.choices[choice.engine_id]
        num_output_tokens = choice.processor.num_output_tokens
        if choice.clock is not None:
            choice.clock.on_end(outcome, num_output_tokens)
        self._admission.leave(choice.engine_id, outcome, num_output_tokens)
        if self._admission.num_in_flight == 0:
            self._idle.set()
        self.observer.on_choice_done(
            outcome, time.monotonic() - choice.asked_at, choice.num_prompt_tokens, num_output_tokens
        )
        self.observer.on_client_usage(choice.live.request.client, outcome, choice.num_prompt_tokens, num_output_tokens)
        choice.live.count(choice, outcome)
        if not choice.live.choices:
            self.observer.on_request_usage(choice.live.usage())


def _failure(choice: LiveChoice, output: RequestOutput) -> OrcinusError:
    """Return the error of a choice that the engine gave up, whose own parameters may be why."""
    if output.error == NOTHING_LEFT:
        return choice.added.sampling.contradiction(choice.processor.num_output_tokens)
    return RequestFailedError(output.error or "the engine gave the request up")
