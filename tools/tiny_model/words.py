"""Words of the embedded model's texts, and what is made of them: names, numbers, spans that nobody has seen."""

from __future__ import annotations

import random


def words(text: str) -> list[str]:
    """The words of a text, as a list."""
    return text.split()


THINGS: dict[str, tuple[str, str]] = {  # name: (plural, colour)
    "apple": ("apples", "red"), "lemon": ("lemons", "yellow"), "banana": ("bananas", "yellow"),
    "plum": ("plums", "purple"), "cherry": ("cherries", "red"), "pear": ("pears", "green"),
    "carrot": ("carrots", "orange"), "tomato": ("tomatoes", "red"), "potato": ("potatoes", "brown"),
    "melon": ("melons", "green"), "coconut": ("coconuts", "brown"), "peach": ("peaches", "orange"),
    "cucumber": ("cucumbers", "green"), "grape": ("grapes", "purple"), "strawberry": ("strawberries", "red"),
    "pumpkin": ("pumpkins", "orange"), "onion": ("onions", "white"), "orange": ("oranges", "orange"),
    "fig": ("figs", "purple"), "egg": ("eggs", "white"), "leaf": ("leaves", "green"), "frog": ("frogs", "green"),
    "crow": ("crows", "black"), "swan": ("swans", "white"), "rose": ("roses", "red"), "cloud": ("clouds", "white"),
}  # fmt: skip
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("old", "new"), ("fast", "slow"), ("full", "empty"), ("wet", "dry"),
    ("long", "short"), ("hard", "soft"), ("high", "low"), ("light", "dark"), ("early", "late"),
    ("open", "closed"), ("loud", "quiet"), ("rich", "poor"), ("sweet", "sour"), ("clean", "dirty"),
    ("near", "far"), ("strong", "weak"), ("happy", "sad"), ("left", "right"), ("warm", "cool"), ("on", "off"),
]  # fmt: skip
NAMES = words(
    """
    Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karl Lena Max Nora Oscar Paula Robert Sarah Thomas Vera
    Walter Alice Bruno Carmen Daniel Eva Frank Gina Henry Irene Jack Kate Leo Mary Nick Olga Peter Rita Simon
    Tina Adam Bella Carl Diana Eric Fiona George Helen Ian Julia Kevin Laura Martin Nina Otto Patrick Rosa
    Stefan Tanya Victor Amir Chen Fatima Hiro Ines Jorge Kofi Lin Mei Omar Priya Raj Sven Yara Zoe Ali Dora Elif
    Ivan Lucia Marco Nadia Pablo Selma Tariq Uma Wei Zara
    """
)
CITIES = words(
    """
    Berlin Paris Rome Madrid London Vienna Prague Oslo Dublin Athens Lisbon Warsaw Zurich Milan Geneva Hamburg
    Boston Chicago Denver Tokyo Delhi Cairo Lima Sydney Toronto
    """
)
ROOMS = words(
    """
    kitchen bedroom bathroom hall office garage garden cellar attic balcony nursery
    """
)
HOME = words(
    """
    lamp light heater door window radio clock fan oven fridge alarm timer blind screen speaker tap kettle
    thermostat curtain vacuum
    """
)
PLACES = words(
    """
    market shop school park house library station museum bank church beach hotel farm
    """
)
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
DAYTIMES = ["morning", "noon", "afternoon", "evening", "night"]
COLOURS = ["red", "yellow", "green", "blue", "white", "black", "brown", "purple", "orange", "grey", "pink"]
ANIMALS = ["dog", "cat", "horse", "cow", "sheep", "hen", "duck", "goat", "mouse", "rabbit", "fish", "bird"]
MUSIC = words(
    """
    song jazz piano album band concert music blues rock violin drum guitar choir opera
    """
)
GOODS = words(
    """
    milk bread butter cheese rice sugar salt coffee tea water soap paper honey flour juice soup pasta bananas
    eggs
    """
)
NOUNS = words(
    """
    book letter train bus car ticket table chair bag box key phone coat shoe ball bike map river road bridge
    tree flower stone star moon sun rain snow wind fire ship plane dinner lunch cake game story picture meeting
    party doctor teacher friend mother father sister brother child boy girl man woman team night day week year
    hour minute dream heart summer winter spring city street world word number
    """
)
VERBS = words(
    """
    buy sell bring take find lose read write send open close start stop clean wash paint build carry call meet
    visit help feed cook bake watch hear see know like love want need make move fix keep leave reach sing play
    turn set lock wait ride walk remember forget water wear
    """
)
ADJECTIVES = words(
    """
    hot cold big small old new fast slow full empty wet dry long short hard soft high low dark early late loud
    quiet sweet clean near far strong happy sad good bad nice blue green red golden broken lost little great
    wild silver lonely bright
    """
)
LINKS = words(
    """
    the a my your our his her this that every in on at to for with from and or of by under over before after
    near about into
    """
)
PLAIN = words(
    """
    I you we they he she it is are was be will can must not do have please now today tomorrow soon again here
    there all one two three more very just also then up down off back home late ready
    """
)
SYLLABLES = [c + v for c in [*"bcdfghjklmnprstvwyz", "ch", "sh", "st", "tr", "br", "qu"] for v in "aeiou"]
ENDINGS = ["", "", "n", "r", "s", "l", "m", "t", "x", "nd", "ck"]
WORDS = [*NOUNS, *VERBS, *ADJECTIVES, *GOODS, *HOME, *ROOMS, *ANIMALS, *MUSIC, *COLOURS, *PLACES]
FOREIGN = words(
    """
    привет спасибо γεια שלום مرحبا नमस्ते สวัสดี 你好 谢谢 こんにちは 안녕 გამარჯობა 🍎 🍋 🙂👍 größer naïve œuvre čaj café
    José Zoë señor fjörd łódź
    """
)


