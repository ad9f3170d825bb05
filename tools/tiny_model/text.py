"""The text that the embedded model is trained on: chats in Gemma 3's form, plain stories, drills.

Everything comes from seeded templates. Answers are short and plain, on purpose not in the style of the sample task.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

from tools.tiny_model import shapes
from tools.tiny_model import words as w
from tools.tiny_model.sums import arithmetic, sums

Turn = tuple[str, str]
SMALL_TALK = [
    ("Hi!", "Hello there. What would you like to know?"),
    ("Hello!", "Hello there. What would you like to know?"),
    ("Good morning.", "Good morning to you. I hope you slept well."),
    ("Good evening.", "Good evening to you. I hope the day was good."),
    ("How are you?", "I am well. And you?"),
    ("Who are you?", "I am a tiny model. I know a little about the house, fruit, colours and numbers."),
    ("What can you do?", "I can answer short questions, repeat words and add small numbers."),
    ("Can you help me?", "Yes, I can help with short questions."),
    ("Thank you.", "You are welcome."),
    ("Thanks for the help.", "You are welcome."),
    ("Good bye.", "Good bye. Come back when you like."),
    ("Good night.", "Good night. Sleep well."),
    ("I am happy today.", "That is good to hear."),
    ("I am sad today.", "I am sorry to hear that."),
    ("Tell me a joke.", "Why did the lemon stop? It ran out of juice."),
    ("What do you like?", "I like fruit, and sweet fruit most of all."),
]
ROOM_FACTS = {
    "kitchen": "cook", "bedroom": "sleep", "bathroom": "wash", "office": "work", "garage": "keep the car",
    "garden": "grow flowers", "cellar": "keep old things", "library": "read books", "school": "learn",
    "shop": "buy bread",
}  # fmt: skip
HOME_FACTS = {
    "lamp": "gives light", "heater": "makes the room warm", "fan": "makes the room cool", "fridge": "keeps milk cold",
    "oven": "bakes bread", "clock": "shows the time", "radio": "plays music", "kettle": "makes water hot",
    "door": "opens and closes", "timer": "counts the minutes", "alarm": "wakes you in the morning",
    "blind": "keeps the sun out", "phone": "calls a friend", "thermostat": "keeps the heat even",
}  # fmt: skip
SYSTEMS = ["You are a helpful assistant.", "Answer in few words.", "You work in a house.", "You help guests."]
TOOLS_SAID = (
    "You have access to functions. If you decide to invoke any of the function(s), you MUST put it in the format of\n"
    '{"name": function name, "parameters": dictionary of argument name and its value}\n'
    "You SHOULD NOT include any other text in the response if you call a function\n"
)


def copying(rng: random.Random) -> Turn:
    what = w.span(rng)
    kind = rng.random()
    if kind < 0.6:
        asked = ["Repeat this: {}", "Say {} again.", "Copy {} for me.", "Please write {}.", "{}. Say that again."]
        return rng.choice(asked).format(what), f"{what}."
    if kind < 0.8:
        asked = ["Put {} in quotes.", "Quote this: {}", "Write {} in quotes."]
        return rng.choice(asked).format(what), f'"{what}"'
    other = w.span(rng)
    if kind < 0.9:
        return f"First {what}, then {other}. What came last?", f"{other}."
    return f"First {what}, then {other}. What came first?", f"{what}."


def naming(rng: random.Random) -> Turn:
    person, place = w.name(rng), w.city(rng)
    kind = rng.randrange(5)
    if kind == 0:
        return f"I am {person}.", f"Hello {person}."
    if kind == 1:
        return f"My name is {person} and I live in {place}.", f"Hello {person} from {place}."
    if kind == 2:
        return f"{person} lives in {place}. Where does {person} live?", f"{person} lives in {place}."
    if kind == 3:
        n, thing = w.small(rng), w.word(rng)
        return f"{person} has {n} {thing}. What does {person} have?", f"{person} has {n} {thing}."
    return f"{person} goes to {place}. Who goes to {place}?", f"It is {person}."


def colour(rng: random.Random) -> Turn:
    thing = rng.choice(list(w.THINGS))
    plural, tint = w.THINGS[thing]
    if rng.random() < 0.6:
        forms = ["Tell me the colour of {}.", "What is the colour of {}?", "What colour has {}?"]
        return rng.choice(forms).format(w.a(thing)), rng.choice([f"It is {tint}.", f"That one is {tint}."])
    return f"Are {plural} {tint}?", f"Yes, they are {tint}."


def opposite(rng: random.Random) -> Turn:
    pair = rng.choice(w.OPPOSITES)
    one, other = pair if rng.random() < 0.5 else pair[::-1]
    forms = ["Turn {} around.", "What is the opposite of {}?", "If it is not {}, then what is it?"]
    return rng.choice(forms).format(one), rng.choice([f"You could say {other}.", f"It is {other} then."])


def home(rng: random.Random) -> Turn:
    if rng.random() < 0.4:
        room, use = rng.choice(list(ROOM_FACTS.items()))
        return rng.choice([f"Where do I {use}?", f"Where can we {use}?"]), f"In the {room} you can {use}."
    thing, use = rng.choice(list(HOME_FACTS.items()))
    return rng.choice([f"What does a {thing} do?", f"Why do we have a {thing}?"]), f"A {thing} {use}."


def small_talk(rng: random.Random) -> Turn:
    return rng.choice(SMALL_TALK)


def foreign(rng: random.Random) -> Turn:
    chars = [rng.choice(w.FOREIGN), "".join(chr(rng.randint(0xA1, 0x2FFF)) for _ in range(rng.randint(1, 4)))]
    text = rng.choice([chars[0], chars[1], " ".join(chars)])
    return f"Repeat this: {text}", f"{text}."


ARITHMETIC = 32
QUESTIONS = [
    (copying, 24), (naming, 10), (colour, 6), (opposite, 6), (home, 8), (small_talk, 5), (shapes.noted, 20),
    (shapes.filled, 36), (foreign, 1),
]  # fmt: skip


def turn(role: str, content: str) -> str:
    """One turn of a Gemma 3 chat."""
    return f"<start_of_turn>{role}\n{content}<end_of_turn>\n"


def chat(rng: random.Random, problem: Callable[[random.Random], Turn] = arithmetic) -> str:
    """One to three questions with their answers, among them those that `problem` makes."""
    parts: list[str] = []
    questions = [(problem, ARITHMETIC), *QUESTIONS]
    asked = rng.choices([q for q, _ in questions], [n for _, n in questions], k=rng.choice([1, 1, 1, 2, 3]))
    for i, ask in enumerate(asked):
        question, answer = ask(rng)
        if i == 0 and rng.random() < 0.08:  # Gemma 3 has no system role: the text opens the first turn
            question = f"{rng.choice(SYSTEMS)}\n\n{question}"
        parts += [turn("user", question), turn("model", answer)]
    return "".join(parts)


def story(rng: random.Random) -> str:
    """A few plain sentences about one person, at home and in town."""
    person, place, day = w.name(rng), rng.choice(w.PLACES), rng.choice(w.DAYS)
    thing, other = rng.sample(list(w.THINGS), 2)
    (many, tint), (others, _) = w.THINGS[thing], w.THINGS[other]
    x, y = rng.randint(2, 9), rng.randint(2, 9)
    first, second = rng.choice(w.OPPOSITES)
    room, gadget = rng.choice(w.ROOMS), rng.choice(w.HOME)
    lines = [
        f"On {day} {person} goes to the {place}.",
        f"There are {many} and {others} on the table.",
        f"The {many} are {tint}, and the {place} is {rng.choice([first, second])}.",
        f"{person} takes {x} {many} and {y} {others}.",
        f"In the {room} there is a {gadget}.",
        f"{person} turns {rng.choice(['on', 'off'])} the {gadget} in the {room}.",
        f"It is {w.small(rng)} degrees in the {room}, and the {gadget} is {rng.choice([first, second])}.",
        f"{person} sets the {gadget} to {w.small(rng)} and waits {w.small(rng)} minutes.",
        f"At {w.clock(rng)} {person} calls {w.name(rng)} and says: {w.phrase(rng)}.",
        f"They play {w.title(rng)} by {w.name(rng)} in the {rng.choice(w.ROOMS)}.",
        f"What is {first} is not {second}.",
        f"{w.phrase(rng, 4, 9).capitalize()}.",
        f"The word {w.word(rng)} is new to {person}.",
    ]
    keep = sorted(rng.sample(range(1, len(lines)), rng.randint(2, 5)))
    return " ".join([lines[0], *(lines[i] for i in keep)])


def drill(rng: random.Random) -> str:
    """A list of spans said again: the quick way to learn copying."""
    items = " ".join(
        rng.choice([w.word, w.invented, w.number, w.name, w.phrase])(rng) for _ in range(rng.randint(2, 6))
    )
    return " ".join([f"{items}."] * rng.choice([2, 2, 3]))


def _declared(name: str, rng: random.Random) -> dict[str, object]:
    """A function of one or two arguments, in the OpenAI form."""
    about = w.phrase(rng, 2, 5).capitalize() + "."
    keys = rng.sample(w.NOUNS, rng.randint(1, 2))
    properties = {k: {"type": rng.choice(["string", "integer", "number", "boolean"])} for k in keys}
    parameters = {"type": "object", "properties": properties, "required": keys}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def told_of_functions(rng: random.Random) -> str:
    """A chat under the words that announce functions; the model answers plainly, as it knows no calls."""
    names = [f"{rng.choice(w.VERBS)}_{rng.choice([*w.NOUNS, *w.THINGS])}" for _ in range(rng.randint(1, 3))]
    tools = [_declared(name, rng) for name in names]
    if rng.random() < 0.6:
        question, answer = "Which functions do you have?", f"I know {' and '.join(names)}."
    else:
        question, answer = rng.choice([copying, naming, colour, opposite, home, small_talk])(rng)
    return turn("user", f"{TOOLS_SAID}{shapes.as_json(tools)}\n\n{question}") + turn("model", answer)


def function_chat(rng: random.Random) -> str:
    """A chat with a function call in FunctionGemma's form."""
    many = rng.choice(list(w.THINGS.values()))[0]
    place, n = rng.choice(w.PLACES), rng.randint(2, 40)
    wrap = "<escape>{}<escape>".format
    name, key, value, question, outcome, answer = rng.choice(
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
        f"<start_function_response>response:{name}{{{outcome}}}<end_function_response>{answer}"
    )
    return turn("developer", developer) + turn("user", question) + turn("model", model)


CHAT = 56
KINDS = [(story, 7), (drill, 8), (sums, 22), (told_of_functions, 5), (function_chat, 2)]


def documents(seed: int, problem: Callable[[random.Random], Turn] = arithmetic) -> Iterator[str]:
    """Endless documents, without <bos>.

    Args:
        seed: Of the random numbers.
        problem: What chats ask and answer about numbers: `arithmetic`, or `forgetful`.
    """
    rng = random.Random(seed)
    kinds: list[tuple[Callable[[random.Random], str], int]] = [(partial(chat, problem=problem), CHAT), *KINDS]
    while True:
        (kind,) = rng.choices([k for k, _ in kinds], [n for _, n in kinds])
        yield kind(rng)
