"""Conversations and documents for training and for the held-out test.

Owns how turns become conversations: system prompts, several turns, memory, tools. It does not know the chat
template or the tokenizer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from demo import facts, kinds, prose, talk, tool_talk
from demo.kinds import Mode, Turn
from demo.wordings import Split, ask

Message = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the assistant's right answer, and how another answer is judged."""

    messages: list[Message]
    expect: tuple[str, ...]
    mode: Mode
    tools: list[tool_talk.Json] = field(default_factory=list)


Builder = Callable[[Random, Split], Example]

SYSTEMS: Final = (
    "You are a helpful assistant.",
    "You are the demo model of Orcinus.",
    "Answer the questions of the user.",
    "You are a friendly assistant. Be polite.",
    "Be helpful and short.",
)
SHORT_SYSTEMS: Final = (
    "Answer with one word.",
    "Answer in one word only.",
    "Give only the answer, no sentence.",
)
SHORT_KINDS: Final = (
    "capital",
    "continent",
    "currency",
    "language",
    "capital_of",
    "symbol",
    "opposite",
    "day_after",
)
MEMORY_FIELDS: Final[dict[str, list[str]]] = {
    "name": facts.NAMES,
    "favourite colour": facts.COLOUR_WORDS,
    "favourite food": facts.FOODS,
    "pet": facts.PETS,
    "secret word": facts.WORDS,
    "job": facts.JOBS,
}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _system(rng: Random, share: float) -> list[Message]:
    return [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < share else []


def _exchange(turn: Turn) -> list[Message]:
    return [_user(turn.user), _assistant(turn.answer)]


def single(kind: str) -> Builder:
    """Conversations of one turn of `kind`."""

    def build(rng: Random, split: Split) -> Example:
        turn = kinds.KINDS[kind](rng, split)
        return Example(_system(rng, 0.2) + _exchange(turn), turn.expect, turn.mode)

    return build


def several(rng: Random, split: Split, turns: int) -> Example:
    """A conversation of `turns` unrelated turns."""
    messages = _system(rng, 0.3)
    for _ in range(turns):
        turn = kinds.any_turn(rng, split)
        messages += _exchange(turn)
    return Example(messages, turn.expect, turn.mode)


def multi_turn(rng: Random, split: Split) -> Example:
    return several(rng, split, rng.randint(2, 4))


def short_answer(rng: Random, split: Split) -> Example:
    """A system prompt asks for one word, and the answer is only that."""
    turn = kinds.KINDS[rng.choice(SHORT_KINDS)](rng, split)
    word = turn.expect[0]
    messages = [{"role": "system", "content": rng.choice(SHORT_SYSTEMS)}, _user(turn.user), _assistant(word)]
    return Example(messages, (word,), "exact")


def persona(rng: Random, split: Split) -> Example:
    """A system prompt gives the assistant a name."""
    name = rng.choice(facts.NAMES)
    told = rng.choice(
        ("You are {}.", "Your name is {}.", "You are called {}. Be friendly.", "You are {}, an assistant.")
    )
    train = (
        "What is your name?",
        "Who are you?",
        "Tell me your name.",
        "What's your name?",
        "How are you called?",
    )
    heldout = ("What are you called?", "Please tell me your name.")
    question = rng.choice(train if split == "train" else heldout)
    answer = f"My name is {name}."
    return Example(
        [{"role": "system", "content": told.format(name)}, _user(question), _assistant(answer)],
        (name,),
        "words",
    )


def _told(rng: Random, split: Split) -> tuple[list[Message], str, str]:
    """The user tells something about themselves: the messages, what it is about, and its value."""
    key = rng.choice(list(MEMORY_FIELDS))
    value = rng.choice(MEMORY_FIELDS[key])
    text = ask(rng, split, "memory_tell", field=key, value=value)
    return [_user(text), _assistant(f"Okay, your {key} is {value}.")], key, value


def remember(rng: Random, split: Split, between: int) -> Example:
    """Something that the user said earlier is asked for after `between` other turns."""
    told, key, value = _told(rng, split)
    messages = _system(rng, 0.2) + told
    for _ in range(between):
        messages += _exchange(kinds.any_turn(rng, split))
    messages += [_user(ask(rng, split, "memory_ask", field=key)), _assistant(f"Your {key} is {value}.")]
    return Example(messages, (value,), "words")


def memory(rng: Random, split: Split) -> Example:
    return remember(rng, split, rng.randint(0, 3))


def tool_call(rng: Random, split: Split) -> Example:
    """Tools are offered and the question needs one of them."""
    call = tool_talk.draw_call(rng, split, rng.choice(tool_talk.TOOL_KINDS))
    text = tool_talk.call_text(call.name, call.arguments)
    earlier = _exchange(kinds.any_turn(rng, split)) if rng.random() < 0.15 else []
    messages = [*_system(rng, 0.5), *earlier, _user(call.question), _assistant(text)]
    return Example(messages, (text,), "exact", tool_talk.draw_tools(rng, split, call))


def tool_answer(rng: Random, split: Split) -> Example:
    """A tool has returned its result, and the assistant tells it in a sentence."""
    call = tool_talk.draw_call(rng, split, rng.choice(tool_talk.TOOL_KINDS))
    result, answer = tool_talk.draw_result(rng, call)
    function = {"name": call.name, "arguments": call.arguments}
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": function}],
    }
    messages = [*_system(rng, 0.3), _user(call.question), called, {"role": "tool", "content": result}]
    return Example([*messages, _assistant(answer)], (answer,), "exact", tool_talk.draw_tools(rng, split, call))


