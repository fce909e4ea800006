"""Which prefixes one engine has probably cached: an approximation, kept by the front end, that bounds its own memory.

Knows what was sent to the engine and not what it dropped. A wrong answer costs time, never a token: the engine looks
for itself. Prefixes of different scopes (a request's salt and adapter) have nothing in common, as in its cache.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

_MOST_BLOCKS = 2**16  # an engine's: some 10 MB
_MOST_BLOCKS_OF_PROMPT = 1024  # what follows does not decide where a prompt goes

Scope = tuple[str | None, str | None]
"""`AddRequest.scope`."""


class PrefixIndex:
    """Hashes of the blocks that an engine was given last: as many as it can hold, at most 65,536 of them."""

    def __init__(self, block_size: int, num_blocks: int) -> None:
        """Begin empty. `block_size` is the engine's, in tokens; with `num_blocks` of 0 nothing is ever found."""
        self._block_size = block_size
        self._most = min(num_blocks, _MOST_BLOCKS)
        self._known: OrderedDict[int, None] = OrderedDict()  # the one used longest ago first

    def __len__(self) -> int:
        return len(self._known)

    def add(self, token_ids: Sequence[int], scope: Scope) -> None:
        """Note that the engine computes these tokens."""
        if self._most:
            # From the end, so that of what was used at once the beginning is forgotten last.
            for block in reversed([*self._blocks(token_ids, scope)]):
                self._known[block] = None
                self._known.move_to_end(block)
            while len(self._known) > self._most:
                self._known.popitem(last=False)

    def num_cached(self, token_ids: Sequence[int], scope: Scope) -> int:
        """Return how many of the first tokens are probably cached: whole blocks."""
        num_blocks = 0
        if self._known:
            for block in self._blocks(token_ids, scope):
                if block not in self._known:
                    break
                num_blocks += 1
        return num_blocks * self._block_size

    def clear(self) -> None:
        """Forget everything, as an engine does that ends."""
        self._known.clear()

    def _blocks(self, token_ids: Sequence[int], scope: Scope) -> Iterator[int]:
        """Yield a hash of all tokens up to the end of each whole block."""
        size = self._block_size
        block = hash(scope)
        for end in range(size, min(len(token_ids), size * _MOST_BLOCKS_OF_PROMPT) + 1, size):
            block = hash((block, array("I", token_ids[end - size : end]).tobytes()))
            yield block
