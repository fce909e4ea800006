"""What the scheduler costs: processor milliseconds to plan a decode step and to book what it brought.

    python -m bench.scheduler [--running 1,32,256] [--block-size 32] [--steps 256] [--rounds 15] [--no-prefix-caching]

No model and no torch. All requests decode, with prompts of many lengths, so that their blocks fill at different steps.
Of all rounds the fastest counts: other processes only ever add.
"""

import argparse
import time

from orcinus.engine.messages import AddRequest, CacheGroup, StepPlan, StepResult
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.scheduler.block_manager import BlockManager
from orcinus.engine.scheduler.scheduler import Scheduler, SchedulerLimits

MAX_MODEL_LEN = 100_000
STEP_S = 0.05  # what the scheduler is told that a step took


def main() -> int:
    options = parse_arguments()
    prefix_caching = "on" if options.prefix_caching else "off"
    print(f"blocks of {options.block_size} tokens, prefix caching {prefix_caching}")
    print("| running | a step, ms |\n|---:|---:|")
    for num_running in options.running:
        scheduler = decoding(num_running, options)
        step_ms = min(mean_step_ms(scheduler, options.steps) for _ in range(options.rounds))
        print(f"| {num_running} | {step_ms:.3f} |")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scheduler", description=__doc__)
    parser.add_argument("--running", type=lambda text: [int(part) for part in text.split(",")], default=[1, 32, 256])
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def decoding(num_running: int, options: argparse.Namespace) -> Scheduler:
    """A scheduler whose requests have all computed their prompts, with blocks for all that is to come."""
    limits = SchedulerLimits(
        max_num_seqs=num_running,
        max_num_batched_tokens=2048,
        max_model_len=MAX_MODEL_LEN,
        eos_token_ids=frozenset([0]),
        enable_prefix_caching=options.prefix_caching,
    )
    num_tokens = 256 + options.steps * (options.rounds + 8)
    num_blocks = max(MAX_MODEL_LEN, num_running * num_tokens) // options.block_size + num_running
    scheduler = Scheduler(limits, BlockManager([CacheGroup(num_blocks, num_layers=1)], options.block_size))
    for number in range(num_running):
        scheduler.add(added(number))
    while not is_all_decodes(run_step(scheduler), num_running):
        pass
    return scheduler


def is_all_decodes(plan: StepPlan, num_running: int) -> bool:
    return len(plan.scheduled) == plan.num_tokens == num_running


def added(number: int) -> AddRequest:
    return AddRequest(
        request_id=f"cmpl-{number:024d}",
        prompt_token_ids=[number + 1, *range(100 + number % 64)],
        sampling=SamplingParams(seed=number, max_tokens=None),
        arrival_time=0.0,
    )


def mean_step_ms(scheduler: Scheduler, num_steps: int) -> float:
    spent_s = 0.0
    for number in range(num_steps):
        started = time.process_time()
        step = scheduler.schedule()
        spent_s += time.process_time() - started
        result = result_of(step.plan, 1 + number)
        started = time.process_time()
        scheduler.update(step, result)
        scheduler.observe(step, STEP_S)
        spent_s += time.process_time() - started
    return 1000 * spent_s / num_steps


def run_step(scheduler: Scheduler) -> StepPlan:
    step = scheduler.schedule()
    scheduler.update(step, result_of(step.plan, 1))
    scheduler.observe(step, STEP_S)
    return step.plan


def result_of(plan: StepPlan, token_id: int) -> StepResult:
    return StepResult(sampled_token_ids={item.request_id: [token_id] for item in plan.scheduled if item.num_samples})


if __name__ == "__main__":
    raise SystemExit(main())
