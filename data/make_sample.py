"""Write the sample task: requests to a home assistant, answered by a call of the one tool that fits.

    python data/make_sample.py --seed 0

Standard library only, less than a second. What is held out, and how, stands in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROWS = {"train": 1800, "validation": 60, "test": 200, "test_new_phrasings": 60}
# Shares of requests that none of the tools offered fits: those that no tool of ours fits, and those whose tool is left
# out. More in training, as they are the hardest; few in the tests, where a model that never calls gets them right.
REFUSALS = {
    "train": (0.12, 0.04), "validation": (0.05, 0.05), "test": (0.03, 0.03), "test_new_phrasings": (0.03, 0.03),
}  # fmt: skip
# Share of test rows that take names and titles from those that training never has, where they have any.
NEW_VALUES = 0.3


def words(text: str, by: str | None = None) -> list[str]:
    """The words of a text (or its parts between `by`), as a list."""
    return [part.strip() for part in text.split(by)]


ROOMS = words(
    """
    kitchen bedroom bathroom hall office garage cellar attic nursery library
    """
)
DOORS = ["front", "back", "garage", "garden", "cellar", "balcony", "side", "kitchen"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
ITEMS = words(
    """
    milk bread butter cheese rice sugar salt coffee tea soap honey flour juice eggs apples lemons onions carrots
    batteries candles towels plums potatoes napkins
    """
)
DISHES = words(
    """
    pasta eggs cake soup rice bread pizza tea laundry potatoes oven nap
    """
)
NAMES = words(
    """
    Anna Ben Clara David Emma Felix Hugo Jonas Lena Max Nora Oscar Paula Sarah Thomas Vera Alice Bruno Daniel
    Eva Frank Helen Kate Leo Mary Nick Peter Rita Simon Tina Yusuf Ingrid Dmitri Noor Ravi Keiko Adam Carla Doris
    Edgar Fiona George Hilda Ivan Julia Karl Laura Martin Nadia Otto Pedro Rosa Stefan Theo Ursula Victor Wanda
    Xenia Yara Zoe Amir Bella Chen Diego Elif Farah Goran Hiro Irma Jamal Kira Lars Mina Olga Pavel Samir Tara
    Umar Vito Willem Yuki Zara Arne Britta Cora Dario Esther Flora
    """
)
NEW_NAMES = words(
    """
    Gerda Tomas Aisha Ludwig Marek Petra Sofia Bilal Hannah Viktor Ronja Matteo
    """
)  # in test rows only
TITLES = words(
    """Silver Rain|Blue Morning|Road to Rome|Summer Wind|The Old Bridge|Broken Clock|Night Train|Golden Bird|
    Winter Sun|Lost in the City|Paper Moon|Little Star|River Song|Open Window|Green Garden|Last Bus Home|Red Sky|
    Cold Coffee|First Snow|Old Friends|Walking Home|Under the Stars|Dancing Shadows|The Long Road|Salt and Honey|
    Postcards from Lisbon|Glass Houses|Midnight Radio|A Song for Maria|Dark Water|Slow Boat|Empty Chairs|
    Ten More Miles|Burning Bridges|White Roses|The Quiet Street|Songs of the Sea|Nine Lives|Morning Coffee|
    Broken Mirrors|Silent Forest|Hold the Line|Flying Carpet|City of Gold|Five Good Reasons|Lonely Planet|
    Ghosts of Berlin|Stormy Monday|Sweet Lemon|Empty Pockets|Black Horses|Strange Fire|Deep Blue Heart""",
    by="|",
)
NEW_TITLES = ["Stone Heart", "Wild Horses", "Letters from Cairo", "Quiet Fire", "Seven Doors"]  # in test rows only
TEXT_ENDS = [
    "will be late", "will be home at {clock}", "can not come on {day}", "need {count} more {item}", "forgot the {item}",
    "leave on {day}", "wait at the {door} door", "am in the {room} now", "will bring {item} and {item}",
    "start at {clock}", "will call you on {day}", "have no {item} left",
]  # fmt: skip


def texts(rng: random.Random) -> str:
    """A short message, free text that has to be copied."""
    end = rng.choice(TEXT_ENDS)
    if end.count("{item}") == 2:
        end = end.replace("{item} and {item}", " and ".join(rng.sample(ITEMS, 2)))
    end = re.sub(r"\{(\w+)\}", lambda key: str(VALUES[key[1]](rng)), end)
    who = "I" if end.startswith("am ") else rng.choice(["I", "we", "they", "the others"])
    return f"{who} {end}"


def clock(rng: random.Random) -> str:
    """A time of the day, in 24 hours."""
    return f"{rng.randint(5, 23)}:{rng.choice(range(0, 60, 5)):02d}"


VALUES: dict[str, Callable[[random.Random], Any]] = {
    "room": lambda r: r.choice(ROOMS),
    "door": lambda r: r.choice(DOORS),
    "day": lambda r: r.choice(DAYS),
    "item": lambda r: r.choice(ITEMS),
    "label": lambda r: r.choice(DISHES),
    "clock": clock,
    "count": lambda r: r.randint(2, 24),
    "minutes": lambda r: r.choice([r.randint(1, 59), 5 * r.randint(1, 18)]),
    "percent": lambda r: r.choice([r.randint(1, 99), 10 * r.randint(1, 10)]),
    "degrees": lambda r: r.choice([r.randint(12, 26), r.randint(12, 25) + 0.5]),
    "person": lambda r: r.choice(NAMES),
    "title": lambda r: r.choice(TITLES),
    "text": texts,
    "state": lambda r: r.random() < 0.5,
}
"""How each value is made; `state` is a truth value, said in words by `{state:yes|no}`."""


@dataclass(frozen=True)
class Tool:
    """A tool, the values of its arguments in the order of the request's importance, and how people ask for it."""

    name: str
    description: str
    arguments: dict[str, tuple[str, str]]  # argument: (JSON type, value)
    phrasings: tuple[str, ...]
    new_phrasings: tuple[str, ...]

    @property
    def declared(self) -> dict[str, Any]:
        """The tool as `tools` holds it."""
        properties = {a: {"type": kind} for a, (kind, _) in self.arguments.items()}
        parameters = {"type": "object", "properties": properties, "required": list(properties)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


TOOLS = [
    Tool("set_light", "Turn a light on or off.", {"room": ("string", "room"), "on": ("boolean", "state")}, (
        "Turn {state:on|off} the light in the {room}.", "Switch the {room} light {state:on|off}.",
        "Light {state:on|off} in the {room}.",
        "The {room} light should be {state:on|off}.", "I want the light in the {room} {state:on|off}.",
        "Could you turn the {room} light {state:on|off}?", "{state:On|Off} with the light in the {room}.",
        "Make it {state:light|dark} in the {room}.", "Turn the lamp in the {room} {state:on|off}.",
        "{room} light {state:on|off}",
    ), ("Is the {room} lamp {state:on|off}? If not, do it.", "Have the {room} light {state:on|off} when I come in.",
        "Set the light of the {room} to {state:on|off}.")),
    Tool("dim_light", "Set how bright a light is.", {"room": ("string", "room"), "percent": ("integer", "percent")}, (
        "Dim the {room} light to {percent} percent.", "Set the light in the {room} to {percent} percent.",
        "{percent} percent light in the {room}.", "Bring the {room} lamp to {percent} percent.",
        "The light in the {room} at {percent} percent, please.", "I need the {room} light at {percent} percent.",
        "Can the {room} light be at {percent} percent?", "Put the {room} light down to {percent} percent.",
    ), ("Let the {room} have {percent} percent of light.", "Only {percent} percent for the lamp in the {room}.")),
    Tool("set_timer", "Start a timer.", {"minutes": ("integer", "minutes"), "label": ("string", "label")}, (
        "Set a timer for {minutes} minutes for the {label}.", "{minutes} minutes for the {label}, please.",
        "Start a {label} timer of {minutes} minutes.", "Tell me when the {label} has had {minutes} minutes.",
        "The {label} needs {minutes} minutes.", "Count {minutes} minutes for the {label}.",
        "I need a timer, {minutes} minutes, for the {label}.", "Timer for the {label}: {minutes} minutes.",
    ), ("Let me know in {minutes} minutes, it is for the {label}.",
    "My {label} is done in {minutes} minutes, time it.")),
    Tool("set_alarm", "Set an alarm clock.", {"time": ("string", "clock"), "day": ("string", "day")}, (
        "Wake me at {clock} on {day}.", "Set an alarm for {day} at {clock}.", "Alarm at {clock} on {day}.",
        "I have to get up at {clock} on {day}.", "On {day} I want to wake up at {clock}.",
        "Please wake me on {day} at {clock}.",
        "Can you wake us at {clock} on {day}?", "{day}, {clock}: alarm.",
    ), ("On {day} my night ends at {clock}.", "Ring the bell for me at {clock} this {day}.")),
    Tool("set_heat", "Set the thermostat of a room.", {"room": ("string", "room"), "degrees": ("number", "degrees")}, (
        "Heat the {room} to {degrees} degrees.", "Set the {room} to {degrees} degrees.",
        "{degrees} degrees in the {room}, please.",
        "Make the {room} {degrees} degrees warm.", "I want {degrees} degrees in the {room}.",
        "The thermostat in the {room} should be at {degrees} degrees.", "Can we have {degrees} degrees in the {room}?",
        "Bring the {room} to {degrees} degrees.",
    ), ("The {room} is too cold, {degrees} degrees would be good.",
    "It should have {degrees} degrees when I sit in the {room}.")),
    Tool("send_message", "Send a message to a person.", {"to": ("string", "person"), "text": ("string", "text")}, (
        "Tell {person} that {text}.", "Send {person} a message: {text}", "Write to {person}: {text}",
        "Let {person} know that {text}.",
        "Message {person} that {text}.", "Text {person}: {text}", "Send a message to {person} that says {text}.",
        "Please write {person} that {text}.",
    ), ("{person} should know that {text}.", "Drop {person} a line: {text}")),
    Tool("play_music", "Play a song.", {"title": ("string", "title"), "room": ("string", "room")}, (
        "Play {title} in the {room}.", "I want to hear {title} in the {room}.", "Put on {title} in the {room}.",
        "In the {room}, play {title}.", "Can you play {title} in the {room}?", "Start the song {title} in the {room}.",
        "Let us hear {title} in the {room}.", "{title} in the {room}, please.",
    ), ("We would like the song {title} for the {room}.", "Fill the {room} with {title}.")),
    Tool("add_to_list", "Put things on the shopping list.", {"item": ("string", "item"), "count": ("integer",
    "count")}, (
        "Put {count} {item} on the shopping list.", "Add {count} {item} to the list.", "We need {count} {item}.",
        "Buy {count} {item}.", "Write {count} {item} on the list.", "{count} {item} for the shopping list.",
        "Please note {count} {item} to buy.", "I have to buy {count} {item}.",
    ), ("We are out of {item}, get {count}.", "The next shopping has to bring {count} {item}.")),
    Tool("lock_door", "Lock or unlock a door.", {"door": ("string", "door"), "locked": ("boolean", "state")}, (
        "{state:Lock|Unlock} the {door} door.", "Please {state:lock|unlock} the {door} door.",
        "The {door} door should be {state:locked|unlocked}.",
        "Can you {state:lock|unlock} the {door} door?", "{state:Lock|Unlock} the door, the {door} one.",
        "I want the {door} door {state:locked|unlocked}.", "Keep the {door} door {state:locked|unlocked}.",
        "{door} door: {state:lock|unlock}",
    ), ("See that the {door} door is {state:locked|unlocked}.", "Do {state:lock|unlock} the door on the {door} side.")),
    Tool("call_person", "Call a person by phone.", {"name": ("string", "person")}, (
        "Call {person}.", "Please call {person}.", "Ring {person} for me.", "I want to talk to {person}.",
        "Get {person} on the phone.",
        "Can you call {person} now?", "Phone {person}.", "Give {person} a call.",
    ), ("Could I speak with {person}?", "I have to hear the voice of {person}.")),
]  # fmt: skip
NO_TOOL = (
    "Book a table for {count} people.", "How high is the tower in Rome?", "Order a taxi for {clock}.",
    "Water the flowers.",
    "Sell my car on {day}.", "What will the weather be on {day}?", "Print my letter to {person}.",
    "Find a flight for {day}.",
    "Who won the game on {day}?", "Wash the {item} for me.", "Paint the {room} blue.", "Feed the cat at {clock}.",
    "Pay the bill of {person}.", "Translate the letter from {person}.", "Walk the dog at {clock}.",
    "Take a picture of the {room}.",
)  # fmt: skip
NEW_NO_TOOL = ("Mow the lawn on {day}.", "How old is {person}?", "Clean the windows of the {room}.")
SORRY = "Sorry, none of my tools can do that."


def fill(phrasing: str, values: dict[str, Any]) -> str:
    """The request with its values in place."""
    out = phrasing
    for key, value in values.items():
        if isinstance(value, bool):
            head, _, rest = out.partition("{state:")
            words, _, tail = rest.partition("}")
            out = head + words.split("|")[0 if value else 1] + tail
        else:
            out = out.replace("{" + key + "}", str(value))
    return out


def is_test(phrasing: str, values: dict[str, Any]) -> bool:
    """Whether this phrasing with this first value belongs to the test rows: one such pair in six does."""
    first = next((str(v) for v in values.values()), "")
    return zlib.crc32(f"{phrasing}|{first}".encode()) % 6 == 0


def draw(split: str, kind: str, rng: random.Random) -> dict[str, Any]:
    """One row of a split.

    Args:
        split: Its name.
        kind: `call`; `missing`, a request whose tool isn't offered; or `none`, one that no tool of ours fits.
        rng: The source of chance.
    """
    new = split == "test_new_phrasings"
    tool = rng.choice(TOOLS)
    keys = [value for _, value in tool.arguments.values()]
    new_values = split.startswith("test") and kind != "none" and rng.random() < NEW_VALUES
    while True:
        if kind == "none":
            phrasing = rng.choice(NEW_NO_TOOL if new else NO_TOOL)
            keys = [key for key in VALUES if "{" + key + "}" in phrasing]
        else:
            phrasing = rng.choice(tool.new_phrasings if new else tool.phrasings)
        values = {key: VALUES[key](rng) for key in keys}
        if new_values:
            values |= {k: rng.choice(v) for k, v in (("person", NEW_NAMES), ("title", NEW_TITLES)) if k in values}
        unseen = any(v in NEW_NAMES or v in NEW_TITLES for v in values.values())
        if new or unseen or is_test(phrasing, values) == (split == "test"):
            break
    others = rng.sample([t for t in TOOLS if t is not tool], rng.choice([1, 1, 2]) + (kind != "call"))
    tools = [tool, *others] if kind == "call" else others
    rng.shuffle(tools)
    answer: dict[str, Any] = {"role": "assistant", "content": SORRY}
    if kind == "call":
        arguments = {a: values[key] for a, (_, key) in tool.arguments.items()}
        call = {"type": "function", "function": {"name": tool.name, "arguments": arguments}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    request = {"role": "user", "content": fill(phrasing, values)}
    return {"messages": [request, answer], "tools": [t.declared for t in tools]}


def make_split(split: str, rng: random.Random, taken: set[str]) -> list[dict[str, Any]]:
    """`ROWS[split]` rows with requests that are not among `taken`, which grows by them."""
    n = ROWS[split]
    none, missing = (round(n * share) for share in REFUSALS[split])
    kinds = ["none"] * none + ["missing"] * missing
    kinds += ["call"] * (n - len(kinds))
    rng.shuffle(kinds)
    rows = []
    for kind in kinds:
        while (request := (row := draw(split, kind, rng))["messages"][0]["content"].lower()) in taken:
            pass
        taken.add(request)
        rows.append(row)
    return rows


def main() -> None:
    """Write the splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "sample")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for split in ("test_new_phrasings", "test", "validation", "train"):
        rows = make_split(split, random.Random(f"{args.seed} {split}"), taken)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (args.out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        print(f"{split}: {len(rows)} rows")
    tools = json.dumps([tool.declared for tool in TOOLS], indent=1)
    (args.out / "tools.json").write_text(tools + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
