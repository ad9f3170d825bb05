"""`make bench-speed`, part sft: LoRA on the shape of Gemma 3 270M, TRL's trainer and ours in turns of a second."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shape_270m
import torch
from bench_sft import interval, write_rows
from ceiling import rates
from in_turn import Turns, in_turn
from step_lines import COUNTED, lines_of

from gemma_tune.chat.template import training_template
from gemma_tune.run.paths import ASSETS

HERE = Path(__file__).resolve().parent
LENGTH, ROWS, FIRST, BLOCK = 512, 2, 4, 5  # tokens of a row, rows of a step, first measured step, steps of a block
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# TRL's names, which are ours, too; what both have to agree on for equal losses
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": ROWS, "max_length": LENGTH, "learning_rate": 1e-4, "lr_scheduler_type": "constant",
    "warmup_steps": 0, "optim": "adamw_torch", "bf16": True,
}  # fmt: skip
PACKED = {"packing": True, "gradient_checkpointing": False}
# What TRL is tried with; the fastest is its best
CANDIDATES: dict[str, dict[str, Any]] = {
    "sdpa": {}, "eager": {"attn_implementation": "eager"},
}  # fmt: skip
SWITCHES = {
    "head": "train.tiled_head=false",
    "attention": "model.attn_implementation=sdpa",
}
# [m, k, n]: the MLP both ways, a tile of the head both ways, and a large square one
SHAPES = [[1024, 640, 2048], [1024, 2048, 640], [256, 640, 262_144], [256, 262_144, 640], [2048, 2048, 2048]]
FIRST_LOSS, EACH_LOSS, MEAN_LOSS = 2e-4, 1e-2, 1e-3  # relative differences of losses that count as equal


@dataclass
class Arm:
    """One training.

    Attributes:
        name: In the tables.
        run: The process.
        rows: `packed` or `padded`: those with equal rows must have equal losses.
        steps: How many it has.
    """

    name: str
    run: Turns
    rows: str
    steps: int

    def figures(self) -> dict[str, Any]:
        """What is written down of it."""
        lines = lines_of(self.run.said)
        at = {line["step"]: line["at"] for line in lines if "at" in line}
        tokens = {line["step"]: line["num_tokens"] for line in lines if "num_tokens" in line}
        first = min(FIRST, self.steps - 1)
        marks = range(first, self.steps + 1)
        each = [[self.run.own(at[a], at[b]), tokens[b] - tokens[a]] for a, b in itertools.pairwise(marks)]
        seconds, seen = (sum(step[i] for step in each) for i in range(2))
        counted = next(line["flops"] for line in lines if "flops" in line)
        gpu = [line["gpu_memory"] for line in lines if "gpu_memory" in line]
        rate = [
            line["trained_tokens_per_second"] / line["tokens_per_second"] * _of_step(tokens, line["step"])
            for line in lines
            if "trained_tokens_per_second" in line and first < line["step"]
        ]
        rates_of_blocks = [sum(n for _, n in block) / sum(s for s, _ in block) for block in in_blocks(each)]
        return {
            "tokens_per_second_95": list(interval(rates_of_blocks)) if len(each) > 1 else None,
            "rows": self.rows, "steps": self.steps, "from_step": first, "each": each,
            "tokens_per_second": seen / seconds, "trained_tokens": round(sum(rate)) if rate else None, "tokens": seen,
            "seconds_per_step": seconds / (self.steps - first),
            "flops_per_token": counted / _of_step(tokens, COUNTED),
            "whole_run_seconds": self.run.own(self.run.began, self.run.ended),
            "memory": gpu[0] if gpu else self.run.memory,
            "losses": [line["loss"] for line in lines if "loss" in line],
        }  # fmt: skip


def of_trl(name: str, training: dict[str, Any], model: Path, rows: Path, folder: Path, steps: int) -> Arm:
    """A run of the TRL script."""
    training = COMMON | training | {"max_steps": steps}
    attention = training.pop("attn_implementation", "sdpa")
    asked = {
        "model": str(model), "rows": str(rows), "output_dir": str(folder), "four_bit": False,
        "attn_implementation": attention, "chat_template": training_template(), "training": training,
    }  # fmt: skip
    command = [sys.executable, str(HERE / "plain_trl.py"), json.dumps(asked)]
    return Arm(name, Turns(command, _loop), "packed" if training["packing"] else "padded", steps)


def of_ours(name: str, words: list[str], model: Path, rows: Path, folder: Path, steps: int) -> Arm:
    """A run of `recipe=lora_sft`."""
    command = [
        sys.executable, str(HERE / "step_lines.py"), "recipe=lora_sft", "tracker=none", "eval=none", "export=none",
        f"model.model_name_or_path={model}", f"model.device={DEVICE}", "data=messages", f"data.train_file={rows}",
        f"output_dir={folder}", "train.logging_steps=1", f"train.max_steps={steps}",
        *(f"train.{k}={v}" for k, v in COMMON.items()), *words,
    ]  # fmt: skip
    padded = "train.packing=false" in words
    return Arm(name, Turns(command, _loop), "padded" if padded else "packed", steps)


def _of_step(tokens: dict[int, float], step: int) -> float:
    return tokens[step] - tokens[step - 1]


def _loop(said: str) -> float | None:
    return next((line["train_runtime"] for line in lines_of(said) if "train_runtime" in line), None)


def measure(steps: int, tried: int, switches: list[str], scratch: Path, quick: bool) -> dict[str, Any]:
    """All arms in turns.

    Args:
        steps: Of the two arms that are compared; the others have `tried`.
        tried: Steps with which TRL's best setting is looked for; and of the arms that aren't packed.
        switches: Keys of `SWITCHES`: an arm of ours for each, without that speed-up.
        scratch: A folder.
        quick: Whether it is a try-out, with the embedded model and few settings.
    """
    data = os.environ.get("GEMMA_TUNE_TEST_DATA")
    if not data:
        sys.exit("bench-speed: GEMMA_TUNE_TEST_DATA names no folder with gsm8k/train.jsonl; nothing is measured.")
    model, rows = ASSETS / "tiny" if quick else scratch / "model", scratch / "rows.jsonl"
    if not quick:
        shape_270m.make(model)
    write_rows(Path(data) / "gsm8k" / "train.jsonl", rows, 12 * steps, model)
    given = (model, rows)
    candidates = dict([*CANDIDATES.items()][:1]) if quick else CANDIDATES
    search = {
        name: of_trl(name, PACKED | more, *given, scratch / f"try-{i}", tried)
        for i, (name, more) in enumerate(candidates.items())
    }
    in_turn([arm.run for arm in search.values()])
    found = {name: arm.figures() for name, arm in search.items()}
    best = max(found, key=lambda name: found[name]["tokens_per_second"])
    own = ["train.packing=true"] * quick
    same = ["train.packing=false", "train.gradient_checkpointing=true"]
    arms = [
        of_trl("TRL, its defaults", {"packing": False, "gradient_checkpointing": True}, *given, scratch / "a", tried),
        of_ours("ours, TRL's defaults", same, *given, scratch / "b", tried),
        of_trl("TRL, its best", PACKED | CANDIDATES[best], *given, scratch / "c", steps),
        of_ours("ours, its defaults", own, *given, scratch / "d", steps),
        *(of_ours(f"ours, {SWITCHES[s]}", [SWITCHES[s], *own], *given, scratch / s, tried) for s in switches),
    ]
    asked = {"shapes": SHAPES[-1:] if quick else SHAPES, "rounds": 3 if quick else 30, "device": DEVICE}
    command = [sys.executable, str(HERE / "ceiling.py"), json.dumps(asked)]
    ceiling = Turns(command, lambda said: next((0.0 for _ in lines_of(said)), None), turn_seconds=0.25)
    in_turn([ceiling, *(arm.run for arm in arms)])
    reached = rates(lines_of(ceiling.said)[0]["products"], asked["shapes"], ceiling.own)
    figures = {arm.name: arm.figures() for arm in arms}
    for theirs in figures.values():  # TRL doesn't count them; its rows are ours
        equal = [
            ours for ours in figures.values() if ours["trained_tokens"] and ours["each"][0][1] == theirs["each"][0][1]
        ]
        if theirs["trained_tokens"] is None and equal:
            theirs["trained_tokens"] = round(theirs["tokens"] * equal[0]["trained_tokens"] / equal[0]["tokens"])
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu", "best": best,
        "search": {name: one["tokens_per_second"] for name, one in found.items()},
        "ceiling": reached, "arms": figures, "ratios": ratios(figures),
    }  # fmt: skip


def in_blocks(steps: list[Any]) -> list[list[Any]]:
    """Steps in blocks of five, of which intervals are made; of few steps each is one."""
    size = BLOCK if len(steps) >= 4 * BLOCK else 1
    return [steps[i : i + size] for i in range(0, len(steps) - size + 1, size)]


def ratios(arms: dict[str, Any]) -> dict[str, Any]:
    """Ours over TRL's where losses agree: tokens a second, of blocks of steps over the same rows, and 95 % interval."""
    found: dict[str, Any] = {}
    for name, other in arms.items():
        for ours, mine in arms.items():
            if not name.startswith("TRL") or not ours.startswith("ours") or other["rows"] != mine["rows"]:
                continue
            pairs = list(zip(other["each"], mine["each"], strict=False))  # of different lengths: the common steps
            blocks = in_blocks(pairs)
            each = [sum(theirs[0] for theirs, _ in block) / sum(own[0] for _, own in block) for block in blocks]
            agree = same_losses(mine["losses"], other["losses"]) and all(a[1] == b[1] for a, b in pairs)
            found[f"{ours} / {name}"] = {
                "losses_agree": agree, "ratio": list(interval(each)) if agree and len(each) > 1 else None,
                "each": each,
            }  # fmt: skip
    return found


def same_losses(ours: list[float], theirs: list[float]) -> bool:
    """Whether two runs saw the same rows and trained alike, over the steps that both have."""
    pairs = list(zip(ours, theirs, strict=False))
    return (
        math.isclose(*pairs[0], rel_tol=FIRST_LOSS)
        and all(math.isclose(a, b, rel_tol=EACH_LOSS) for a, b in pairs)
        and math.isclose(*(statistics.fmean(side) for side in zip(*pairs, strict=True)), rel_tol=MEAN_LOSS)
    )
