"""How long a step takes on some machine, as a function of what is in it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from orcinus.engine.messages import StepPlan


@dataclass(frozen=True, slots=True)
class StepShape:
    """Holds what a step computes: decoded tokens, tokens of prompts, and the keys that either attend to."""

    num_decodes: int
    num_prompt_tokens: int
    num_decode_keys: int = 0
    num_prompt_keys: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """A step's seconds: fixed ones, those of a step with a prompt in it, and those of each token and key.

    The first `num_free_rows` tokens come with the weights that every step reads.
    """

    step_s: float
    token_s: float
    mixed_s: float = 0.0
    num_free_rows: int = 0
    decode_s: float = 0.0
    decode_key_s: float = 0.0
    prompt_key_s: float = 0.0

    def __call__(self, shape: StepShape) -> float:
        num_rows = max(0, shape.num_decodes + shape.num_prompt_tokens - self.num_free_rows)
        seconds = self.step_s + self.token_s * num_rows + self.decode_s * shape.num_decodes
        seconds += self.decode_key_s * shape.num_decode_keys + self.prompt_key_s * shape.num_prompt_keys
        return seconds + self.mixed_s if shape.num_prompt_tokens else seconds


# `cpu`: 0.6 billion parameters in bfloat16 on two cores, 1,300 tokens of prompts a second, decode steps of 22 ms with
# one stream, 40 ms with 16 and 65 ms with 32 that have 200 tokens each. `slow-cpu`: the same where layers are not
# native, so that a step with a prompt has a cost of its own. `gpu`: decode steps are replayed as a graph, a step with a
# prompt is launched operation by operation.
PROFILES: Mapping[str, StepCosts] = {
    "cpu": StepCosts(
        step_s=0.0225, token_s=0.0008, mixed_s=0.01, num_free_rows=4, decode_key_s=3.2e-6, prompt_key_s=2.2e-7
    ),
    "slow-cpu": StepCosts(step_s=0.045, token_s=0.0025, mixed_s=0.06, decode_key_s=6e-6, prompt_key_s=6e-7),
    "gpu": StepCosts(step_s=0.005, token_s=0.00002, mixed_s=0.02),
}


def shape_of(plan: StepPlan) -> StepShape:
    """Return what a plan computes. A chunk of a single token costs what a decode costs, and counts as one."""
    decodes = [item for item in plan.scheduled if item.num_tokens == item.num_samples]
    chunks = [item for item in plan.scheduled if item.num_tokens != item.num_samples]
    return StepShape(
        num_decodes=sum(item.num_tokens for item in decodes),
        num_prompt_tokens=sum(item.num_tokens for item in chunks),
        num_decode_keys=sum(item.end for item in decodes),
        num_prompt_keys=sum(item.num_tokens * (item.num_computed_tokens + item.end) // 2 for item in chunks),
    )
