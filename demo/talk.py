"""Small talk and the questions that the demo model cannot answer.

Owns what is said in both and the words by which an answer is recognised. It does not build conversations.
"""

from dataclasses import dataclass
from typing import Final

from demo.wordings import Wordings

UNKNOWN: Final = "I am a small demo model and do not know that."


@dataclass(frozen=True)
class Talk:
    """One thing that people say, the answers to it, and a word that every answer holds."""

    asked: Wordings
    answers: tuple[str, ...]
    expect: str


SMALL_TALK: Final[dict[str, Talk]] = {
    "greeting": Talk(
        Wordings(
            train=(
                "Hello!",
                "Hi!",
                "Hi",
                "Hello",
                "Hey!",
                "Hey there!",
                "Good morning!",
                "Good day.",
                "hello there",
                "Hello you!",
                "Hi, nice to meet you.",
                "Good evening!",
                "hey",
                "hello",
            ),
            heldout=("Hi there!", "Hello there!", "Hey", "Good morning", "Hello, good day!"),
        ),
        ("Hello! How can I help you?",),
        "help",
    ),
    "how_are_you": Talk(
        Wordings(
            train=(
                "How are you?",
                "How are you today?",
                "How do you do?",
                "Hi, how are you?",
                "How is it going?",
                "Are you well?",
                "How are you doing?",
                "how are you",
                "Are you fine?",
            ),
            heldout=("Hello, how are you?", "How are you doing today?", "Are you doing well?"),
        ),
        ("I am fine, thank you. How can I help you?",),
        "fine",
    ),
    "who_are_you": Talk(
        Wordings(
            train=(
                "Who are you?",
                "What are you?",
                "Who am I talking to?",
                "Are you a human?",
                "Are you a robot?",
                "Tell me about yourself.",
                "Introduce yourself.",
                "What is your name?",
                "What's your name?",
                "Do you have a name?",
                "Which model are you?",
                "who are you",
            ),
            heldout=(
                "What are you called?",
                "Tell me who you are.",
                "What model are you?",
                "Please introduce yourself.",
            ),
        ),
        ("I am the demo model of Orcinus, a very small language model.",),
        "demo model",
    ),
    "abilities": Talk(
        Wordings(
            train=(
                "What can you do?",
                "How can you help me?",
                "What do you know?",
                "What are you good at?",
                "Which questions can I ask you?",
                "What can I ask you?",
                "Can you help me?",
                "Help!",
            ),
            heldout=(
                "What can you help me with?",
                "What are you able to do?",
                "What kind of questions can I ask you?",
            ),
        ),
        (
            "I know some small facts, and I can calculate with small numbers, spell words, copy lists, write JSON "
            "and call tools.",
        ),
        "facts",
    ),
    "thanks": Talk(
        Wordings(
            train=(
                "Thank you!",
                "Thanks!",
                "Thanks",
                "Thank you very much.",
                "Many thanks!",
                "Great, thank you.",
                "That helps, thanks.",
                "thank you",
                "Thanks for your help.",
                "Thank you, that was good.",
            ),
            heldout=("Thanks a lot!", "Thank you so much!", "Great, thanks!"),
        ),
        ("You are welcome!",),
        "welcome",
    ),
    "goodbye": Talk(
        Wordings(
            train=(
                "Goodbye!",
                "Bye!",
                "Bye",
                "See you!",
                "See you later.",
                "Good night!",
                "Goodbye, my friend.",
                "I have to go now.",
                "Bye bye!",
                "See you tomorrow!",
            ),
            heldout=("Good bye!", "Bye, see you later!", "I must go now. Goodbye!"),
        ),
        ("Goodbye! Have a nice day.",),
        "goodbye",
    ),
    "joke": Talk(
        Wordings(
            train=(
                "Tell me a joke.",
                "Do you know a joke?",
                "Make me laugh.",
                "Say something funny.",
                "A joke, please.",
                "Can you tell a joke?",
                "tell me a joke",
            ),
            heldout=("Can you tell me a joke?", "Please tell me a funny joke."),
        ),
        ("Why did the token wait in the queue? Because all slots were full!",),
        "slots",
    ),
    "praise": Talk(
        Wordings(
            train=(
                "You are great!",
                "Good job!",
                "Well done!",
                "I like you.",
                "You are smart.",
                "That was right.",
                "Very good!",
                "You are nice.",
            ),
            heldout=("You are very good!", "Great job!", "You did that well."),
        ),
        ("Thank you, that is kind of you!",),
        "kind",
    ),
    "unclear": Talk(
        Wordings(
            train=("asdf", "qwert", "blah blah", "xyz xyz", "hm", "...", "???", "uh", "foo bar", "lorem"),
            heldout=("blah", "qwertz uiop", "hmm", "??"),
        ),
        ("I did not understand that. Can you ask in other words?",),
        "understand",
    ),
}

UNANSWERABLE: Final = Wordings(
    train=(
        "What did I eat yesterday?",
        "What will the weather be next year?",
        "Who will win the next election?",
        "What is my neighbour thinking?",
        "How many hairs do I have?",
        "Which book am I reading?",
        "What is the password of my computer?",
        "Who called me last night?",
        "Where did I put my keys?",
        "What is the price of a share in ten years?",
        "How old is my neighbour?",
        "What did {name} say to me last week?",
        "Where does {name} live?",
        "How old is {name}?",
        "What is the phone number of {name}?",
        "When is the birthday of {name}?",
        "Who is the mother of {name}?",
        "What does {name} like best?",
        "Is {name} at home?",
        "What is in my pocket?",
        "Who wrote the letter on my table?",
        "Which number am I thinking of?",
        "What will I dream tonight?",
        "Who won the game yesterday?",
        "What is the latest news?",
        "Prove the hardest theorem of mathematics.",
        "Write a program that sorts all files of my disk.",
        "Who is the president of the moon?",
        "What happened in the year {year}?",
        "Who was born in {year}?",
        "How many people lived in {country} in {year}?",
        "Who ruled {country} in {year}?",
        "Who is the best singer of {country}?",
        "How many cars are there in {country}?",
    ),
    heldout=(
        "What did I dream last night?",
        "Where is my phone?",
        "What is {name} doing right now?",
        "Which car does {name} drive?",
        "Who won the election in {country} in {year}?",
        "How old is my teacher?",
        "Which colour has the door of my neighbour?",
        "What will happen next year?",
        "When will {name} come home?",
        "How many trees are there in {country}?",
    ),
)
