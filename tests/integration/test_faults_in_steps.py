"""A real server whose steps fail over one request: that one ends with an error, and nobody else sees anything of it.

In float32, so that how a batch is made up does not show.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.effort import slow_but_for
from tests.integration.faulty_server import HUNGRY_SEED, NAN_SEED, RAISING_SEED
from tests.server_process import PATIENCE_S, ServerProcess, until

NUM_OTHERS = 7
OTHERS: list[dict[str, Any]] = [
    {"prompt": f"Number {i} of", "seed": i, "temperature": i % 2 * 0.8, "max_tokens": 40, "ignore_eos": True}
    for i in range(NUM_OTHERS)
]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    server = ServerProcess("--dtype", "float32", "--max-num-seqs", "8", module="tests.integration.faulty_server")
    yield server
    server.close()


def complete(server: ServerProcess, body: dict[str, Any]) -> httpx.Response:
    return server.http.post("/v1/completions", json=body, timeout=PATIENCE_S)


def text(response: httpx.Response) -> str:
    response.raise_for_status()
    answer: str = response.json()["choices"][0]["text"]
    return answer


@pytest.fixture(scope="module")
def undisturbed(server: ServerProcess) -> list[str]:
    return [text(complete(server, body)) for body in OTHERS]


def beside_the_others(server: ServerProcess, body: dict[str, Any]) -> tuple[httpx.Response, list[str]]:
    with ThreadPoolExecutor(NUM_OTHERS + 1) as pool:
        others = [pool.submit(complete, server, other) for other in OTHERS]
        return complete(server, body), [text(other.result()) for other in others]


@pytest.mark.parametrize(
    "seed",
    slow_but_for([RAISING_SEED, NAN_SEED], RAISING_SEED),
    ids=["an exception", "logits that are not finite"],
)
def test_a_request_that_breaks_steps_ends_alone_with_a_500(
    seed: int, server: ServerProcess, undisturbed: list[str]
) -> None:
    response, others = beside_the_others(server, {**OTHERS[0], "seed": seed})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "0x" not in response.text
    assert others == undisturbed
    assert server.metric("orcinus_engine_restarts_total") == 0
    assert server.metric('orcinus_requests_total{outcome="error"}') >= 1


@pytest.mark.slow
def test_a_stream_whose_request_breaks_steps_ends_with_an_error_event_and_done(server: ServerProcess) -> None:
    body = {**OTHERS[0], "seed": RAISING_SEED, "stream": True}
    events = [line for line in complete(server, body).text.splitlines() if line.startswith("data: ")]
    assert len(events) > 3  # what came before the fault
    assert '"error"' in events[-2]
    assert events[-1] == "data: [DONE]"


@pytest.mark.slow
def test_a_step_that_does_not_fit_into_memory_is_run_in_parts(server: ServerProcess, undisturbed: list[str]) -> None:
    response, others = beside_the_others(server, {**OTHERS[0], "seed": HUNGRY_SEED})
    assert text(response) == undisturbed[0]  # greedy, so that the seed does not show
    assert others == undisturbed
    assert server.metric("orcinus_engine_restarts_total") == 0


def test_nothing_is_kept_of_what_failed(server: ServerProcess) -> None:
    until(lambda: server.metric("orcinus_slots_in_use") == 0 or None, "slots are free")
    assert server.metric("orcinus_kv_blocks_in_use") == 0
    assert server.metric("orcinus_queue_depth") == 0
