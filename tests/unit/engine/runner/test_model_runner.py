"""What a plan becomes before the model runs, and what its tokens become afterwards; the model is a stand-in."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import Mock

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from orcinus.engine.attention.interface import AttentionMetadata
from orcinus.engine.attention.step_context import StepContext, current_step
from orcinus.engine.messages import NewRequest, Proposal, ScheduledRequest, StepPlan
from orcinus.engine.platform.device import CpuMonitor
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling.sampler import Sampler
from orcinus.engine.sampling_params import SamplingParams, Thinking
from tests.unit.engine.test_sampling_params import FOLLOWING_TOKENS, INDEPENDENT_OF_TOKENS, WITH_NO_TEXT

CPU = torch.device("cpu")
VOCAB_SIZE = 100
BLOCK = 4


class CountingModel:
    """Says the number after the last token, and notes what it was asked."""

    vocab_size = VOCAB_SIZE

    def __init__(self) -> None:
        self.steps: list[tuple[list[int], list[int]]] = []
        self.contexts: list[StepContext] = []

    @property
    def metas(self) -> list[AttentionMetadata]:
        return [context.metadata[0] for context in self.contexts]

    def hidden_states(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        assert token_ids.dtype == positions.dtype == torch.int64
        self.contexts.append(current_step())
        self.steps.append((token_ids.tolist(), positions.tolist()))
        hidden = token_ids.unsqueeze(1).float()
        return hidden.where(hidden != TOXIN, torch.nan)

    def logits(self, hidden: Tensor) -> Tensor:
        following = (hidden[:, 0].long() + 1) % VOCAB_SIZE
        logits = torch.nn.functional.one_hot(following, VOCAB_SIZE).float()
        logits[following == POISON] = torch.nan
        return logits


POISON = 50  # a token whose logits are none
TOXIN = 77  # a token that makes nothing finite


class NotedAttention:
    def __init__(self, *, reads_foreign_rows: bool) -> None:
        self.reads_foreign_rows = reads_foreign_rows
        self.scrubbed: list[tuple[int, list[int]]] = []

    def scrub(self, block_ids: Tensor, group: int) -> None:
        self.scrubbed.append((group, block_ids.tolist()))


class Bench:
    def __init__(
        self,
        make_compiler: Callable[[], Any] = lambda: pytest.fail("no grammar here"),
        num_groups: int = 1,
        *,
        reads_foreign_rows: bool = True,
    ) -> None:
        self.model, self.attention = CountingModel(), NotedAttention(reads_foreign_rows=reads_foreign_rows)
        self.runner = ModelRunner(
            self.model,  # type: ignore[arg-type]
            self.attention,  # type: ignore[arg-type]
            Sampler([1]),
            block_size=BLOCK,
            device=CPU,
            device_monitor=CpuMonitor(),
            make_compiler=make_compiler,
            max_num_seqs=4,
            num_cache_groups=num_groups,
        )

    @property
    def slots(self) -> list[list[int]]:
        """The state slots of each step, in the order of its sequences."""
        return [context.state_slots.tolist() for context in self.model.contexts if context.state_slots is not None]

    def step(
        self,
        *scheduled: ScheduledRequest,
        new: list[NewRequest] | None = None,
        released: list[str] | None = None,
        wants_drafts: bool = True,
    ) -> dict[str, list[int]]:
        plan = StepPlan(list(scheduled), new or [], released or [], wants_drafts)
        self.result = self.runner.execute(plan)
        return self.result.sampled_token_ids


def new(name: str, token_ids: list[int], adapter: str | None = None, **params: object) -> NewRequest:
    return NewRequest(
        request_id=name,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        sampling=SamplingParams(temperature=0, **params),  # type: ignore[arg-type]
        adapter=adapter,
    )


def drafted(name: str, first: int, drafts: list[int], blocks: list[int] | None = None) -> ScheduledRequest:
    return ScheduledRequest(
        request_id=name,
        num_computed_tokens=first,
        num_tokens=1 + len(drafts),
        new_block_ids=[blocks] if blocks else [],
        num_samples=1 + len(drafts),
        draft_token_ids=tuple(drafts),
    )


def share(name: str, first: int, count: int, blocks: list[int] | None = None, num_samples: int = 1) -> ScheduledRequest:
    return ScheduledRequest(
        request_id=name,
        num_computed_tokens=first,
        num_tokens=count,
        new_block_ids=[blocks] if blocks else [],
        num_samples=num_samples,
    )


def test_single_tokens_run_before_chunks_whatever_the_order_of_the_plan() -> None:
    bench = Bench()
    requests = [new("a", [10, 11, 12, 13, 14, 15]), new("b", [20])]
    assert bench.step(share("a", 0, 5, [3, 4], num_samples=0), share("b", 0, 1, [7]), new=requests) == {"b": [21]}
    assert bench.model.steps == [([20, 10, 11, 12, 13, 14], [0, 0, 1, 2, 3, 4])]
    meta = bench.model.metas[0]
    assert (meta.query_start, meta.seq_lens, meta.num_decodes) == ([0, 1, 6], [1, 5], 1)
    assert meta.slots.tolist() == [28, 12, 13, 14, 15, 16]
    assert meta.block_tables.tolist() == [[7, 0], [3, 4]]
    assert bench.step(share("b", 1, 1), share("a", 5, 1)) == {"b": [22], "a": [16]}
    assert bench.model.steps[1] == ([21, 15], [1, 5])
    assert bench.model.metas[1].slots.tolist() == [29, 17]


def test_a_request_that_comes_back_goes_on_with_the_tokens_and_blocks_it_brings() -> None:
    bench = Bench()
    bench.step(share("a", 0, 2, [0, 1]), share("b", 0, 1, [2]), new=[new("a", [5, 6]), new("b", [30])])
    bench.step(share("b", 1, 1), released=["a"])
    tokens = bench.step(share("b", 2, 1), share("a", 0, 3, [9]), new=[new("a", [5, 6, 7])])
    assert tokens == {"b": [33], "a": [8]}
    assert bench.model.steps[-1] == ([32, 5, 6, 7], [2, 0, 1, 2])
    assert bench.model.metas[-1].block_tables.tolist() == [[2], [9]]


def test_a_running_request_keeps_its_state_slot_until_it_is_released() -> None:
    bench = Bench()
    bench.step(share("a", 0, 2, [0]), share("b", 0, 1, [1]), new=[new("a", [5, 6]), new("b", [30])])
    bench.step(share("a", 2, 1), share("b", 1, 1))
    bench.step(share("b", 2, 1), share("c", 0, 2, [2]), released=["a"], new=[new("c", [10, 11])])
    (b, a), (a_again, b_again), (b_still, c) = bench.slots
    assert (a_again, b_again, b_still) == (a, b, b)
    assert c == a != b
    assert {a, b} <= set(range(4))


def test_each_token_has_the_row_of_its_requests_adapter() -> None:
    bench = Bench()
    bench.runner.adapters |= {"french": 1, "legal": 2}
    bench.step(
        share("a", 0, 2, [0]),
        share("b", 0, 1, [1]),
        share("c", 0, 3, [2]),
        new=[new("a", [5, 6], adapter="legal"), new("b", [30]), new("c", [1, 2, 3], adapter="french")],
    )
    bench.step(share("b", 1, 1), share("c", 3, 1))
    bench.step(share("b", 2, 1))
    rows = [context.adapter_rows for context in bench.model.contexts]
    assert [None if row is None else row.tolist() for row in rows] == [[0, 2, 2, 1, 1, 1], [0, 1], None]


def test_ahead_a_step_takes_the_tokens_it_lacks_from_the_device() -> None:
    bench = Bench()
    bench.runner.runs_ahead = True
    both = [new("a", [5, 6]), new("b", [30])]
    plans = [
        StepPlan(scheduled=[share("a", 0, 2, [0, 1]), share("b", 0, 1, [2])], new_requests=both),
        StepPlan(scheduled=[share("b", 1, 1), share("a", 2, 1)]),
    ]
    first, second = [bench.runner.launch(plan) for plan in plans]
    assert bench.model.steps[1] == ([31, 7], [1, 2])
    assert first().sampled_token_ids == {"b": [31], "a": [7]}
    third = bench.runner.launch(StepPlan(scheduled=[share("a", 3, 1)], released=["b"]))
    assert second().sampled_token_ids == {"b": [32], "a": [8]}  # of b nobody wants to know
    assert third().sampled_token_ids == {"a": [9]}


def test_ahead_the_row_of_a_request_that_ended_is_reused_before_its_last_step_is_known() -> None:
    bench = Bench()
    bench.runner.runs_ahead = True
    bench.step(share("a", 0, 1, [0]), new=[new("a", [5])])
    surplus = bench.runner.launch(StepPlan(scheduled=[share("a", 1, 1)]))
    after = bench.runner.launch(
        StepPlan(scheduled=[share("c", 0, 2, [1])], new_requests=[new("c", [20, 21])], released=["a"])
    )
    surplus()
    assert after().sampled_token_ids == {"c": [22]}
    assert bench.step(share("c", 2, 1)) == {"c": [23]}
    assert bench.model.steps[-1] == ([22], [2])


def test_a_single_token_of_a_prompt_that_is_not_its_last_is_the_right_one() -> None:
    bench = Bench()
    assert bench.step(share("a", 0, 1, [0], num_samples=0), new=[new("a", [5, 6, 7])]) == {}
    assert bench.step(share("a", 1, 2)) == {"a": [8]}
    assert bench.model.steps == [([5], [0]), ([6, 7], [1, 2])]


def test_many_requests_each_continue_their_own_text() -> None:
    """More than the arrays have room for at first, in another order in each step, for longer than they have room."""
    bench, count = Bench(), 70
    rng = np.random.default_rng(0)
    requests = [new(f"r{i}", [i % 7] * 200) for i in range(count)]
    width = 75
    for i, request in enumerate(requests):
        blocks = [*range(i * width, (i + 1) * width)]
        bench.step(share(request.request_id, 0, 200, blocks), new=[request])
    for step in range(80):
        order = rng.permutation(count)
        tokens = bench.step(*(share(f"r{i}", 200 + step, 1) for i in order if i % 7 + step + 2 < POISON))
        assert all(tokens[f"r{i}"] == [i % 7 + step + 2] for i in order if f"r{i}" in tokens)
        assert list(tokens) == [f"r{i}" for i in order if f"r{i}" in tokens]
        if not tokens:
            break
    slots = bench.model.metas[70].slots.tolist()
    assert len(set(slots)) == count


def test_a_broken_row_fails_alone_and_its_blocks_are_scrubbed_for_the_next() -> None:
    bench = Bench()
    tokens = bench.step(share("a", 0, 1, [3]), share("b", 0, 1, [5]), new=[new("a", [POISON - 1]), new("b", [7])])
    assert tokens == {"b": [8]}
    assert bench.result.errors == {"a": "the model's logits are not finite"}
    bench.step(share("b", 1, 1), released=["a"])
    assert bench.attention.scrubbed == []
    bench.step(share("c", 0, 1, [3]), new=[new("c", [1])], released=["b"])
    assert bench.attention.scrubbed == [(0, [3])]
    bench.step(share("d", 0, 1, [5]), new=[new("d", [1])])
    assert bench.attention.scrubbed == [(0, [3])]


def share_of_groups(name: str, first: int, count: int, *blocks: list[int], num_samples: int = 1) -> ScheduledRequest:
    shared = share(name, first, count, num_samples=num_samples)
    return msgspec.structs.replace(shared, new_block_ids=[*blocks])


def test_each_group_of_layers_has_slots_and_a_block_table_of_its_own() -> None:
    bench = Bench(num_groups=2)
    bench.step(share_of_groups("a", 0, 5, [3, 4, 6], [7, 1], num_samples=0), new=[new("a", [*range(10, 19)])])
    bench.step(share_of_groups("a", 5, 4, [], [7]))
    bench.step(share("a", 9, 1))
    for metas in [context.metadata for context in bench.model.contexts]:
        assert [meta.group for meta in metas] == [0, 1]
        assert metas[0].seq_lens == metas[1].seq_lens
    tables = [[meta.block_tables.tolist() for meta in context.metadata] for context in bench.model.contexts]
    assert tables == [[[[3, 4]], [[7, 1]]], [[[3, 4, 6]], [[7, 1, 7]]], [[[3, 4, 6]], [[7, 1, 7]]]]
    slots = [[meta.slots.tolist() for meta in context.metadata] for context in bench.model.contexts]
    assert slots == [
        [[12, 13, 14, 15, 16], [28, 29, 30, 31, 4]],
        [[17, 18, 19, 24], [5, 6, 7, 28]],
        [[25], [29]],
    ]


def test_a_prompt_that_is_left_before_it_has_sampled_leaves_no_work_to_others() -> None:
    """Of each chunk it is known whether it was finite, and so of one that wants no tokens."""
    bench = Bench()
    unwanted = new("b", [7] * 6, max_tokens=0)
    bench.step(share("a", 0, 4, [1, 2], num_samples=0), share("b", 0, 6, [3, 4]), new=[new("a", [7] * 9), unwanted])
    bench.step(share("c", 0, 5, [4, 2]), new=[new("c", [7] * 5)], released=["a", "b"])
    assert bench.attention.scrubbed == []


def test_a_chunk_that_is_not_finite_is_found_although_it_does_not_sample_and_its_end_is_finite() -> None:
    bench = Bench()
    bench.step(
        share("a", 0, 4, [1, 2], num_samples=0),
        share("b", 0, 1, [3]),
        new=[new("a", [7, TOXIN, 7, 7, 7]), new("b", [7])],
    )
    bench.step(share("c", 0, 5, [1, 3]), new=[new("c", [7] * 5)], released=["a", "b"])
    assert bench.attention.scrubbed == [(0, [1])]
    bench.step(share("d", 0, 1, [2]), new=[new("d", [7])])
    assert bench.attention.scrubbed == [(0, [1]), (0, [2])]


def test_what_was_in_a_step_that_failed_is_suspected_and_nothing_else() -> None:
    bench = Bench()
    bench.step(share("a", 0, 1, [1]), share("b", 0, 1, [2]), new=[new("a", [7]), new("b", [7])])
    sound, bench.model.logits = bench.model.logits, Mock(side_effect=RuntimeError)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        bench.step(share("a", 1, 1))
    bench.model.logits = sound  # type: ignore[method-assign]
    bench.step(share("c", 0, 5, [1, 2]), new=[new("c", [7] * 5)], released=["a", "b"])
    assert bench.attention.scrubbed == [(0, [1])]


def test_a_step_ahead_that_fails_is_not_vouched_for_by_the_one_before_it() -> None:
    bench = Bench()
    bench.runner.runs_ahead = True
    first = bench.runner.launch(StepPlan(scheduled=[share("a", 0, 1, [1])], new_requests=[new("a", [7])]))
    bench.runner.launch(StepPlan(scheduled=[share("a", 1, 1)]))  # of which nothing is heard
    first()
    bench.step(share("b", 0, 1, [1]), new=[new("b", [7])], released=["a"])
    assert bench.attention.scrubbed == [(0, [1])]


def test_where_foreign_rows_are_not_read_nothing_is_scrubbed() -> None:
    bench = Bench(num_groups=2, reads_foreign_rows=False)
    bench.step(share_of_groups("a", 0, 1, [3], [5]), new=[new("a", [POISON - 1])])
    bench.step(share_of_groups("b", 0, 3, [6], [7]), new=[new("b", [3, 4, TOXIN])], released=["a"])
    bench.step(share_of_groups("c", 0, 5, [3, 6, 8], [5, 7, 9]), new=[new("c", [7] * 5)], released=["b"])
    assert bench.step(drafted("c", 5, [9, POISON - 1, 9])) == {"c": [9, 10]}
    assert bench.attention.scrubbed == []


def test_a_block_that_left_the_window_of_a_broken_prompt_is_scrubbed_for_the_next() -> None:
    """The prompt has yet to come to its end and fail. One that is well leaves blocks as they are."""
    bench = Bench(num_groups=2)
    prompts = [new("a", [7, TOXIN, *[7] * 7]), new("x", [7] * 9)]
    bench.step(
        share_of_groups("a", 0, 4, [1], [5], num_samples=0),
        share_of_groups("x", 0, 4, [9], [8], num_samples=0),
        new=prompts,
    )
    bench.step(
        share_of_groups("a", 4, 4, [2], [6], num_samples=0), share_of_groups("x", 4, 4, [10], [9], num_samples=0)
    )
    bench.step(share_of_groups("b", 0, 5, [3, 11], [5, 8]), new=[new("b", [7] * 5)])
    assert bench.attention.scrubbed == [(1, [5])]


def test_blocks_of_a_broken_request_are_scrubbed_in_the_group_that_they_are_of() -> None:
    bench = Bench(num_groups=2)
    bench.step(share_of_groups("a", 0, 1, [3], [5]), new=[new("a", [POISON - 1])])
    bench.step(share_of_groups("b", 0, 1, [5], [3]), new=[new("b", [7])], released=["a"])
    assert bench.attention.scrubbed == []
    bench.step(share_of_groups("c", 0, 1, [3], [5]), new=[new("c", [7])])
    assert bench.attention.scrubbed == [(0, [3]), (1, [5])]


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in turn", "ahead"])
def test_drafts_bring_as_many_tokens_as_are_right_and_one_more(runs_ahead: bool) -> None:
    bench = Bench()
    bench.runner.runs_ahead = runs_ahead
    prompts = [share("a", 0, 2, [0, 1]), share("b", 0, 1, [2]), share("c", 0, 3, [3], num_samples=0)]
    bench.step(*prompts, new=[new("a", [4, 5]), new("b", [30]), new("c", [60, 61, 62, 63, 64])])
    tokens = bench.step(
        drafted("a", 2, [7, 8, 90, 10]),
        share("b", 1, 1),
        share("c", 3, 2, [4]),
        drafted("d", 0, [41, 42], [5]),
        new=[new("d", [40])],
    )
    assert tokens == {"b": [32], "a": [7, 8, 9], "c": [65], "d": [41, 42, 43]}
    assert bench.model.steps[-1] == ([31, 6, 7, 8, 90, 10, 63, 64, 40, 41, 42], [1, 2, 3, 4, 5, 6, 3, 4, 0, 1, 2])
    meta = bench.model.metas[-1]
    assert (meta.query_start, meta.seq_lens, meta.num_decodes) == ([0, 1, 6, 8, 11], [2, 7, 5, 3], 1)
    assert bench.step(share("a", 5, 1), share("d", 3, 1)) == {"a": [10], "d": [44]}
    assert bench.model.steps[-1] == ([9, 43], [5, 3])


def test_each_accepted_token_has_its_logprobs() -> None:
    bench = Bench()
    bench.step(share("a", 0, 1, [0]), share("b", 0, 1, [1]), new=[new("a", [5], logprobs=1), new("b", [5])])
    bench.step(drafted("a", 1, [7, 90]), drafted("b", 1, [7]))
    assert {name: [entry.token_id for entry in own] for name, own in bench.result.logprobs.items()} == {"a": [7, 8]}


def test_a_wrong_draft_that_is_not_finite_is_scrubbed_and_breaks_nothing() -> None:
    bench = Bench()
    bench.step(share("a", 0, 3, [6, 7]), new=[new("a", [3, 4, 5])])
    assert bench.step(drafted("a", 3, [7, POISON - 1, 9, 10])) == {"a": [7, 8]}
    assert bench.result.errors == {}
    assert bench.attention.scrubbed == [(0, [7])]
    bench.step(share("a", 5, 1), released=[])
    bench.step(share("b", 0, 1, [6]), new=[new("b", [1])], released=["a"])
    assert bench.attention.scrubbed == [(0, [7])], "the request is as sound as any"


def test_a_request_that_breaks_behind_right_drafts_gets_its_tokens_first_and_fails_in_the_next_step() -> None:
    bench = Bench()
    bench.step(share("a", 0, 1, [0]), new=[new("a", [POISON - 4])])
    assert bench.step(drafted("a", 1, [POISON - 2, POISON - 1])) == {"a": [POISON - 2, POISON - 1]}
    assert bench.result.errors == {}
    assert bench.step(share("a", 3, 1)) == {}
    assert bench.result.errors == {"a": "the model's logits are not finite"}


def test_drafts_that_break_a_whole_step_leave_it_to_be_run_again_without_them() -> None:
    bench = Bench()
    bench.step(share("a", 0, 1, [0]), share("b", 0, 1, [1]), new=[new("a", [5]), new("b", [20])])
    sound = bench.model.logits
    bench.model.logits = lambda hidden: sound(hidden).index_fill(0, torch.tensor([0, 1]), torch.nan)  # type: ignore[method-assign]
    assert bench.step(drafted("a", 1, [7])) == {"a": []}
    assert bench.result.errors == {}
    assert bench.attention.scrubbed == [(0, [0])]
    bench.model.logits = sound  # type: ignore[method-assign]
    assert bench.step(share("a", 1, 1), share("b", 1, 1)) == {"a": [7], "b": [22]}


class NotingDrafter:
    """Proposes 9 and 9 after everything, and notes what it was told."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.told: list[dict[str, list[int]]] = []
        self.released: list[str] = []

    def begin(self, new: NewRequest) -> None:
        self.begun.append(new.request_id)

    def take_in(self, grown: Mapping[str, Sequence[int]]) -> None:
        self.told.append({name: [*token_ids] for name, token_ids in grown.items()})

    def release(self, request_id: str) -> None:
        self.released.append(request_id)

    def propose(self, request_ids: Sequence[str]) -> dict[str, Proposal]:
        return {name: Proposal([9, 9], "long match") for name in request_ids}


