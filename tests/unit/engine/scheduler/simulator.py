"""An executor without a model: it keeps a KV cache of hashes, and finds every wrong block, position or token.

The "key and value" of a token is a hash of all tokens up to it. Writing and reading go through the block tables
that the plans give, so a block that is shared wrongly, reused too early or left unwritten shows at once. The token
sampled is a function of that hash alone: a request gives the same tokens whatever shares its batch. As it knows what
comes next, it can propose drafts that are right, or wrong where it wants, and say what a grammar would force. Where it
keeps a state for each request, that is the same hash, which has to be there whenever a chunk goes on.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bench.simulation.traffic import VirtualClock
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import (
    AddRequest,
    CacheGroup,
    EngineInfo,
    Fault,
    NewRequest,
    Proposal,
    ScheduledRequest,
    StepOutputs,
    StepPlan,
    StepResult,
)
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.scheduler.cache_groups import Concurrency, window_demand
from tests.unit.engine.fakes import Synchronous

VOCAB_SIZE = 50
EOS = 0


class PlanViolation(BaseException):
    """The plan is one that no executor could run correctly."""


@dataclass
class _State:
    token_ids: list[int]
    sampling: SamplingParams
    block_tables: list[list[int]]
    num_computed: int | None = None
    recurrent: int = 0  # the state beside keys and values: a hash of all tokens computed
    behind_drafts: int = 0  # which takes its place if they are accepted
    drafts: list[int] = field(default_factory=list)  # proposed after the tokens so far


def extend(prefix_hash: int, token_id: int) -> int:
    return hash((prefix_hash, token_id))


def sample(prefix_hash: int) -> int:
    return prefix_hash % VOCAB_SIZE


class Drafts:
    """Proposes up to `longest` tokens: what will come, with mistakes, mostly; counts what became of them.

    Now and then a step with drafts comes to nothing, as where a draft makes a model's output useless.
    """

    def __init__(self, rng: random.Random, longest: int = 7) -> None:
        self._rng = rng
        self._longest = longest
        self.num_accepted = self.num_rejected = self.num_spoiled_steps = 0

    def propose(self, prefix_hash: int) -> list[int]:
        drafts = []
        for _ in range(self._rng.randrange(self._longest + 1)):
            is_mistake = self._rng.random() < 0.15
            drafts.append(self._rng.randrange(VOCAB_SIZE) if is_mistake else sample(prefix_hash))
            prefix_hash = extend(prefix_hash, sample(prefix_hash))
        return drafts

    def spoil_step(self) -> bool:
        is_spoiled = self._rng.random() < 0.05
        self.num_spoiled_steps += is_spoiled
        return is_spoiled

    def count(self, num_drafts: int, num_accepted: int) -> None:
        self.num_accepted += num_accepted
        self.num_rejected += num_drafts - num_accepted


class Forcing:
    """Lets requests with a grammar have up to `longest` tokens beyond each that is sampled; counts them."""

    def __init__(self, rng: random.Random, longest: int = 20) -> None:
        self._rng = rng
        self._longest = longest
        self.num_tokens = 0

    def count(self) -> int:
        """Return how many come now."""
        return self._rng.randrange(self._longest + 1)

    def extend(self, token_ids: list[int]) -> list[int]:
        """Return what comes after these tokens, which the request has."""
        prefix_hash = 0
        for token_id in token_ids:
            prefix_hash = extend(prefix_hash, token_id)
        forced: list[int] = []
        for _ in range(self.count()):
            forced.append(sample(prefix_hash))
            prefix_hash = extend(prefix_hash, forced[-1])
        self.num_tokens += len(forced)
        return forced


class Always(Forcing):
    """Forces so many tokens after each that is sampled."""

    def __init__(self, count: int) -> None:
        super().__init__(random.Random(), count)

    def count(self) -> int:
        return self._longest


class Simulator(Synchronous):
    """`EngineCore`'s executor. Raises `PlanViolation` on any plan that a real one could not run correctly.

    One that `runs_ahead` is a device that computes at once, and tells of it when asked. `fault` may raise, in the
    middle of a step; want of memory is a `MemoryError`. With `drafts` it proposes them to every request that samples,
    also to those that must not try any.
    """

    def __init__(
        self,
        info: EngineInfo,
        clock: VirtualClock,
        *,
        runs_ahead: bool = False,
        drafts: Drafts | None = None,
        forcing: Forcing | None = None,
    ) -> None:
        self.forcing = forcing
        self.info = info
        self.clock = clock
        self.runs_ahead = runs_ahead
        self.drafts = drafts
        self.fault: Callable[[StepPlan], None] = lambda plan: None
        self.has_failed = False
        self._failure: RuntimeError | MemoryError | None = None
        self.plans: list[StepPlan] = []
        self._states: dict[str, _State] = {}
        self._groups = info.cache_groups or [CacheGroup(info.num_kv_blocks, num_layers=1)]
        self._kv: list[dict[int, int]] = [{} for _ in self._groups]
        self._snapshots: list[int | None] = [None] * info.num_state_snapshots
        self.num_loads = self.num_saves = 0

    def prepare(self, sampling: SamplingParams) -> None:
        """Everything is at hand."""

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        """After a failure that has not been told of yet, nothing works."""
        if self._failure is not None:
            return self._raise
        try:
            result = self._execute(plan)
        except (AssertionError, KeyError, IndexError) as error:
            raise PlanViolation(plan) from error
        except (RuntimeError, MemoryError) as error:
            self.has_failed = True
            self._failure = error
            return self._raise
        return lambda: result

    def diagnose(self, error: Exception) -> Fault:
        return "memory" if isinstance(error, MemoryError) else "request"

    def _raise(self) -> StepResult:
        error, self._failure = self._failure, None
        assert error is not None
        raise error

    def _execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        self.clock.now += 0.01
        for request_id in plan.released:
            known = self._states.pop(request_id, None)
            assert known is not None or self.has_failed, "released and not known"
        for new in plan.new_requests:
            self._meet(new)
        ids = [scheduled.request_id for scheduled in plan.scheduled]
        assert len(set(ids)) == len(ids), "a request is scheduled twice"
        assert 0 < plan.num_tokens <= self.info.max_num_batched_tokens
        assert len(self._states) <= self.info.max_num_seqs
        for scheduled in plan.scheduled:
            self._load(scheduled)
        for scheduled in plan.scheduled:
            self._write(scheduled)
        self.fault(plan)
        saves = [scheduled for scheduled in plan.scheduled if scheduled.save_state >= 0]
        assert len({scheduled.save_state for scheduled in saves}) == len(saves), "two states in one snapshot"
        for scheduled in saves:
            self._snapshots[scheduled.save_state] = self._states[scheduled.request_id].recurrent
        self.num_saves += len(saves)
        sampled = {item.request_id: self._sample(item) for item in plan.scheduled if item.num_samples}
        for request_id, token_ids in sampled.items():
            token_ids.extend(self._force(self._states[request_id]))
        return StepResult(sampled_token_ids=sampled, drafts=self._propose(sampled))

    def _meet(self, new: NewRequest) -> None:
        assert new.request_id not in self._states, "introduced twice"
        self._states[new.request_id] = _State(list(new.token_ids), new.sampling, [[] for _ in self._groups])

    def _load(self, scheduled: ScheduledRequest) -> None:
        state = self._states[scheduled.request_id]
        if scheduled.load_state >= 0:
            snapshot = self._snapshots[scheduled.load_state]
            assert state.num_computed is None, "a state that goes on is replaced"
            assert snapshot is not None, "there is nothing in the snapshot"
            state.recurrent = snapshot
            self.num_loads += 1
        elif self.info.state_bytes:
            assert state.num_computed is not None or scheduled.num_computed_tokens == 0, "no state to go on with"

    def _slot(self, state: _State, position: int, group: int = 0) -> int:
        block = state.block_tables[group][position // self.info.block_size]
        assert block < self._groups[group].num_blocks
        return block * self.info.block_size + position % self.info.block_size

    def _write(self, scheduled: ScheduledRequest) -> None:
        state, drafts = self._states[scheduled.request_id], [*scheduled.draft_token_ids]
        assert len(scheduled.new_block_ids) in (0, len(self._groups))
        for table, block_ids in zip(state.block_tables, scheduled.new_block_ids, strict=False):
            table.extend(block_ids)
        start, end = scheduled.num_computed_tokens, scheduled.end
        assert state.num_computed in (None, start), "a position is skipped or computed twice"
        assert end <= len(state.token_ids) + len(drafts)
        if scheduled.num_samples:
            assert end == len(state.token_ids) + len(drafts), "sampled in the middle of a prompt"
        assert scheduled.num_samples in (0, 1 + len(drafts))
        num_known = scheduled.num_tokens - len(drafts)
        assert not drafts or num_known == 1 or self.info.state_bytes, "drafts behind a prompt"
        assert drafts == state.drafts[: len(drafts)], "drafts that nobody proposed, or of another moment"
        assert not (drafts and state.sampling.looks_back)
        token_ids = state.token_ids + drafts
        self._attend(state, start - 1, seen_by=start)
        prefix_hash = self._kv[0][self._slot(state, start - 1)] if start else 0
        assert not self.info.state_bytes or state.recurrent == prefix_hash, "the state is that of other tokens"
        for position in range(start, end):
            prefix_hash = extend(prefix_hash, token_ids[position])
            for group, kv in enumerate(self._kv):
                kv[self._slot(state, position, group)] = prefix_hash
            if position == scheduled.known_end - 1:
                state.recurrent = prefix_hash
        state.num_computed, state.behind_drafts = end, prefix_hash

    def _sample(self, scheduled: ScheduledRequest) -> list[int]:
        """Sample after the last token and each draft, and keep what stands; nothing does in a step that is spoiled."""
        state, drafts = self._states[scheduled.request_id], [*scheduled.draft_token_ids]
        if drafts and self.drafts is not None and self.drafts.spoil_step():
            state.num_computed = scheduled.num_computed_tokens
            state.drafts = []
            return []
        sampled: list[int] = []
        for draft in [*drafts, None]:
            sampled.append(self._read(state))
            state.token_ids.append(sampled[-1])
            if sampled[-1] != draft:
                break
        state.num_computed = scheduled.end - scheduled.num_samples + len(sampled)
        if len(sampled) == scheduled.num_samples:
            state.recurrent = state.behind_drafts
        elif self.info.state_bytes:
            state.num_computed = scheduled.known_end
        if self.drafts is not None:
            self.drafts.count(len(drafts), len(sampled) - 1)
        return sampled

    def _force(self, state: _State) -> list[int]:
        if self.forcing is None or state.sampling.grammar is None:
            return []
        forced = self.forcing.extend(state.token_ids)
        state.token_ids += forced
        return forced

    def _read(self, state: _State) -> int:
        """Attend to what the last token sees: each position must hold what this request's own tokens put there."""
        last = len(state.token_ids) - 1
        return sample(self._attend(state, last, seen_by=last))

    def _propose(self, sampled: dict[str, list[int]]) -> dict[str, Proposal]:
        proposed = {}
        for request_id, token_ids in sampled.items():
            if self.drafts is not None and token_ids:
                state = self._states[request_id]
                prefix_hash = 0
                for token_id in state.token_ids:
                    prefix_hash = extend(prefix_hash, token_id)
                state.drafts = self.drafts.propose(prefix_hash)
                if state.drafts:
                    proposed[request_id] = Proposal(state.drafts, "long match")
        return proposed

    def _attend(self, state: _State, last: int, seen_by: int) -> int:
        """Read all keys up to one that the token at a position sees: each is where this request's own tokens put it.

        Returns the last one.
        """
        prefix_hash = 0
        for position, token_id in enumerate(state.token_ids[: last + 1]):
            prefix_hash = extend(prefix_hash, token_id)
            for number, group in enumerate(self._groups):
                if group.window is None or position > seen_by - group.window:
                    found = self._kv[number].get(self._slot(state, position, number))
                    assert found == prefix_hash, f"foreign KV at position {position}, group {number}"
        return prefix_hash


