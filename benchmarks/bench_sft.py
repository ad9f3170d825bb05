"""`make bench-sft`: our `lora_sft` and `qlora_sft` compared with a plain TRL script, written to docs/benchmarks/.

The same model, rows, order, steps, dtype and batch; every run is a process of its own, and the two of a pair take turns
of a second.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import shape_270m
from figures import DOCS, conditions, conditions_line
from in_turn import Turns, in_turn
from scipy.stats import t as student
from tqdm import tqdm
from transformers import AutoTokenizer

from gemma_tune.chat import render_chat
from gemma_tune.chat.template import training_template

HERE = Path(__file__).resolve().parent
LENGTH = 512
# TRL's names, which are ours, too.
SETTINGS: dict[str, dict[str, Any]] = {
    "TRL's defaults": {"bf16": True, "packing": False, "gradient_checkpointing": True},
    "bfloat16, packing, no recomputation": {"bf16": True, "packing": True, "gradient_checkpointing": False},
}
RECIPES = ("lora_sft", "qlora_sft")
LEAST = 0.97


def ours(recipe: str, training: dict[str, Any], model: Path, rows: Path, folder: Path) -> Turns:
    """One run of a recipe."""
    words = [f"train.{k}={v}" for k, v in training.items()]
    command = [
        sys.executable, "-m", "gemma_tune", f"recipe={recipe}", "tracker=none", "eval=none", "export=none",
        f"model.model_name_or_path={model}", "model.bnb_4bit_compute_dtype=bfloat16", "model.device=cpu",
        "data=messages", f"data.train_file={rows}", f"output_dir={folder}", "train.logging_steps=1", *words,
    ]  # fmt: skip
    return Turns(
        command, lambda said: next((line["train_runtime"] for line in logged(folder) if "train_runtime" in line), None)
    )


def logged(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl, perhaps none yet."""
    file = folder / "metrics.jsonl"
    text = file.read_text("utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def plain(recipe: str, training: dict[str, Any], model: Path, rows: Path, folder: Path) -> Turns:
    """One run of the TRL script."""
    asked = {
        "model": str(model), "rows": str(rows), "output_dir": str(folder), "four_bit": recipe == "qlora_sft",
        "chat_template": training_template(), "training": training,
    }  # fmt: skip
    return Turns(
        [sys.executable, str(HERE / "plain_trl.py"), json.dumps(asked)], lambda said: last_line(said).get("seconds")
    )


def last_line(said: str) -> dict[str, Any]:
    """The last whole line of JSON that the TRL script wrote (TRL itself prints dicts of Python), or nothing yet."""
    lines = [line for line in said.splitlines(keepends=True) if line.startswith('{"') and line.endswith("\n")]
    return json.loads(lines[-1]) if lines else {}


def one_pair(
    recipe: str, training: dict[str, Any], model: Path, rows: Path, folder: Path, ours_first: bool
) -> dict[str, Any]:
    """Ours and TRL's, in turns of a second: seconds of the training loop, peak memory and losses of each."""
    runs = {
        "ours": ours(recipe, training, model, rows, folder / "ours"),
        "TRL": plain(recipe, training, model, rows, folder / "TRL"),
    }
    in_turn(sorted(runs.values(), key=lambda run: (run is runs["ours"]) != ours_first))
    losses = {
        "ours": [line["loss"] for line in logged(folder / "ours") if "loss" in line],
        "TRL": last_line(runs["TRL"].said)["losses"],
    }
    return {who: {"seconds": run.seconds, "memory": run.memory, "losses": losses[who]} for who, run in runs.items()}


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean of ratios, and its 95 % interval (Student's t on their logarithms)."""
    logs = [math.log(r) for r in ratios]
    mean = statistics.fmean(logs)
    half = student.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def write_rows(source: Path, target: Path, count: int, model: Path) -> int:
    """The first `count` rows of GSM8K as conversations; returns their tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = 0
    with target.open("w", encoding="utf-8") as file:
        for line in source.read_text("utf-8").splitlines()[:count]:
            row = json.loads(line)
            said = zip(("user", "assistant"), (row["question"], row["answer"]), strict=True)
            messages = [{"role": role, "content": text} for role, text in said]
            tokens += min(LENGTH, len(render_chat(tokenizer, messages).input_ids))
            file.write(json.dumps({"messages": messages}) + "\n")
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8, help="pairs of runs for each recipe and setting, two or more")
    parser.add_argument("--rows", type=int, default=4, help="rows of GSM8K, once through")
    options = parser.parse_args()
    data = os.environ.get("GEMMA_TUNE_TEST_DATA")
    if not data:
        sys.exit("bench-sft: GEMMA_TUNE_TEST_DATA names no folder with gsm8k/train.jsonl; nothing is measured.")
    results: dict[str, Any] = {}
    rounds = [(n, r, s) for n in range(options.pairs) for r in RECIPES for s in SETTINGS]
    jobs = [(-1, *rounds[0][1:]), *rounds]  # the first pair warms the caches, and isn't counted
    with tempfile.TemporaryDirectory() as scratch:
        model, rows = Path(scratch) / "model", Path(scratch) / "rows.jsonl"
        shape_270m.make(model)
        tokens = write_rows(Path(data) / "gsm8k" / "train.jsonl", rows, options.rows, model)
        for n, recipe, setting in tqdm(jobs, desc="pairs"):
            training = SETTINGS[setting] | {
                "per_device_train_batch_size": 2, "max_length": LENGTH, "learning_rate": 1e-3, "num_train_epochs": 1,
                "lr_scheduler_type": "linear", "warmup_steps": 0, "optim": "adamw_torch",
            }  # fmt: skip
            folder = Path(scratch) / f"{recipe}-{setting[:5]}-{n}"
            pair = one_pair(recipe, training, model, rows, folder, ours_first=n % 2 == 0)
            if n >= 0:
                results.setdefault(f"{recipe}, {setting}", []).append(pair)
            if n > 0 and all(len(done) == n + 1 for done in results.values()):  # a whole round, so that one can stop
                report = {**conditions(), "tokens": tokens, "rows": options.rows, "results": results}
                (DOCS / "sft-against-trl.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
                (DOCS / "sft-against-trl.md").write_text(as_markdown(report), encoding="utf-8")


def same_losses(ours: list[float], theirs: list[float]) -> bool:
    """Whether two runs saw the same; the first loss is that of the base, and shows rows and mask."""
    return len(ours) == len(theirs) and all(
        math.isclose(a, b, rel_tol=2e-4 if i == 0 else 1e-3) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
    )


def as_markdown(report: dict[str, Any]) -> str:
    """The table; a setting whose final losses differ has no ratio."""
    steps = len(next(iter(report["results"].values()))[0]["ours"]["losses"])
    pairs = len(next(iter(report["results"].values())))
    lines = [
        "# Fine-tuning, compared with a plain TRL script", "",
        f"Made by `make bench-sft` on {conditions_line(report)}", "",
        "The shape of Gemma 3 270M with random weights (`tests/shape_270m.py`), bfloat16; the first "
        f"{report['rows']} rows of GSM8K, {report['tokens']:,} tokens, in batches of 2, {steps} steps. "
        f"`benchmarks/plain_trl.py` is the TRL script. {pairs} pairs of runs per line; each run is a separate "
        "process, and the two of a pair take turns of one second, so that both see the same conditions. Time is that "
        "of the training loop without the other run's turns, memory the peak of the process. The losses of each pair "
        "must agree (the first to 0.02 %, the others to 0.1 %), or there is no ratio. Over 4-bit weights TRL rounds "
        "the adapters to bfloat16; ours stay in float32.", "",
        "| recipe, setting of TRL | ours, tokens/s | TRL, tokens/s | ours / TRL (95 %) | peak memory, ours / TRL, MiB "
        "| last loss, ours / TRL |", "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, done in report["results"].items():
        mean = {who: statistics.fmean(report["tokens"] / p[who]["seconds"] for p in done) for who in ("ours", "TRL")}
        memory = {who: statistics.fmean(p[who]["memory"] for p in done) for who in ("ours", "TRL")}
        last = {who: done[0][who]["losses"][-1] for who in ("ours", "TRL")}
        ratio, low, high = interval([p["TRL"]["seconds"] / p["ours"]["seconds"] for p in done])
        agree = all(same_losses(p["ours"]["losses"], p["TRL"]["losses"]) for p in done)
        said = f"{ratio:.3f} ({low:.3f}–{high:.3f})" if agree else "none: the losses differ"
        lines.append(
            f"| {name} | {mean['ours']:.1f} | {mean['TRL']:.1f} | {said} "
            f"| {memory['ours']:,.0f} / {memory['TRL']:,.0f} | {last['ours']:.4f} / {last['TRL']:.4f} |"
        )
    return "\n".join([*lines, "", f"Required: the lower end of each interval at least {LEAST}.", ""])


if __name__ == "__main__":
    main()
