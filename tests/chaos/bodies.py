"""Requests that a server must answer: bodies of every kind, each with one right answer (greedy, or with a seed).

Pure: a generator of random numbers in, bodies out. Knows no server, and not what the answers are.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Body = dict[str, Any]

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"

MAX_MODEL_LEN = 384
_OPENINGS = ("Once upon a time", "The capital of France", "A list of colours:", "In the morning", "Question: what is")
_WORDS = ("river", "stone", "light", "seven", "Paris", "winter", "bread", "orca", "number", "green", "the", "of", "and")
_PREAMBLE = "You are a patient guide who knows the sea, its whales and its weather, and answers in plain words. " * 3
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "count": {"type": "integer", "minimum": 0, "maximum": 999},
        "kind": {"enum": ["whale", "port", "city"]},
    },
    "required": ["name", "count", "kind"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Ask:
    """A request without its manner: what is asked, not how it is read."""

    kind: str
    path: str
    body: Body

    @property
    def num_choices(self) -> int:
        given = self.body.get("prompt", self.body.get("input", ""))
        num_prompts = len(given) if isinstance(given, list) else 1
        return int(self.body.get("n", 1)) * num_prompts

    @property
    def can_stream(self) -> bool:
        return self.path != EMBEDDINGS


def make_catalogue(rng: random.Random, size: int) -> tuple[Ask, ...]:
    """So many requests, each kind in turn."""
    return tuple(_KINDS[number % len(_KINDS)](rng) for number in range(size))


def _greedy(rng: random.Random) -> Ask:
    return _complete("greedy", _prompt(rng), max_tokens=rng.randint(4, 60))


def _long(rng: random.Random) -> Ask:
    """Takes long enough to be left, or to lose its engine in the middle."""
    return _complete("long", _prompt(rng), max_tokens=rng.randint(120, 240), ignore_eos=True)


def _longest(rng: random.Random) -> Ask:
    prompt = f"{rng.choice(_OPENINGS)} {rng.choice(_WORDS)}"
    return _complete("longest", prompt, max_tokens=320, ignore_eos=True, **_sampling(rng))


def _sampled(rng: random.Random) -> Ask:
    return _complete("sampled", _prompt(rng), max_tokens=rng.randint(10, 80), **_sampling(rng))


def _penalized(rng: random.Random) -> Ask:
    return _complete(
        "penalized", _prompt(rng), max_tokens=40, frequency_penalty=0.7, repetition_penalty=1.1, min_tokens=12
    )


def _several(rng: random.Random) -> Ask:
    return _complete("several", _prompt(rng), n=rng.randint(2, 4), max_tokens=rng.randint(10, 40), **_sampling(rng))


def _prompts(rng: random.Random) -> Ask:
    return _complete("prompts", [_prompt(rng) for _ in range(rng.randint(2, 3))], max_tokens=rng.randint(8, 30))


def _stopped(rng: random.Random) -> Ask:
    stop = rng.sample(["the", ". ", "\n", " of", "is a"], 2)
    return _complete("stopped", _prompt(rng), max_tokens=80, ignore_eos=True, stop=stop)


def _scored(rng: random.Random) -> Ask:
    return _complete("scored", _prompt(rng), max_tokens=rng.randint(5, 40), logprobs=3)


def _scored_prompt(rng: random.Random) -> Ask:
    return _complete("scored prompt", _prompt(rng), max_tokens=20, prompt_logprobs=1, logprobs=0)


def _chat(rng: random.Random) -> Ask:
    return _talk("chat", _prompt(rng), max_completion_tokens=rng.randint(5, 60))


def _chat_scored(rng: random.Random) -> Ask:
    return _talk("chat scored", _prompt(rng), max_tokens=30, logprobs=True, top_logprobs=2, **_sampling(rng))


def _shared_prefix(rng: random.Random) -> Ask:
    return _talk("shared prefix", _prompt(rng), system=_PREAMBLE, max_tokens=rng.randint(8, 40))


def _schema(rng: random.Random) -> Ask:
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": _SCHEMA, "strict": True}}
    return _talk("schema", _prompt(rng), max_tokens=100, response_format=form, **_sampling(rng))


def _regex(rng: random.Random) -> Ask:
    pattern = "[a-z]{3,12} (is|was) [0-9]{2,5}"
    return _complete("regex", _prompt(rng), max_tokens=40, structured_outputs={"regex": pattern}, **_sampling(rng))


def _embedding(rng: random.Random) -> Ask:
    return Ask("embedding", EMBEDDINGS, {"input": [_prompt(rng) for _ in range(rng.randint(1, 3))]})


_KINDS: tuple[Callable[[random.Random], Ask], ...] = (
    *(_greedy, _long, _sampled, _several, _schema, _stopped, _scored, _chat),
    *(_prompts, _longest, _penalized, _chat_scored, _regex, _scored_prompt, _shared_prefix, _embedding),
)


def _complete(kind: str, prompt: str | list[str], **more: Any) -> Ask:
    return Ask(kind, COMPLETIONS, {"prompt": prompt, "temperature": 0, "return_token_ids": True, **more})


def _talk(kind: str, question: str, system: str | None = None, **more: Any) -> Ask:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": question})
    return Ask(kind, CHAT, {"messages": messages, "temperature": 0, "return_token_ids": True, **more})


def _sampling(rng: random.Random) -> Body:
    return {
        "temperature": rng.choice([0.6, 0.9, 1.2]),
        "top_p": rng.choice([0.9, 1.0]),
        "top_k": rng.choice([0, 40]),
        "seed": rng.getrandbits(40),
    }


def _prompt(rng: random.Random) -> str:
    words = " ".join(rng.choices(_WORDS, k=rng.randint(1, 40)))
    return f"{rng.choice(_OPENINGS)} {words}"
