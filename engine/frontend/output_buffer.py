"""Successive outputs of one choice, made into one.

For a reader who comes late, and for one who wants the whole. Knows nothing of where outputs come from.
"""

import io

import msgspec

from orcinus.engine.messages import pack_logprobs, unpack_logprobs
from orcinus.engine.outputs import RequestOutput

FULL_LOGPROBS = 1024
FULL_TOKENS = 4096


class OutputBuffer:
    """`add` outputs of one choice in order, then `merged` is all of them as one.

    The cost is linear in what is added, and what is held is as compact as text: a reader may be away for long. What
    `is_full` is as much as a reader should be given at once.
    """

    __slots__ = ("_first", "_last", "_logprobs", "_num_logprobs", "_text", "_token_ids")

    def __init__(self, first: RequestOutput) -> None:
        self._first = self._last = first
        self._text: io.StringIO | None = None  # a single output is handed on as it is
        self._token_ids: list[int] = []
        self._logprobs: list[bytes] | None = None  # parts of `PackedLogprobs`
        self._num_logprobs = _num_logprobs(first)

    @property
    def is_full(self) -> bool:
        return self._num_logprobs >= FULL_LOGPROBS or len(self._token_ids) >= FULL_TOKENS

    def add(self, output: RequestOutput) -> None:
        if self._text is None:
            self._text = io.StringIO()
            self._append(self._first)
        self._append(output)
        self._num_logprobs += _num_logprobs(output)
        self._last = output

    def _append(self, output: RequestOutput) -> None:
        assert self._text is not None
        self._text.write(output.text)
        self._token_ids += output.token_ids
        if output.logprobs is not None:
            self._logprobs = self._logprobs or []
            self._logprobs += pack_logprobs(output.logprobs)

    def merged(self) -> RequestOutput:
        """Return one output: what comes once from the first one, how the choice stands or ended from the last one."""
        if self._text is None:
            return self._first
        return msgspec.structs.replace(
            self._last,
            text=self._text.getvalue(),
            token_ids=self._token_ids,
            logprobs=None if self._logprobs is None else unpack_logprobs(self._logprobs),
            prompt_logprobs=self._first.prompt_logprobs,
            num_cached_tokens=self._first.num_cached_tokens,
            queue_time_s=self._first.queue_time_s,
        )


def _num_logprobs(output: RequestOutput) -> int:
    return sum(1 + len(entry.top) for entry in output.logprobs or ())
