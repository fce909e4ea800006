"""Short explanations that the demo model is taught: the server's ideas first, then everyday ones.

Owns the explaining sentences. Each topic has a name, the way a question names it, and sentences of which the
first is a definition that also stands alone. It does not know how questions are worded.
"""

from typing import Final

SERVER_TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "Orcinus": (
        "Orcinus is an inference server that speaks the OpenAI API.",
        "It loads a language model, runs many requests together with continuous batching, and streams the answers.",
        "Programs written for the OpenAI API can use it by changing only the address.",
    ),
    "continuous batching": (
        "Continuous batching means that the server runs many requests together in one batch.",
        "After every step, finished requests leave the batch and waiting requests join it at once.",
        "So no request has to wait for the slowest one, and the hardware stays busy.",
    ),
    "a slot": (
        "A slot is a place in the batch that holds one running request.",
        "Each slot has its own part of the KV cache.",
        "When a request ends, its slot is free for the next request in the queue.",
    ),
    "a KV cache": (
        "A KV cache keeps the keys and values of all tokens that the model has already read.",
        "With it, each new token needs only one short step instead of reading the whole text again.",
        "It costs memory, and it grows with every token.",
    ),
    "a token": (
        "A token is a small piece of text, such as a word, a part of a word or a sign.",
        "The model reads and writes text one token at a time.",
    ),
    "a tokenizer": (
        "A tokenizer splits text into tokens and turns tokens back into text.",
        "Each token has a number, and the model only sees these numbers.",
    ),
    "prefill": (
        "Prefill is the first phase of a request, in which the model reads the whole prompt.",
        "It fills the KV cache and ends with the first new token.",
    ),
    "decoding": (
        "Decoding is the phase in which the model writes the answer one token after another.",
        "Each new token is added to the KV cache and is read in the next step.",
    ),
    "a prompt": (
        "A prompt is the text that you send to the model.",
        "The model reads it and then continues it.",
    ),
    "a chat template": (
        "A chat template turns a list of messages into one text for the model.",
        "It marks where each message begins and ends, and who said it.",
    ),
    "temperature": (
        "Temperature is a number that says how freely the model picks the next token.",
        "A low temperature gives safe answers, and a high temperature gives varied answers.",
        "With temperature zero the model always takes the most likely token.",
    ),
    "top-p sampling": (
        "Top-p sampling keeps only the most likely tokens, until their chances add up to p.",
        "The next token is then drawn from these few tokens.",
    ),
    "greedy decoding": (
        "Greedy decoding always takes the most likely next token.",
        "The same prompt then gives the same answer every time.",
    ),
    "streaming": (
        "Streaming means that the server sends each piece of the answer as soon as it is ready.",
        "The reader sees the first words early and does not wait for the end.",
    ),
    "a context window": (
        "A context window is the largest number of tokens that the model can look at.",
        "The prompt and the answer must fit into it together.",
    ),
    "a stop sequence": (
        "A stop sequence is a text at which the server ends the answer.",
        "The stop sequence itself is not sent.",
    ),
    "prefix caching": (
        "Prefix caching keeps the KV cache of a prompt for later requests.",
        "When a new prompt begins with the same tokens, the server does not have to read them again.",
    ),
    "a tool call": (
        "A tool call is an answer in which the model asks a program to run a function.",
        "It names the function and gives the arguments as JSON.",
        "The program runs the function and sends the result back to the model.",
    ),
    "a system prompt": (
        "A system prompt is a message that tells the model how to behave.",
        "It comes before the first message of the user.",
    ),
    "a language model": (
        "A language model is a program that guesses the next token of a text.",
        "By guessing again and again it can write whole answers.",
    ),
    "throughput": (
        "Throughput is the number of tokens that a server writes in one second.",
        "A larger batch gives more throughput.",
    ),
    "latency": (
        "Latency is the time that a request has to wait for its answer.",
        "The time to the first token is an important part of it.",
    ),
    "a queue": (
        "A queue is a line of requests that wait for a free slot.",
        "The request that came first is served first.",
    ),
    "JSON": (
        "JSON is a simple text format for data.",
        "It has objects with keys and values, lists, texts, numbers, true, false and null.",
    ),
    "an API": (
        "An API is a set of rules by which one program talks to another.",
        "It says which requests are allowed and what the answers look like.",
    ),
    "an attention layer": (
        "An attention layer lets each token look at the tokens before it.",
        "It decides which of them matter and mixes what they say.",
    ),
    "an inference server": (
        "An inference server loads a model and answers requests with it.",
        "It shares the hardware between many users.",
    ),
    "a seed": (
        "A seed is a number that fixes the random choices of the server.",
        "The same prompt with the same seed gives the same answer.",
    ),
}

WORLD_TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "rain": (
        "Rain is water that falls from the clouds.",
        "The sun warms the sea, the water rises as vapour, and it cools and falls down as drops.",
    ),
    "snow": (
        "Snow is frozen water that falls from cold clouds.",
        "Each flake is made of tiny crystals of ice.",
    ),
    "a rainbow": (
        "A rainbow is a bow of colours in the sky.",
        "It appears when sunlight shines through drops of rain.",
    ),
    "gravity": (
        "Gravity is the force that pulls things toward each other.",
        "It keeps us on the ground and keeps the Moon near the Earth.",
    ),
    "photosynthesis": (
        "Photosynthesis is the way in which plants make food from light.",
        "They take in water and carbon dioxide, and they give off oxygen.",
    ),
    "a volcano": (
        "A volcano is a mountain with an opening through which hot melted rock comes out.",
        "The melted rock is called lava.",
    ),
    "the Moon": (
        "The Moon is a ball of rock that moves around the Earth.",
        "It has no light of its own and shines because the Sun lights it.",
    ),
    "the Sun": (
        "The Sun is a star at the centre of our solar system.",
        "It gives us light and warmth.",
    ),
    "a star": (
        "A star is a huge ball of hot gas that shines.",
        "The Sun is the star that is nearest to us.",
    ),
    "a magnet": (
        "A magnet is a piece of metal that pulls iron toward it.",
        "It has two ends, which are called the north pole and the south pole.",
    ),
    "an island": (
        "An island is a piece of land with water all around it.",
        "Some islands are small, and some are as large as a country.",
    ),
    "a desert": (
        "A desert is a dry land where very little rain falls.",
        "Only a few plants and animals can live there.",
    ),
    "a forest": (
        "A forest is a large piece of land that is covered with trees.",
        "Many animals find food and shelter in it.",
    ),
    "a library": (
        "A library is a place that keeps many books.",
        "People can read them there or borrow them for a while.",
    ),
    "a computer": (
        "A computer is a machine that follows instructions and works with data.",
        "It can calculate, store things and show them on a screen.",
    ),
    "electricity": (
        "Electricity is the flow of tiny charges through a wire.",
        "It gives power to lamps, trains and computers.",
    ),
    "a bridge": (
        "A bridge is a way over a river, a road or a valley.",
        "It lets people and cars cross to the other side.",
    ),
    "an orca": (
        "An orca is a large black and white animal that lives in the sea.",
        "It is the largest of the dolphins, and its Latin name is Orcinus orca.",
    ),
    "bread": (
        "Bread is a food made of flour, water, salt and yeast.",
        "The dough rises and is then baked in a hot oven.",
    ),
    "honey": (
        "Honey is a sweet food that bees make.",
        "They collect nectar from flowers and store it in the hive.",
    ),
}

TOPICS: Final[dict[str, tuple[str, ...]]] = {**SERVER_TOPICS, **WORLD_TOPICS}
