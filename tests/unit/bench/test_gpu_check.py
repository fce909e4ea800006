"""The GPU check: its arithmetic, and that what goes wrong on the way is on its page."""

from argparse import Namespace
from pathlib import Path

import msgspec
import pytest

from bench import gpu_check
from bench.gpu_check import Page, truth_tests
from bench.gpu_serving import Engine, pacing, roofline_ms, run, sampling, throughput
from orcinus.engine.messages import CacheGroup
from orcinus.engine.startup.build import build_executor
from tests.integration.tiny_models import build_model, engine_config
from tests.unit.server.process.test_summary import INFO

BANDWIDTH = 1e9
PER_LAYER_TOKEN = 100  # bytes


def test_a_model_without_windows_reads_all_tokens_of_each_sequence() -> None:
    info = msgspec.structs.replace(INFO, weight_bytes=0, num_kv_blocks=8, block_size=4, kv_cache_bytes=8 * 4 * 300)
    assert roofline_ms(info, 2, 10, BANDWIDTH) == pytest.approx(1000 * 2 * 10 * 300 / BANDWIDTH)


def test_a_layer_with_a_window_reads_the_window_alone() -> None:
    groups = [CacheGroup(num_blocks=8, num_layers=1), CacheGroup(num_blocks=2, num_layers=5, window=6)]
    num_bytes = 4 * (8 * 1 + 2 * 5) * PER_LAYER_TOKEN
    info = msgspec.structs.replace(
        INFO, weight_bytes=0, num_kv_blocks=8, block_size=4, kv_cache_bytes=num_bytes, cache_groups=groups
    )
    for context, num_seen in ((10, 10 + 5 * 6), (4, 6 * 4)):
        expected_s = 3 * num_seen * PER_LAYER_TOKEN / BANDWIDTH
        assert roofline_ms(info, 3, context, BANDWIDTH) == pytest.approx(1000 * expected_s)


def test_a_section_that_fails_says_how_and_leaves_the_others_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = Page()

    def fail() -> str:
        raise RuntimeError("no such kernel")

    page.add("First", fail)
    page.add("Second", lambda: "fine")
    assert page.has_failed
    assert "no such kernel" in page.sections[0]
    assert page.sections[1].startswith("## Second\n\nfine\n")
    assert "no such kernel" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "has_failed"),
    [("pass", False), ("assert False, 'wrong numbers'", True), ("import pytest; pytest.skip('no device')", True)],
    ids=["passed", "failed", "all skipped"],
)
def test_truth_tests_have_passed_only_if_some_ran(
    body: str, has_failed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "test_truth.py"
    file.write_text(f"def test_truth():\n    {body}\n")
    monkeypatch.setattr(gpu_check, "TRUTH_TESTS", [str(file)])
    page = Page()
    text = truth_tests(page, Namespace(device="cuda"))
    assert page.has_failed is has_failed
    assert text.endswith("NOT PASSED." if has_failed else "```\n\nPassed.")
    for reason in ("wrong numbers", "no device"):
        assert (reason in text) == (reason in body)


def test_runs_one_after_the_other_leave_the_runner_without_requests(tmp_path: Path) -> None:
    """Those of a core that is dropped would keep their rows, of which a GPU has as many as slots."""
    info, runner = build_executor(engine_config(build_model("llama", tmp_path), max_num_seqs=4, kv_cache_memory=2**22))
    engine = Engine(info, runner, bandwidth=1e9)
    for _ in range(2):
        got = run(engine, "same", 4, 5, 3, temperature=0)
        assert (got.num_tokens, got.errors, len(got.decode_steps_s) > 0) == (12, [], True)
        assert runner._requests == {}
    tables = [throughput(engine, [2], 5, 3), sampling(engine, [1, 4], 5, 3), pacing(engine, 3, [None])]
    assert [len(table.splitlines()) for table in tables] == [3, 7, 3]
    assert runner._requests == {}