def reference(prompt: list[int], sampling: SamplingParams, max_model_len: int) -> list[int]:
    """The tokens of a request that runs alone."""
    prefix_hash = 0
    for token_id in prompt:
        prefix_hash = extend(prefix_hash, token_id)
    output: list[int] = []
    limit = min(sampling.max_tokens or max_model_len, max_model_len - len(prompt))
    while len(output) < limit:
        output.append(sample(prefix_hash))
        prefix_hash = extend(prefix_hash, output[-1])
        if output[-1] == EOS and not sampling.ignore_eos and len(output) >= sampling.min_tokens:
            break
    return output


def engine_info(**changes: object) -> EngineInfo:
    """A small engine: 4 slots, 16 tokens a step, 32 blocks of 4 tokens, unless told otherwise.

    `windows` are those of groups beside the one that keeps everything, with as few blocks as there may be.
    """
    windows: Any = changes.pop("windows", ())
    fields: dict[str, object] = {
        "model": "simulated",
        "architecture": "Simulated",
        "num_parameters": 0,
        "weight_bytes": 0,
        "dtype": "none",
        "device": "cpu",
        "device_name": "none",
        "attention_backend": "none",
        "vocab_size": VOCAB_SIZE,
        "eos_token_ids": [EOS],
        "max_model_len": 64,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "num_kv_blocks": 32,
        "block_size": 4,
        "kv_cache_bytes": 0,
        "enable_prefix_caching": True,
        "batching": "continuous",
        "load_time_s": 0.0,
    }
    info = EngineInfo(**(fields | changes))  # type: ignore[arg-type]
    if not windows:
        return info
    at_once = Concurrency(info.max_num_seqs, 2 * info.max_num_batched_tokens, info.block_size)
    groups = [
        CacheGroup(min(info.num_kv_blocks, window_demand(window, at_once)), num_layers=1, window=window)
        for window in windows
    ]
    return msgspec.structs.replace(info, cache_groups=[CacheGroup(info.num_kv_blocks, num_layers=1), *groups])


