"""`orcinus` with the demo model and a gate before what its steps bring (`step_gate`).

`python -m tests.integration.gated_server serve ...` starts it; the engine process is this module, too.
"""

import sys
from collections.abc import Callable

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.core import Executor
from orcinus.engine.messages import EngineInfo, StepPlan, StepResult
from orcinus.engine.supervision import engine_process
from orcinus.engine.supervision.transport import ProcessTransport
from orcinus.server import cli
from tests.integration.light_server import set_constants
from tests.integration.step_gate import wait_at_gate
from tests.server_process import GATED


def build_gated_executor(config: EngineConfig) -> tuple[EngineInfo, Executor]:
    info, executor = _build_executor(config)
    launch = executor.launch

    def launch_at_gate(plan: StepPlan) -> Callable[[], StepResult]:
        result = launch(plan)

        def result_at_gate() -> StepResult:
            wait_at_gate(plan)
            return result()

        return result_at_gate

    executor.launch = launch_at_gate  # type: ignore[method-assign]
    return info, executor


_build_executor = engine_process._build_executor


if __name__ == "__main__":
    set_constants()
    if sys.argv[1] == "serve":
        ProcessTransport.module = GATED
        sys.exit(cli.main())
    engine_process._build_executor = build_gated_executor
    engine_process.main()
