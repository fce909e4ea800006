"""LM Evaluation Harness over HTTP gives the scores that transformers gives directly."""

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clients.environment import CLIENTS_PYTHON, run_module
from tests.server_process import ROOT, ServerProcess

pytestmark = pytest.mark.slow  # in an environment of its own

MODEL = ROOT / "engine" / "demo_model"
COUNTRIES = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo"}
CAPITALS = [*COUNTRIES.values()]
TEXTS = [
    "The capital of France is Paris. The capital of Italy is Rome.",
    "Once upon a time there was a small cat – its name was Zoë.",
    " ".join(f"{number} plus {number} is {2 * number}." for number in range(300)),  # longer than the context
]
TOLERANCE = 1e-3  # of a sum over a few tokens, in float32
RELATIVE_TOLERANCE = 1e-6  # of a sum over thousands


@pytest.fixture(scope="module")
def exact_server() -> Iterator[ServerProcess]:
    """In the precision that the scores are compared in."""
    server = ServerProcess("--dtype", "float32")
    yield server
    server.close()


@pytest.fixture(scope="module")
def scores(exact_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of both tasks, in one run of the harness."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, "capitals", choice_documents(), CAPITALS_TASK)
    write_task(folder, "texts", [{"text": text} for text in TEXTS], TEXTS_TASK)
    script = "tests.clients.scripts.lm_eval_client"
    found: dict[str, Any] = run_module(
        CLIENTS_PYTHON, folder, script, exact_server.url, str(MODEL), str(folder), "capitals", "texts"
    )
    return found


CAPITALS_TASK = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_target": "gold",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
TEXTS_TASK = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
}


def choice_documents() -> list[dict[str, Any]]:
    return [
        {"question": f"The capital of {country} is", "choices": CAPITALS, "gold": gold}
        for gold, country in enumerate(COUNTRIES)
    ]


def write_task(folder: Path, name: str, documents: list[dict[str, Any]], task: dict[str, Any]) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **source, **task}))


class Reference:
    """transformers' own forward pass over the same token ids, one sequence at a time."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self.tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
        self._model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return found

    def loglikelihood(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Of the continuation, and whether greedy decoding would have written it."""
        ids = self._torch.tensor([context + continuation])
        with self._torch.no_grad():
            logprobs = self._model(ids).logits[0].log_softmax(-1)[len(context) - 1 : -1]
        picked = logprobs.gather(1, ids[0, len(context) :, None]).sum().item()
        return picked, bool((logprobs.argmax(-1) == ids[0, len(context) :]).all())


@cache
def reference() -> Reference:
    return Reference()


def choice_loglikelihoods(document: dict[str, Any]) -> list[tuple[float, bool]]:
    """The context and its continuation are split where the tokens of the context end, as the harness does."""
    ref = reference()
    context = ref.ids(document["question"])
    return [
        ref.loglikelihood(context, ref.ids(f"{document['question']} {choice}")[len(context) :])
        for choice in document["choices"]
    ]


def rolling_loglikelihood(text: str, window: int) -> float:
    """Windows of fresh tokens; the first begins with the prefix token, the others with what stood before."""
    ref = reference()
    prefix = ref.tokenizer.bos_token_id or ref.tokenizer.eos_token_id
    ids = ref.ids(text)
    total, _ = ref.loglikelihood([prefix], ids[:window])
    for start in range(window, len(ids), window):
        end = min(start + window, len(ids))
        before = ids[max(0, end - window - 1) : start]
        total += ref.loglikelihood(before, ids[start:end])[0]
    return total


def test_choices_are_scored_as_transformers_scores_them(scores: dict[str, Any]) -> None:
    num_right = 0
    for document, responses in zip(choice_documents(), scores["capitals"]["samples"], strict=True):
        wanted = choice_loglikelihoods(document)
        got = [tuple(response) for [response] in responses]
        assert [logprob for logprob, _ in got] == pytest.approx([logprob for logprob, _ in wanted], abs=TOLERANCE)
        assert [is_greedy for _, is_greedy in got] == [is_greedy for _, is_greedy in wanted]
        logprobs = [logprob for logprob, _ in wanted]
        num_right += logprobs.index(max(logprobs)) == document["gold"]
    assert scores["capitals"]["metrics"]["acc,none"] == num_right / len(COUNTRIES)
    assert num_right >= 3, "the model knows these"


def test_texts_have_the_perplexity_that_transformers_gives_them(scores: dict[str, Any]) -> None:
    window = 2048 - 2  # as the harness cuts for the context of 2048 that it assumes
    wanted = [rolling_loglikelihood(text, window) for text in TEXTS]
    got = [float(response) for [[response]] in scores["texts"]["samples"]]
    assert got == pytest.approx(wanted, abs=TOLERANCE, rel=RELATIVE_TOLERANCE)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    bits = -sum(wanted) / num_bytes / math.log(2)
    assert scores["texts"]["metrics"]["bits_per_byte,none"] == pytest.approx(bits, abs=1e-6)
