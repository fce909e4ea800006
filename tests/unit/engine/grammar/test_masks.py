"""Packed sets of tokens, and the thread that fills them: whoever takes too long is given up, and nobody else."""

import random
import threading
from collections.abc import Iterable
from concurrent.futures import Future, wait

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcinus.engine.grammar.masks import MaskFiller, empty_mask, pack_tokens, random_token, token_mask, tokens_in

WAIT_S = 30.0


class Matcher:
    """Fills its mask with token 1, once `may_run` is set."""

    def __init__(self, may_run: threading.Event | None = None, fault: BaseException | None = None) -> None:
        self.mask = empty_mask(40)
        self.error: str | None = None
        self.is_finished = False
        self.is_steered = False
        self.may_replace = True
        self.overrules = False
        self.forced: list[int] = []
        self.num_fills = 0
        self.is_waiting = False
        self._may_run = may_run
        self._fault = fault

    def fill_mask(self) -> None:
        self.num_fills += 1
        if self._may_run is not None:
            self.is_waiting = True
            assert self._may_run.wait(WAIT_S)
        if self._fault is not None:
            raise self._fault
        self.mask[:] = pack_tokens([1], 40)

    def replacement_for(self, token_id: int) -> int:
        raise AssertionError("nobody sampled")

    def accept(self, token_id: int) -> None:
        raise AssertionError("nobody sampled")

    def take_forced(self) -> None:
        self.forced = [5]

    def fail(self, reason: str) -> None:
        self.error = reason


@given(st.integers(1, 200).flatmap(lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size)))))
def test_a_packed_set_has_its_tokens_and_room_for_one_more_than_there_are(case: tuple[int, set[int]]) -> None:
    size, token_ids = case
    mask = pack_tokens(token_ids, size)
    assert set(tokens_in(mask).tolist()) == token_ids
    assert mask.shape == empty_mask(size).shape == ((size + 1 + 31) // 32,)
    assert mask.dtype == np.int32


@given(st.integers(1, 200).flatmap(lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size)))), st.integers())
def test_a_random_token_is_one_of_the_set_and_may_be_any(case: tuple[int, set[int]], seed: int) -> None:
    size, token_ids = case
    mask = pack_tokens(token_ids, size)
    chosen = random_token(mask, random.Random(seed))
    assert chosen == (random.Random(seed).choice(sorted(token_ids)) if token_ids else None)


def test_a_mask_of_one_token_has_that() -> None:
    size = 70
    for token_id in range(size + 1):
        assert tokens_in(token_mask(token_id, size)).tolist() == [token_id]


def test_other_work_is_done_by_the_same_thread() -> None:
    filler, matchers = MaskFiller(), [Matcher() for _ in range(3)]
    filler.start(matchers, lambda matcher: matcher.take_forced())
    filler.wait()
    assert [matcher.forced for matcher in matchers] == [[5]] * 3
    assert [matcher.num_fills for matcher in matchers] == [0] * 3


def test_masks_are_filled_while_something_else_is_done() -> None:
    filler, matchers = MaskFiller(), [Matcher() for _ in range(9)]
    filler.start(matchers)
    filler.wait()
    assert all(tokens_in(matcher.mask).tolist() == [1] for matcher in matchers)
    assert [matcher.error for matcher in matchers] == [None] * 9
    filler.start([])
    filler.wait()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> MaskFiller:
    """A filler whose time is over for a matcher that waits, and for no other however slow the machine is."""
    filler = MaskFiller(timeout_s=0.05)

    def wait_for(futures: Iterable[Future[None]], timeout_s: float) -> tuple[set[Future[None]], set[Future[None]]]:
        assert timeout_s == 0.05
        while True:
            done, others = wait(futures, 0.005)
            batch = filler._batch
            assert batch is not None
            current = batch.matchers[batch.position]
            assert isinstance(current, Matcher)
            if done or current.is_waiting:
                return done, others

    monkeypatch.setattr("orcinus.engine.grammar.masks.wait", wait_for)
    return filler


def test_a_mask_that_takes_too_long_fails_alone(impatient: MaskFiller) -> None:
    filler, may_run = impatient, threading.Event()
    slow, others = [Matcher(may_run) for _ in range(2)], [Matcher() for _ in range(3)]
    try:
        filler.start([others[0], slow[0], others[1], slow[1], others[2]])
        filler.wait()
        assert ["too complex" in (matcher.error or "") for matcher in slow] == [True] * 2
        assert [matcher.error for matcher in others] == [None] * 3
        assert all(tokens_in(matcher.mask).tolist() == [1] for matcher in others)
        filler.start(others)
        filler.wait()
        assert [matcher.error for matcher in others] == [None] * 3
    finally:
        may_run.set()


class Panic(BaseException):
    """As a library raises that is written in Rust."""


@pytest.mark.parametrize("fault", [ValueError("no"), Panic()], ids=["an error", "a panic"])
def test_a_mask_that_cannot_be_filled_fails_alone(fault: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    filler, broken, other = MaskFiller(), Matcher(fault=fault), Matcher()
    filler.start([broken, other])
    filler.wait()
    assert broken.error == f"the grammar cannot be followed: {type(fault).__name__}"
    assert other.num_fills == 1
    assert other.error is None
    assert "filling a mask failed" in caplog.text


def test_what_nobody_waited_for_is_forgotten() -> None:
    filler, may_run, other = MaskFiller(), threading.Event(), Matcher()
    stuck = Matcher(may_run)
    try:
        filler.start([stuck])
        filler.start([other])
        filler.wait()
        assert other.error is stuck.error is None
    finally:
        may_run.set()


def test_a_thread_that_was_given_up_leaves_the_other_masks_alone(impatient: MaskFiller) -> None:
    filler, may_run, other = impatient, threading.Event(), Matcher()
    filler.start([Matcher(may_run), other])
    batch = filler._batch
    assert batch is not None
    filler.wait()
    may_run.set()
    batch.future.result(WAIT_S)
    assert other.num_fills == 1