def test_the_drafter_is_asked_about_the_texts_that_have_just_grown_and_follow_no_tokens() -> None:
    bench, drafter = Bench(), NotingDrafter()
    bench.runner.drafter = drafter
    requests = [new("a", [5]), new("b", [20], presence_penalty=0.5), new("c", [30, 31]), new("d", [POISON - 1])]
    prompts = [
        share("a", 0, 1, [0]),
        share("b", 0, 1, [1]),
        share("c", 0, 1, [2], num_samples=0),
        share("d", 0, 1, [3]),
    ]
    bench.step(*prompts, new=requests)
    assert bench.result.drafts.keys() == {"a"}
    bench.step(drafted("a", 1, [7, 9]), share("c", 1, 1), released=["d"])
    assert bench.result.drafts == {"a": Proposal([9, 9], "long match"), "c": Proposal([9, 9], "long match")}
    bench.step(share("b", 1, 1))
    assert bench.result.drafts == {}
    assert drafter.begun == ["a", "c", "d"]
    assert drafter.told == [{"a": [6]}, {"c": [32], "a": [7, 8]}, {}]
    assert drafter.released == ["d"]


def test_a_drafter_that_is_not_asked_learns_of_tokens_when_it_is_or_when_their_request_ends() -> None:
    bench, drafter = Bench(), NotingDrafter()
    bench.runner.drafter = drafter
    bench.step(share("a", 0, 1, [0]), share("b", 0, 1, [1]), new=[new("a", [5]), new("b", [20])], wants_drafts=False)
    bench.step(share("a", 1, 1), share("b", 1, 1), wants_drafts=False)
    assert bench.result.drafts == {}
    assert drafter.told == []
    bench.step(share("a", 2, 1), released=["b"])
    assert drafter.told == [{"b": [21, 22]}, {"a": [6, 7, 8]}]


