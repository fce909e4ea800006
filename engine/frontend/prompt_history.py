"""Which prompts came last, as hashes of their blocks: what tells where a new prompt stops being like an earlier one.

Prompts of different scopes (a client and its salt) are never compared. Neither texts nor tokens are kept, but for those
that fill no block yet. Knows nothing of what an engine has cached, and nothing of texts.
"""

import struct
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

_MOST_BLOCKS = 2**20  # of all prompts: 8 MiB
_MOST_PROMPTS = 1024
_MOST_OF_SCOPE = 64
_HASH_BYTES = 8


@dataclass(slots=True)
class SeenPrompt:
    """Holds the hashes of a prompt's full blocks, one after another, and the tokens behind the last of them."""

    scope: Hashable
    hashes: bytes
    rest: list[int] = field(default_factory=list)

    @property
    def num_blocks(self) -> int:
        return len(self.hashes) // _HASH_BYTES


@dataclass(frozen=True, slots=True)
class Comparison:
    """Says how much a prompt has in common with the earlier one that is most like it.

    `num_common` counts blocks from the start. With `differs` the earlier one has another block after them; without, one
    of the two ends there. With `is_first` there is no earlier one.
    """

    prompt: SeenPrompt
    num_common: int
    differs: bool
    is_first: bool
    extended: SeenPrompt | None = None  # the earlier one, if all of it is in this one


class PromptHistory:
    """Keeps the prompts that came last, with the answers to them. The oldest is forgotten first."""

    def __init__(self, block_size: int, *, most_blocks: int = _MOST_BLOCKS, most_prompts: int = _MOST_PROMPTS) -> None:
        """Begin empty. `block_size` is the engine's, in tokens. Of one scope, 64 prompts are kept at most."""
        self._block_size = block_size
        self._most_blocks = most_blocks
        self._most_prompts = most_prompts
        self._prompts: OrderedDict[int, SeenPrompt] = OrderedDict()  # by identity
        self._of_scope: dict[Hashable, OrderedDict[int, SeenPrompt]] = {}
        self._num_blocks = 0

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def num_blocks(self) -> int:
        """The blocks of all prompts that are kept."""
        return self._num_blocks

    def compare(self, token_ids: Sequence[int], scope: Hashable) -> Comparison:
        """Return what a prompt has in common with those of its scope. Takes about a millisecond for 100,000 tokens."""
        prompt = SeenPrompt(scope, *self._split(token_ids))
        closest: SeenPrompt | None = None
        num_common = 0
        for earlier in reversed(self._of_scope.get(scope, OrderedDict[int, SeenPrompt]()).values()):
            if closest is None or _has_same_block(earlier.hashes, prompt.hashes, num_common):
                closest, num_common = earlier, _num_common(earlier.hashes, prompt.hashes)
        if closest is None:
            return Comparison(prompt, 0, differs=False, is_first=True)
        differs = num_common < min(closest.num_blocks, prompt.num_blocks)
        is_extended = num_common == closest.num_blocks
        return Comparison(
            prompt, num_common, differs=differs, is_first=False, extended=closest if is_extended else None
        )

    def add(self, comparison: Comparison) -> None:
        """Keep a compared prompt, in place of the earlier one that it goes on from."""
        if comparison.extended is not None:
            self._forget(comparison.extended)
        prompt = comparison.prompt
        self._prompts[id(prompt)] = prompt
        of_scope = self._of_scope.setdefault(prompt.scope, OrderedDict())
        of_scope[id(prompt)] = prompt
        self._num_blocks += prompt.num_blocks
        if len(of_scope) > _MOST_OF_SCOPE:
            self._forget(next(iter(of_scope.values())))
        self._shrink()

    def extend(self, prompt: SeenPrompt, token_ids: Sequence[int]) -> None:
        """Add what was computed after a prompt that was added: of an answer all but the last token."""
        if id(prompt) not in self._prompts:
            return
        hashes, prompt.rest = self._split([*prompt.rest, *token_ids])
        prompt.hashes += hashes
        self._num_blocks += len(hashes) // _HASH_BYTES
        self._shrink()

    def _split(self, token_ids: Sequence[int]) -> tuple[bytes, list[int]]:
        """Return a hash of each full block, and the tokens after the last one."""
        size = self._block_size
        hashes = [*map(hash, zip(*[iter(token_ids)] * size, strict=False))]
        return struct.pack(f"{len(hashes)}q", *hashes), [*token_ids[len(hashes) * size :]]

    def _forget(self, prompt: SeenPrompt) -> None:
        if self._prompts.pop(id(prompt), None) is None:
            return
        self._num_blocks -= prompt.num_blocks
        of_scope = self._of_scope[prompt.scope]
        del of_scope[id(prompt)]
        if not of_scope:
            del self._of_scope[prompt.scope]

    def _shrink(self) -> None:
        while self._prompts and (len(self._prompts) > self._most_prompts or self._num_blocks > self._most_blocks):
            self._forget(next(iter(self._prompts.values())))


def _has_same_block(one: bytes, other: bytes, index: int) -> bool:
    """Return whether both have this block, and the same."""
    start = index * _HASH_BYTES
    block = one[start : start + _HASH_BYTES]
    return block != b"" and block == other[start : start + _HASH_BYTES]


def _num_common(one: bytes, other: bytes) -> int:
    """Return how many blocks are the same from the start, by halving."""
    low, high = 0, min(len(one), len(other)) // _HASH_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        start, end = low * _HASH_BYTES, middle * _HASH_BYTES
        low, high = (middle, high) if one[start:end] == other[start:end] else (low, middle - 1)
    return low
