"""Plain prose for the demo model: short stories and short informing paragraphs.

Owns the story grammar. It does not know about chats; its texts end with the end of the document.
"""

from random import Random
from typing import Final

from demo import facts
from demo.topics import TOPICS

HEROES: Final = (
    ("a little girl", "she", "her"),
    ("a little boy", "he", "his"),
    ("an old man", "he", "his"),
    ("an old woman", "she", "her"),
    ("a young baker", "he", "his"),
    ("a young teacher", "she", "her"),
    ("a small fox", "he", "his"),
    ("a brown bear", "he", "his"),
    ("a white rabbit", "she", "her"),
    ("a clever owl", "she", "her"),
    ("a grey wolf", "he", "his"),
    ("a farmer", "he", "his"),
)
FRIENDS: Final = (
    "a friendly dog",
    "a wise owl",
    "a kind neighbour",
    "a small bird",
    "an old turtle",
    "a tall boy",
    "a quiet girl",
    "a red fox",
    "a grey cat",
    "a young singer",
)
PLACES: Final = (
    "in a small house near the forest",
    "in a village by the sea",
    "at the foot of a high mountain",
    "in a quiet town",
    "on a small island",
    "next to a wide river",
    "in an old castle",
    "at the edge of a green valley",
    "in a warm hole under a tree",
    "in a house with a blue door",
)
THINGS: Final = (
    "a golden key",
    "a red ball",
    "a silver ring",
    "an old book",
    "a warm hat",
    "a small lamp",
    "a wooden boat",
    "a blue kite",
    "a little bell",
    "a loaf of bread",
)
TRIPS: Final = (
    "into the forest",
    "to the market",
    "down to the river",
    "up the hill",
    "along the beach",
    "across the bridge",
    "to the old mill",
    "through the snow",
)
WEATHER: Final = (
    "The sun was shining",
    "It was raining softly",
    "A cold wind was blowing",
    "The sky was grey",
    "Snow lay on the fields",
    "The air was warm and still",
)
FEELINGS: Final = ("very happy", "a little sad", "tired but glad", "proud", "full of joy", "calm again")
MATTERS: Final = ("books", "music", "the weather", "their pets")
OPENINGS: Final = (
    "Once upon a time there was {hero} called {name}.",
    "Once upon a time, {hero} called {name} lived {place}.",
    "There was once {hero} whose name was {name}.",
    "Long ago, {hero} called {name} lived {place}.",
    "{name} was {hero} who lived {place}.",
    "Once upon a time there was {hero} who lived {place}.",
)
MORNINGS: Final = (
    "One day {name} went {trip}.",
    "One morning {name} walked {trip}.",
    "One evening, {name} went {trip} alone.",
    "On a {day}, {name} decided to go {trip}.",
    "Early in the morning {he} got up and went {trip}.",
)
LOSSES: Final = (
    (
        "On the way {he} lost {thing}.",
        "{He} looked everywhere, but {he} could not find it.",
        "Then {friend} came along and asked what was wrong.",
        "Together they searched until it was nearly dark.",
        "At last they found it under a stone.",
        "{name} thanked {his} new friend and went home.",
    ),
    (
        "There {he} found {thing}.",
        "Nobody knew to whom it belonged.",
        "{name} asked {friend}, who knew the answer.",
        "It belonged to the woman at the end of the road.",
        "{name} brought it back to her at once.",
        "She was so glad that she gave {his2} a piece of cake.",
    ),
    (
        "Suddenly {he} heard a strange noise.",
        "It came from behind a tree.",
        "{name} was afraid, but {he} went closer.",
        "It was only {friend}, who was looking for food.",
        "{name} shared {his} bread, and they ate it together.",
        "From that day on they were friends.",
    ),
    (
        "{He} wanted to buy {thing}, but {he} had no money.",
        "So {he} asked {friend} for help.",
        '"You can work for me," was the answer.',
        "{name} worked for three days, from morning to evening.",
        "Then {he} had enough money and bought what {he} wanted.",
        "{He} kept it for the rest of {his} life.",
    ),
    (
        "A storm came up, and {he} could not see the path any more.",
        "{He} sat down under a tree and waited.",
        "After a while {friend} saw {his2} and showed the way.",
        "They walked slowly, step by step.",
        "When the storm was over, they could see the lights of the house.",
        "Inside it was warm and dry.",
    ),
    (
        "{He} met {friend}, who was carrying something heavy.",
        '"May I help you?" asked {name}.',
        '"That would be kind," was the answer.',
        "They carried it together and talked all the way.",
        "In the end {name} was given {thing} as a present.",
        "{He} had never seen anything so beautiful.",
    ),
)
ENDINGS: Final = (
    "In the evening {name} was {feeling}.",
    "That night {he} slept well.",
    "And {name} was {feeling}.",
    "{name} never forgot that day.",
    "When {he} came home, {he} was {feeling}.",
    "And if nothing has changed, they are still friends today.",
)