@pytest.mark.parametrize("name", [*INDEPENDENT_OF_TOKENS, *FOLLOWING_TOKENS])
def test_a_row_remembers_tokens_exactly_where_its_request_looks_back_at_them(name: str) -> None:
    values = {**WITH_NO_TEXT.get(name, {})}
    values[name] = (INDEPENDENT_OF_TOKENS | FOLLOWING_TOKENS)[name]
    runner = Bench(make_compiler=Mock).runner
    request = NewRequest(
        request_id="a",
        token_ids=[5, 6],
        num_prompt_tokens=1,
        sampling=SamplingParams(**values),  # type: ignore[arg-type]
        prepared=Mock(),
    )
    row = runner._row(request)
    remembers = [state is not None for state in (row.counts, row.bad_words, row.matcher)]
    assert any(remembers) == row.keeps_tokens == request.sampling.looks_back


THOUGHT = Thinking(end=(90,), budget=3, forced=(10, 90, 11))


def test_a_thought_is_ended_at_its_budget_without_a_grammar_or_a_compiler() -> None:
    bench = Bench()
    bench.step(share("a", 0, 1, [0]), share("b", 0, 1, [1]), new=[new("a", [5], thinking=THOUGHT), new("b", [5])])
    taken = [bench.result.sampled_token_ids]
    for position in range(1, 8):
        blocks = [[2 * position], [2 * position + 1]] if position % BLOCK == 0 else [None, None]
        taken.append(bench.step(share("a", position, 1, blocks[0]), share("b", position, 1, blocks[1])))
    assert [step["a"] for step in taken] == [[6], [7], [8], [10], [90], [11], [12], [13]]
    assert [step["b"] for step in taken] == [[6], [7], [8], [9], [10], [11], [12], [13]]
    assert (bench.result.finished, bench.result.steered, bench.result.errors) == ([], [], {})


