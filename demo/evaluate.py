"""How often the demo model is right, kind by kind, on wordings that it was never trained on.

Owns the judging of answers. Run it with `python -m demo.evaluate`, or against a server with `--base-url`.
"""

import argparse
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from demo.corpus import BUILDERS, Example
from demo.tokenizer import END_OF_TEXT, TURN_END, load_tokenizer, render, token_id

SEED: Final = 20_000
BATCH: Final = 64
SERVED_AT_ONCE: Final = 32


@dataclass(frozen=True)
class Result:
    """One held-out question, what the model said, and whether that was right."""

    kind: str
    example: Example
    answer: str
    right: bool


def _same_json(answer: str, expected: str) -> bool:
    try:
        return bool(json.loads(answer) == json.loads(expected))
    except ValueError:
        return False


def _has_words(answer: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", answer, re.IGNORECASE) is not None


def is_right(example: Example, answer: str) -> bool:
    """Whether `answer` is right for the last question of the example."""
    answer = answer.strip()
    if example.mode == "exact":
        return answer == example.expect[0].strip()
    if example.mode == "json":
        return _same_json(answer, example.expect[0])
    return all(_has_words(answer, words) for words in example.expect)


def questions(per_kind: int, seed: int = SEED) -> list[tuple[str, Example]]:
    """Held-out examples, `per_kind` of each kind; the same seed gives the same ones."""
    drawn = []
    for kind, build in BUILDERS.items():
        rng = Random(f"{seed} {kind}")
        drawn += [(kind, build(rng, "heldout")) for _ in range(per_kind)]
    return drawn


class Answerer:
    """Answers conversations greedily through the chat template."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._stop = [token_id(tokenizer, token) for token in (TURN_END, END_OF_TEXT)]

    def prompt(self, example: Example) -> str:
        return render(self._tokenizer, example.messages[:-1], example.tools, prompt=True)

    @torch.inference_mode()
    def complete(self, prompts: list[str], tokens: int) -> list[str]:
        """The greedy continuations of `prompts`, of at most `tokens` tokens each."""
        inputs = self._tokenizer(
            prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False,
            return_token_type_ids=False,
        )  # fmt: skip
        output = self._model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=self._stop,
            pad_token_id=self._stop[1],
        )
        answers = output[:, inputs["input_ids"].shape[1] :]
        return [str(text) for text in self._tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def room(self, example: Example) -> int:
        """Return how many tokens the answer may take: a little more than the right one."""
        return len(self._tokenizer(example.messages[-1]["content"])["input_ids"]) + 8


def _batches(answerer: Answerer, drawn: list[tuple[str, Example]]) -> Iterator[list[tuple[str, Example]]]:
    """Examples of similar answer length together, so that none waits long for another."""
    ordered = sorted(drawn, key=lambda item: (answerer.room(item[1]), len(answerer.prompt(item[1]))))
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]


def evaluate(model: Any, tokenizer: PreTrainedTokenizerFast, per_kind: int, seed: int = SEED) -> list[Result]:
    """The model's answers to the held-out questions."""
    answerer = Answerer(model, tokenizer)
    results = []
    for batch in _batches(answerer, questions(per_kind, seed)):
        prompts = [answerer.prompt(example) for _, example in batch]
        answers = answerer.complete(prompts, max(answerer.room(example) for _, example in batch))
        for (kind, example), answer in zip(batch, answers, strict=True):
            results.append(Result(kind, example, answer, is_right(example, answer)))
    return results


def evaluate_served(base_url: str, tokenizer: PreTrainedTokenizerFast, per_kind: int, seed: int = SEED) -> list[Result]:
    """The answers of the server at `base_url` (up to `/v1`) to the same questions, asked many at a time.

    Chats go to /chat/completions; those with tools go to /completions, as the text that the template makes of them.
    Raises `httpx.HTTPError` where the server does not answer.
    """
    answerer = Answerer(None, tokenizer)

    def ask(client: httpx.Client, example: Example) -> str:
        body: dict[str, Any] = {"temperature": 0, "max_tokens": answerer.room(example)}
        if example.tools:
            answer = client.post("/completions", json={**body, "prompt": answerer.prompt(example)})
            return str(answer.raise_for_status().json()["choices"][0]["text"])
        answer = client.post("/chat/completions", json={**body, "messages": list(example.messages[:-1])})
        return str(answer.raise_for_status().json()["choices"][0]["message"]["content"])

    drawn = questions(per_kind, seed)
    with httpx.Client(base_url=base_url, timeout=60) as client, ThreadPoolExecutor(SERVED_AT_ONCE) as pool:
        answers = pool.map(lambda item: ask(client, item[1]), drawn)
        return [
            Result(kind, example, answer, is_right(example, answer))
            for (kind, example), answer in zip(drawn, answers, strict=True)
        ]


def accuracies(results: list[Result]) -> dict[str, float]:
    """The share of right answers of each kind, in the order of the kinds."""
    shares = {}
    for kind in BUILDERS:
        own = [result.right for result in results if result.kind == kind]
        shares[kind] = sum(own) / max(1, len(own))
    return shares


def report(results: list[Result]) -> str:
    """A table of the accuracy per kind, as Markdown."""
    lines = ["| kind | right |", "| --- | ---: |"]
    lines += [f"| {kind} | {share:.0%} |" for kind, share in accuracies(results).items()]
    overall = sum(result.right for result in results) / max(1, len(results))
    return "\n".join([*lines, f"| **all** | **{overall:.1%}** |"])


def failures(results: list[Result], most: int) -> str:
    """Some wrong answers, to see what goes wrong."""
    wrong = [result for result in results if not result.right][:most]
    lines = [f"{r.kind}: {r.example.messages[-2]['content']!r} -> {r.answer!r}, not {r.example.expect}" for r in wrong]
    return "\n".join(lines)


def main() -> None:
    """Prints the accuracy per kind and some wrong answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("engine/demo_model"))
    parser.add_argument("--base-url", help="ask a running server instead, e.g. http://127.0.0.1:8000/v1")
    parser.add_argument("--per-kind", type=int, default=50)
    parser.add_argument("--failures", type=int, default=0, help="how many wrong answers to show")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    if options.base_url:
        results = evaluate_served(options.base_url, tokenizer, options.per_kind)
    else:
        model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        results = evaluate(model.eval(), tokenizer, options.per_kind)
    print(report(results))
    print(failures(sorted(results, key=lambda r: r.kind), options.failures))


if __name__ == "__main__":
    main()