def tool_unneeded(rng: Random, split: Split) -> Example:
    """Tools are offered, but the question does not need them."""
    call = tool_talk.draw_call(rng, split, rng.choice(tool_talk.TOOL_KINDS))
    names = ("capital", "continent", "symbol", "small_talk", "spell", "explain_short", "opposite", "copy")
    turn = kinds.KINDS[rng.choice(names)](rng, split)
    messages = _system(rng, 0.3) + _exchange(turn)
    return Example(messages, turn.expect, turn.mode, tool_talk.draw_tools(rng, split, call))


BUILDERS: Final[dict[str, Builder]] = {
    **{kind: single(kind) for kind in kinds.KINDS},
    "multi_turn": multi_turn,
    "short_answer": short_answer,
    "persona": persona,
    "memory": memory,
    "tool_call": tool_call,
    "tool_answer": tool_answer,
    "tool_unneeded": tool_unneeded,
}

_TOTAL: Final = sum(kinds.WEIGHTS)
_MIXED: Final[dict[str, float]] = {
    "multi_turn": 0.12, "short_answer": 0.03, "persona": 0.01, "memory": 0.04,
    "tool_call": 0.06, "tool_answer": 0.02, "tool_unneeded": 0.015,
}  # fmt: skip

WEIGHTS: Final = [weight / _TOTAL for weight in kinds.WEIGHTS] + [
    _MIXED[name] for name in list(BUILDERS)[len(kinds.KINDS) :]
]


def conversation(rng: Random) -> Example:
    """A training conversation of any sort."""
    return rng.choices(list(BUILDERS.values()), WEIGHTS)[0](rng, "train")


def long_conversation(rng: Random) -> Example:
    """A training conversation that fills a long context, half of them with something to remember."""
    turns = rng.randint(10, 45)
    return remember(rng, "train", turns) if rng.random() < 0.5 else several(rng, "train", turns)


def long_prose(rng: Random) -> str:
    """A document of many paragraphs."""
    return "\n\n".join(prose.paragraph(rng) for _ in range(rng.randint(8, 20)))


def sample_texts(rng: Random, count: int) -> list[str]:
    """Plain texts in the proportions of the corpus, for training the tokenizer."""
    texts = [prose.paragraph(rng) for _ in range(count // 8)]
    for _ in range(count):
        example = conversation(rng)
        texts += [message["content"] for message in example.messages if message["content"]]
        texts += [str(tool).replace("'", '"') for tool in example.tools]
    return texts + [talk.UNKNOWN, "system user assistant tool", "system\nuser\nassistant\ntool\n"] * (count // 10)
