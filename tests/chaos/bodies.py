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
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
EMBEDDINGS = "/v1/embeddings"

MAX_MODEL_LEN = 384
LONG_KINDS = frozenset({"long", "long response", "long message"})  # of one choice, which takes its time
_CITIES = ("Paris", "Oslo", "Rome", "Lima")
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
_FUNCTIONS = (
    {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
    {
        "name": "roll_dice",
        "description": "Roll dice.",
        "parameters": {
            "type": "object",
            "properties": {"sides": {"type": "integer", "minimum": 2, "maximum": 99}},
            "required": ["sides"],
        },
    },
)
_TOOLS = [{"type": "function", "function": function} for function in _FUNCTIONS]
_RESPONSE_TOOLS = [{"type": "function", **function} for function in _FUNCTIONS]
_MESSAGE_TOOLS = [
    {"name": function["name"], "description": function["description"], "input_schema": function["parameters"]}
    for function in _FUNCTIONS
]


@dataclass(frozen=True, slots=True)
class Ask:
    """A request without its manner: what is asked, not how it is read."""

    kind: str
    path: str
    body: Body

    @property
    def num_sequences(self) -> int:
        """Of which `best_of` keeps some to itself."""
        given = self.body.get("prompt", self.body.get("input", ""))
        num_prompts = len(given) if isinstance(given, list) else 1
        return int(self.body.get("best_of") or self.body.get("n", 1)) * num_prompts

    @property
    def can_stream(self) -> bool:
        return self.path != EMBEDDINGS and "best_of" not in self.body

    @property
    def streamed(self) -> Body:
        """Return what asks for it as a stream with its usage, which some APIs always tell."""
        options = {"stream_options": {"include_usage": True}} if self.path in (COMPLETIONS, CHAT) else {}
        return {**self.body, "stream": True, **options}


def make_catalogue(rng: random.Random, size: int) -> tuple[Ask, ...]:
    """So many requests, as many of each kind, in any order."""
    asks = [_KINDS[number % len(_KINDS)](rng) for number in range(size)]
    rng.shuffle(asks)
    return tuple(asks)


def _greedy(rng: random.Random) -> Ask:
    return _complete("greedy", _prompt(rng), max_tokens=rng.randint(4, 60))


def _long(rng: random.Random) -> Ask:
    """Takes long enough to be left, or to lose its engine in the middle."""
    return _complete("long", _prompt(rng), max_tokens=rng.randint(120, 240), ignore_eos=True)


def _longest(rng: random.Random) -> Ask:
    prompt = f"{rng.choice(_OPENINGS)} {rng.choice(_WORDS)}"
    return _complete(
        "longest", prompt, max_tokens=320, ignore_eos=True, priority=rng.choice([-1, 0, 1]), **_sampling(rng)
    )


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


def _echoed(rng: random.Random) -> Ask:
    return _complete("echoed", _prompt(rng), max_tokens=rng.choice([0, 12]), echo=True, logprobs=1)


def _best_of(rng: random.Random) -> Ask:
    """All are of one length: what became of those that are not shown is known, too."""
    n = rng.randint(1, 2)
    tokens = {"max_tokens": rng.randint(8, 24), "ignore_eos": True}
    return _complete("best of", _prompt(rng), n=n, best_of=n + rng.randint(1, 2), **tokens, **_sampling(rng))


def _biased(rng: random.Random) -> Ask:
    bias = {str(rng.randrange(256, 2000)): rng.choice([-100, -3, 2]) for _ in range(20)}
    penalties = {"presence_penalty": 0.4, "frequency_penalty": 0.6, "repetition_penalty": 1.2}
    return _complete("biased", _prompt(rng), max_tokens=40, logit_bias=bias, **penalties, **_sampling(rng))


def _tools_auto(rng: random.Random) -> Ask:
    return _talk("tools auto", _errand(rng), max_tokens=80, tools=_TOOLS, tool_choice="auto")


def _tools_required(rng: random.Random) -> Ask:
    return _talk("tools required", _errand(rng), max_tokens=80, tools=_TOOLS, tool_choice="required", **_sampling(rng))


def _tools_named(rng: random.Random) -> Ask:
    choice = {"type": "function", "function": {"name": rng.choice(_FUNCTIONS)["name"]}}
    return _talk("tools named", _errand(rng), max_tokens=80, tools=_TOOLS, tool_choice=choice)


def _response(rng: random.Random) -> Ask:
    shown = rng.choice([{}, {"top_logprobs": 1}])
    return _respond("response", _prompt(rng), max_output_tokens=rng.randint(5, 60), **shown, **_sampling(rng))


def _response_tools(rng: random.Random) -> Ask:
    choice = rng.choice(["auto", "required"])
    tools = {"tools": _RESPONSE_TOOLS, "tool_choice": choice}
    return _respond("response tools", _errand(rng), max_output_tokens=80, **tools)


def _long_response(rng: random.Random) -> Ask:
    return _respond("long response", _prompt(rng), max_output_tokens=rng.randint(120, 240), ignore_eos=True)


def _message(rng: random.Random) -> Ask:
    stops = rng.choice([{}, {"stop_sequences": ["the", ". "]}])
    return _write("message", _prompt(rng), max_tokens=rng.randint(5, 60), system=_PREAMBLE, **stops, **_sampling(rng))


def _message_tools(rng: random.Random) -> Ask:
    choice = rng.choice([{"type": "any"}, {"type": "tool", "name": rng.choice(_FUNCTIONS)["name"]}])
    return _write("message tools", _errand(rng), max_tokens=80, tools=_MESSAGE_TOOLS, tool_choice=choice)


def _long_message(rng: random.Random) -> Ask:
    return _write("long message", _prompt(rng), max_tokens=rng.randint(120, 240), ignore_eos=True)


_KINDS: tuple[Callable[[random.Random], Ask], ...] = (
    *(_greedy, _long, _sampled, _several, _schema, _stopped, _scored, _chat),
    *(_prompts, _longest, _penalized, _chat_scored, _regex, _scored_prompt, _shared_prefix, _embedding),
    *(_tools_auto, _response, _message, _echoed, _best_of, _biased, _tools_required, _tools_named),
    *(_response_tools, _message_tools, _long_response, _long_message),
)
NUM_KINDS = len(_KINDS)


def _complete(kind: str, prompt: str | list[str], **more: Any) -> Ask:
    return Ask(kind, COMPLETIONS, {"prompt": prompt, "temperature": 0, "return_token_ids": True, **more})


def _talk(kind: str, question: str, system: str | None = None, **more: Any) -> Ask:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": question})
    return Ask(kind, CHAT, {"messages": messages, "temperature": 0, "return_token_ids": True, **more})


def _respond(kind: str, question: str, **more: Any) -> Ask:
    return Ask(kind, RESPONSES, {"input": question, "temperature": 0, **more})


def _write(kind: str, question: str, **more: Any) -> Ask:
    return Ask(kind, MESSAGES, {"messages": [{"role": "user", "content": question}], "temperature": 0, **more})


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


def _errand(rng: random.Random) -> str:
    """A question for the tools."""
    questions = (f"What is the weather in {rng.choice(_CITIES)}?", f"Roll dice with {rng.randint(4, 20)} sides.")
    return rng.choice(questions)
