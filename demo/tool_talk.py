"""Conversations in which the demo model calls a tool, or answers from what a tool returned.

Owns the tools, their argument values and the questions that need them. The names of tools and of their parameters
vary from one conversation to the next, so that the model has to read them from the list that it is given.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from demo import facts
from demo.wordings import Split, Wordings

Json = dict[str, Any]
Value = str | int


@dataclass(frozen=True)
class Parameter:
    """One parameter of a tool: the names it may have, its JSON type, and how a value is drawn."""

    names: tuple[str, ...]
    type: str
    draw: Callable[[Random], Value]


@dataclass(frozen=True)
class ToolKind:
    """One thing that a tool can do; `answer` says the result, which `result` draws, in a sentence."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: dict[str, Parameter]
    asked: Wordings
    result: Callable[[Random], Json]
    answer: str


@dataclass(frozen=True)
class Call:
    """A tool with the names it has in one conversation, a question that needs it, and the right call."""

    kind: ToolKind
    spec: Json
    name: str
    question: str
    arguments: Json
    values: dict[str, Value]


# Optional parameters that no question gives a value for: a call leaves them out.
UNUSED: Final[tuple[Json, ...]] = (
    {"unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    {"format": {"type": "string", "enum": ["short", "long"]}},
    {"limit": {"type": "integer"}},
    {"verbose": {"type": "boolean"}},
)


def _city(rng: Random) -> str:
    return rng.choice(facts.COUNTRIES)["capital"]


def _number(low: int, high: int) -> Callable[[Random], int]:
    return lambda rng: rng.randint(low, high)


def _one_of(*values: str) -> Callable[[Random], str]:
    return lambda rng: rng.choice(values)


def _name(rng: Random) -> str:
    return rng.choice(facts.NAMES)


def _words(rng: Random) -> str:
    return " ".join(rng.sample(facts.WORDS, rng.randint(1, 3)))


def _weather_result(rng: Random) -> Json:
    sky = rng.choice(("sunny", "cloudy", "rainy", "windy", "foggy"))
    return {"temperature": rng.randint(-5, 35), "condition": sky}


CITY: Final = Parameter(("city", "location", "place", "town"), "string", _city)

TOOL_KINDS: Final[tuple[ToolKind, ...]] = (
    ToolKind(
        ("get_weather", "weather", "get_current_weather", "current_weather", "lookup_weather"),
        (
            "Get the weather in a city",
            "Get the current weather",
            "Get the current weather in a given location",
            "Weather of a place",
            "Returns the weather",
        ),
        {"city": CITY},
        Wordings(
            train=(
                "What is the weather in {city}?",
                "How is the weather in {city}?",
                "Is it raining in {city}?",
                "What's the weather like in {city}?",
                "Tell me the weather in {city}.",
                "How warm is it in {city}?",
                "What is the temperature in {city}?",
                "I travel to {city}. How is the weather?",
            ),
            heldout=(
                "What's the weather in {city} today?",
                "How is the weather in {city} right now?",
                "Please check the weather in {city}.",
            ),
        ),
        _weather_result,
        "The weather in {city} is {condition}, with {temperature} degrees.",
    ),
    ToolKind(
        ("get_time", "current_time", "get_current_time", "time_in", "clock"),
        ("Get the current time", "Get the time in a city", "Returns the local time of a place"),
        {"city": CITY},
        Wordings(
            train=(
                "What time is it in {city}?",
                "Tell me the time in {city}.",
                "How late is it in {city}?",
                "What is the time in {city}?",
                "Which time is it now in {city}?",
                "Give me the time in {city}.",
            ),
            heldout=("What's the time in {city}?", "Please tell me what time it is in {city}."),
        ),
        lambda rng: {"time": f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"},
        "It is {time} in {city}.",
    ),
    ToolKind(
        ("add", "add_numbers", "sum", "plus"),
        ("Add two numbers", "Adds two numbers", "Returns the sum of two numbers"),
        {
            "a": Parameter(("a", "x", "first", "left"), "integer", _number(100, 999)),
            "b": Parameter(("b", "y", "second", "right"), "integer", _number(100, 999)),
        },
        Wordings(
            train=(
                "What is {a} + {b}?",
                "Add {a} and {b}.",
                "How much is {a} plus {b}?",
                "Calculate {a} + {b}.",
                "What is the sum of {a} and {b}?",
            ),
            heldout=("Work out {a} + {b}.", "How much is {a} + {b}?"),
        ),
        lambda rng: {"result": rng.randint(200, 1998)},
        "The result is {result}.",
    ),
    ToolKind(
        ("search", "web_search", "search_web", "find", "lookup"),
        ("Search the web", "Find pages about something", "Search for a text"),
        {"query": Parameter(("query", "q", "text", "term"), "string", _words)},
        Wordings(
            train=(
                "Search for {query}.",
                "Search the web for {query}.",
                "Look up {query}.",
                "Find pages about {query}.",
                "Please search for {query}.",
                "Look for {query} on the web.",
            ),
            heldout=("Please look up {query}.", "Search the internet for {query}."),
        ),
        lambda rng: {"count": rng.randint(1, 99)},
        "I found {count} pages about {query}.",
    ),
    ToolKind(
        ("send_message", "send_text", "message", "send_mail"),
        ("Send a message to somebody", "Sends a text to a person", "Write a message to a person"),
        {
            "to": Parameter(("to", "person", "recipient"), "string", _name),
            "text": Parameter(("text", "message", "body"), "string", _words),
        },
        Wordings(
            train=(
                'Send "{text}" to {to}.',
                'Send {to} the message "{text}".',
                'Write "{text}" to {to}.',
                'Please tell {to}: "{text}".',
                'Send a message to {to}: "{text}".',
            ),
            heldout=('Please send "{text}" to {to}.', 'Send {to} a message: "{text}".'),
        ),
        lambda rng: {"sent": True},
        "I sent the message to {to}.",
    ),
    ToolKind(
        ("set_timer", "timer", "start_timer", "set_alarm"),
        ("Set a timer", "Starts a timer", "Start a timer of some minutes"),
        {"minutes": Parameter(("minutes", "duration", "min", "length"), "integer", _number(1, 90))},
        Wordings(
            train=(
                "Set a timer for {minutes} minutes.",
                "Start a timer of {minutes} minutes.",
                "Wake me in {minutes} minutes.",
                "Please set a timer for {minutes} minutes.",
                "I need a timer for {minutes} minutes.",
            ),
            heldout=("Start a timer for {minutes} minutes.", "Set the timer to {minutes} minutes, please."),
        ),
        lambda rng: {"ok": True},
        "The timer is set for {minutes} minutes.",
    ),
    ToolKind(
        ("translate", "translate_text", "translation"),
        ("Translate a text", "Translates a text into a language"),
        {
            "text": Parameter(("text", "phrase", "sentence"), "string", _words),
            "language": Parameter(
                ("language", "to", "target"),
                "string",
                _one_of("French", "German", "Spanish", "Italian", "Polish", "Greek"),
            ),
        },
        Wordings(
            train=(
                'Translate "{text}" into {language}.',
                'Translate "{text}" to {language}.',
                'How do you say "{text}" in {language}?',
                'What is "{text}" in {language}?',
            ),
            heldout=('Please translate "{text}" into {language}.', 'Say "{text}" in {language}.'),
        ),
        lambda rng: {"translation": "-".join(rng.sample(facts.WORDS, 2))},
        'In {language} that is "{translation}".',
    ),
    ToolKind(
        ("play_song", "play_music", "play", "start_music"),
        ("Play a song", "Plays music", "Play a song by its title"),
        {"title": Parameter(("title", "song", "name"), "string", _words)},
        Wordings(
            train=(
                'Play "{title}".',
                "Play the song {title}.",
                'I want to hear "{title}".',
                'Please play "{title}".',
            ),
            heldout=('Play the song "{title}", please.', 'Can you play "{title}"?'),
        ),
        lambda rng: {"playing": True},
        'I am playing "{title}".',
    ),
    ToolKind(
        ("get_price", "price", "stock_price", "get_stock_price"),
        ("Get the price of a thing", "Returns the price", "Get the current price"),
        {"item": Parameter(("item", "product", "symbol", "thing"), "string", lambda rng: rng.choice(facts.WORDS))},
        Wordings(
            train=(
                "What is the price of {item}?",
                "How much does {item} cost?",
                "Tell me the price of {item}.",
                "What does {item} cost?",
            ),
            heldout=("What's the price of {item}?", "Please check the price of {item}."),
        ),
        lambda rng: {"price": rng.randint(1, 500)},
        "The price of {item} is {price}.",
    ),
    ToolKind(
        ("book_table", "reserve_table", "reserve"),
        ("Book a table", "Reserves a table in a restaurant"),
        {
            "people": Parameter(("people", "guests", "persons"), "integer", _number(2, 12)),
            "day": Parameter(("day", "date", "weekday"), "string", lambda rng: rng.choice(facts.DAYS)),
        },
        Wordings(
            train=(
                "Book a table for {people} people on {day}.",
                "Reserve a table for {people} on {day}.",
                "We are {people} people. Book a table for {day}.",
                "I need a table for {people} on {day}.",
            ),
            heldout=(
                "Please book a table for {people} people on {day}.",
                "On {day} we need a table for {people}.",
            ),
        ),
        lambda rng: {"booked": True},
        "I booked a table for {people} people on {day}.",
    ),
)


def _spec(rng: Random, kind: ToolKind, names: dict[str, str]) -> tuple[str, Json]:
    """The tool as an OpenAI tool object, with the parameter names of this conversation."""
    name = rng.choice(kind.names)
    properties: Json = {}
    for key, parameter in kind.parameters.items():
        properties[names[key]] = {"type": parameter.type}
        if rng.random() < 0.3:
            properties[names[key]]["description"] = rng.choice((f"The {key}", f"The {key} to use", names[key]))
    required = list(properties)
    if rng.random() < 0.15:
        properties |= rng.choice(UNUSED)
    function: Json = {"name": name, "description": rng.choice(kind.descriptions)}
    function["parameters"] = {"type": "object", "properties": properties, "required": required}
    return name, {"type": "function", "function": function}


def draw_call(rng: Random, split: Split, kind: ToolKind) -> Call:
    """A tool, a question that needs it, and the call that answers the question."""
    names = {key: rng.choice(parameter.names) for key, parameter in kind.parameters.items()}
    values = {key: parameter.draw(rng) for key, parameter in kind.parameters.items()}
    name, spec = _spec(rng, kind, names)
    question = rng.choice(kind.asked.templates(split)).format(**values)
    return Call(kind, spec, name, question, {names[key]: values[key] for key in values}, values)


def draw_tools(rng: Random, split: Split, call: Call) -> list[Json]:
    """The tool of `call` among up to two others, in any order."""
    others = [kind for kind in TOOL_KINDS if kind is not call.kind]
    picked = rng.sample(others, rng.choices((0, 1, 2), (3, 3, 1))[0])
    specs = [call.spec, *(draw_call(rng, split, kind).spec for kind in picked)]
    rng.shuffle(specs)
    return specs


def call_text(name: str, arguments: Json) -> str:
    """A tool call as the model writes it."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def draw_result(rng: Random, call: Call) -> tuple[str, str]:
    """Return what the tool returned, and the sentence that tells it to the user."""
    result = call.kind.result(rng)
    return json.dumps(result), call.kind.answer.format(**call.values, **result)
