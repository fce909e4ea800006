"""`orcinus` with an engine process that some requests end or hold up: those that ask for certain seeds.

`python -m tests.integration.mortal_server serve ...` starts it; the engine process is this module, too.
"""

import os
import signal
import sys
import time
from collections.abc import Callable

from config.engine_config import EngineConfig
from engine import engine_process
from engine.core import Executor
from engine.messages import EngineInfo, StepPlan, StepResult
from engine.transport import ProcessTransport
from server import cli

FATAL_SEED = 666
HANGING_SEED = 667


def build_mortal_executor(config: EngineConfig) -> tuple[EngineInfo, Executor]:
    info, executor = _build_executor(config)
    launch = executor.launch

    def launch_or_die(plan: StepPlan) -> Callable[[], StepResult]:
        seeds = {new.sampling.seed for new in plan.new_requests}
        if FATAL_SEED in seeds:
            os.kill(os.getpid(), signal.SIGSEGV)
        if HANGING_SEED in seeds:
            time.sleep(1000)
        return launch(plan)

    executor.launch = launch_or_die  # type: ignore[method-assign]
    return info, executor


_build_executor = engine_process._build_executor


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        ProcessTransport.module = "tests.integration.mortal_server"
        sys.exit(cli.main())
    engine_process._build_executor = build_mortal_executor
    engine_process.main()
