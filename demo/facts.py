"""The facts that the demo model is taught, as plain tables.

Owns data only. It does not know how a question is worded or how a conversation is built.
"""

from typing import Final

Row = dict[str, str]


def _rows(fields: str, text: str) -> list[Row]:
    """Reads one row per line, cells separated by commas, named by `fields`."""
    names = fields.split()
    lines = [line.strip() for line in text.strip().splitlines()]
    return [dict(zip(names, (cell.strip() for cell in line.split(",")), strict=True)) for line in lines]


def article(word: str) -> str:
    """The word with its article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _with_articles(rows: list[Row], *fields: str) -> list[Row]:
    """The rows with further fields that name the things in `fields` with their article: "an owl"."""
    return [{**row, **{f"a_{field}": article(row[field]) for field in fields}} for row in rows]


def _words(text: str) -> list[str]:
    """The words of `text`, in their order."""
    return text.split()


COUNTRIES: Final = _rows(
    "country capital continent currency language",
    """
    France, Paris, Europe, euro, French
    Germany, Berlin, Europe, euro, German
    Italy, Rome, Europe, euro, Italian
    Spain, Madrid, Europe, euro, Spanish
    Portugal, Lisbon, Europe, euro, Portuguese
    Greece, Athens, Europe, euro, Greek
    Austria, Vienna, Europe, euro, German
    Finland, Helsinki, Europe, euro, Finnish
    Ireland, Dublin, Europe, euro, English
    Estonia, Tallinn, Europe, euro, Estonian
    Latvia, Riga, Europe, euro, Latvian
    Lithuania, Vilnius, Europe, euro, Lithuanian
    Slovenia, Ljubljana, Europe, euro, Slovene
    Slovakia, Bratislava, Europe, euro, Slovak
    Croatia, Zagreb, Europe, euro, Croatian
    Norway, Oslo, Europe, krone, Norwegian
    Sweden, Stockholm, Europe, krona, Swedish
    Denmark, Copenhagen, Europe, krone, Danish
    Iceland, Reykjavik, Europe, krona, Icelandic
    Poland, Warsaw, Europe, zloty, Polish
    Hungary, Budapest, Europe, forint, Hungarian
    Romania, Bucharest, Europe, leu, Romanian
    Serbia, Belgrade, Europe, dinar, Serbian
    Ukraine, Kyiv, Europe, hryvnia, Ukrainian
    Russia, Moscow, Europe, ruble, Russian
    Albania, Tirana, Europe, lek, Albanian
    Turkey, Ankara, Asia, lira, Turkish
    China, Beijing, Asia, yuan, Chinese
    Japan, Tokyo, Asia, yen, Japanese
    India, New Delhi, Asia, rupee, Hindi
    Pakistan, Islamabad, Asia, rupee, Urdu
    Bangladesh, Dhaka, Asia, taka, Bengali
    Nepal, Kathmandu, Asia, rupee, Nepali
    Thailand, Bangkok, Asia, baht, Thai
    Vietnam, Hanoi, Asia, dong, Vietnamese
    Cambodia, Phnom Penh, Asia, riel, Khmer
    Indonesia, Jakarta, Asia, rupiah, Indonesian
    Malaysia, Kuala Lumpur, Asia, ringgit, Malay
    Mongolia, Ulaanbaatar, Asia, tugrik, Mongolian
    South Korea, Seoul, Asia, won, Korean
    Iran, Tehran, Asia, rial, Persian
    Iraq, Baghdad, Asia, dinar, Arabic
    Jordan, Amman, Asia, dinar, Arabic
    Lebanon, Beirut, Asia, pound, Arabic
    Saudi Arabia, Riyadh, Asia, riyal, Arabic
    Qatar, Doha, Asia, riyal, Arabic
    Georgia, Tbilisi, Asia, lari, Georgian
    Armenia, Yerevan, Asia, dram, Armenian
    Egypt, Cairo, Africa, pound, Arabic
    Morocco, Rabat, Africa, dirham, Arabic
    Tunisia, Tunis, Africa, dinar, Arabic
    Algeria, Algiers, Africa, dinar, Arabic
    Libya, Tripoli, Africa, dinar, Arabic
    Sudan, Khartoum, Africa, pound, Arabic
    Kenya, Nairobi, Africa, shilling, Swahili
    Uganda, Kampala, Africa, shilling, English
    Ethiopia, Addis Ababa, Africa, birr, Amharic
    Ghana, Accra, Africa, cedi, English
    Nigeria, Abuja, Africa, naira, English
    Senegal, Dakar, Africa, franc, French
    Mali, Bamako, Africa, franc, French
    Angola, Luanda, Africa, kwanza, Portuguese
    Zambia, Lusaka, Africa, kwacha, English
    Namibia, Windhoek, Africa, dollar, English
    Canada, Ottawa, North America, dollar, English
    Mexico, Mexico City, North America, peso, Spanish
    Cuba, Havana, North America, peso, Spanish
    Jamaica, Kingston, North America, dollar, English
    Panama, Panama City, North America, balboa, Spanish
    Honduras, Tegucigalpa, North America, lempira, Spanish
    Brazil, Brasilia, South America, real, Portuguese
    Argentina, Buenos Aires, South America, peso, Spanish
    Chile, Santiago, South America, peso, Spanish
    Peru, Lima, South America, sol, Spanish
    Colombia, Bogota, South America, peso, Spanish
    Ecuador, Quito, South America, dollar, Spanish
    Venezuela, Caracas, South America, bolivar, Spanish
    Uruguay, Montevideo, South America, peso, Spanish
    Australia, Canberra, Oceania, dollar, English
    New Zealand, Wellington, Oceania, dollar, English
    Fiji, Suva, Oceania, dollar, English
    """,
)

ELEMENTS: Final = _rows(
    "element symbol number",
    """
    hydrogen, H, 1
    helium, He, 2
    lithium, Li, 3
    carbon, C, 6
    nitrogen, N, 7
    oxygen, O, 8
    fluorine, F, 9
    neon, Ne, 10
    sodium, Na, 11
    magnesium, Mg, 12
    aluminium, Al, 13
    silicon, Si, 14
    sulfur, S, 16
    chlorine, Cl, 17
    argon, Ar, 18
    potassium, K, 19
    calcium, Ca, 20
    iron, Fe, 26
    nickel, Ni, 28
    copper, Cu, 29
    zinc, Zn, 30
    silver, Ag, 47
    tin, Sn, 50
    gold, Au, 79
    mercury, Hg, 80
    lead, Pb, 82
    """,
)

PLANETS: Final = _rows(
    "planet place fact",
    """
    Mercury, first, the smallest planet
    Venus, second, the hottest planet
    Earth, third, the planet we live on
    Mars, fourth, the red planet
    Jupiter, fifth, the largest planet
    Saturn, sixth, the planet with bright rings
    Uranus, seventh, the planet that lies on its side
    Neptune, eighth, the planet farthest from the Sun
    """,
)

ANIMALS: Final = _with_articles(
    _rows(
        "animal young group legs",
        """
    dog, puppy, mammal, four
    cat, kitten, mammal, four
    cow, calf, mammal, four
    horse, foal, mammal, four
    sheep, lamb, mammal, four
    goat, kid, mammal, four
    pig, piglet, mammal, four
    lion, cub, mammal, four
    bear, cub, mammal, four
    deer, fawn, mammal, four
    duck, duckling, bird, two
    goose, gosling, bird, two
    chicken, chick, bird, two
    owl, owlet, bird, two
    eagle, eaglet, bird, two
    frog, tadpole, amphibian, four
    kangaroo, joey, mammal, two
    swan, cygnet, bird, two
    """,
    ),
    "animal",
    "young",
)

SOUNDS: Final = _with_articles(
    _rows(
        "animal sound",
        """
    dog, woof
    cat, meow
    cow, moo
    sheep, baa
    duck, quack
    pig, oink
    lion, roar
    bee, buzz
    snake, hiss
    owl, hoot
    frog, croak
    horse, neigh
    """,
    ),
    "animal",
)

COLOURS: Final = _rows(
    "thing colour",
    """
    a banana, yellow
    the sky on a clear day, blue
    grass, green
    snow, white
    coal, black
    a ripe tomato, red
    a carrot, orange
    an emerald, green
    a ruby, red
    milk, white
    a lemon, yellow
    chocolate, brown
    a flamingo, pink
    an elephant, grey
    the night sky, black
    a plum, purple
    """,
)

MIXES: Final = _rows(
    "first second result",
    """
    red, blue, purple
    blue, yellow, green
    red, yellow, orange
    red, white, pink
    black, white, grey
    """,
)

DAYS: Final = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

MONTHS: Final = _rows(
    "month days",
    """
    January, 31
    February, 28
    March, 31
    April, 30
    May, 31
    June, 30
    July, 31
    August, 31
    September, 30
    October, 31
    November, 30
    December, 31
    """,
)

OPPOSITES: Final = _rows(
    "word opposite",
    """
    hot, cold
    big, small
    tall, short
    fast, slow
    happy, sad
    light, dark
    early, late
    full, empty
    open, closed
    old, young
    hard, soft
    wet, dry
    loud, quiet
    strong, weak
    rich, poor
    up, down
    left, right
    day, night
    clean, dirty
    deep, shallow
    """,
)

PLURALS: Final = _rows(
    "word plural",
    """
    mouse, mice
    child, children
    foot, feet
    tooth, teeth
    goose, geese
    man, men
    woman, women
    leaf, leaves
    knife, knives
    wolf, wolves
    box, boxes
    city, cities
    baby, babies
    dog, dogs
    book, books
    bus, buses
    """,
)

SHAPES: Final = _with_articles(
    _rows(
        "shape sides",
        """
    triangle, 3
    square, 4
    rectangle, 4
    pentagon, 5
    hexagon, 6
    heptagon, 7
    octagon, 8
    """,
    ),
    "shape",
)

UNITS: Final = _rows(
    "small large count",
    """
    seconds, a minute, 60
    minutes, an hour, 60
    hours, a day, 24
    days, a week, 7
    months, a year, 12
    weeks, a year, 52
    days, a year, 365
    years, a decade, 10
    years, a century, 100
    centimetres, a metre, 100
    metres, a kilometre, 1000
    grams, a kilogram, 1000
    millimetres, a centimetre, 10
    bits, a byte, 8
    """,
)

LANDMARKS: Final = _rows(
    "landmark country",
    """
    the Eiffel Tower, France
    the Colosseum, Italy
    the Great Wall, China
    the Taj Mahal, India
    Machu Picchu, Peru
    the Acropolis, Greece
    Mount Fuji, Japan
    the Sphinx, Egypt
    Petra, Jordan
    Angkor Wat, Cambodia
    the Brandenburg Gate, Germany
    the Sydney Opera House, Australia
    """,
)

EMOJI: Final = _rows(
    "thing emoji",
    """
    cat, 🐱
    dog, 🐶
    fish, 🐟
    bird, 🐦
    sun, ☀️
    moon, 🌙
    star, ⭐
    heart, ❤️
    tree, 🌳
    flower, 🌸
    apple, 🍎
    pizza, 🍕
    rocket, 🚀
    whale, 🐳
    fire, 🔥
    """,
)

TRANSLATIONS: Final = _rows(
    "word language foreign",
    """
    hello, French, bonjour
    cat, French, chat
    dog, French, chien
    water, French, eau
    house, French, maison
    bread, French, pain
    thank you, French, merci
    hello, Spanish, hola
    cat, Spanish, gato
    dog, Spanish, perro
    water, Spanish, agua
    house, Spanish, casa
    bread, Spanish, pan
    thank you, Spanish, gracias
    hello, German, hallo
    cat, German, Katze
    dog, German, Hund
    water, German, Wasser
    house, German, Haus
    bread, German, Brot
    thank you, German, danke
    """,
)

SEASONS: Final = ["spring", "summer", "autumn", "winter"]
CONTINENTS: Final = ["Africa", "Antarctica", "Asia", "Europe", "North America", "Oceania", "South America"]
RAINBOW: Final = ["red", "orange", "yellow", "green", "blue", "indigo", "violet"]

LISTS: Final[dict[str, list[str]]] = {
    "the days of the week": DAYS,
    "the months of the year": [row["month"] for row in MONTHS],
    "the planets": [row["planet"] for row in PLANETS],
    "the seasons": SEASONS,
    "the continents": CONTINENTS,
    "the colours of the rainbow": RAINBOW,
    "the letters of the alphabet": [chr(code) for code in range(ord("a"), ord("z") + 1)],
}

NAMES: Final = _words(
    """
    Anna Ben Clara David Emma Finn Greta Hugo Ida Jonas Kira Leo Maria Nora Oscar Paula Rosa Sam Tina
    Tom Vera Willy Zoe Mia Max Lena Paul Lucy Peter Alice Omar Yuki Carlos Elena Ravi Nina Felix Olga
    Bob Sara
    """
)

JOBS: Final = _words(
    """
    baker teacher doctor farmer painter pilot nurse cook singer driver writer gardener
    """
)
PETS: Final = _words(
    """
    cat dog rabbit hamster parrot turtle horse goldfish
    """
)
COLOUR_WORDS: Final = _words(
    """
    red blue green yellow orange purple pink brown black white grey
    """
)
FOODS: Final = _words(
    """
    bread cheese apples rice soup pasta pizza salad cake honey eggs plums
    """
)

WORDS: Final = _words(
    """
    cat dog sun moon tree house water bread apple river stone cloud green happy small table chair window
    garden flower summer winter school friend letter paper pencil orange yellow purple silver golden
    little mother father sister brother morning evening kitchen bottle basket button candle castle
    circle corner dragon engine family finger forest guitar hammer island jacket ladder lemon market
    mirror monkey mountain number ocean parrot pepper pillow planet pocket potato rabbit ribbon rocket
    saddle salmon shadow singer spider spring square street sugar teacher thunder ticket tiger tomato
    tunnel turtle valley violin walnut weather whale wolf zebra bird fish frog bear lion horse sheep
    goat duck bee ant fox owl milk cheese rice soup cake honey salt tea coffee juice book lamp door key
    clock bell ball boat train plane car bus road bridge hill lake sea sand snow rain wind fire star sky
    day night week month year hand foot head eye ear nose mouth hair heart blue red pink brown black
    white grey big tall short fast slow warm cold soft hard light dark open close jump walk run sing
    dance read write think learn play laugh sleep wake help give take make find hello world model token
    server batch cache queue slot memory python music story robot ring glass storm banana cherry grape
    peach melon onion carrot butter pasta pizza salad cookie chicken turkey camel panda koala penguin
    dolphin shark octopus crab snail worm butterfly beetle mouse rat squirrel deer donkey eagle swan
    goose feather wing tail horn paw claw leaf root branch bush grass field farm barn village city
    country nation capital border beach coast desert jungle swamp volcano earth mars venus saturn
    jupiter comet galaxy space energy power sound noise voice song dream idea question answer problem
    reason secret promise gift party game toy doll puzzle card dice drum flute piano trumpet brush paint
    picture photo camera phone computer screen keyboard cable wire battery motor wheel brake bicycle
    truck ship harbor airport station hotel hospital doctor nurse lawyer pilot farmer baker driver
    writer artist king queen prince knight wizard ghost monster giant dwarf fairy shirt pants shoe sock
    glove scarf coat belt dress skirt hat cap bag box bowl plate spoon fork knife cup pan pot oven
    fridge sofa couch carpet curtain roof wall floor stairs cellar garage fence brave calm clever crazy
    eager funny gentle honest jolly kind lazy lucky nice proud quick quiet silly simple smart strange
    strong sweet tiny weak young ancient modern early late empty full round swim climb drive ride fly
    draw cook bake eat drink buy sell send bring carry push pull throw catch
    """
)
