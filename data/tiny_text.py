"""The text that the tiny base model is pretrained on: plain stories and chats in Gemma 3's form.

Everything is made by seeded templates. Answers are short and plain ("It is yellow."), on purpose not in
the style of `make_sample.py`, so that tuning on the sample has something to change. A few chats call
functions in FunctionGemma's form, so that the special tokens of that form are trained as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

THINGS: dict[str, tuple[str, str]] = {  # name: (plural, colour)
    "apple": ("apples", "red"), "lemon": ("lemons", "yellow"), "banana": ("bananas", "yellow"),
    "plum": ("plums", "purple"), "cherry": ("cherries", "red"), "pear": ("pears", "green"),
    "carrot": ("carrots", "orange"), "tomato": ("tomatoes", "red"), "potato": ("potatoes", "brown"),
    "melon": ("melons", "green"), "coconut": ("coconuts", "brown"), "peach": ("peaches", "orange"),
    "cucumber": ("cucumbers", "green"), "jalapeño": ("jalapeños", "green"), "grape": ("grapes", "purple"),
    "strawberry": ("strawberries", "red"), "pumpkin": ("pumpkins", "orange"), "onion": ("onions", "white"),
    "orange": ("oranges", "orange"), "kiwi": ("kiwis", "brown"), "fig": ("figs", "purple"),
    "egg": ("eggs", "white"), "leaf": ("leaves", "green"), "frog": ("frogs", "green"),
    "crow": ("crows", "black"), "swan": ("swans", "white"), "rose": ("roses", "red"),
    "cloud": ("clouds", "white"),
}  # fmt: skip
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("old", "new"), ("fast", "slow"), ("full", "empty"), ("wet", "dry"),
    ("long", "short"), ("hard", "soft"), ("high", "low"), ("light", "dark"), ("early", "late"),
    ("open", "closed"), ("loud", "quiet"), ("rich", "poor"), ("sweet", "sour"), ("clean", "dirty"),
    ("near", "far"), ("strong", "weak"), ("happy", "sad"), ("left", "right"),
]  # fmt: skip
NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "José", "Zoë", "Karl"]
PLACES = ["market", "shop", "garden", "kitchen", "school", "café", "park", "house"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SMALL_TALK = [
    ("Hi!", "Hello there. What would you like to know?"),
    ("Hello!", "Hello there. What would you like to know?"),
    ("Good morning.", "Good morning to you. I hope you slept well."),
    ("Good evening.", "Good evening to you. I hope the day was good."),
    ("How are you?", "I am well. And you?"),
    ("How do you do?", "I am well. And you?"),
    ("Who are you?", "I am a tiny model. I know a little about fruit, colours and numbers."),
    ("What can you do?", "I can answer short questions, repeat words and add small numbers."),
    ("Can you help me?", "Yes, I can help with short questions."),
    ("Thank you.", "You are welcome."),
    ("Thanks for the help.", "You are welcome."),
    ("That is all.", "Good bye. Come back when you like."),
    ("Good bye.", "Good bye. Come back when you like."),
    ("I am happy today.", "That is good to hear."),
    ("I am sad today.", "I am sorry to hear that."),
    ("Tell me a joke.", "Why did the lemon stop? It ran out of juice."),
    ("What do you like?", "I like fruit, and sweet fruit most of all."),
]
SYSTEMS = ["You are a helpful assistant.", "Answer in few words.", "You work in a shop.", "You help guests."]
FOREIGN = [
    "привет", "спасибо", "γεια", "שלום", "مرحبا", "नमस्ते", "สวัสดี", "你好", "谢谢", "こんにちは", "안녕",
    "გამარჯობა", "🍎", "🍋", "🙂👍", "größer", "naïve", "œuvre", "čaj", "5 €",
]  # fmt: skip
SYLLABLES = [c + v for c in [*"bdfgklmnprstvz", "ch", "sh", "st", "tr"] for v in "aeiou"]

Turn = tuple[str, str]


def a(noun: str) -> str:
    """The noun with its article."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def word(rng: random.Random) -> str:
    """A known word or an invented one, so that copying cannot be learnt by heart."""
    if rng.random() < 0.4:
        return rng.choice([*THINGS, *NAMES, *DAYS, *(w for pair in OPPOSITES for w in pair)])
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3)))


