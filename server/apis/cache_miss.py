"""Why less of a prompt was cached than an earlier one like it had: what the usage and `Server-Timing` tell of it.

A prompt is compared with those that the same client sent with the same salt, by `PromptHistory`: where they part, the
text says in which part of the request that is. What the engine found is known with the first output.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from orcinus.engine.frontend.prompt_history import Comparison, PromptHistory
from orcinus.engine.outputs import GenerationRequest, RequestOutput
from orcinus.server.apis.prompt_parts import Place, place_at
from orcinus.server.context import ServingContext, ServingTokenizer

Reason = Literal["new", "changed", "evicted"]

_OFF_LOOP_TOKENS = 4096  # more are decoded in a thread
_LOOKAHEAD_TOKENS = 64  # in which the beginning of a message is recognized


@dataclass(frozen=True, slots=True)
class CacheMiss:
    """Says why the prefix cache ends at `block`: `token` is the first one in it.

    new: no earlier prompt is known. changed: the most similar one has another block there, which lies in `place`.
    evicted: an earlier one had the same block, and the engine has not, or not the state of the model after it.
    """

    reason: Reason
    block: int = 0
    token: int = 0
    place: Place | None = None

    def to_dict(self) -> dict[str, Any]:
        if self.reason == "new":
            return {"reason": self.reason}
        where = {} if self.place is None else self.place.to_dict()
        return {"reason": self.reason, "block": self.block, "token": self.token, **where}

    def to_header(self) -> str:
        """Return an entry of `Server-Timing`, which has the part and no name that a client has sent."""
        told = {name: value for name, value in self.to_dict().items() if name not in ("reason", "tool")}
        described = " ".join([self.reason, *(f"{name}={value}" for name, value in told.items())])
        return f'cache_miss;desc="{described}"'


class PrefixWatch:
    """Follows the prompt of one request. `admit` it, then give it each output; `miss` is known from the first one on.

    Also None then, where all that could be cached was, or all that an earlier prompt has in common with this one.
    """

    def __init__(
        self, history: PromptHistory, comparison: Comparison, num_tokens: int, block_size: int, place: Place | None
    ) -> None:
        self._history = history
        self._comparison = comparison
        self._num_tokens = num_tokens
        self._block_size = block_size
        self._place = place
        self._answer: list[int] = []
        self.miss: CacheMiss | None = None

    def admit(self) -> None:
        """Let later prompts be compared with this one."""
        self._history.add(self._comparison)

    def add(self, output: RequestOutput) -> None:
        """Take in an output of the request. Of several choices the first is followed."""
        if output.index:
            return
        if output.num_cached_tokens is not None:
            self.miss = self._find_miss(output.num_cached_tokens)
        self._answer += output.token_ids
        if output.finish_reason is not None:
            self._history.extend(self._comparison.prompt, self._answer[:-1])  # nothing was computed of the last one

    def _find_miss(self, num_cached: int) -> CacheMiss | None:
        size, found = self._block_size, self._comparison
        num_usable = (self._num_tokens - 1) // size  # blocks: the last token is computed in any case
        num_cached_blocks = num_cached // size
        if num_cached_blocks >= num_usable:
            return None
        if found.is_first:
            return CacheMiss("new")
        if num_cached_blocks < min(found.num_common, num_usable):
            return CacheMiss("evicted", num_cached_blocks, num_cached_blocks * size)
        if found.differs and num_cached_blocks == found.num_common:
            return CacheMiss("changed", found.num_common, found.num_common * size, self._place)
        return None


async def watch_prefix(
    ctx: ServingContext,
    request: GenerationRequest,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
) -> PrefixWatch | None:
    """Compare the prompt of a request that is about to be submitted; None where there is no prefix cache."""
    history = ctx.prompt_history
    if history is None:
        return None
    [prompt] = request.prompts
    size = ctx.engine.info.block_size
    found = history.compare(prompt, (request.client, request.cache_salt))
    place = None
    if found.differs:
        block = range(found.num_common * size, (found.num_common + 1) * size)
        find = partial(_find_place, ctx.engine.tokenizer, prompt, block, [*messages], [*tools])
        place = find() if block.stop <= _OFF_LOOP_TOKENS else await asyncio.to_thread(find)
    return PrefixWatch(history, found, len(prompt), size, place)


def _find_place(
    tokenizer: ServingTokenizer,
    prompt: Sequence[int],
    block: range,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
) -> Place:
    """Return the part of the request that a block of its prompt's tokens ends in."""
    before = tokenizer.decode(prompt[: block.stop], skip_special_tokens=False)
    after = tokenizer.decode(prompt[block.stop : block.stop + _LOOKAHEAD_TOKENS], skip_special_tokens=False)
    return place_at(before + after, len(before), messages, tools)


def entries(watch: PrefixWatch | None) -> Iterator[str]:
    """Give what `Server-Timing` says of the miss, if there is one."""
    if watch is not None and watch.miss is not None:
        yield watch.miss.to_header()
