"""Write the sums for `recipe=grpo`: problems of two numbers, the test's in none of the embedded model's training text.

    python -m data.make_arithmetic --seed 0

It takes less than a second. `tools/tiny_model/sums.py` decides which problems are held out.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from tools.tiny_model.sums import arithmetic_question, held_out, result

HERE = Path(__file__).resolve().parent / "arithmetic"
ROWS = {"train": 4480, "test": 300}


def problem(rng: random.Random, held: bool) -> tuple[int, str, int]:
    """Two numbers from 1 to 99 and what is done with them, of the pairs held out or of the others."""
    while True:
        x, y, sign = rng.randint(1, 99), rng.randint(1, 99), rng.choice("+-")
        if sign == "-" and x < y:
            x, y = y, x
        if held_out(x, y) == held:
            return x, sign, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    rng = random.Random(parser.parse_args().seed)
    HERE.mkdir(exist_ok=True)
    for split, count in ROWS.items():
        rows: dict[str, str] = {}
        while len(rows) < count:
            drawn = problem(rng, held=split == "test")
            rows[arithmetic_question(*drawn, rng)] = str(result(*drawn))
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows.items()]
        (HERE / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{split}: {count} rows")


if __name__ == "__main__":
    main()
