"""`make bench-rl`: our `grpo` compared with a plain TRL script, and GSM8K's prompts on the shape of Gemma 3 270M.

The same model, rows, order, steps, dtype and batch; every run is a process of its own, and the two of a pair take turns
of a second. Written to docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import shape_270m
from bench_sft import interval, last_line, logged
from figures import DOCS, conditions, conditions_line, table
from in_turn import Turns, in_turn
from tqdm import tqdm

from gemma_tune.run.paths import ASSETS

HERE = Path(__file__).resolve().parent
LEAST = 0.97
# TRL's names, which are ours, too.
TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 64, "num_generations": 8, "max_completion_length": 32, "max_steps": 12,
    "learning_rate": 1e-4, "loss_type": "grpo", "seed": 42,
}  # fmt: skip
REWARD = """import re


def right(completions, records):
    found = [re.findall(r"-?\\d+", c) for c in completions]
    return [float(bool(n) and n[-1] == r.answer) for n, r in zip(found, records)]
"""


def ours(attention: str, folder: Path) -> Turns:
    """One run of `recipe=grpo`."""
    (folder / "mine.py").write_text(REWARD, encoding="utf-8")
    words = [f"train.{k}={v}" for k, v in TRAINING.items() if k != "seed"]
    command = [
        sys.executable, "-m", "gemma_tune", "recipe=grpo", "tracker=none", "eval=none", "export=none", "reward=none",
        f"reward.functions.right={folder}/mine.py:right", f"output_dir={folder}/run", "train.save_steps=12",
        f"model.attn_implementation={attention}", "train.lr_scheduler_type=linear", "train.warmup_steps=0",
        "train.bf16=false",
        "model.device=cpu", f"seed={TRAINING['seed']}", *words,
    ]  # fmt: skip

    def seconds(said: str) -> float | None:
        return next((line["train_runtime"] for line in logged(folder / "run") if "train_runtime" in line), None)

    return Turns(command, seconds)


def plain(attention: str, folder: Path) -> Turns:
    """One run of the TRL script."""
    asked = {
        "model": str(ASSETS / "tiny"), "rows": str(ASSETS / "arithmetic" / "train.jsonl"), "output_dir": str(folder),
        "attn_implementation": attention, "training": TRAINING,
    }  # fmt: skip
    return Turns(
        [sys.executable, str(HERE / "plain_grpo.py"), json.dumps(asked)], lambda said: last_line(said).get("seconds")
    )


def one_pair(attention: str, folder: Path, ours_first: bool) -> dict[str, Any]:
    """Ours and TRL's, in turns of a second: seconds of the training loop, peak memory, and the rewards of each step."""
    folder.mkdir()
    runs = {"ours": ours(attention, folder), "TRL": plain(attention, folder / "TRL")}
    in_turn(sorted(runs.values(), key=lambda run: (run is runs["ours"]) != ours_first))
    rewards = {
        "ours": [line["reward"] for line in logged(folder / "run") if "reward" in line],
        "TRL": last_line(runs["TRL"].said)["rewards"],
    }
    return {who: {"seconds": run.seconds, "memory": run.memory, "rewards": rewards[who]} for who, run in runs.items()}


def gsm8k(folder: Path, rows: Path) -> dict[str, Any]:
    """Two steps on GSM8K's prompts with the shape of Gemma 3 270M; its result.json."""
    shape_270m.make(folder / "model")
    words = [
        "recipe=grpo", f"model.model_name_or_path={folder}/model", "data=columns", f"data.train_file={rows}",
        "data.prompt_column=question", "data.completion_column=answer", "reward=math_format", "tracker=none",
        "train.max_steps=2", "train.per_device_train_batch_size=4", "train.num_generations=4", "eval=none",
        "export=none", "train.max_completion_length=64", "train.save_steps=2", f"output_dir={folder}/run",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "gemma_tune", *words], check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((folder / "run" / "result.json").read_text("utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=6, help="pairs of runs, two or more")
    options = parser.parse_args()
    data = os.environ.get("GEMMA_TUNE_TEST_DATA")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        pairs = [
            one_pair("eager", place / f"pair{i}", ours_first=i % 2 == 0)
            for i in tqdm(range(options.pairs), desc="pairs", disable=None)
        ]
        real = gsm8k(place, Path(data) / "gsm8k" / "train.jsonl") if data else None
    ratio, low, high = interval([pair["TRL"]["seconds"] / pair["ours"]["seconds"] for pair in pairs])
    report = {**conditions(), "pairs": pairs, "ratio": [ratio, low, high], "gsm8k": real}
    rows = []
    for who in ("ours", "TRL"):
        steps = TRAINING["max_steps"]
        seconds = statistics.median(pair[who]["seconds"] for pair in pairs) / steps
        memory = statistics.median(pair[who]["memory"] for pair in pairs)
        rewards = statistics.fmean(r for pair in pairs for r in pair[who]["rewards"])
        rows.append(f"| {who} | {seconds:.2f} | {memory:,.0f} | {rewards:.3f} |")
    words = ", ".join(f"{k} {v}" for k, v in TRAINING.items())
    lines = [
        "# Training with rewards, compared with a plain TRL script",
        "",
        f"Made by `make bench-rl` on {conditions_line(report)}",
        "",
        "`recipe=grpo` and `benchmarks/plain_grpo.py` on the embedded model and its sums, float32, with the same "
        f"settings ({words}) and the same reward; {len(pairs)} pairs of runs that take turns of one second.",
        "",
        f"**TRL's seconds per step divided by ours: {ratio:.3f} ({low:.3f} to {high:.3f}, 95 %)**. Required: at least "
        f"{LEAST} at the lower end.",
        "",
        table(["", "seconds per step", "peak memory, MiB", "mean reward"], rows),
        "",
    ]
    if real:
        lines += [
            "GSM8K's training split on the shape of Gemma 3 270M (random weights), "
            f"`reward=math_format`, 2 steps of 4 completions of 64 tokens: {real['seconds']['train']:.0f} s, peak "
            f"memory {real['peak_memory_mb']:,.0f} MiB.",
            "",
        ]
    (DOCS / "rl.md").write_text("\n".join(lines), encoding="utf-8")
    (DOCS / "rl.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