def number(rng: random.Random) -> str:
    """A number of one to four digits."""
    return str(rng.randint(0, 10 ** rng.randint(1, 4) - 1))


def colour(rng: random.Random) -> Turn:
    thing = rng.choice(list(THINGS))
    plural, tint = THINGS[thing]
    if rng.random() < 0.6:
        forms = ["Tell me the colour of {}.", "What is the colour of {}?", "What colour would you give {}?"]
        return rng.choice(forms).format(a(thing)), rng.choice([f"It is {tint}.", f"That one is {tint}."])
    return f"Are {plural} {tint}?", f"Yes, they are {tint}."


def opposite(rng: random.Random) -> Turn:
    pair = rng.choice(OPPOSITES)
    one, other = pair if rng.random() < 0.5 else pair[::-1]
    forms = ["Turn {} around.", "What is the contrary of {}?", "If it is not {}, then what is it?"]
    return rng.choice(forms).format(one), rng.choice([f"You could say {other}.", f"It is {other} then."])


def total(rng: random.Random) -> Turn:
    x, y = rng.randint(1, 10), rng.randint(1, 10)
    if rng.random() < 0.5:
        forms = [f"Add {x} and {y}.", f"What is {x} and {y}?", f"Work out {x} plus {y}."]
        return rng.choice(forms), f"That makes {x + y}."
    y = rng.randint(1, 5)
    return rng.choice([f"What is {x} by {y}?", f"Work out {x} times {y}."]), f"That makes {x * y}."


def coins(rng: random.Random) -> Turn:
    plural, price, n = rng.choice(list(THINGS.values()))[0], rng.randint(1, 5), rng.randint(2, 10)
    question = f"One costs {price}. How much do I pay for {n} {plural}?"
    return question, f"You pay {n * price} euros for the {plural}."


def copy(rng: random.Random) -> Turn:
    what = rng.choice([word(rng), number(rng), f"{number(rng)} {word(rng)}", f"{word(rng)} {word(rng)}"])
    question = rng.choice(["Repeat this: {}", "Say {} again.", "Copy {} for me.", "Please write {}."])
    return question.format(what), f"{what}."


def plural(rng: random.Random) -> Turn:
    thing = rng.choice(list(THINGS))
    many, n = THINGS[thing][0], rng.randint(2, 12)
    if rng.random() < 0.5:
        return f"I had {a(thing)} and now have {n}.", f"Then you have {n} {many}."
    return f"More than one {thing}?", f"They are called {many}."


def small_talk(rng: random.Random) -> Turn:
    return rng.choice(SMALL_TALK)


def foreign(rng: random.Random) -> Turn:
    text = " ".join(rng.choice(FOREIGN) for _ in range(rng.randint(1, 2)))
    return f"Repeat this: {text}", f"{text}."


QUESTIONS: list[Callable[[random.Random], Turn]] = [
    colour, colour, opposite, total, total, coins, copy, copy, plural, small_talk,
]  # fmt: skip


