"""The kinds of question that the demo model is taught, each with its right answer.

A kind is a function from a random source and a split to one turn. Owns what the answer to a question is; it does
not know how turns become conversations or text.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Literal

from demo import facts, prose, talk
from demo.topics import TOPICS
from demo.wordings import Split, ask, dress

Mode = Literal["words", "exact", "json"]


@dataclass(frozen=True)
class Turn:
    """A question and its answer; another answer is right if it holds `expect`, as `mode` says.

    With mode "words" every entry must occur as whole words, with "exact" the answer must be the first entry,
    and with "json" it must be the same JSON value as the first entry.
    """

    user: str
    answer: str
    expect: tuple[str, ...]
    mode: Mode = "words"


Kind = Callable[[Random, Split], Turn]


def _exact(user: str, answer: str) -> Turn:
    return Turn(user, answer, (answer,), "exact")


def _upper_first(text: str) -> str:
    return text[0].upper() + text[1:]


def _fact(wording: str, rows: list[facts.Row], answer: str, expect: str) -> Kind:
    """A kind that looks one row up: `answer` says it and the value of the field `expect` must be in it."""

    def kind(rng: Random, split: Split) -> Turn:
        row = rng.choice(rows)
        return Turn(ask(rng, split, wording, **row), _upper_first(answer.format(**row)), (row[expect],))

    return kind


def _neighbour(wording: str, field: str, names: list[str], step: int, answer: str) -> Kind:
    """A kind that asks for the entry `step` places further in a circle of names."""

    def kind(rng: Random, split: Split) -> Turn:
        at = rng.randrange(len(names))
        other = names[(at + step) % len(names)]
        return Turn(ask(rng, split, wording, **{field: names[at]}), answer.format(names[at], other), (other,))

    return kind


def _terms(rng: Random) -> tuple[int, int]:
    return rng.randint(0, 20), rng.randint(0, 20)


def _sum_turn(rng: Random, split: Split, kind: str, terms: tuple[int, int], result: int) -> Turn:
    a, b = terms
    sign = {"add": "+", "subtract": "-", "multiply": "*"}[kind]
    question = ask(rng, split, kind, a=str(a), b=str(b))
    return Turn(question, f"{a} {sign} {b} = {result}", (f"= {result}",))


def add(rng: Random, split: Split) -> Turn:
    a, b = _terms(rng)
    return _sum_turn(rng, split, "add", (a, b), a + b)


def subtract(rng: Random, split: Split) -> Turn:
    a, b = sorted(_terms(rng), reverse=True)
    return _sum_turn(rng, split, "subtract", (a, b), a - b)


def multiply(rng: Random, split: Split) -> Turn:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    return _sum_turn(rng, split, "multiply", (a, b), a * b)


def larger(rng: Random, split: Split) -> Turn:
    a, b = rng.sample(range(100), 2)
    high, low = max(a, b), min(a, b)
    return Turn(ask(rng, split, "larger", a=str(a), b=str(b)), f"{high} is larger than {low}.", (f"{high} is larger",))


def next_number(rng: Random, split: Split) -> Turn:
    a = rng.randint(0, 199)
    return Turn(ask(rng, split, "next_number", a=str(a)), f"After {a} comes {a + 1}.", (f"comes {a + 1}",))


def _range(rng: Random) -> tuple[int, int]:
    low = rng.randint(0, 12)
    return low, low + (rng.randint(2, 10) if rng.random() < 0.8 else rng.randint(11, 40))


def count_to(rng: Random, split: Split) -> Turn:
    high = rng.randint(3, 20) if rng.random() < 0.7 else rng.randint(21, 60)
    return _exact(ask(rng, split, "count_to", b=str(high)), ", ".join(str(i) for i in range(1, high + 1)))


def count_up(rng: Random, split: Split) -> Turn:
    low, high = _range(rng)
    numbers = ", ".join(str(i) for i in range(low, high + 1))
    return _exact(ask(rng, split, "count_up", a=str(low), b=str(high)), numbers)


def count_down(rng: Random, split: Split) -> Turn:
    low, high = _range(rng)
    numbers = ", ".join(str(i) for i in range(high, low - 1, -1))
    return _exact(ask(rng, split, "count_down", a=str(low), b=str(high)), numbers)


def _items(rng: Random, low: int = 2, high: int = 6) -> list[str]:
    count = rng.randint(low, high)
    roll = rng.random()
    if roll < 0.7:
        return rng.sample(facts.WORDS, count)
    if roll < 0.85:
        return [str(n) for n in rng.sample(range(100), count)]
    return rng.sample(facts.NAMES, count)


def how_many(rng: Random, split: Split) -> Turn:
    items = _items(rng)
    counted = ", ".join(f"{i} {item}" for i, item in enumerate(items, 1))
    total = f"So there are {len(items)}."
    return Turn(ask(rng, split, "how_many", items=", ".join(items)), f"{counted}. {total}", (total,))


def _pseudo_word(rng: Random) -> str:
    """A word that does not exist, so that spelling is learned from letters and not by heart."""
    syllables = (rng.choice("bdfgklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
    return "".join(syllables) + rng.choice(("", "n", "r", "s", "l", "t"))


def _word(rng: Random, split: Split) -> str:
    if split == "train" and rng.random() < 0.2:
        return _pseudo_word(rng)
    return rng.choice(facts.WORDS)


def spell(rng: Random, split: Split) -> Turn:
    word = _word(rng, split)
    return _exact(ask(rng, split, "spell", word=word), "-".join(word))


def letters(rng: Random, split: Split) -> Turn:
    word = _word(rng, split)
    answer = f"{'-'.join(word)}: {word} has {len(word)} letters."
    return Turn(ask(rng, split, "letters", word=word), answer, (f"{len(word)} letters",))


def first_letter(rng: Random, split: Split) -> Turn:
    word = _word(rng, split)
    answer = f"The first letter of {word} is {word[0]}."
    return Turn(ask(rng, split, "first_letter", word=word), answer, (f"is {word[0]}.",))


def reverse_word(rng: Random, split: Split) -> Turn:
    word = _word(rng, split)
    forward, back = "-".join(word), "-".join(reversed(word))
    return Turn(ask(rng, split, "reverse_word", word=word), f"{forward} backwards is {back}", (f"is {back}",))


def reverse_list(rng: Random, split: Split) -> Turn:
    items = _items(rng)
    return _exact(ask(rng, split, "reverse_list", items=", ".join(items)), ", ".join(reversed(items)))


def _copy_text(rng: Random) -> str:
    roll = rng.random()
    if roll < 0.6:
        return " ".join(rng.sample(facts.WORDS, rng.randint(1, 8)))
    if roll < 0.75:
        return "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 8)))
    if roll < 0.9:
        return _upper_first(" ".join(_items(rng))) + rng.choice((".", "!", "?"))
    return " ".join(row["emoji"] for row in rng.sample(facts.EMOJI, rng.randint(1, 3)))


def copy(rng: Random, split: Split) -> Turn:
    text = _copy_text(rng)
    return _exact(ask(rng, split, "copy", text=text), text)


def item_at(rng: Random, split: Split) -> Turn:
    items = _items(rng, 3, 5)
    at = rng.randrange(3)
    place = ("first", "second", "third")[at]
    answer = f"The {place} word is {items[at]}."
    return Turn(ask(rng, split, "item_at", items=", ".join(items), place=place), answer, (f"is {items[at]}",))


def explain(rng: Random, split: Split) -> Turn:
    topic = rng.choice(list(TOPICS))
    return _exact(ask(rng, split, "explain", topic=topic), " ".join(TOPICS[topic]))


def explain_short(rng: Random, split: Split) -> Turn:
    topic = rng.choice(list(TOPICS))
    return _exact(ask(rng, split, "explain_short", topic=topic), TOPICS[topic][0])


def story(rng: Random, split: Split) -> Turn:
    hero = rng.choice(prose.HEROES)
    question = ask(rng, split, "story", hero=hero[0])
    return Turn(question, prose.story(rng, hero), (hero[0].split()[-1],))


def about_country(rng: Random, split: Split) -> Turn:
    row = rng.choice(facts.COUNTRIES)
    told = "{country} is a country in {continent}. Its capital is {capital}. The main language is {language}."
    question = ask(rng, split, "about_country", **row)
    return Turn(question, told.format(**row), (row["continent"], row["capital"], row["language"]))


def is_capital(rng: Random, split: Split) -> Turn:
    row = rng.choice(facts.COUNTRIES)
    named = row["capital"] if rng.random() < 0.5 else rng.choice(facts.COUNTRIES)["capital"]
    word = "Yes" if named == row["capital"] else "No"
    question = ask(rng, split, "is_capital", country=row["country"], capital=named)
    return Turn(question, f"{word}, the capital of {row['country']} is {row['capital']}.", (word, row["capital"]))


def list_known(rng: Random, split: Split) -> Turn:
    things = rng.choice(list(facts.LISTS))
    return _exact(ask(rng, split, "list_known", things=things), ", ".join(facts.LISTS[things]))


def small_talk(rng: Random, split: Split) -> Turn:
    topic = rng.choice(list(talk.SMALL_TALK.values()))
    asked = rng.choice(topic.asked.templates(split))
    return Turn(asked, rng.choice(topic.answers), (topic.expect,))


def unknown(rng: Random, split: Split) -> Turn:
    if rng.random() < 0.2:
        fake = _upper_first(_pseudo_word(rng)) + rng.choice(("ia", "land", "istan"))
        return _exact(ask(rng, split, "no_country", fake=fake), talk.UNKNOWN)
    values = {
        "name": rng.choice(facts.NAMES),
        "country": rng.choice(facts.COUNTRIES)["country"],
        "year": str(rng.randint(1000, 2030)),
    }
    text = rng.choice(talk.UNANSWERABLE.templates(split)).format(**values)
    return _exact(dress(rng, text) if split == "train" else text, talk.UNKNOWN)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _json_turn(user: str, value: Any) -> Turn:
    return Turn(user, _dump(value), (_dump(value),), "json")


def _keys_text(rng: Random, keys: list[str]) -> str:
    """The keys as a question lists them: with commas, with "and", or in quotes."""
    named = [f'"{key}"' for key in keys] if rng.random() < 0.25 else keys
    if len(named) == 1:
        return named[0]
    if rng.random() < 0.3:
        return ", ".join(named)
    return ", ".join(named[:-1]) + " and " + named[-1]


def _person(rng: Random) -> tuple[dict[str, Any], str]:
    """A made-up person and the sentences that tell about them."""
    name, city = rng.choice(facts.NAMES), rng.choice(facts.COUNTRIES)["capital"]
    age, job = rng.randint(5, 90), rng.choice(facts.JOBS)
    pet, colour = rng.choice(facts.PETS), rng.choice(facts.COLOUR_WORDS)
    coloured = facts.article(colour)
    told = rng.choice(
        (
            f"{name} is {age} years old, lives in {city}, works as a {job} and has {coloured} {pet}.",
            f"{name} from {city} is {age}. The job is {job}, the pet is {coloured} {pet}.",
            f"My friend {name} lives in {city} and is a {job}. {name} is {age} and has a {pet} that is {colour}.",
            f"This is {name}, a {job} of {age} years. {name} has {coloured} {pet} and lives in {city}.",
        )
    )
    return {"name": name, "age": age, "city": city, "job": job, "pet": pet, "color": colour}, told


def _short_person(rng: Random) -> tuple[dict[str, Any], str]:
    name, age, city = rng.choice(facts.NAMES), rng.randint(5, 90), rng.choice(facts.COUNTRIES)["capital"]
    told = rng.choice(
        (
            f"{name} is {age} years old and lives in {city}.",
            f"{name} lives in {city} and is {age}.",
            f"{name} is {age} and comes from {city}.",
        )
    )
    return {"name": name, "age": age, "city": city}, told


def json_person(rng: Random, split: Split) -> Turn:
    person, told = _person(rng) if rng.random() < 0.6 else _short_person(rng)
    keys = rng.sample(list(person), rng.randint(1, min(4, len(person))))
    question = ask(rng, split, "json_person", keys=_keys_text(rng, keys), text=told)
    return _json_turn(question, {key: person[key] for key in keys})


def json_country(rng: Random, split: Split) -> Turn:
    row = rng.choice(facts.COUNTRIES)
    keys = rng.sample(list(row), rng.randint(1, 4))
    question = ask(rng, split, "json_country", keys=_keys_text(rng, keys), country=row["country"])
    return _json_turn(question, {key: row[key] for key in keys})


def json_list(rng: Random, split: Split) -> Turn:
    items = rng.sample(facts.WORDS, rng.randint(2, 5))
    return _json_turn(ask(rng, split, "json_list", items=", ".join(items)), items)


_MONTH_NAMES: Final = [row["month"] for row in facts.MONTHS]

FACT_KINDS: Final[dict[str, Kind]] = {
    "capital": _fact("capital", facts.COUNTRIES, "The capital of {country} is {capital}.", "capital"),
    "capital_of": _fact("capital_of", facts.COUNTRIES, "{capital} is the capital of {country}.", "country"),
    "continent": _fact("continent", facts.COUNTRIES, "{country} is in {continent}.", "continent"),
    "currency": _fact("currency", facts.COUNTRIES, "The currency of {country} is the {currency}.", "currency"),
    "language": _fact("language", facts.COUNTRIES, "The main language of {country} is {language}.", "language"),
    "symbol": _fact("symbol", facts.ELEMENTS, "The chemical symbol of {element} is {symbol}.", "symbol"),
    "symbol_of": _fact("symbol_of", facts.ELEMENTS, "{symbol} is the chemical symbol of {element}.", "element"),
    "atomic_number": _fact("atomic_number", facts.ELEMENTS, "The atomic number of {element} is {number}.", "number"),
    "planet_place": _fact(
        "planet_place", facts.PLANETS, "{planet} is the {place} planet from the Sun. It is {fact}.", "place"
    ),
    "planet_at": _fact("planet_at", facts.PLANETS, "The {place} planet from the Sun is {planet}.", "planet"),
    "planet_known": _fact("planet_known", facts.PLANETS, "{planet} is {fact}.", "planet"),
    "young": _fact("young", facts.ANIMALS, "A baby {animal} is called {a_young}.", "young"),
    "group": _fact("group", facts.ANIMALS, "The {animal} is a kind of {group}.", "group"),
    "legs": _fact("legs", facts.ANIMALS, "{a_animal} has {legs} legs.", "legs"),
    "sound": _fact("sound", facts.SOUNDS, 'The {animal} says "{sound}".', "sound"),
    "colour": _fact("colour", facts.COLOURS, "The colour of {thing} is {colour}.", "colour"),
    "mix": _fact("mix", facts.MIXES, "{first} and {second} make {result}.", "result"),
    "day_after": _neighbour("day_after", "day", facts.DAYS, 1, "After {} comes {}."),
    "day_before": _neighbour("day_before", "day", facts.DAYS, -1, "Before {} comes {}."),
    "month_after": _neighbour("month_after", "month", _MONTH_NAMES, 1, "After {} comes {}."),
    "month_before": _neighbour("month_before", "month", _MONTH_NAMES, -1, "Before {} comes {}."),
    "month_days": _fact("month_days", facts.MONTHS, "{month} has {days} days.", "days"),
    "opposite": _fact("opposite", facts.OPPOSITES, 'The opposite of "{word}" is "{opposite}".', "opposite"),
    "plural": _fact("plural", facts.PLURALS, 'The plural of "{word}" is "{plural}".', "plural"),
    "sides": _fact("sides", facts.SHAPES, "{a_shape} has {sides} sides.", "sides"),
    "unit": _fact("unit", facts.UNITS, "There are {count} {small} in {large}.", "count"),
    "landmark": _fact("landmark", facts.LANDMARKS, "{landmark} is in {country}.", "country"),
    "emoji": _fact("emoji", facts.EMOJI, "{emoji}", "emoji"),
    "translate": _fact("translate", facts.TRANSLATIONS, 'In {language}, "{word}" is "{foreign}".', "foreign"),
}

SKILL_KINDS: Final[dict[str, Kind]] = {
    "add": add,
    "subtract": subtract,
    "multiply": multiply,
    "larger": larger,
    "next_number": next_number,
    "count_to": count_to,
    "count_up": count_up,
    "count_down": count_down,
    "how_many": how_many,
    "spell": spell,
    "letters": letters,
    "first_letter": first_letter,
    "reverse_word": reverse_word,
    "reverse_list": reverse_list,
    "copy": copy,
    "item_at": item_at,
    "explain": explain,
    "explain_short": explain_short,
    "story": story,
    "about_country": about_country,
    "is_capital": is_capital,
    "list_known": list_known,
    "small_talk": small_talk,
    "unknown": unknown,
    "json_person": json_person,
    "json_country": json_country,
    "json_list": json_list,
}

KINDS: Final[dict[str, Kind]] = {**FACT_KINDS, **SKILL_KINDS}

_HEAVY: Final[dict[str, float]] = {
    "capital": 4, "capital_of": 2, "continent": 2, "currency": 2, "language": 2, "atomic_number": 1.5,
    "add": 12, "subtract": 11, "multiply": 7, "larger": 2, "next_number": 1.5,
    "count_to": 1.2, "count_up": 3, "count_down": 2.5, "how_many": 2.5,
    "spell": 6, "letters": 3, "first_letter": 1.5, "reverse_word": 5, "reverse_list": 5, "copy": 6, "item_at": 1.5,
    "explain": 2, "explain_short": 1.5, "story": 0.4, "is_capital": 2, "small_talk": 2.5, "unknown": 3,
    "json_person": 6, "json_country": 3, "json_list": 3,
}  # fmt: skip

WEIGHTS: Final = [_HEAVY.get(name, 0.8) for name in KINDS]


def any_turn(rng: Random, split: Split) -> Turn:
    """A turn of a random kind, the harder kinds more often."""
    return rng.choices(list(KINDS.values()), WEIGHTS)[0](rng, split)
