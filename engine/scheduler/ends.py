"""How and why a request ends, and what is reported of it.

Holds the rules alone. It changes nothing of a request but its tokens and what was reported, and knows nothing of slots,
blocks or plans.
"""

from dataclasses import dataclass, replace

from orcinus.engine.messages import FinishReason, PackedLogprobs, RequestDelta, StepResult, TokenLogprobs
from orcinus.engine.scheduler.request import Request


@dataclass(frozen=True, slots=True)
class End:
    """Tells how a request ends. `is_text`: after its last token, which is text, and not by that token."""

    reason: FinishReason
    stop_reason: int | None = None  # the stop token
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class EndRules:
    """Decides where requests end: by a token, by their own limit, by the context's or by their grammar."""

    eos_token_ids: frozenset[int]
    max_model_len: int

    def take_in(self, request: Request, sampled: list[int], result: StepResult) -> tuple[list[int], End | None]:
        """Append what a step sampled to the request's tokens, up to the token that ends it.

        Returns the tokens to report, and the end, if it is one.
        """
        request_id = request.request_id
        end, all_sampled = None, sampled
        for count, token_id in enumerate(sampled, 1):
            request.token_ids.append(token_id)
            end = self._end_by(request, token_id)
            if end is not None:
                sampled = sampled[:count]
                break
        if request_id in result.steered:
            request.is_steered = True
        is_complete = request_id in result.finished and len(sampled) == len(all_sampled)
        if request.is_steered or is_complete:
            return self._end_of_grammar(request, sampled, end, is_complete=is_complete)
        return sampled, end

    def is_at_limit(self, request: Request, num_tokens: int) -> bool:
        """Return whether a request with so many tokens may not have another one."""
        max_tokens = request.sampling.max_tokens
        is_complete = max_tokens is not None and num_tokens - request.num_prompt_tokens >= max_tokens
        return is_complete or num_tokens >= self.max_model_len

    def num_tokens_left(self, request: Request) -> int:
        """Return how many more tokens a request may have."""
        left = self.max_model_len - request.num_tokens
        max_tokens = request.sampling.max_tokens
        return left if max_tokens is None else min(left, max_tokens - request.num_output_tokens)

    def _end_by(self, request: Request, token_id: int) -> End | None:
        """Return the end that the token just appended brings, if it brings one."""
        sampling = request.sampling
        if len(request.token_ids) - request.num_prompt_tokens >= sampling.min_tokens:
            if self._is_eos(request, token_id) and not sampling.ignore_eos:
                return End("stop")
            if token_id in sampling.stop_token_ids:
                return End("stop", stop_reason=token_id)
        return End("length") if self.is_at_limit(request, len(request.token_ids)) else None

    def _is_eos(self, request: Request, token_id: int) -> bool:
        return token_id in self.eos_token_ids or token_id in request.sampling.more_eos_token_ids

    def _end_of_grammar(
        self, request: Request, sampled: list[int], end: End | None, *, is_complete: bool
    ) -> tuple[list[int], End | None]:
        """Return what to report, and the end, of a request whose grammar is complete, or that is led to its end."""
        is_text = not self._is_eos(request, request.token_ids[-1])
        if (end is None or end.reason != "stop") and is_complete:
            end = End("stop", is_text=is_text)
        if end is None or end.reason != "stop" or end.stop_reason is not None or not request.is_steered:
            return sampled, end
        # An end that the limit called for is not the model's.
        return sampled if is_text else sampled[:-1], replace(end, reason="length")


def end_without_tokens(request: Request) -> End:
    """Return the end of a request that wants no tokens: it is cut short at 0 of them, or wants an embedding."""
    return End("length" if request.sampling.pooling is None else "stop")


def report(
    request: Request,
    token_ids: list[int],
    end: End | None,
    *,
    logprobs: list[TokenLogprobs] | None = None,
    embedding: bytes | None = None,
    error: str | None = None,
) -> RequestDelta:
    """Return a delta; the first one of a request also says how it came to run, and the last one how it ended."""
    pauses, request.pauses = request.pauses, []
    if request.has_reported and end is None:
        return RequestDelta(
            request.request_id,
            token_ids,
            logprobs=logprobs,
            num_preemptions=request.num_preemptions,
            num_draft_tokens=request.num_draft_tokens,
            num_accepted_drafts=request.num_accepted_drafts,
            is_steered=request.is_steered,
            pauses=pauses,
        )
    is_first, request.has_reported = not request.has_reported, True
    started = request.first_scheduled_time
    parts, request.prompt_logprobs = request.prompt_logprobs, None
    return RequestDelta(
        request_id=request.request_id,
        token_ids=token_ids,
        logprobs=logprobs,
        prompt_logprobs=None if parts is None else PackedLogprobs(parts),
        finish_reason=None if end is None else end.reason,
        stop_reason=None if end is None else end.stop_reason,
        num_cached_tokens=request.num_cached_tokens if is_first else None,
        queue_time_s=started - request.arrival_time if is_first and started is not None else None,
        num_preemptions=request.num_preemptions,
        num_draft_tokens=request.num_draft_tokens,
        num_accepted_drafts=request.num_accepted_drafts,
        error=error,
        embedding=embedding,
        ends_in_text=end is not None and end.is_text,
        is_steered=request.is_steered,
        pauses=pauses,
    )


def report_error(request: Request, message: str) -> RequestDelta:
    """Return the last delta of a request that failed."""
    return report(request, [], End("error"), error=message)
