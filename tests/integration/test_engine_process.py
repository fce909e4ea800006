"""The real engine process with the demo model: it answers, survives what it should, and ends when it must."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from orcinus.config.settings import Settings, load_settings
from orcinus.engine.errors import EngineKilledError, EngineUnavailableError, ModelLoadError
from orcinus.engine.frontend.async_engine import AsyncEngine
from orcinus.engine.frontend.replica import EngineSpec
from orcinus.engine.outputs import GenerationRequest, RequestOutput
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.supervision.transport import ProcessTransport
from tests.server_process import is_alive, until

REPOSITORY = Path(__file__).parents[2]


def settings_for(**settings: object) -> Settings:
    return load_settings(
        device="cpu", max_num_seqs=4, kv_cache_memory="32MiB", max_queue_len=8, max_engine_restarts=0, **settings
    )


@asynccontextmanager
async def running_engine(settings: Settings) -> AsyncIterator[tuple[AsyncEngine, ProcessTransport]]:
    transport = ProcessTransport()
    engine = AsyncEngine(settings, engines=[EngineSpec(settings.engine_config(), lambda: transport)])
    engine.start()
    run = asyncio.create_task(engine.run())
    try:
        yield engine, transport
    finally:
        await engine.aclose()
        await run


def request(engine: AsyncEngine, *, max_tokens: int = 8, n: int = 1) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=max_tokens, n=n, temperature=0, ignore_eos=True)
    return GenerationRequest(request_id="test", prompts=[engine.tokenizer.encode("Hello")], sampling=sampling)


async def read(stream: AsyncIterator[RequestOutput]) -> list[int]:
    return [token_id async for output in stream for token_id in output.token_ids]


def pid_of(transport: ProcessTransport) -> int:
    assert transport.pid is not None
    return transport.pid


async def test_engine_process_answers_ignores_ctrl_c_and_ends_with_its_server(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with running_engine(settings_for()) as (engine, transport):
        info = await engine.wait_ready()
        assert info.max_num_seqs == 4
        once = await read(engine.submit(request(engine)))
        process = psutil.Process(pid_of(transport))
        os.kill(process.pid, signal.SIGINT)
        assert await read(engine.submit(request(engine))) == once
        assert len(once) == 8
    assert not process.is_running()
    assert capfd.readouterr().out == ""


async def test_killed_engine_is_noticed_and_named() -> None:
    async with running_engine(settings_for()) as (engine, transport):
        await engine.wait_ready()
        stream = engine.submit(request(engine, max_tokens=1500))
        await anext(stream)
        os.kill(pid_of(transport), signal.SIGKILL)
        with pytest.raises(EngineUnavailableError, match="killed by SIGKILL"):
            await read(stream)
        assert engine.state == "dead"
        with pytest.raises(EngineUnavailableError, match="SIGKILL"):
            engine.submit(request(engine))


@pytest.mark.parametrize(
    ("number", "name", "is_from_outside"),
    [
        (signal.SIGKILL, "SIGKILL", True),
        (signal.SIGRTMIN + 3, f"signal {signal.SIGRTMIN + 3}", True),
        (signal.SIGSEGV, "SIGSEGV", False),
        (signal.SIGABRT, "SIGABRT", False),
    ],
)
async def test_a_signal_tells_whether_an_engine_ended_by_its_own_fault(
    number: int, name: str, is_from_outside: bool
) -> None:
    transport = ProcessTransport()
    transport.start(settings_for().engine_config())
    os.kill(pid_of(transport), number)
    with pytest.raises(EngineUnavailableError, match=f"killed by {name}$") as ended:
        await transport.receive()
    assert isinstance(ended.value, EngineKilledError) == is_from_outside
    await transport.aclose()


@pytest.mark.slow
async def test_engine_that_dies_while_loading_is_reported_to_who_waits() -> None:
    async with running_engine(settings_for()) as (engine, transport):
        os.kill(pid_of(transport), signal.SIGKILL)
        with pytest.raises(EngineUnavailableError, match="SIGKILL"):
            await engine.wait_ready()


@pytest.mark.slow
async def test_missing_model_is_reported_as_such(tmp_path: Path) -> None:
    async with running_engine(settings_for(model=str(tmp_path))) as (engine, _):
        with pytest.raises(ModelLoadError, match=str(tmp_path)):
            await engine.wait_ready()


SERVER = """
import asyncio, sys
from orcinus.config.settings import Settings, load_settings
from orcinus.engine.supervision.transport import ProcessTransport

async def main():
    transport = ProcessTransport()
    transport.start(load_settings(device="cpu", max_num_seqs=4, kv_cache_memory="32MiB").engine_config())
    print(transport.pid, flush=True)
    await transport.receive()
    print("ready", flush=True)
    while True:
        await transport.receive()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["loading", "ready"])
def test_engine_ends_when_its_server_is_killed(moment: str) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    with server:
        assert server.stdout is not None
        engine = psutil.Process(int(server.stdout.readline()))
        if moment == "ready":
            assert server.stdout.readline() == "ready\n"
        server.kill()
        until(lambda: not is_alive(engine), "the engine went on")