def test_a_thought_goes_on_to_its_budget_after_a_preemption() -> None:
    bench = Bench()
    again = msgspec.structs.replace(new("a", [5, 6, 7, 8, 10], thinking=THOUGHT), num_prompt_tokens=1)
    assert bench.step(share("a", 0, 5, [0, 1]), new=[again]) == {"a": [90]}
    assert bench.step(share("a", 5, 1)) == {"a": [11]}


def test_penalties_see_the_tokens_that_were_chosen() -> None:
    bench = Bench()
    bench.step(share("a", 0, 1, [0]), new=[new("a", [5], presence_penalty=2.0)])
    counts = bench.runner._requests["a"].row.counts
    assert counts is not None
    assert (counts.token_ids.tolist(), counts.counts.tolist()) == ([6], [1])


def serve(bench: Bench, count: int, *, runs_ahead: bool, **params: Any) -> list[int]:
    """Generate tokens of a request that comes back after a preemption, beside two others, in turn or a step ahead.

    One of the others ends in between, and its row is reused for a request with the same parameters.
    """
    bench.runner.runs_ahead = runs_ahead
    others = [new("b", [20, 21], **params), new("c", [30])]
    first = StepPlan(
        scheduled=[share("a", 0, 2, [0, 1, 2]), share("b", 0, 2, [3, 4, 5]), share("c", 0, 1, [6, 7, 8])],
        new_requests=[new("a", [5, 6], **params), *others],
    )
    tokens, launched = [], bench.runner.launch(first)
    for step in range(1, count):
        plan = StepPlan(scheduled=[share("a", 1 + step, 1), share("c", step, 1)])
        if step == 3:
            plan.released.append("b")
            plan.new_requests.append(new("d", [6, 7], **params))
            plan.scheduled.append(share("d", 0, 2, [9, 10, 11]))
        if step > 3:
            plan.scheduled.append(share("d", step - 2, 1))
        if runs_ahead:
            following = bench.runner.launch(plan)
            tokens.append(launched().sampled_token_ids)
        else:
            tokens.append(launched().sampled_token_ids)
            following = bench.runner.launch(plan)
        launched = following
    tokens.append(launched().sampled_token_ids)
    own = [step["a"][0] for step in tokens]
    again = NewRequest(
        request_id="a", token_ids=[5, 6, *own], num_prompt_tokens=2, sampling=new("a", [1], **params).sampling
    )
    plan = StepPlan(scheduled=[share("a", 0, 2 + count, [12, 13, 14])], new_requests=[again], released=["a", "c", "d"])
    own += bench.runner.execute(plan).sampled_token_ids["a"]
    return own + [step["d"][0] for step in tokens if "d" in step]