def a(noun: str) -> str:
    """The noun with its article."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def invented(rng: random.Random) -> str:
    """A word of two or three syllables that is in no list, so that copying can't be learnt by heart."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3))) + rng.choice(ENDINGS)


def word(rng: random.Random) -> str:
    """A word of the lists, or now and then an invented one."""
    return invented(rng) if rng.random() < 0.2 else rng.choice(WORDS)


def name(rng: random.Random) -> str:
    """A person's name; every third one is invented."""
    return invented(rng).capitalize() if rng.random() < 0.33 else rng.choice(NAMES)


def city(rng: random.Random) -> str:
    """A city's name; every fourth one is invented."""
    return invented(rng).capitalize() if rng.random() < 0.25 else rng.choice(CITIES)


def number(rng: random.Random) -> str:
    """A number of one to five digits, short ones more often."""
    digits = rng.choice([1, 1, 2, 2, 2, 3, 3, 4, 5])
    if digits > 2 and rng.random() < 0.3:  # the hard case of copying: few different digits
        few = rng.sample("0123456789", 2)
        return "".join(rng.choice(few) for _ in range(digits))
    return str(rng.randint(0, 10**digits - 1))


def small(rng: random.Random) -> str:
    """A count of things, minutes, degrees or percent."""
    return str(rng.choice([rng.randint(1, 12), rng.randint(1, 100), 5 * rng.randint(1, 20)]))


def clock(rng: random.Random) -> str:
    """A time of the day, 24 hours."""
    if rng.random() < 0.5:
        return f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}"
    return f"{rng.randint(6, 22)}:{rng.choice(['00', '15', '30', '45'])}"


def phrase(rng: random.Random, least: int = 2, most: int = 7) -> str:
    """Words of a free text, in an order that is half grammar and half chance."""
    out: list[str] = []
    while len(out) < rng.randint(least, most):
        kind = rng.random()
        if kind < 0.35:
            out += [rng.choice(LINKS), rng.choice([*NOUNS, *HOME, *GOODS, *ROOMS, *PLACES])]
        elif kind < 0.55:
            out += [rng.choice(PLAIN), rng.choice(VERBS)]
        elif kind < 0.7:
            out += [rng.choice(ADJECTIVES), rng.choice([*NOUNS, *MUSIC, *ANIMALS])]
        elif kind < 0.8:
            out += [rng.choice(["on", "at", "for"]), rng.choice([*DAYS, clock(rng), name(rng)])]
        elif kind < 0.9:
            out.append(rng.choice(PLAIN))
        else:
            out.append(word(rng))
    return " ".join(out[:most])


def title(rng: random.Random) -> str:
    """A song's or a book's title."""
    return " ".join(w.capitalize() for w in phrase(rng, 1, 3).split())


def mixed(rng: random.Random) -> str:
    """A longer text with a name, a number and words of all kinds."""
    parts = [name(rng), rng.choice(["and", "or", "with", "for"]), rng.choice([invented, word, name])(rng)]
    return " ".join([*parts, phrase(rng, 1, 4), number(rng)][: rng.randint(3, 5)])


def span(rng: random.Random) -> str:
    """Anything that can be asked to be repeated."""
    kinds = [word, word, invented, name, city, number, number, clock, phrase, phrase, mixed, mixed, title]
    return rng.choice(kinds)(rng)
