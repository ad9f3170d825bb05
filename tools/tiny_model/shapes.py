"""Structured text of the embedded model: records, forms and lists to fill in from a sentence.

What it learns here is to find spans in a request and to set them in quotes, under keys, in many notations. Calls of
functions in Gemma 3's form are not among them: those are what the sample task teaches.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from tools.tiny_model import words as w

Values = dict[str, object]


@dataclass(frozen=True)
class Form:
    """A kind of record: names it goes by, its fields with their types, and sentences that fill them."""

    names: tuple[str, ...]
    fields: dict[str, str]
    sentences: tuple[str, ...]
    make: Callable[[random.Random], Values]


def _int(rng: random.Random) -> int:
    return int(w.small(rng))


def _goods(rng: random.Random) -> str:
    plurals = (v[0] for v in w.THINGS.values())
    return rng.choice([*plurals, w.word(rng), f"{rng.choice(w.ADJECTIVES)} {w.word(rng)}"])


FORMS = [
    Form(("order", "shopping", "purchase"), {"item": "text", "count": "number", "person": "text"}, (
        "{person} wants {count} {item}.", "Please order {count} {item} for {person}.",
        "{count} {item} for {person}, please.", "Can {person} have {count} {item}?",
        "{person} would like to buy {count} {item}.",
    ), lambda r: {"item": _goods(r), "count": _int(r), "person": w.name(r)}),
    Form(("note", "memo", "diary"), {"text": "text"}, (
        "Write down: {text}", "Note that {text}.", "Remember this: {text}", "Make a note, {text}.",
        "Do not forget: {text}",
        "Put in the book that {text}.",
    ), lambda r: {"text": w.phrase(r, 3, 8)}),
    Form(("letter", "card", "mail"), {"person": "text", "text": "text"}, (
        "Write to {person}: {text}", "Send {person} a card that says {text}.", "Tell {person} that {text}.",
        "A letter for {person}: {text}", "Let {person} know {text}.", "{person} should hear that {text}.",
    ), lambda r: {"person": w.name(r), "text": w.phrase(r, 2, 8)}),
    Form(("meeting", "visit", "date"), {"person": "text", "day": "text", "time": "text"}, (
        "Meet {person} this {day} at {time}.", "{person} comes on {day} at {time}.",
        "I see {person} at {time} on {day}.",
        "On {day} at {time} there is a meeting with {person}.",
    ), lambda r: {"person": w.name(r), "day": r.choice(w.DAYS), "time": w.clock(r)}),
    Form(("guest", "visitor", "friend"), {"name": "text"}, (
        "Invite {name} now.", "Ask {name} to come in.", "Is {name} here today?", "{name} may come.",
        "Can {name} come with us?",
    ), lambda r: {"name": w.name(r)}),
    Form(("trip", "ticket", "journey"), {"from": "text", "to": "text", "day": "text", "seats": "number"}, (
        "{seats} seats from {from} to {to} on {day}.", "I go from {from} to {to} on {day} with {seats} seats.",
        "On {day} we need {seats} seats to {to}, and we start in {from}.",
    ), lambda r: {"from": w.city(r), "to": w.city(r), "day": r.choice(w.DAYS), "seats": r.randint(1, 9)}),
    Form(("pet", "animal"), {"kind": "text", "name": "text", "age": "number"}, (
        "My {kind} is called {name} and is {age} years old.", "{name} is a {kind} of {age} years.",
        "This is {name}, a {kind}, {age} years old.",
    ), lambda r: {"kind": r.choice(w.ANIMALS), "name": w.name(r), "age": r.randint(1, 20)}),
    Form(("book", "story", "film"), {"title": "text", "author": "text"}, (
        "I read {title} by {author}.", "{author} wrote {title}.", "Find me {title} by {author}.",
        "Show {title} by {author}.",
    ), lambda r: {"title": w.title(r), "author": w.name(r)}),
    Form(("measure", "weather", "heat"), {"place": "text", "degrees": "number"}, (
        "It has {degrees} degrees in {place}.", "In {place} we have {degrees} degrees.",
        "{place} is at {degrees} degrees.",
    ), lambda r: {"place": r.choice([w.city(r), r.choice(w.PLACES), r.choice(w.ROOMS)]), "degrees": _int(r)}),
    Form(("shop", "gate", "house"), {"place": "text", "open": "true or false"}, (
        "The {place} is {open|open|closed}.", "Today the {place} is {open|open|closed}.",
        "They say the {place} is {open|open|shut}.",
    ), lambda r: {"place": r.choice([*w.PLACES, w.word(r)]), "open": r.random() < 0.5}),
    Form(("state", "machine", "check"), {"thing": "text", "on": "true or false"}, (
        "The {thing} is {on|on|off}.", "I saw the {thing}, it was {on|on|off}.",
        "Someone turned the {thing} {on|on|off}.",
        "{thing}: {on|on|off}",
    ), lambda r: {"thing": r.choice([*w.HOME, w.word(r)]), "on": r.random() < 0.5}),
    Form(("key", "safe", "box"), {"place": "text", "closed": "true or false"}, (
        "The {place} was {closed|locked|unlocked}.", "They {closed|lock|unlock} the {place} at night.",
        "{place} is {closed|closed|open} now.", "Who said that the {place} is {closed|locked|open}?",
    ), lambda r: {"place": r.choice([*w.PLACES, *w.ROOMS, w.word(r)]), "closed": r.random() < 0.5}),
    Form(("price", "offer", "sale"), {"item": "text", "euros": "number"}, (
        "A {item} costs {euros} euros.", "You pay {euros} euros for the {item}.", "The {item} is {euros} euros.",
    ), lambda r: {"item": w.word(r), "euros": _int(r)}),
    Form(("race", "walk", "sport"), {"person": "text", "minutes": "number", "place": "text"}, (
        "{person} ran for {minutes} minutes in the {place}.", "In the {place} {person} was out for {minutes} minutes.",
        "{minutes} minutes in the {place}, that is what {person} did.",
    ), lambda r: {"person": w.name(r), "minutes": _int(r), "place": r.choice(w.PLACES)}),
    Form(("flower", "plant", "garden"), {"plant": "text", "colour": "text", "count": "number"}, (
        "{count} {colour} {plant} stand in the garden.", "I planted {count} {plant}, and they are {colour}.",
    ), lambda r: {"plant": r.choice(["roses", "trees", "leaves", "flowers", w.invented(r)]),
    "colour": r.choice(w.COLOURS), "count": _int(r)}),
    Form(("class", "lesson", "course"), {"subject": "text", "teacher": "text", "room": "number"}, (
        "{teacher} teaches {subject} in room {room}.", "{subject} with {teacher} is in room {room}.",
    ), lambda r: {"subject": r.choice([*w.MUSIC, w.word(r)]), "teacher": w.name(r), "room": _int(r)}),
    Form(("lamp", "paint", "job"), {"thing": "text", "colour": "text"}, (
        "Paint the {thing} {colour}.", "The {thing} should be {colour}.", "Make the {thing} {colour}, please.",
    ), lambda r: {"thing": r.choice([*w.HOME, *w.ROOMS, w.word(r)]), "colour": r.choice(w.COLOURS)}),
    Form(("score", "level", "share"), {"thing": "text", "percent": "number"}, (
        "The {thing} is {percent} percent full.", "Bring the {thing} to {percent} percent.",
        "{percent} percent of the {thing} is gone.",
    ), lambda r: {"thing": r.choice([*w.HOME, *w.MUSIC, w.word(r)]), "percent": r.randint(0, 100)}),
]  # fmt: skip


def _fill(sentence: str, values: Values) -> str:
    for key, value in values.items():
        if isinstance(value, bool):
            head, _, rest = sentence.partition("{" + key + "|")
            yes_no, _, tail = rest.partition("}")
            sentence = head + yes_no.split("|")[0 if value else 1] + tail
        else:
            sentence = sentence.replace("{" + key + "}", str(value))
    return sentence


def as_json(value: object) -> str:
    """JSON as all of the text has it: on one line, letters of other scripts as they are."""
    return json.dumps(value, ensure_ascii=False)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else as_json(value)


def write(kind: str, form: str, values: Values) -> str:
    """A filled-in form in one of the notations of `NOTATIONS`."""
    if kind == "JSON":
        return as_json({"form": form, "fields": values})
    if kind == "a record":
        return as_json(values)
    if kind == "lines":
        return "\n".join([form, *(f"{k}: {_plain(v)}" for k, v in values.items())])
    if kind == "pairs":
        return f"{form}: " + ", ".join(f"{k} = {as_json(v)}" for k, v in values.items())
    if kind == "a tag":
        return f"<{form} " + " ".join(f"{k}={as_json(_plain(v))}" for k, v in values.items()) + ">"
    return f"{form}, " + ", ".join(as_json(v) for v in values.values())


NOTATIONS = ("JSON", "JSON", "JSON", "a record", "a record", "lines", "pairs", "a tag", "a row")


def _schema(form: str, fields: dict[str, str], rng: random.Random, notation: int) -> str:
    if notation == 0:
        return f"{form}({', '.join(f'{k}: {v}' for k, v in fields.items())})"
    if notation == 1:
        return f"{form}: {', '.join(fields)}"
    kinds = {"text": "string", "number": "integer", "true or false": "boolean"}
    properties = {k: {"type": kinds[v]} for k, v in fields.items()}
    return as_json({"form": form, "about": f"A {form}", "fields": properties, "needed": list(fields)})


def filled(rng: random.Random) -> tuple[str, str]:
    """Forms to choose from, a request, and the one form that fits, filled in."""
    chosen = rng.sample(FORMS, rng.choice([1, 2, 3, 3, 4]))
    right = rng.choice(chosen)
    notation = rng.choice([0, 0, 1, 2])
    lines, form, order = [], "", list(right.fields)
    compound = rng.random() < 0.6  # names that share a word, so that the first one doesn't tell the rest
    verbs = rng.sample(["add", "new", "make", "get", "put", "write", "set", "send"], 2)
    for entry in chosen:
        called = rng.choice(entry.names)
        if compound:
            called = f"{rng.choice(verbs)}_{called}"
        fields = list(entry.fields)
        rng.shuffle(fields)
        if entry is right:
            form, order = called, fields
        lines.append(_schema(called, {f: entry.fields[f] for f in fields}, rng, notation))
    values = right.make(rng)
    sentence = _fill(rng.choice(right.sentences), values)
    kind = rng.choice(NOTATIONS)
    listed = "[" + ", ".join(lines) + "]" if notation == 2 else "\n".join(lines)
    say = rng.choice(["Fill in one form as {}", "Choose a form and write {}", "Answer with one of the forms as {}"])
    prompt = f"{say.format(kind)}:\n{listed}\n\n{sentence}"
    return prompt, write(kind, form, {k: values[k] for k in order})


def noted(rng: random.Random) -> tuple[str, str]:
    """Pairs of any words, written down in a notation that is asked for."""
    keys = rng.sample(
        [*w.NOUNS, *w.VERBS, *w.HOME, *w.ROOMS, "name", "text", "title", "count", "state"], rng.randint(1, 4)
    )
    values: Values = {}
    for key in keys:
        what = w.span(rng)
        values[key] = int(what) if what.isdigit() else rng.choice([True, False]) if rng.random() < 0.1 else what
    kind = rng.choice(["a record", "a record", "a list", "lines", "quotes"])
    said = ", ".join(f"{k} is {_plain(v)}" for k, v in values.items())
    if kind == "a list":
        said, answer = "; ".join(_plain(v) for v in values.values()), as_json(list(values.values()))
    elif kind == "quotes":
        what = w.span(rng)
        said, answer = what, as_json(what)
    elif kind == "lines":
        answer = "\n".join(f"{k}: {_plain(v)}" for k, v in values.items())
    else:
        answer = as_json(values)
    forms = ["Write as {}: {}", "Put this into {}: {}", "As {}, please: {}"]
    return rng.choice(forms).format(kind, said), answer
