"""Turns what the engine reports of one choice into what its reader gets: text, tokens, and why it ended.

There is one `OutputProcessor` for each choice. It finds stop strings, and so it says when the engine must be told to
stop. It keeps what another engine needs in order to go on where one has ended. Streams, transports and HTTP are
unknown here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orcinus.engine.messages import FinishReason, RequestDelta
from orcinus.engine.outputs import RequestOutput
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.text.detokenizer import make_detokenizer
from orcinus.engine.text.stop_scanner import StopScanner

if TYPE_CHECKING:
    from orcinus.engine.text.tokenizer import Tokenizer


class OutputProcessor:
    """Takes every delta of its choice, in order, until `is_finished`. `token_ids` are all that counted so far."""

    def __init__(
        self,
        tokenizer: "Tokenizer",
        index: int,
        prompt: Sequence[int],
        sampling: SamplingParams,
        *,
        prompt_index: int = 0,
    ) -> None:
        """`index` and `prompt_index` are those of its outputs."""
        self.index = index
        self.prompt_index = prompt_index
        self.token_ids: list[int] = []
        self.is_steered = False
        self.finish_reason: FinishReason | None = None
        self.needs_abort = False  # a stop string ended it, and the engine does not know
        self._num_preemptions = 0
        self._num_earlier_preemptions = 0  # in engines that have ended
        self._num_drafts = 0  # of the engine that goes on
        self._num_accepted = 0
        self._num_all_drafts = self._num_all_accepted = 0
        self._sampling = sampling
        self._detokenizer = make_detokenizer(tokenizer, prompt, skip_special_tokens=sampling.skip_special_tokens)
        self._scanner = (
            StopScanner(sampling.stop, include_stop=sampling.include_stop_str_in_output) if sampling.stop else None
        )
        self._hidden = _hidden_tokens(tokenizer, sampling)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids)

    def resume(self) -> None:
        """Expect the deltas of another engine, which goes on after `token_ids`."""
        self._num_earlier_preemptions = self._num_preemptions
        self._num_drafts = self._num_accepted = 0

    def process(self, delta: RequestDelta) -> RequestOutput:
        """Return the output that a delta makes.

        Tokens beyond a stop string are dropped; the token that completed it counts.
        """
        assert not self.is_finished, f"request {delta.request_id} is finished"
        is_first = not self.token_ids
        text, num_tokens, stop = self._read(delta)
        token_ids = delta.token_ids[:num_tokens]
        self.token_ids += token_ids
        self.is_steered = delta.is_steered
        self._num_preemptions = self._num_earlier_preemptions + delta.num_preemptions
        self._count_drafts(delta, num_tokens)
        self.finish_reason = delta.finish_reason if stop is None else "stop"
        self.needs_abort = stop is not None and delta.finish_reason is None
        return RequestOutput(
            index=self.index,
            prompt_index=self.prompt_index,
            text=text,
            token_ids=token_ids,
            logprobs=None if delta.logprobs is None else delta.logprobs[:num_tokens],
            prompt_logprobs=delta.prompt_logprobs,
            finish_reason=self.finish_reason,
            stop_reason=delta.stop_reason if stop is None else stop,
            num_cached_tokens=delta.num_cached_tokens if is_first else None,
            queue_time_s=delta.queue_time_s if is_first else None,
            num_preemptions=self._num_preemptions,
            num_draft_tokens=self._num_all_drafts,
            num_accepted_drafts=self._num_all_accepted,
            error=delta.error,
            embedding=delta.embedding,
        )

    def _count_drafts(self, delta: RequestDelta, num_tokens: int) -> None:
        """Add the drafts of a delta of which so many tokens count; those beyond a stop string were for nothing."""
        if delta.num_draft_tokens == self._num_drafts:
            return
        self._num_all_drafts += delta.num_draft_tokens - self._num_drafts
        self._num_all_accepted += min(num_tokens, delta.num_accepted_drafts - self._num_accepted)
        self._num_drafts, self._num_accepted = delta.num_draft_tokens, delta.num_accepted_drafts

    def _read(self, delta: RequestDelta) -> tuple[str, int, str | None]:
        """Return the text to give out, how many of the tokens count, and the stop string that was completed, if any."""
        readable = self._readable(delta)
        if self._scanner is None:
            text = self._detokenizer.feed(readable)
            return text + (self._detokenizer.flush() if delta.finish_reason else ""), len(delta.token_ids), None
        return self._scan(self._scanner, delta, readable)

    def _readable(self, delta: RequestDelta) -> list[int]:
        """Return the tokens that have text: the one that stopped the request has none, unless asked for."""
        is_stopped_by_token = delta.finish_reason == "stop" and delta.token_ids and not delta.ends_in_text
        if is_stopped_by_token and not self._sampling.include_stop_str_in_output:
            return delta.token_ids[:-1]
        return delta.token_ids

    def _scan(self, scanner: StopScanner, delta: RequestDelta, readable: Sequence[int]) -> tuple[str, int, str | None]:
        """Read token by token, as `_read` returns it, so that the token which completed a stop string is known."""
        text = ""
        for position, token_id in enumerate(readable):
            is_armed = self.num_output_tokens + position + 1 >= self._sampling.min_tokens
            if token_id in self._hidden:
                scanned = scanner.feed(self._hidden[token_id], is_armed=is_armed, is_hidden=True)
            else:
                scanned = scanner.feed(self._detokenizer.feed([token_id]), is_armed=is_armed)
            text += scanned.text
            if scanned.stop is not None:
                return text, position + 1, scanned.stop
        if delta.finish_reason is None:
            return text, len(delta.token_ids), None
        scanned = scanner.feed(self._detokenizer.flush())
        return text + scanned.text + ("" if scanned.stop else scanner.flush()), len(delta.token_ids), scanned.stop


def _hidden_tokens(tokenizer: "Tokenizer", sampling: SamplingParams) -> dict[int, str]:
    """Return the special tokens that the text leaves out, as they are written, where a stop string has one of them."""
    if not sampling.skip_special_tokens or not any(
        token in stop for stop in sampling.stop for token in tokenizer.special_tokens
    ):
        return {}
    return {token_id: tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in tokenizer.special_ids}
