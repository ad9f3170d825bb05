"""`make bench-packing`: packed sequences compared with padded batches on GSM8K, written to docs/benchmarks/packing.md.

The share of padding is counted; real tokens a second are measured on the embedded model, both in turns of a second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_sft import interval, logged
from figures import DOCS, conditions, conditions_line
from in_turn import Turns, in_turn
from transformers import AutoTokenizer
from trl import pack_dataset

from gemma_tune.config import DataConfig
from gemma_tune.data.loading import load_rows
from gemma_tune.run.paths import ASSETS

LENGTH, MOST_PADDING = 1024, 0.03
WAYS = {"packed": (True, 2), "padded": (False, 8)}  # train.packing, rows of a batch


def padding(rows: Path) -> dict[str, float]:
    """Share of empty room in packed rows of LENGTH tokens, and of padding in batches of eight in random order."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    data = DataConfig(format="columns", train_file=str(rows), prompt_column="question", completion_column="answer")
    train, _ = load_rows(data, tokenizer, LENGTH, seed=42)
    lengths = [len(ids) for ids in train.dataset.shuffle(seed=42)["input_ids"]]
    batches = [lengths[i : i + 8] for i in range(0, len(lengths), 8)]
    packs = pack_dataset(train.dataset, LENGTH, "bfd")
    return {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "packs": len(packs),
        "packed": 1 - sum(lengths) / (LENGTH * len(packs)),
        "padded": 1 - sum(lengths) / sum(len(b) * max(b) for b in batches),
    }


def run(way: str, rows: Path, count: int, folder: Path) -> Turns:
    """One `full_sft` run over the first rows."""
    packing, batch = WAYS[way]
    command = [
        sys.executable, "-m", "gemma_tune", "recipe=full_sft", "tracker=none", "eval=none", "export=none",
        "train.save_steps=100000", "data=columns", f"data.train_file={rows}", "data.prompt_column=question",
        "data.completion_column=answer", f"data.max_train_samples={count}", f"output_dir={folder}",
        f"train.packing={packing}", f"train.per_device_train_batch_size={batch}", f"train.max_length={LENGTH}",
        "train.train_sampling_strategy=random", "model.attn_implementation=sdpa",
    ]  # fmt: skip
    return Turns(command, lambda said: next((x["train_runtime"] for x in logged(folder) if "train_runtime" in x), None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rows", type=int, default=400)
    options = parser.parse_args()
    data = os.environ.get("GEMMA_TUNE_TEST_DATA")
    if not data:
        sys.exit("bench-packing: GEMMA_TUNE_TEST_DATA names no folder with gsm8k/train.jsonl; nothing is measured.")
    rows = Path(data) / "gsm8k" / "train.jsonl"
    shares = padding(rows)
    pairs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for n in range(options.pairs):
            runs = {way: run(way, rows, options.rows, Path(scratch) / f"{way}-{n}") for way in WAYS}
            in_turn(list(runs.values())[:: 1 if n % 2 else -1])
            pairs.append({way: turns.seconds or 0.0 for way, turns in runs.items()})
    report: dict[str, Any] = {**conditions(), **shares, "measured_rows": options.rows, "pairs": pairs}
    (DOCS / "packing.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    ratio, low, high = interval([p["padded"] / p["packed"] for p in pairs])
    seconds = {way: statistics.fmean(p[way] for p in pairs) for way in WAYS}
    text = f"""# Packed sequences compared with padded batches

Made by `make bench-packing` on {conditions_line(report)}

GSM8K, {shares["rows"]:,} rows with {shares["tokens"]:,} tokens in total (the embedded model's tokenizer), at most
{LENGTH:,} tokens per row:

| | empty space or padding |
| --- | --- |
| packed, {shares["packs"]:,} sequences | {shares["packed"]:.2%} |
| batches of 8 in random order | {shares["padded"]:.2%} |

Required: at most {MOST_PADDING:.0%} when packed. Empty space costs nothing, because the sequences of a batch are
concatenated.

Training of the embedded model: `full_sft`, SDPA, one epoch over the first {options.rows} rows, {options.pairs} pairs of
runs that take turns of one second. Packed {seconds["packed"]:.1f} s, padded {seconds["padded"]:.1f} s; padded / packed
{ratio:.3f} (95 %: {low:.3f}–{high:.3f}).
"""
    (DOCS / "packing.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
