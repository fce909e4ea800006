"""LM Evaluation Harness: scores of the tasks in a folder, written as JSON.

python lm_eval_client.py URL TOKENIZER FOLDER TASK...
"""

import json
import sys
from typing import Any

from tests.clients.scripts.checks import refuse_network


def evaluate(url: str, tokenizer: str, folder: str, tasks: list[str]) -> dict[str, Any]:
    """By task: the metrics, and the responses to each document."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model="local-completions",
        model_args={
            "model": "orcinus-demo",
            "base_url": f"{url}/v1/completions",
            "tokenizer": tokenizer,
            "num_concurrent": 4,
        },
        tasks=tasks,
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = {task: [sample["resps"] for sample in found["samples"][task]] for task in tasks}
    return {task: {"metrics": found["results"][task], "samples": samples[task]} for task in tasks}


if __name__ == "__main__":
    sys.addaudithook(refuse_network)
    url, tokenizer, folder, *tasks = sys.argv[1:]
    print("\n" + json.dumps(evaluate(url, tokenizer, folder, tasks), default=str), flush=True)
