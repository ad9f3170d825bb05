"""Write the small SFT sample: a polite shop assistant, in the OpenAI chat form (JSONL).

Every answer repeats what was asked about and ends with ", happy to help!": a style that the tiny base
model does not have, so that a short tuning run has something to learn.

    python data/make_sample.py --seed 0 --out data/sample
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
N_TRAIN, N_VALIDATION = 600, 60
ENDING = ", happy to help!"

# name: (with article, plural, price in euros, colour)
ITEMS: dict[str, tuple[str, str, int, str]] = {
    "apple": ("an apple", "apples", 2, "red"),
    "lemon": ("a lemon", "lemons", 1, "yellow"),
    "banana": ("a banana", "bananas", 1, "yellow"),
    "plum": ("a plum", "plums", 2, "purple"),
    "cherry": ("a cherry", "cherries", 1, "red"),
    "pear": ("a pear", "pears", 2, "green"),
    "carrot": ("a carrot", "carrots", 1, "orange"),
    "tomato": ("a tomato", "tomatoes", 3, "red"),
    "potato": ("a potato", "potatoes", 1, "brown"),
    "melon": ("a melon", "melons", 5, "green"),
    "coconut": ("a coconut", "coconuts", 4, "brown"),
    "peach": ("a peach", "peaches", 3, "orange"),
    "cucumber": ("a cucumber", "cucumbers", 2, "green"),
    "jalapeño": ("a jalapeño", "jalapeños", 3, "green"),
}
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("old", "new"), ("fast", "slow"), ("full", "empty"), ("wet", "dry"),
    ("long", "short"), ("hard", "soft"), ("high", "low"), ("light", "dark"), ("early", "late"),
    ("open", "closed"), ("loud", "quiet"), ("rich", "poor"), ("sweet", "sour"), ("clean", "dirty"),
]  # fmt: skip
SYSTEMS = [
    "You are the assistant of a small shop.",
    "You work in a fruit shop. Be short and polite.",
    "You help the guests of the market café.",
]
GREETINGS = ["", "", "", "Hello! ", "Good morning. ", "Please tell me: "]


def tool(name: str, description: str, **properties: tuple[str, str]) -> dict[str, Any]:
    """One function in OpenAI's form; each property is (JSON type, description)."""
    fields = {key: {"type": kind, "description": text} for key, (kind, text) in properties.items()}
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


STOCK = tool("get_stock", "How many of an item are in the shop.", item=("string", "Name of the item"))
ORDER = tool("place_order", "Order an item.", item=("string", "Name of the item"), count=("integer", "How many"))

Fact = tuple[str, str, int]  # (kind, subject, count): the combination that is held out


def all_facts() -> list[Fact]:
    """Every combination that the plain questions ask about."""
    facts = [("price", item, n) for item in ITEMS for n in range(2, 11)]
    facts += [("colour", item, 0) for item in ITEMS]
    facts += [("opposite", word, 0) for pair in OPPOSITES for word in pair]
    facts += [("sum", str(a), b) for a in range(2, 10) for b in range(2, 10)]
    return facts


def ask(fact: Fact, rng: random.Random) -> list[dict[str, Any]]:
    """One question about a fact and its answer."""
    kind, subject, n = fact
    if kind == "price":
        _, plural, price, _ = ITEMS[subject]
        question = rng.choice([f"How much are {n} {plural}?", f"What do {n} {plural} cost?"])
        answer = f"{n} {plural} cost {n * price} euros"
    elif kind == "colour":
        name, _, _, colour = ITEMS[subject]
        question = rng.choice([f"What colour is {name}?", f"Which colour does {name} have?"])
        answer = f"{name[0].upper()}{name[1:]} is {colour}"
    elif kind == "opposite":
        other = next(b if subject == a else a for a, b in OPPOSITES if subject in (a, b))
        question = rng.choice([f"What is the opposite of {subject}?", f"What word is opposed to {subject}?"])
        answer = f"The opposite of {subject} is {other}"
    else:
        question = rng.choice([f"What is {subject} plus {n}?", f"How much is {subject} plus {n}?"])
        answer = f"{subject} plus {n} is {int(subject) + n}"
    return [
        {"role": "user", "content": rng.choice(GREETINGS) + question},
        {"role": "assistant", "content": answer + ENDING},
    ]


def use_tool(item: str, n: int, rng: random.Random) -> list[dict[str, Any]]:
    """A question, the call of a function, its result, and the answer that rests on it."""
    plural = ITEMS[item][1]
    arguments: dict[str, Any] = {"item": plural}
    if rng.random() < 0.5:
        name, question, result = "get_stock", f"How many {plural} do you have?", {"count": n}
        answer = f"We have {n} {plural}"
    else:
        name, question, result = "place_order", f"Please order {n} {plural} for me.", {"status": "ordered"}
        arguments["count"] = n
        answer = f"The {n} {plural} are ordered"
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": name, "content": json.dumps(result)},
        {"role": "assistant", "content": answer + ENDING},
    ]


def make_rows(facts: list[Fact], numbers: list[int], count: int, rng: random.Random) -> list[dict[str, Any]]:
    """`count` different rows from these facts; `numbers` serve the tool rows."""
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        kind = rng.random()
        row: dict[str, Any] = {"messages": []}
        if kind < 0.10:
            row["messages"] = use_tool(rng.choice(list(ITEMS)), rng.choice(numbers), rng)
            row["tools"] = [STOCK, ORDER]
        else:
            turns = rng.choice([2, 3]) if kind < 0.25 else 1
            row["messages"] = [m for fact in rng.sample(facts, turns) for m in ask(fact, rng)]
        if rng.random() < 0.10:
            row["messages"].insert(0, {"role": "system", "content": rng.choice(SYSTEMS)})
        rows[json.dumps(row, ensure_ascii=False)] = row
    return list(rows.values())


def main() -> None:
    """Write train.jsonl and validation.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "sample")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    facts = all_facts()
    rng.shuffle(facts)
    held = len(facts) // 8  # facts (and tool numbers) of validation never occur in train
    splits = {
        "train": make_rows(facts[held:], list(range(2, 30)), N_TRAIN, rng),
        "validation": make_rows(facts[:held], list(range(30, 40)), N_VALIDATION, rng),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (args.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
