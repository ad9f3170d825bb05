"""Write the sample's preferences: requests to a home assistant, each with the right answer and one wrong in one way.

    python data/make_preferences.py --seed 0

Standard library only, less than a second. Requests, tools and what belongs to a test are those of make_sample.py.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from make_sample import draw
from sample_parts import SORRY, TOOLS, VALUES, Tool

HERE = Path(__file__).resolve().parent
ROWS = {"train": 400, "test": 200}
# Share of requests that none of the tools offered fits: there the rejected answer is a call.
NO_CALL = 0.15
OFFERED = 2  # tools of a row
BY_NAME = {tool.name: tool for tool in TOOLS}
Arguments = dict[str, Any]


def other_value(tool: Tool, arguments: Arguments, key: str, rng: random.Random) -> Any:
    """Another value of the same kind than an argument has: another room, another number."""
    while (value := VALUES[tool.arguments[key][1]](rng)) == arguments[key]:
        pass
    return value


def wrong_value(tool: Tool, arguments: Arguments, others: list[Tool], rng: random.Random) -> tuple[Tool, Arguments]:
    """One argument has another value."""
    key = rng.choice(list(arguments))
    return tool, {**arguments, key: other_value(tool, arguments, key, rng)}


def wrong_tool(tool: Tool, arguments: Arguments, others: list[Tool], rng: random.Random) -> tuple[Tool, Arguments]:
    """Another of the tools offered is called, with what it wants."""
    other = rng.choice(others)
    return other, {key: VALUES[value](rng) for key, (_, value) in other.arguments.items()}


def missing(tool: Tool, arguments: Arguments, others: list[Tool], rng: random.Random) -> tuple[Tool, Arguments]:
    """One argument is left out."""
    key = rng.choice(list(arguments))
    return tool, {k: v for k, v in arguments.items() if k != key}


def extra(tool: Tool, arguments: Arguments, others: list[Tool], rng: random.Random) -> tuple[Tool, Arguments]:
    """One argument too many, that another tool has."""
    spare = {k: v for t in TOOLS for k, (_, v) in t.arguments.items() if k not in tool.arguments}
    key = rng.choice(sorted(spare))
    return tool, {**arguments, key: VALUES[spare[key]](rng)}


def wrong_name(tool: Tool, arguments: Arguments, others: list[Tool], rng: random.Random) -> tuple[Tool, Arguments]:
    """One argument has the name of another tool's."""
    key = rng.choice(list(arguments))
    names = sorted({k for t in TOOLS for k in t.arguments} - set(tool.arguments))
    name = rng.choice(names)
    return tool, {name if k == key else k: v for k, v in arguments.items()}


def as_text(tool: Tool, arguments: Arguments, others: list[Tool], rng: random.Random) -> tuple[Tool, Arguments]:
    """A number or a truth value is written as a text; where there is none, a text as a number."""
    typed = [key for key, value in arguments.items() if not isinstance(value, str)]
    key = rng.choice(typed or list(arguments))
    wrong = json.dumps(arguments[key]) if typed else rng.randint(1, 99)
    return tool, {**arguments, key: wrong}


MISTAKES: dict[str, Callable[[Tool, Arguments, list[Tool], random.Random], tuple[Tool, Arguments]]] = {
    "wrong_value": wrong_value, "wrong_tool": wrong_tool, "missing": missing, "extra": extra,
    "wrong_name": wrong_name, "as_text": as_text,
}  # fmt: skip


def call(tool: Tool, arguments: Arguments) -> dict[str, Any]:
    """An answer that calls a tool."""
    function = {"name": tool.name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def make_pair(split: str, mistake: str, rng: random.Random) -> dict[str, Any]:
    """One row; `mistake` is what is wrong with the rejected answer, and is a field of it, for people."""
    kind = rng.choice(["none", "missing"]) if mistake == "call" else "call"
    row = draw(split, [kind], rng)
    request, right = row["messages"]
    asked = [c["function"]["name"] for c in right.get("tool_calls", ())]
    offered = [BY_NAME[tool["function"]["name"]] for tool in row["tools"]]
    spare = [tool for tool in offered if tool.name not in asked][OFFERED - len(asked) :]  # short rows are fast ones
    offered = [tool for tool in offered if tool not in spare]
    if mistake == "call":
        tool = rng.choice(offered)
        rejected = call(tool, {key: VALUES[value](rng) for key, (_, value) in tool.arguments.items()})
    elif mistake == "apology":
        rejected = {"role": "assistant", "content": SORRY}
    else:
        function = right["tool_calls"][0]["function"]
        tool = BY_NAME[function["name"]]
        others = [t for t in offered if t is not tool]
        rejected = call(*MISTAKES[mistake](tool, function["arguments"], others, rng))
    tools = [tool.declared for tool in offered]
    return {"prompt": [request], "chosen": [right], "rejected": [rejected], "tools": tools, "mistake": mistake}


def make_split(split: str, rng: random.Random, taken: set[str]) -> list[dict[str, Any]]:
    """`ROWS[split]` rows with requests that are not among `taken`; they are added to it."""
    n = ROWS[split]
    kinds = [*MISTAKES, "apology"]
    mistakes = ["call"] * round(n * NO_CALL)
    mistakes += [kinds[i % len(kinds)] for i in range(n - len(mistakes))]
    rng.shuffle(mistakes)
    rows = []
    for mistake in mistakes:
        while (row := make_pair(split, mistake, rng))["prompt"][0]["content"].lower() in taken:
            pass
        taken.add(row["prompt"][0]["content"].lower())
        rows.append(row)
    return rows


def main() -> None:
    """Write the splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "preferences")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for split in ("test", "train"):
        rows = make_split(split, random.Random(f"{args.seed} preferences {split}"), taken)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (args.out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        print(f"{split}: {len(rows)} rows")


if __name__ == "__main__":
    main()