# The model gives 1 to the number after the last token and 0 to the others. Biases make penalties decide.
@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [7, 8, 9, 10, 11, 12, 13]),
        ({"presence_penalty": 1.0, "logit_bias": {6: 1.8, 7: 1.6}}, [7, 6, 7, 8, 9, 10, 11]),
        ({"frequency_penalty": 0.5, "logit_bias": {6: 1.8, 7: 1.6}}, [7, 6, 7, 6, 7, 8, 9]),
        ({"repetition_penalty": 3.0, "presence_penalty": 0.8}, [7, 8, 9, 10, 11, 12, 13]),
        ({"bad_words_token_ids": ((9,),)}, [7, 8, 0, 1, 2, 3, 4]),
        ({"bad_words_token_ids": ((7, 8), (1, 2, 3))}, [7, 0, 1, 2, 0, 1, 2]),
        ({"bad_words_token_ids": ((7, 8), (6, 8), (8, 9, 10)), "logit_bias": {6: 0.5}}, [7, 6, 7, 6, 7, 6, 7]),
    ],
    ids=str,
)
def test_ahead_penalties_and_bad_words_see_the_tokens_that_only_the_device_knows(
    params: dict[str, Any], expected: list[int]
) -> None:
    in_turn = serve(Bench(), 6, runs_ahead=False, **params)
    assert in_turn[:7] == expected
    assert serve(Bench(), 6, runs_ahead=True, **params) == in_turn


CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`")


def test_a_step_that_failed_on_a_device_which_no_longer_answers_is_no_requests_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first to notice a fault in a kernel may be any library, with an error that looks like any other."""
    runner, emptied = Bench().runner, Mock()
    assert runner.diagnose(CUBLAS) == "request"
    monkeypatch.setattr(runner, "_device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "empty_cache", emptied)
    monkeypatch.setattr(torch.cuda, "synchronize", Mock())
    assert runner.diagnose(CUBLAS) == "request"
    emptied.assert_not_called()
    assert runner.diagnose(torch.OutOfMemoryError()) == "memory"
    emptied.assert_called_once()
    monkeypatch.setattr(torch.cuda, "synchronize", Mock(side_effect=torch.AcceleratorError("illegal memory access")))
    assert runner.diagnose(CUBLAS) == runner.diagnose(torch.OutOfMemoryError()) == "engine"
    emptied.assert_called_once()