def _cast(rng: Random, wanted: tuple[str, str, str] | None) -> dict[str, str]:
    hero, he, his = wanted or rng.choice(HEROES)
    return {
        "hero": hero,
        "he": he,
        "his": his,
        "He": he.capitalize(),
        "his2": "her" if he == "she" else "him",
        "name": rng.choice(facts.NAMES),
        "friend": rng.choice(FRIENDS),
        "place": rng.choice(PLACES),
        "thing": rng.choice(THINGS),
        "trip": rng.choice(TRIPS),
        "day": rng.choice(facts.DAYS),
        "feeling": rng.choice(FEELINGS),
    }


def story(rng: Random, hero: tuple[str, str, str] | None = None) -> str:
    """A story of about ten sentences with one hero."""
    cast = _cast(rng, hero)
    lines = [rng.choice(OPENINGS), rng.choice(MORNINGS)]
    if rng.random() < 0.6:
        lines.append(rng.choice(WEATHER) + ".")
    lines += [*rng.choice(LOSSES), rng.choice(ENDINGS)]
    if rng.random() < 0.3:
        lines.append("The end.")
    return " ".join(line.format(**cast) for line in lines)


def country_paragraph(rng: Random) -> str:
    """Return what the tables know about one country, in an order and a wording that vary."""
    row = rng.choice(facts.COUNTRIES)
    body = [
        rng.choice(
            (
                "The capital of {country} is {capital}.",
                "Its capital is {capital}.",
                "{capital} is the capital.",
            )
        ),
        rng.choice(("People there speak {language}.", "The main language is {language}.")),
        rng.choice(("The currency of {country} is the {currency}.", "People pay with the {currency}.")),
    ]
    rng.shuffle(body)
    first = rng.choice(("{country} is a country in {continent}.", "The country {country} lies in {continent}."))
    return " ".join(line.format(**row) for line in (first, *body[: rng.randint(2, 3)]))


def topic_paragraph(rng: Random) -> str:
    """The sentences of one or two topics."""
    return "\n\n".join(" ".join(TOPICS[name]) for name in rng.sample(list(TOPICS), rng.randint(1, 2)))


def day_paragraph(rng: Random) -> str:
    """Return what a person does on a day."""
    name, other = rng.sample(facts.NAMES, 2)
    food, food2 = rng.sample(facts.FOODS, 2)
    lines = [
        f"On {rng.choice(facts.DAYS)} {name} gets up early and eats {food}.",
        f"{name} works as a {rng.choice(facts.JOBS)} and likes the work very much.",
        f"At noon {name} meets {other}, and they talk about {rng.choice(MATTERS)}.",
        f"In the afternoon they go {rng.choice(TRIPS)} together.",
        f"In the evening there is {food2}, and then {name} goes to bed.",
    ]
    keep = sorted(rng.sample(range(len(lines)), rng.randint(3, 5)))
    return " ".join(lines[i] for i in keep)


def paragraph(rng: Random) -> str:
    """One piece of prose of any sort."""
    writer = rng.choices((story, country_paragraph, topic_paragraph, day_paragraph), (5, 2, 2, 1))[0]
    return writer(rng)
