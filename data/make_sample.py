"""Write the sample task: requests to a home assistant, answered by a call of the one tool that fits.

    python data/make_sample.py --seed 0

Standard library only, less than a second. What is held out, and how, stands in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from pathlib import Path
from typing import Any

from sample_parts import NEW_NAMES, NEW_NO_TOOL, NEW_TITLES, NO_TOOL, SORRY, TOOLS, VALUES, Tool, composed_title

HERE = Path(__file__).resolve().parent
ROWS = {"train": 1350, "validation": 60, "test": 200, "test_new_phrasings": 60}
# Shares of requests that none of the tools offered fits: those that no tool of ours fits, and those whose tool is left
# out. More in training, as they are the hardest; few in the tests, where a model that never calls gets them right.
REFUSALS = {
    "train": (0.10, 0.10), "validation": (0.05, 0.05), "test": (0.03, 0.03), "test_new_phrasings": (0.03, 0.03),
}  # fmt: skip
# Requests of a training row, one after the other with the same tools; those of the tests have one.
TURNS = [1, 2, 3, 4]
# Share of the songs in training with a title put together of words, of which there are thousands.
COMPOSED = 0.6
# Tools with texts and names to copy, which are the hardest, are asked for more often after the first request.
WEIGHTS = {"play_music": 3, "send_message": 3, "call_person": 2}
# Share of test rows that take names and titles from those that training never has, where they have any.
NEW_VALUES = 0.3


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


def ask(split: str, kind: str, tool: Tool, rng: random.Random) -> list[dict[str, Any]]:
    """A request and its answer.

    Args:
        split: The split it is for.
        kind: `call`; `missing`, a request whose tool isn't offered; or `none`, one that no tool of ours fits.
        tool: The tool asked for, whether it is offered or not.
        rng: The source of chance.
    """
    new = split == "test_new_phrasings"
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
        elif split == "train" and "title" in values and rng.random() < COMPOSED:
            values["title"] = composed_title(rng)
        unseen = any(v in NEW_NAMES or v in NEW_TITLES for v in values.values())
        if new or unseen or is_test(phrasing, values) == (split == "test"):
            break
    answer: dict[str, Any] = {"role": "assistant", "content": SORRY}
    if kind == "call":
        arguments = {a: values[key] for a, (_, key) in tool.arguments.items()}
        call = {"type": "function", "function": {"name": tool.name, "arguments": arguments}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    return [{"role": "user", "content": fill(phrasing, values)}, answer]


def draw(split: str, kinds: list[str], rng: random.Random) -> dict[str, Any]:
    """One row of a split: a conversation of as many requests as there are `kinds`, with the same tools for all."""
    tool = rng.choice(TOOLS)
    messages = ask(split, kinds[0], tool, rng)
    others = rng.sample([t for t in TOOLS if t is not tool], rng.choice([1, 1, 2]) + (kinds[0] != "call"))
    tools = [tool, *others] if kinds[0] == "call" else others
    rng.shuffle(tools)
    for kind in kinds[1:]:
        pool = tools if kind == "call" else [t for t in TOOLS if t not in tools]
        tool = rng.choices(pool, [WEIGHTS.get(t.name, 1) for t in pool])[0]
        messages += ask(split, kind, tool, rng)
    return {"messages": messages, "tools": [t.declared for t in tools]}


def make_split(split: str, rng: random.Random, taken: set[str]) -> list[dict[str, Any]]:
    """`ROWS[split]` rows with requests that are not among `taken`; those of tests and validation are added to it."""
    n = ROWS[split]
    none, missing = (round(n * share) for share in REFUSALS[split])
    kinds = ["none"] * none + ["missing"] * missing
    kinds += ["call"] * (n - len(kinds))
    rng.shuffle(kinds)
    rows = []
    for kind in kinds:
        more = rng.choices(kinds, k=rng.choice(TURNS) - 1) if split == "train" else []
        while True:
            row = draw(split, [kind, *more], rng)
            requests = {m["content"].lower() for m in row["messages"] if m["role"] == "user"}
            if not requests & taken and row not in rows:
                break
        if split != "train":
            taken |= requests
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
