"""How questions are worded, for training and, apart from that, for the held-out test.

Owns every question template and the split between the two sets. It does not know the facts that fill the
templates, nor what the right answer is.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Final, Literal

Split = Literal["train", "heldout"]

TRAIN_FRAMES: Final = (
    "What is {np}?",
    "What's {np}?",
    "what is {np}",
    "Tell me {np}.",
    "Please tell me {np}.",
    "Name {np}.",
    "Can you tell me {np}?",
    "Do you know {np}?",
    "I would like to know {np}.",
    "{np}?",
    "Say what {np} is.",
    "I need to know {np}.",
    "Could you tell me what {np} is?",
    "Hi, what is {np}?",
    "My question is: what is {np}?",
    "Answer this: what is {np}?",
    "Help me, please. What is {np}?",
    "I want to know what {np} is.",
)

HELDOUT_FRAMES: Final = (
    "Give me {np}, please.",
    "Hello! Could you say what {np} is?",
    "I forgot {np}. What is it?",
    "Would you tell me {np}?",
    "Quick question: what is {np}?",
)


@dataclass(frozen=True)
class Wordings:
    """The templates of one kind; `nouns` are put into the frames, the others stand as they are."""

    nouns: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    heldout: tuple[str, ...] = field(default=())

    def templates(self, split: Split) -> tuple[str, ...]:
        frames, own = (TRAIN_FRAMES, self.train) if split == "train" else (HELDOUT_FRAMES, self.heldout)
        framed = tuple(frame.replace("{np}", noun) for noun in self.nouns for frame in frames)
        return framed + own * max(1, len(framed) // (3 * max(1, len(own))))


WORDINGS: Final[dict[str, Wordings]] = {
    "capital": Wordings(
        nouns=("the capital of {country}", "the capital city of {country}", "{country}'s capital"),
        train=(
            "Which city is the capital of {country}?",
            "{country} has which capital?",
            "capital of {country}",
        ),
        heldout=("Which city is {country}'s capital?", "What city serves as the capital of {country}?"),
    ),
    "capital_of": Wordings(
        train=(
            "{capital} is the capital of which country?",
            "Which country has the capital {capital}?",
            "What country is {capital} the capital of?",
            "Of which country is {capital} the capital?",
            "{capital} is a capital. Of which country?",
            "Tell me the country whose capital is {capital}.",
            "Name the country that has {capital} as its capital.",
            "In which country is the capital {capital}?",
        ),
        heldout=(
            "Which country's capital is {capital}?",
            "The capital is {capital}. What is the country?",
            "Which country has {capital} as its capital city?",
        ),
    ),
    "continent": Wordings(
        nouns=("the continent of {country}", "{country}'s continent"),
        train=(
            "On which continent is {country}?",
            "Which continent is {country} in?",
            "{country} is on which continent?",
            "Where is {country}?",
            "In which part of the world is {country}?",
            "To which continent does {country} belong?",
            "Tell me which continent {country} is in.",
        ),
        heldout=("What continent is {country} on?", "{country} belongs to which continent?"),
    ),
    "currency": Wordings(
        nouns=("the currency of {country}", "{country}'s currency", "the money of {country}"),
        train=(
            "Which currency does {country} use?",
            "What money do people use in {country}?",
            "How do people pay in {country}?",
            "In {country}, which currency is used?",
        ),
        heldout=("What currency is used in {country}?", "Which money is used in {country}?"),
    ),
    "language": Wordings(
        nouns=("the language of {country}", "the main language of {country}", "{country}'s language"),
        train=(
            "Which language do people speak in {country}?",
            "What language is spoken in {country}?",
            "What do people speak in {country}?",
            "In {country}, which language is spoken?",
        ),
        heldout=("Which language is spoken in {country}?", "What language do the people of {country} speak?"),
    ),
    "symbol": Wordings(
        nouns=("the symbol of {element}", "the chemical symbol of {element}", "the symbol for {element}"),
        train=("Which symbol does {element} have?", "How is {element} written in chemistry?"),
        heldout=("What symbol does {element} have?", "Which chemical symbol stands for {element}?"),
    ),
    "symbol_of": Wordings(
        nouns=("the element with the symbol {symbol}",),
        train=(
            "Which element has the symbol {symbol}?",
            "What does the symbol {symbol} stand for?",
            "{symbol} is the symbol of which element?",
        ),
        heldout=("What element has the symbol {symbol}?", "Which element does {symbol} stand for?"),
    ),
    "atomic_number": Wordings(
        nouns=("the atomic number of {element}", "{element}'s atomic number"),
        train=(
            "Which atomic number does {element} have?",
            "Which number has {element} in the periodic table?",
        ),
        heldout=("What atomic number does {element} have?", "{element} has which atomic number?"),
    ),
    "planet_place": Wordings(
        train=(
            "Which planet is {planet}, counted from the Sun?",
            "Where is {planet} among the planets?",
            "What is the place of {planet} among the planets?",
            "Is {planet} the first or a later planet from the Sun?",
            "Tell me about the planet {planet}.",
            "How far from the Sun is {planet}, counted in planets?",
            "What do you know about {planet}?",
            "What is {planet}?",
        ),
        heldout=(
            "Which place does {planet} have from the Sun?",
            "What can you say about the planet {planet}?",
        ),
    ),
    "planet_at": Wordings(
        nouns=("the {place} planet", "the {place} planet from the Sun"),
        train=("Which planet is {place} from the Sun?", "Which planet is the {place} one?"),
        heldout=("Which is the {place} planet from the Sun?", "What planet comes {place} from the Sun?"),
    ),
    "planet_known": Wordings(
        nouns=("{fact}",),
        train=("Which planet is {fact}?", "Which one is {fact}?"),
        heldout=("What planet is {fact}?", "Which planet do we call {fact}?"),
    ),
    "young": Wordings(
        nouns=("the name for a baby {animal}", "the word for a young {animal}", "the young of {a_animal}"),
        train=(
            "What do you call a baby {animal}?",
            "How is a young {animal} called?",
            "What is a baby {animal}?",
        ),
        heldout=("What do people call a young {animal}?", "A baby {animal} is called what?"),
    ),
    "group": Wordings(
        nouns=("the animal class of {a_animal}",),
        train=(
            "What kind of animal is {a_animal}?",
            "Is {a_animal} a mammal or a bird?",
            "To which group of animals does the {animal} belong?",
            "Which kind of animal is the {animal}?",
        ),
        heldout=("What sort of animal is {a_animal}?", "{a_animal} is what kind of animal?"),
    ),
    "legs": Wordings(
        nouns=("the number of legs of {a_animal}",),
        train=(
            "How many legs does {a_animal} have?",
            "How many legs has {a_animal}?",
            "Count the legs of {a_animal}.",
        ),
        heldout=("On how many legs does {a_animal} walk?", "{a_animal} has how many legs?"),
    ),
    "sound": Wordings(
        nouns=("the sound of {a_animal}", "the sound that {a_animal} makes"),
        train=(
            "What does {a_animal} say?",
            "Which sound does {a_animal} make?",
            "How does {a_animal} sound?",
            "What noise does {a_animal} make?",
        ),
        heldout=("What sound does {a_animal} make?", "Which noise does {a_animal} make?"),
    ),
    "colour": Wordings(
        nouns=("the colour of {thing}", "the color of {thing}"),
        train=("Which colour is {thing}?", "What colour does {thing} have?", "Which color has {thing}?"),
        heldout=("What colour is {thing}?", "What color is {thing}?", "Which colour does {thing} have?"),
    ),
    "mix": Wordings(
        nouns=("the mix of {first} and {second}", "the colour of {first} mixed with {second}"),
        train=(
            "Which colour do {first} and {second} make?",
            "I mix {first} and {second}. What do I get?",
            "What happens if I mix {first} with {second}?",
            "Which colour do I get from {first} and {second}?",
        ),
        heldout=(
            "What do you get when you mix {first} and {second}?",
            "What colour do {first} and {second} make?",
        ),
    ),
    "day_after": Wordings(
        nouns=("the day after {day}", "the next day after {day}"),
        train=(
            "Which day comes after {day}?",
            "Today is {day}. What day is tomorrow?",
            "Which day follows {day}?",
        ),
        heldout=("What day comes after {day}?", "If today is {day}, what day is tomorrow?"),
    ),
    "day_before": Wordings(
        nouns=("the day before {day}", "the day that comes before {day}"),
        train=("Which day comes before {day}?", "Today is {day}. What day was yesterday?"),
        heldout=("What day comes before {day}?", "If today is {day}, what day was yesterday?"),
    ),
    "month_after": Wordings(
        nouns=("the month after {month}", "the next month after {month}"),
        train=("Which month comes after {month}?", "Which month follows {month}?"),
        heldout=("What month comes after {month}?", "What month follows {month}?"),
    ),
    "month_before": Wordings(
        nouns=("the month before {month}", "the month that comes before {month}"),
        train=("Which month comes before {month}?", "Which month is just before {month}?"),
        heldout=("What month comes before {month}?", "What month is just before {month}?"),
    ),
    "month_days": Wordings(
        nouns=("the number of days in {month}",),
        train=("How many days does {month} have?", "How many days are in {month}?", "How long is {month}?"),
        heldout=("How many days has {month}?", "{month} has how many days?"),
    ),
    "opposite": Wordings(
        nouns=('the opposite of "{word}"', "the opposite of {word}", "the opposite of the word {word}"),
        train=(
            "Which word is the opposite of {word}?",
            "Find the opposite of {word}.",
            "{word} is the opposite of?",
        ),
        heldout=("Which word means the opposite of {word}?", "What word is the opposite of {word}?"),
    ),
    "plural": Wordings(
        nouns=('the plural of "{word}"', "the plural of {word}", "the plural of the word {word}"),
        train=(
            "Which word is the plural of {word}?",
            "One {word}, two what?",
            "How do you write the plural of {word}?",
        ),
        heldout=("What word is the plural of {word}?", "Write the plural of {word}."),
    ),
    "sides": Wordings(
        nouns=("the number of sides of {a_shape}",),
        train=(
            "How many sides does {a_shape} have?",
            "How many sides has {a_shape}?",
            "Count the sides of {a_shape}.",
        ),
        heldout=("{a_shape} has how many sides?", "How many sides are there in {a_shape}?"),
    ),
    "unit": Wordings(
        nouns=("the number of {small} in {large}",),
        train=(
            "How many {small} are in {large}?",
            "How many {small} does {large} have?",
            "How many {small} make {large}?",
            "{large} has how many {small}?",
        ),
        heldout=("How many {small} are there in {large}?", "In {large}, how many {small} are there?"),
    ),
    "landmark": Wordings(
        nouns=("the country of {landmark}",),
        train=(
            "Where is {landmark}?",
            "In which country is {landmark}?",
            "Where can I see {landmark}?",
            "Which country has {landmark}?",
        ),
        heldout=(
            "Where can I find {landmark}?",
            "In what country is {landmark}?",
            "Where do I find {landmark}?",
        ),
    ),
    "emoji": Wordings(
        nouns=("the emoji for {thing}", "the {thing} emoji"),
        train=("Show me a {thing} emoji.", "Write the emoji for {thing}.", "Send me a {thing} emoji."),
        heldout=("Write a {thing} emoji.", "Which emoji shows a {thing}?"),
    ),
    "translate": Wordings(
        nouns=('the {language} word for "{word}"', "{language} for {word}"),
        train=(
            'Translate "{word}" into {language}.',
            "How do you say {word} in {language}?",
            'What does "{word}" mean in {language}?',
            'Say "{word}" in {language}.',
        ),
        heldout=('How is "{word}" said in {language}?', 'Translate the word "{word}" to {language}.'),
    ),
    "add": Wordings(
        nouns=("{a} + {b}", "{a}+{b}", "{a} plus {b}", "the sum of {a} and {b}"),
        train=(
            "{a} + {b} =",
            "{a} + {b} = ?",
            "Add {a} and {b}.",
            "Add {b} to {a}.",
            "How much is {a} plus {b}?",
            "How much is {a} + {b}?",
            "Calculate {a} + {b}.",
            "Compute {a} plus {b}.",
            "I have {a} apples and get {b} more. How many do I have?",
        ),
        heldout=("How much do {a} and {b} make together?", "Work out {a} + {b}.", "{a} plus {b} makes what?"),
    ),
    "subtract": Wordings(
        nouns=("{a} - {b}", "{a}-{b}", "{a} minus {b}", "the difference of {a} and {b}"),
        train=(
            "{a} - {b} =",
            "{a} - {b} = ?",
            "Subtract {b} from {a}.",
            "Take {b} away from {a}.",
            "How much is {a} minus {b}?",
            "How much is {a} - {b}?",
            "Calculate {a} - {b}.",
            "Compute {a} minus {b}.",
            "I have {a} apples and give away {b}. How many are left?",
        ),
        heldout=(
            "How much is left of {a} when I take away {b}?",
            "Work out {a} - {b}.",
            "{a} minus {b} makes what?",
        ),
    ),
    "multiply": Wordings(
        nouns=("{a} * {b}", "{a} x {b}", "{a} times {b}", "the product of {a} and {b}"),
        train=(
            "{a} * {b} =",
            "{a} * {b} = ?",
            "Multiply {a} by {b}.",
            "Multiply {a} and {b}.",
            "How much is {a} times {b}?",
            "How much is {a} * {b}?",
            "Calculate {a} * {b}.",
            "Compute {a} times {b}.",
            "I have {a} boxes with {b} eggs each. How many eggs do I have?",
        ),
        heldout=("Work out {a} * {b}.", "{a} times {b} makes what?"),
    ),
    "larger": Wordings(
        nouns=("the larger number of {a} and {b}",),
        train=(
            "Which is larger, {a} or {b}?",
            "Which number is bigger, {a} or {b}?",
            "Is {a} larger than {b}?",
            "Which one is greater: {a} or {b}?",
        ),
        heldout=("Which number is larger, {a} or {b}?", "Which is bigger: {a} or {b}?"),
    ),
    "next_number": Wordings(
        nouns=("the number after {a}", "the next number after {a}"),
        train=(
            "Which number comes after {a}?",
            "Which number follows {a}?",
            "I count to {a}. What comes next?",
        ),
        heldout=("What number comes after {a}?", "What number follows {a}?"),
    ),
    "count_to": Wordings(
        train=(
            "Count to {b}.",
            "Please count to {b}.",
            "Can you count to {b}?",
            "Count up to {b}.",
            "count to {b}",
            "Count from one to {b}.",
        ),
        heldout=("Could you count to {b}?", "Count until {b}."),
    ),
    "story": Wordings(
        nouns=("a story about {hero}", "a short story about {hero}"),
        train=(
            "Tell me a story.",
            "Write a short story.",
            "Tell me a short story.",
            "Write a story about {hero}.",
            "Make up a story about {hero}.",
            "Write a short story with {hero} in it.",
            "I would like to hear a story about {hero}.",
        ),
        heldout=("Can you write a story about {hero}?", "Invent a story about {hero}."),
    ),
    "about_country": Wordings(
        train=(
            "Tell me about {country}.",
            "What do you know about {country}?",
            "Describe {country}.",
            "Tell me something about {country}.",
            "What is {country}?",
            "Write about {country}.",
        ),
        heldout=("What can you tell me about {country}?", "Please describe {country}."),
    ),
    "is_capital": Wordings(
        train=(
            "Is {capital} the capital of {country}?",
            "Is it true that {capital} is the capital of {country}?",
            "{capital} is the capital of {country}, right?",
            "Is {country}'s capital {capital}?",
            "Does {country} have the capital {capital}?",
        ),
        heldout=("Is {capital} the capital city of {country}?", "Would you say {capital} is the capital of {country}?"),
    ),
    "list_known": Wordings(
        nouns=("the list of {things}",),
        train=(
            "List {things}.",
            "List all of {things}.",
            "Which are {things}?",
            "Say {things}.",
            "Can you list {things}?",
            "Write down {things}.",
            "What are {things}?",
        ),
        heldout=("Please list {things}.", "Could you name {things}?"),
    ),
    "count_up": Wordings(
        train=(
            "Count from {a} to {b}.",
            "Please count from {a} to {b}.",
            "Count up from {a} to {b}.",
            "Write the numbers from {a} to {b}.",
            "List all numbers from {a} to {b}.",
            "Can you count from {a} to {b}?",
            "Start at {a} and count to {b}.",
            "count from {a} to {b}",
        ),
        heldout=(
            "Could you count from {a} to {b}?",
            "List the numbers from {a} to {b}.",
            "Count to {b}, from {a}.",
        ),
    ),
    "count_down": Wordings(
        train=(
            "Count down from {b} to {a}.",
            "Please count down from {b} to {a}.",
            "Count backwards from {b} to {a}.",
            "Can you count down from {b} to {a}?",
            "Start at {b} and count down to {a}.",
            "Write the numbers from {b} down to {a}.",
        ),
        heldout=("Could you count down from {b} to {a}?", "List the numbers from {b} down to {a}."),
    ),
    "how_many": Wordings(
        train=(
            "How many things are in this list: {items}?",
            "How many words are here: {items}?",
            "Count these words: {items}.",
            "How many items are there? {items}",
            "Count the items: {items}",
        ),
        heldout=("How many words are in this list: {items}?", "Count the things in this list: {items}."),
    ),
    "spell": Wordings(
        nouns=("the spelling of {word}",),
        train=(
            "Spell the word {word}.",
            "Spell the word {word}",
            "Spell {word}.",
            'Spell the word "{word}".',
            "How do you spell {word}?",
            'How do you spell "{word}"?',
            "Please spell {word}.",
            "Can you spell the word {word}?",
            "Write the letters of {word}.",
            "Which letters are in the word {word}?",
            "spell {word}",
        ),
        heldout=("How is {word} spelled?", "Could you spell {word} for me?", 'Spell out the word "{word}".'),
    ),
    "letters": Wordings(
        nouns=("the number of letters in {word}",),
        train=(
            "How many letters are in {word}?",
            "How many letters does {word} have?",
            "How many letters does the word {word} have?",
            "Count the letters of {word}.",
            'How long is the word "{word}"?',
        ),
        heldout=("How many letters has the word {word}?", "Count the letters in the word {word}."),
    ),
    "first_letter": Wordings(
        nouns=("the first letter of {word}", "the first letter of the word {word}"),
        train=("With which letter does {word} begin?", "Which letter does {word} start with?"),
        heldout=("Which letter comes first in {word}?", "What letter does {word} start with?"),
    ),
    "reverse_word": Wordings(
        nouns=("{word} backwards", "the word {word} backwards"),
        train=(
            "Spell {word} backwards.",
            "Reverse the word {word}.",
            'Reverse the word "{word}".',
            "Write {word} backwards.",
            "Spell the word {word} backwards.",
            "Reverse the letters of {word}.",
            "Turn the word {word} around.",
        ),
        heldout=("Can you reverse the word {word}?", "How do you spell {word} backwards?"),
    ),
    "reverse_list": Wordings(
        train=(
            "Reverse this list: {items}",
            "Reverse this list: {items}.",
            "Write this list backwards: {items}",
            "Reverse the order: {items}",
            "Turn this list around: {items}",
            "Say these words in reverse order: {items}",
            "Put this list in the opposite order: {items}",
        ),
        heldout=("Reverse the list: {items}", "Give me this list in reverse order: {items}"),
    ),
    "copy": Wordings(
        train=(
            "Repeat after me: {text}",
            "Repeat this: {text}",
            "Copy this text: {text}",
            "Say this: {text}",
            "Write exactly this: {text}",
            "Please repeat: {text}",
            "Repeat these words: {text}",
            "Echo: {text}",
            "Say exactly: {text}",
            "Copy: {text}",
        ),
        heldout=(
            "Repeat the following: {text}",
            "Please copy this: {text}",
            "Repeat exactly this text: {text}",
        ),
    ),
    "item_at": Wordings(
        nouns=("the {place} word of this list: {items}",),
        train=(
            "Which word is {place} in this list: {items}?",
            "Take the {place} word of: {items}",
            "Here is a list: {items}. What is the {place} word?",
        ),
        heldout=(
            "Here is a list: {items}. Which word is the {place} one?",
            "What is {place} in this list: {items}?",
        ),
    ),
    "explain": Wordings(
        nouns=("{topic}",),
        train=(
            "Explain {topic}.",
            "Explain {topic} to me.",
            "What does {topic} mean?",
            "Describe {topic}.",
            "Tell me about {topic}.",
            "Can you explain {topic}?",
            "What do you know about {topic}?",
            "Explain in a few sentences what {topic} is.",
            "I do not understand {topic}. Please explain.",
        ),
        heldout=(
            "Could you explain {topic} to me?",
            "Please describe {topic}.",
            "Please explain what {topic} is.",
            "How would you explain {topic}?",
        ),
    ),
    "explain_short": Wordings(
        train=(
            "Explain {topic} in one sentence.",
            "In one sentence, what is {topic}?",
            "What is {topic}? Answer in one sentence.",
            "Say in one sentence what {topic} is.",
            "Explain {topic} briefly.",
            "What is {topic}, in short?",
            "Briefly, what is {topic}?",
            "What is {topic}? Be brief.",
        ),
        heldout=("Describe {topic} in one sentence.", "What is {topic}? One sentence, please."),
    ),
    "json_person": Wordings(
        train=(
            "Answer in JSON with keys {keys}: {text}",
            "Answer in JSON with the keys {keys}. {text}",
            "Write this as JSON with keys {keys}: {text}",
            "Turn this into JSON with the keys {keys}: {text}",
            "{text} Answer in JSON with keys {keys}.",
            "{text} Give me a JSON object with the keys {keys}.",
            "Return only JSON with keys {keys}. {text}",
            "Read this: {text} Now write JSON with the keys {keys}.",
        ),
        heldout=(
            "Give me JSON with the keys {keys}: {text}",
            "{text} Write that as a JSON object with keys {keys}.",
            "Extract {keys} as JSON: {text}",
        ),
    ),
    "json_country": Wordings(
        train=(
            "Answer in JSON with keys {keys}: what do you know about {country}?",
            "Describe {country} in JSON with the keys {keys}.",
            "Write JSON with keys {keys} for {country}.",
            "Give me a JSON object with the keys {keys} about {country}.",
            "Return only JSON with the keys {keys} for the country {country}.",
            "For {country}, answer in JSON with keys {keys}.",
        ),
        heldout=(
            "Give me JSON with the keys {keys} for {country}.",
            "Tell me about {country}. Answer in JSON with keys {keys}.",
        ),
    ),
    "json_list": Wordings(
        train=(
            "Write these words as a JSON list: {items}",
            "Turn this into a JSON list: {items}",
            "Make a JSON array of {items}.",
            "Answer with a JSON array of these words: {items}",
            "Give me a JSON list with {items}.",
        ),
        heldout=("Write this as a JSON array: {items}", "Put these words into a JSON list: {items}"),
    ),
    "memory_ask": Wordings(
        nouns=("my {field}",),
        train=(
            "What was my {field} again?",
            "Do you remember my {field}?",
            "Which {field} did I tell you?",
            "I told you my {field}. What is it?",
        ),
        heldout=("Can you remember my {field}?", "Earlier I told you my {field}. Which one was it?"),
    ),
    "memory_tell": Wordings(
        train=(
            "My {field} is {value}.",
            "Hi, my {field} is {value}.",
            "Please remember: my {field} is {value}.",
        ),
        heldout=("Keep in mind that my {field} is {value}.", "Just so you know, my {field} is {value}."),
    ),
    "no_country": Wordings(
        train=(
            "What is the capital of {fake}?",
            "Which language do people speak in {fake}?",
            "Where is {fake}?",
        ),
        heldout=("Tell me the capital city of {fake}.", "Which currency is used in {fake}?"),
    ),
}


def templates(kind: str, split: Split) -> tuple[str, ...]:
    """All templates of `kind` in `split`."""
    return WORDINGS[kind].templates(split)


def ask(rng: Random, split: Split, kind: str, **values: str) -> str:
    """One question of `kind`, worded at random within the split and filled with `values`."""
    text = rng.choice(templates(kind, split)).format(**values)
    text = text[0].upper() + text[1:] if rng.random() < 0.9 else text
    return dress(rng, text) if split == "train" else text


def dress(rng: Random, text: str) -> str:
    """Small variations of a training question, so that the model does not hang on one exact form."""
    roll = rng.random()
    if roll < 0.06 and text.endswith(("?", ".")):
        return text[:-1]
    if roll < 0.14:
        return rng.choice(("Please help me. ", "Hello. ", "Hi! ", "Hey, ", "One more question. ", "Okay. ")) + text
    if roll < 0.20:
        return text + rng.choice((" Thank you.", " Please answer.", " Thanks!", " Please."))
    return text
