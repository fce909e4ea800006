"""`orcinus` with an engine that has no model and no torch, for what the server and the supervision of engines promise.

`python -m tests.integration.light_server serve ...` starts it; the engine process is this module, too. Its next token
is a function of all tokens before it, so that an answer that goes on in another engine is the same, or visibly not. It
knows no seeds but those of `culprits`, and refuses grammars: what depends on them needs the model.

Constants of ours can be set in both processes, such as time-outs that nobody wants to wait for: `ServerProcess` hands
them over.
"""

import importlib
import json
import logging
import os
import sys
import time
import zlib
from array import array
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.core import Executor
from orcinus.engine.messages import EngineInfo, StepPlan
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.supervision import engine_process
from orcinus.engine.supervision.transport import ProcessTransport
from orcinus.server import cli
from tests.integration.culprits import Culprits, hang_for
from tests.integration.step_gate import wait_at_gate
from tests.server_process import CONSTANTS, LIGHT
from tests.unit.engine.fakes import FakeExecutor, fake_info

STEP_S = 0.002  # a model's step; without it an answer is there before anything can happen to it
_FIRST_ORDINARY_TOKEN = 300


class LightExecutor(FakeExecutor):
    """The fake of the unit tests, with steps that take a while, and no grammars."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(lambda prompt, output: mixed(prompt, output, vocab_size), before_step=self._take_a_while)
        self._culprits = Culprits()

    def _take_a_while(self, plan: StepPlan) -> None:
        time.sleep(STEP_S)
        wait_at_gate(plan)
        hang_for(self._culprits.meet(plan))

    def prepare(self, sampling: SamplingParams) -> Future[Any] | None:
        if sampling.grammar is None:
            return None
        refusal: Future[Any] = Future()
        refusal.set_exception(ValueError("there are no grammars without a model"))
        return refusal


def mixed(prompt: Sequence[int], output: Sequence[int], vocab_size: int) -> int:
    """Return an ordinary token that depends on every token before it."""
    digest = zlib.crc32(array("q", [*prompt, *output]).tobytes())
    return _FIRST_ORDINARY_TOKEN + digest % (vocab_size - _FIRST_ORDINARY_TOKEN)


def build_light_executor(config: EngineConfig) -> tuple[EngineInfo, Executor]:
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s engine: %(message)s")
    model = json.loads((Path(config.model) / "config.json").read_text())
    info = fake_info(
        model=config.model,
        vocab_size=model["vocab_size"],
        eos_token_ids=[model["eos_token_id"]],
        max_model_len=config.max_model_len or model["max_position_embeddings"],
        max_num_seqs=config.max_num_seqs or 16,
        max_num_batched_tokens=512,
        num_kv_blocks=4096,
    )
    return info, LightExecutor(info.vocab_size)


def set_constants() -> None:
    for name, value in json.loads(os.environ.get(CONSTANTS, "{}")).items():
        module, _, constant = name.rpartition(".")
        owner = importlib.import_module(module)
        assert hasattr(owner, constant), f"there is no {name}"
        setattr(owner, constant, value)


if __name__ == "__main__":
    set_constants()
    if sys.argv[1] == "serve":
        ProcessTransport.module = LIGHT
        sys.exit(cli.main())
    engine_process._build_executor = build_light_executor
    engine_process.main()
