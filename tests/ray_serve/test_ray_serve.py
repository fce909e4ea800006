"""Orcinus on a real Ray cluster of this machine: what deploy/ray promises.

The cluster runs in an environment of its own, which `make ray` builds; the servers in it are those of this one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RAY_PYTHON = ROOT / ".venv-ray" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # on a machine that is busy
    pytest.mark.skipif(not RAY_PYTHON.is_file(), reason="Ray is not installed, run: make ray"),
]


def run_with_ray(module: str, home: Path, *arguments: str) -> dict[str, Any]:
    """Return the JSON in the last line that a module prints which runs in Ray's environment."""
    environment = {
        "PATH": os.defpath,
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "deploy" / "ray")]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",  # 10 otherwise
    }
    done = subprocess.run(
        [str(RAY_PYTHON), "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_with_ray("tests.ray_serve.rules", tmp_path_factory.mktemp("home"))


def test_calls_go_to_the_least_loaded_unless_another_has_their_prefix_and_is_not_loaded_too_much(
    rules: dict[str, Any],
) -> None:
    assert rules["least load"] == [1, 0, 2]
    assert rules["prefix"] == [1, 0]
    assert rules["loaded too much"] == [0, 1]
    assert rules["part of it"] == [[1, 0], [0, 1]]
    assert rules["other scope"] == [0, 1]
    assert rules["bounded"] == 50


def test_replicas_are_wanted_for_all_that_runs_and_waits(rules: dict[str, Any]) -> None:
    assert rules["wanted"] == [1, 2, 3, 2, 0, 1, 2]


def test_what_begins_alike_is_told_by_the_body(rules: dict[str, Any]) -> None:
    assert rules["prefixes"] == [['["a"]', "s"], ["[[2], [1]]", ""], ["", ""], ["", ""]]


def test_a_stream_is_passed_on_in_whole_events_and_ends_with_an_error_where_its_replica_is_lost(
    rules: dict[str, Any],
) -> None:
    assert "".join(rules["whole events"]) == "data: 1\n\ndata: 2\n\ndata: 3\n\n"
    first, error, done = "".join(rules["cut off"]).removesuffix("\n\n").split("\n\n")
    assert (first, done) == ("data: 1", "data: [DONE]")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_unavailable"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests.ray_serve.cluster saw."""
    return run_with_ray("tests.ray_serve.cluster", tmp_path_factory.mktemp("home"), f"{sys.executable} -m orcinus")


def test_the_api_is_orcinuss_own_through_ray(found: dict[str, Any]) -> None:
    assert [model["id"] for model in found["models"]["data"]] == ["orcinus-demo"]
    assert found["refused"]["error"]["type"] == "invalid_request_error"


def test_a_conversation_stays_where_its_prefix_is_cached(found: dict[str, Any]) -> None:
    for turns in found["conversations"]:
        assert {turn["status"] for turn in turns} == {200}
        assert len({turn["replica"] for turn in turns}) == 1
        assert all(turn["num_cached"] > 0 for turn in turns[1:])
    assert len({turns[0]["replica"] for turns in found["conversations"]}) == 2, "one replica had all of them"


def test_a_client_that_leaves_frees_its_slot(found: dict[str, Any]) -> None:
    assert found["num_aborted"] == 1


def test_of_a_replica_that_is_killed_nothing_is_lost_but_what_was_in_flight_on_it(found: dict[str, Any]) -> None:
    answers, after = found["killed"]["answers"], found["killed"]["after"]
    lost = [answer for answer in answers if answer["error"] is not None]
    kept = [answer for answer in answers if answer["error"] is None]
    assert lost
    assert kept
    assert len({answer["replica"] for answer in lost}) == 1
    assert {answer["replica"] for answer in lost}.isdisjoint({answer["replica"] for answer in kept})
    for answer, undisturbed in zip(answers, after, strict=True):
        assert undisturbed["error"] is None
        assert answer["is_done"]
        if answer["error"] is None:
            assert answer["text"] == undisturbed["text"]
        else:
            assert answer["error"]["code"] == "engine_unavailable"
            assert undisturbed["text"].startswith(answer["text"])


def test_while_it_is_replaced_the_other_one_answers(found: dict[str, Any]) -> None:
    assert [answer["status"] for answer in found["killed"]["meanwhile"]] == [200] * 10


def test_a_queue_adds_a_replica_and_its_end_takes_it_away(found: dict[str, Any]) -> None:
    assert found["scaled"]["answers"] == [[True, None]] * 10


def test_nothing_is_left_behind(found: dict[str, Any]) -> None:
    assert found["left"] == 0
