"""Whose prompts share computed prefixes: those of one key, or all, and never those that a salt sets apart."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import Serving, answer_of, serving

LONG = "the same beginning of a prompt " * 8


async def num_cached(served: Serving, key: str | None, path: str = "/v1/completions", **body: Any) -> int:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    asked = {"prompt": LONG, "max_tokens": 1, **body}
    answer = answer_of(await served.client.post(path, json=asked, headers=headers))
    cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


@pytest.mark.parametrize("scope", [None, "key", "all"])
async def test_keys_share_prefixes_only_where_they_are_told_to(tmp_path: Path, scope: str | None) -> None:
    settings: dict[str, Any] = {} if scope is None else {"prefix_cache_scope": scope}
    async with serving(tmp_path, FakeExecutor(says("Hi")), api_key=("a", "b"), **settings) as served:
        assert await num_cached(served, "a") == 0
        assert await num_cached(served, "a") > 100
        assert (await num_cached(served, "b") > 0) == (scope == "all")
        assert await num_cached(served, "b") > 100


@pytest.mark.parametrize("scope", ["key", "all"])
async def test_a_salt_sets_apart_within_the_scope(tmp_path: Path, scope: str) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hi")), api_key=("a", "b"), prefix_cache_scope=scope) as served:
        assert await num_cached(served, "a") == 0
        assert await num_cached(served, "a", cache_salt="s") == 0
        assert await num_cached(served, "a", cache_salt="s") > 100
        assert (await num_cached(served, "b", cache_salt="s") > 0) == (scope == "all")


async def test_without_keys_all_clients_are_one(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hi"))) as served:
        assert await num_cached(served, None) == 0
        assert await num_cached(served, None) > 100


async def test_no_salt_of_one_key_is_that_of_another(served: Serving) -> None:
    context = served.app.state.context
    assert context.cache_salt("a" * 16, "b") != context.cache_salt("b" * 16, "a")
    assert context.cache_salt("a" * 16, None) != context.cache_salt("a" * 16, "")
    assert context.cache_salt("", None) is None