class SimulatedEngine:
    """An `EngineCore` on a `Simulator` and a virtual clock, with what each request has got so far."""

    def __init__(
        self,
        *,
        runs_ahead: bool = False,
        drafts: Drafts | None = None,
        forcing: Forcing | None = None,
        **changes: object,
    ) -> None:
        self.clock = VirtualClock()
        self.info = engine_info(**changes)
        self.executor = Simulator(self.info, self.clock, runs_ahead=runs_ahead, drafts=drafts, forcing=forcing)
        self.core = EngineCore(self.info, self.executor, batch_wait_ms=50, clock=self.clock)
        self.tokens: dict[str, list[int]] = {}
        self.finish_reasons: dict[str, str] = {}
        self.cached_tokens: dict[str, int] = {}

    def add(self, request_id: str, prompt: list[int], **fields: object) -> None:
        sampling_names = set(SamplingParams.__struct_fields__)
        sampling = {name: value for name, value in fields.items() if name in sampling_names}
        rest = {name: value for name, value in fields.items() if name not in sampling_names}
        self.tokens[request_id] = []
        self.core.add_request(
            AddRequest(
                request_id=request_id,
                prompt_token_ids=prompt,
                sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
                arrival_time=self.clock.now,
                **rest,  # type: ignore[arg-type]
            )
        )

    def step(self) -> StepOutputs:
        outputs = self.core.step()
        self.core.scheduler.check_integrity()
        for delta in outputs.deltas:
            assert delta.request_id not in self.finish_reasons, "news of a finished request"
            self.tokens[delta.request_id] += delta.token_ids
            if delta.num_cached_tokens is not None:
                self.cached_tokens[delta.request_id] = delta.num_cached_tokens
            if delta.finish_reason is not None:
                self.finish_reasons[delta.request_id] = delta.finish_reason
        return outputs

    def run(self, max_steps: int = 10_000) -> None:
        """Step until all work is done; time passes where the core asks to be woken later."""
        for _ in range(max_steps):
            if not self.core.has_work:
                return
            self.clock.now += self.core.wait_time_s() or 0.0
            self.step()
        raise AssertionError(f"not done after {max_steps} steps")