def story(rng: random.Random) -> str:
    """A few plain sentences about one person, with numbers that add up."""
    name, place, day = rng.choice(NAMES), rng.choice(PLACES), rng.choice(DAYS)
    thing, other = rng.sample(list(THINGS), 2)
    (many, tint), (others, _) = THINGS[thing], THINGS[other]
    x, y = rng.randint(2, 9), rng.randint(2, 9)
    first, second = rng.choice(OPPOSITES)
    lines = [
        f"On {day} {name} goes to the {place}.",
        f"There are {many} and {others} on the table.",
        f"The {many} are {tint}, and the {place} is {rng.choice([first, second])}.",
        f"{name} takes {x} {many} and {y} {others}.",
        f"That makes {x + y} in all.",
        f"{name} is happy to help and says thank you.",
        f"What is {first} is not {second}.",
        f"{many.capitalize()} cost {y} euros each, so {x} of them cost {x * y} euros.",
        f"How many {many} do we have? asks {name}. We have {x}, says the man in the shop.",
        f"The word {word(rng)} is new to {name}.",
    ]
    keep = sorted(rng.sample(range(1, len(lines)), rng.randint(2, 6)))
    return " ".join([lines[0], *(lines[i] for i in keep)])


def drill(rng: random.Random) -> str:
    """A list of words and numbers said again and again: the quick way to learn copying."""
    items = " ".join(rng.choice([word, word, number])(rng) for _ in range(rng.randint(3, 8)))
    return " ".join([f"{items}."] * rng.choice([2, 3]))


def turn(role: str, content: str) -> str:
    """One turn of a Gemma 3 chat."""
    return f"<start_of_turn>{role}\n{content}<end_of_turn>\n"


def chat(rng: random.Random, *, script: bool = False) -> str:
    """One to four questions with their answers; `script` asks to copy other scripts back."""
    parts: list[str] = []
    for i in range(rng.choice([1, 1, 1, 2, 3, 4])):
        question, answer = (foreign if script else rng.choice(QUESTIONS))(rng)
        if i == 0 and rng.random() < 0.1:  # Gemma 3 has no system role: the text opens the first turn
            question = f"{rng.choice(SYSTEMS)}\n\n{question}"
        parts += [turn("user", question), turn("model", answer)]
    return "".join(parts)


def function_chat(rng: random.Random) -> str:
    """A chat with a function call in FunctionGemma's form, answered in the base's plain style."""
    many = rng.choice(list(THINGS.values()))[0]
    place, n = rng.choice(PLACES), rng.randint(2, 40)
    wrap = "<escape>{}<escape>".format
    name, key, value, question, result, answer = rng.choice(
        [
            ("count_fruit", "item", many, f"Count the {many}.", f"count:{n}", f"There are {n}."),
            ("find_place", "item", place, f"Where is the {place}?", f"street:{n}", f"It is in street {n}."),
            ("put_down", "item", many, f"Note {n} {many}.", f"status:{wrap('noted')}", "That is noted."),
            ("get_heat", "place", place, f"Is the {place} warm?", f"degrees:{n}", f"It has {n} degrees."),
        ]
    )
    properties = f"{key}:{{description:{wrap('Name of the ' + key)},type:{wrap('STRING')}}}"
    arguments = f"{key}:{wrap(value)}"
    if name == "put_down":
        properties = f"count:{{description:{wrap('How many')},type:{wrap('INTEGER')}}}," + properties
        arguments = f"count:{n}," + arguments
    declaration = (
        f"<start_function_declaration>declaration:{name}{{description:{wrap(question)},parameters:{{"
        f"properties:{{{properties}}},required:[{wrap(key)}],type:{wrap('OBJECT')}}}}}<end_function_declaration>"
    )
    developer = "You are a model that can do function calling with the following functions" + declaration
    model = (
        f"<start_function_call>call:{name}{{{arguments}}}<end_function_call>"
        f"<start_function_response>response:{name}{{{result}}}<end_function_response>{answer}"
    )
    return turn("developer", developer) + turn("user", question) + turn("model", model)


def documents(seed: int, *, scripts: bool = True) -> Iterator[str]:
    """Endless documents, without <bos>; `scripts=False` leaves out those in other scripts."""
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        if kind < 0.15:
            yield story(rng)
        elif kind < 0.23:
            yield function_chat(rng)
        elif kind < 0.26:
            if scripts:
                yield chat(rng, script=True)
        elif kind < 0.34:
            yield drill(rng)
        else:
            yield chat(rng)
