"""`make figures`: real rows on the embedded model and on the shape of Gemma 3 270M, written to docs/benchmarks/.

Each run is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import shape_270m
import torch
from transformers import AutoTokenizer

from gemma_tune.run.paths import ASSETS

DOCS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
RECIPES = ("full_sft", "lora_sft", "qlora_sft")
LENGTH = 512
COMMON = ["data=columns", "data.prompt_column=question", "data.completion_column=answer", "tracker=none",
          "train.packing=true", f"train.max_length={LENGTH}", "train.per_device_train_batch_size=2",
          "data.validation_split_percentage=0.5", "eval.num_samples=2", "eval.max_new_tokens=16"]  # fmt: skip


def conditions() -> dict[str, Any]:
    """When, on what machine and with which versions something is measured."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
    }


def conditions_line(report: dict[str, Any]) -> str:
    """The same in one line."""
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    return f"{report['date']}: {report['machine']}; {versions}."


def table(head: list[str], rows: list[str]) -> str:
    """A Markdown table of rows that are lines already."""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *rows])


def run(recipe: str, folder: Path, *words: str) -> dict[str, Any]:
    """One run in a process of its own; returns its result.json and losses."""
    command = [sys.executable, "-m", "gemma_tune", f"recipe={recipe}", *COMMON, *words, f"output_dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    result["losses"] = [line["loss"] for line in lines if "loss" in line]
    return result


def independent_count(file: Path) -> dict[str, int]:
    """Rows, tokens and trained tokens of all rows of the file, from the text built by hand."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    tokens = trained = 0
    for row in rows:
        head = f"<bos><start_of_turn>user\n{row['question'].strip()}<end_of_turn>\n<start_of_turn>model\n"
        whole = f"{head}{row['answer'].strip()}<end_of_turn>\n"
        n_head = len(tokenizer(head, add_special_tokens=False)["input_ids"])
        n = len(tokenizer(whole, add_special_tokens=False)["input_ids"])
        tokens += min(n, LENGTH)
        trained += max(0, min(n - 1, LENGTH) - n_head)  # the line break at the end is not trained
    return {"rows": len(rows), "tokens": tokens, "trained_tokens": trained}


def main() -> None:
    data = os.environ.get("GEMMA_TUNE_TEST_DATA")
    if not data:
        sys.exit("figures: GEMMA_TUNE_TEST_DATA names no folder with gsm8k/train.jsonl; nothing is measured.")
    file = Path(data) / "gsm8k" / "train.jsonl"
    runs: dict[str, dict[str, Any]] = {"tiny": {}, "270M shape": {}}
    with tempfile.TemporaryDirectory() as scratch:
        shape = Path(scratch) / "shape"
        shape_270m.make(shape)
        for recipe in RECIPES:
            words = [f"data.train_file={file}", "train.learning_rate=1e-3"]
            runs["tiny"][recipe] = run(recipe, Path(scratch) / f"tiny-{recipe}", *words, "train.max_steps=60")
            words = [f"data.train_file={file}", f"model.model_name_or_path={shape}", "train.max_steps=3",
                     "data.max_eval_samples=4", "train.per_device_eval_batch_size=2"]  # fmt: skip
            runs["270M shape"][recipe] = run(recipe, Path(scratch) / f"shape-{recipe}", *words)
    report = {
        **conditions(),
        "independent_count": independent_count(file),
        "runs": runs,
    }
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / "gsm8k-first-runs.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (DOCS / "gsm8k-first-runs.md").write_text(markdown(report), encoding="utf-8")


def markdown(report: dict[str, Any]) -> str:
    """The figures as tables."""
    lines = [
        "# GSM8K on the embedded model and on the shape of Gemma 3 270M",
        "",
        f"Made by `make figures` on {conditions_line(report)}",
        "",
        "The 7,473 rows of GSM8K's training split, read with `data=columns` and packed into sequences of 512 tokens, "
        "two per step. The 270M shape has random weights (`tests/shape_270m.py`), so its losses show only that it "
        "runs.",
        "",
        "| model | recipe | steps | loss, first → last | validation loss, before → after | s/step | peak memory, MiB "
        "| trained | 4-bit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model, recipes in report["runs"].items():
        for recipe, r in recipes.items():
            m, h, w = r["metrics"], r["headline"], r["metrics"]["weights"]
            lines.append(
                f"| {model} | {recipe} | {m['steps']} | {r['losses'][0]:.3f} → {r['losses'][-1]:.3f} "
                f"| {h['before']:.3f} → {h['after']:.3f} | {r['seconds']['train'] / m['steps']:.1f} "
                f"| {r['peak_memory_mb']:,.0f} | {w['trainable']:,} of {w['total']:,} "
                f"| {w['four_bit'] / w['total']:.1%} |"
            )
    count = report["independent_count"]
    parts = report["runs"]["tiny"]["full_sft"]["metrics"]["data"].values()
    lines += [
        "",
        "Rows and tokens, counted independently (from text built without gemma_tune) and in the report:",
        "",
        "| | counted independently | report |",
        "| --- | --- | --- |",
        *(f"| {k.replace('_', ' ')} | {v:,} | {sum(p[k] for p in parts):,} |" for k, v in count.items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
