"""What the first grammar needs is loaded before it comes, where that is worth its memory, and only once."""

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from orcinus.config.settings import load_settings
from orcinus.engine.core import EngineCore
from orcinus.engine.frontend.text_frontend import TextFrontend
from orcinus.engine.startup import build
from tests.unit.engine.fakes import FakeExecutor, fake_info
from tests.unit.engine.frontend.test_async_engine import until
from tests.unit.engine.grammar.grammars import DEMO_ENDS, DEMO_MODEL, DEMO_VOCAB_SIZE

GIB = 1 << 30


@pytest.mark.parametrize(
    ("setting", "vocab_size", "memory", "has_head", "expected"),
    [
        (None, 152_000, 4 * GIB, True, True),
        (None, 32_768, 4 * GIB, True, False),
        (None, 152_000, GIB - 1, True, False),
        (None, 152_000, 4 * GIB, False, False),
        (False, 152_000, 4 * GIB, True, False),
        (True, 300, 0, True, True),
        (True, 152_000, 4 * GIB, False, False),
    ],
)
def test_it_is_the_default_for_large_vocabularies_where_memory_is_left(
    setting: bool | None,
    vocab_size: int,
    memory: int,
    has_head: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "available_memory", lambda: memory)
    served = SimpleNamespace(model=SimpleNamespace(vocab_size=vocab_size, has_head=has_head))
    config = load_settings(warm_grammars=setting).engine_config()
    assert build._warms_grammars(config, cast("Any", served)) is expected


@pytest.mark.parametrize("is_wanted", [False, True])
def test_the_executor_is_asked_once_and_only_where_it_is_wanted(is_wanted: bool) -> None:
    class Counting(FakeExecutor):
        num_calls = 0

        def warm_up(self) -> None:
            self.num_calls += 1

    executor = Counting()
    core = EngineCore(msgspec.structs.replace(fake_info(), warms_grammars=is_wanted), executor)
    core.warm_up()
    core.warm_up()
    assert executor.num_calls == is_wanted


async def test_a_process_for_grammars_is_there_shortly_after_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orcinus.engine.frontend.text_frontend._WARM_UP_AFTER_S", 0.0)
    frontend = TextFrontend(load_settings(model=str(DEMO_MODEL)).engine_config(), None)
    info = msgspec.structs.replace(fake_info(), vocab_size=DEMO_VOCAB_SIZE, eos_token_ids=[*DEMO_ENDS])
    frontend.warm_up(info)
    try:
        await until(lambda: frontend._grammar_gate is not None and not frontend._grammar_gate._idle.empty())
    finally:
        await frontend.aclose()
