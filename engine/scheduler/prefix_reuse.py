"""How requests begin with what others have computed, and how their prompts are cut into chunks.

Refuses to know who runs and what a step may hold.
"""

from collections.abc import Iterable, Sequence

from orcinus.engine.scheduler.block_manager import BlockManager, CachedPrefix
from orcinus.engine.scheduler.request import Request


class ComingHashes:
    """Tells which blocks are about to be there: `own` are those of a step that is planned, others are in flight."""

    def __init__(self, own: set[bytes], in_flight: Iterable[set[bytes]]) -> None:
        self.own = own
        self._others = set[bytes]().union(*in_flight)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self.own or block_hash in self._others

    def has_any(self, block_hashes: Sequence[bytes]) -> bool:
        return not (self.own.isdisjoint(block_hashes) and self._others.isdisjoint(block_hashes))

    def expect(self, block_hashes: Iterable[bytes]) -> None:
        """Add hashes of what is computed after this step, for those to know that are planned with it."""
        self._others.update(block_hashes)


class PrefixReuse:
    """Lets requests begin with cached blocks. What a model needs besides is for `snapshots.SnapshotReuse`."""

    def __init__(self, blocks: BlockManager, *, is_enabled: bool) -> None:
        self._blocks = blocks
        self._block_size = blocks.block_size
        self._is_enabled = is_enabled

    def is_for(self, request: Request) -> bool:
        """Return whether a request may begin with what others have computed."""
        return self._is_enabled and request.may_reuse_prefix

    def reusable_hashes(self, request: Request) -> list[bytes]:
        """Return the hashes of the full blocks before the last token: it is always computed, to be sampled from."""
        if not self.is_for(request):
            return []
        return request.block_hashes(self._block_size, (request.num_tokens - 1) // self._block_size)

    def find(self, request: Request) -> CachedPrefix:
        """Return the blocks that a waiting request can begin with."""
        return self._blocks.find_prefix(self.reusable_hashes(request))

    def begin(self, request: Request, num_blocks: int) -> None:
        """Note that a request has got blocks, of which so many are computed."""
        request.num_computed_tokens = num_blocks * self._block_size

    def announce(self, prompts: Sequence[Request], coming: ComingHashes) -> None:
        """Let `coming` have what these prompts are on the way to in later steps, if others should wait for that."""

    def chunk(self, request: Request, budget: int, coming: ComingHashes) -> int:
        """Return how many tokens of a prompt to compute now, within the budget; 0 lets it wait for others.

        Before its first chunk a request looks for its prefix once more: others may have computed it since it got
        its slot. If what it could go on with is `coming`, it waits for that. What it computes itself is added there.
        """
        hashes = self.reusable_hashes(request)
        if not request.is_known:
            start = self._extend(request, hashes, request.num_computed_tokens // self._block_size)
            request.num_computed_tokens = start * self._block_size
            if self._is_coming(hashes, start, coming):
                return 0
        start = request.num_computed_tokens // self._block_size
        num_tokens = self._cut(request, hashes, min(request.num_tokens_to_compute, budget))
        coming.own.update(hashes[start : (request.num_computed_tokens + num_tokens) // self._block_size])
        return num_tokens

    def book(self, request: Request, start: int, end: int) -> None:
        """Make the blocks findable that became full when tokens `start` to `end` were computed, which are known."""
        if not self._is_enabled:
            return
        last = end // self._block_size
        hashes = request.block_hashes(self._block_size, last)
        for index in range(start // self._block_size, last):
            self._blocks.register(request.request_id, index, hashes[index])

    def leave(self, request: Request) -> None:
        """Note that a request has given up its slot, or is about to."""

    def check_integrity(self, running: Sequence[Request]) -> None:
        """Raise `AssertionError` where the books do not balance."""

    def _extend(self, request: Request, hashes: Sequence[bytes], start: int) -> int:
        """Let a request that has computed nothing begin with more cached blocks; returns with how many."""
        return start + self._blocks.extend_prefix(request.request_id, hashes, start)

    def _is_coming(self, hashes: Sequence[bytes], start: int, coming: ComingHashes) -> bool:
        """Return whether others are computing what a request with `start` blocks could go on with."""
        return start < len(hashes) and hashes[start] in coming

    def _cut(self, request: Request, hashes: Sequence[bytes], num_tokens: int) -> int:
        """Return how many of its next tokens a request computes at once."""
        return num_tokens
