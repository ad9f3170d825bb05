"""`make bench-qat`: what training on the grid costs, the teacher, torchao's export error, and sizes of the files.

Written to docs/benchmarks/qat.*; `--only cost,sizes` measures some sections, and the page keeps the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import shape_270m
import torch
from bench_sft import interval
from figures import DOCS, conditions, conditions_line, table
from peft import LoraConfig, get_peft_model
from qat_step import TOP_K, random_targets, trainer_of
from qat_torchao import torchao, torchao_text
from safetensors import safe_open
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune.chat import Rendered
from gemma_tune.config import DataConfig
from gemma_tune.data.loading import load_rows
from gemma_tune.models.head import TopK
from gemma_tune.quant.layers import GridLora, grid_layers, off_grid, put_on_grid
from gemma_tune.quant.plan import plan_of
from gemma_tune.quant.trainer import GridTrainer
from gemma_tune.run.paths import ASSETS
from gemma_tune.train.distill import top_k_of_rows
from gemma_tune.train.teacher_cache import TeacherCache

ROWS, LENGTH, TRAINED = 4, 512, 256  # of a step: 2,048 tokens, half of them trained
MODES = {  # grid of the embedding, and whether an adapter is trained
    "all weights, quant=q4_0": (None, False),
    "all weights, quant=q4_0_embedding": ("q4_0", False),
    "adapter, quant=q4_0": (None, True),
}
MOST_COST, MOST_BYTES = 1.15, 400
TEACHER_ROWS = {"270M shape": 24, "tiny": 200}
# glibc gives freed memory back at once; a virtual machine can take longer to get it anew than the rounding takes
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 40), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
WEIGHTS = {"merged": "*.safetensors", "gguf": "*.gguf", "w4a16": "*.safetensors"}


# What a step costs


def some_rows() -> list[Rendered]:
    rng = random.Random(0)
    rows = [[rng.randrange(10, 262_144) for _ in range(LENGTH)] for _ in range(ROWS)]
    return [Rendered(ids, [-100] * (LENGTH - TRAINED) + ids[-TRAINED:]) for ids in rows]


def adapted(model: Any, layers: dict[Any, Any]) -> Any:
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    if layers:
        config._register_custom_module(layers)
    return get_peft_model(model, config)


def step(trainer: GridTrainer, rows: list[Rendered]) -> dict[str, float]:
    """Forward, backward and update: seconds by the clock and of the processor, and the process's peak in MiB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    wall, used = time.perf_counter(), time.process_time()
    inputs = {name: torch.tensor([getattr(row, name) for row in rows]) for name in ("input_ids", "labels")}
    loss = trainer.training_step(trainer.model, inputs, torch.tensor(sum(row.trained_tokens for row in rows)))
    nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    found = {"seconds": time.perf_counter() - wall, "processor": time.process_time() - used, "loss": loss.item()}
    status = Path("/proc/self/status").read_text("utf-8")
    return found | {"peak": int(status.split("VmHWM:")[1].split()[0]) / 1024}


def steps(mode: str, shape: Path, scratch: Path, pairs: int) -> dict[str, Any]:
    """Pairs of steps on the grid and without it, the first one of each by turns; the first pair isn't counted."""
    embedding, adapter = MODES[mode]
    torch.manual_seed(0)
    rows = some_rows()
    cache = random_targets(rows, scratch / "targets")

    def made(layers: dict[Any, Any]) -> Any:
        base = AutoModelForCausalLM.from_pretrained(shape, dtype=torch.float32)
        plan = plan_of(base, "q4_0", embedding)
        model = adapted(base, layers) if adapter else base
        if layers or not adapter:
            put_on_grid(model, plan)
        return model.train()

    model = made({nn.Linear: GridLora})
    on = trainer_of(model, rows, cache, scratch)
    # Without the grid an adapter is PEFT's own, beside the weights
    off = trainer_of(made({}), rows, cache, scratch) if adapter else on
    without: Callable[[], Any] = contextlib.nullcontext if adapter else lambda: off_grid(model)

    def one(arm: str) -> dict[str, float]:
        if arm == "grid":
            return step(on, rows)
        with without():
            return step(off, rows)

    done = []
    for n in range(-1, pairs):
        arms = ("grid", "none") if n % 2 else ("none", "grid")
        done.append({arm: one(arm) for arm in arms})
    layers = grid_layers(model)
    begun = time.perf_counter()
    with torch.no_grad():
        for layer in layers.values():
            layer.grid.rounded(layer.float_weight())
    weights = sum(layer.float_weight().numel() for layer in layers.values())
    return {"pairs": done[1:], "rounding_seconds": time.perf_counter() - begun, "rounded_weights": weights}


def cost(options: argparse.Namespace, shape: Path, scratch: Path) -> dict[str, Any]:
    """Each way of training in a process of its own; peaks in another one, whose allocator gives freed memory back."""
    found: dict[str, Any] = {"tokens": ROWS * LENGTH, "trained_tokens": ROWS * TRAINED, "modes": {}}

    def run(mode: str, folder: Path, pairs: int, more: dict[str, str]) -> dict[str, Any]:
        command = [sys.executable, __file__, "--steps", mode, str(shape), str(folder), str(pairs)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | more)
        read: dict[str, Any] = json.loads(said.stdout.decode().splitlines()[-1])
        return read

    for n, mode in enumerate(tqdm(MODES, desc="cost")):
        of = run(mode, scratch / f"{n}-time", options.pairs, KEEP_MEMORY)
        peaks = run(mode, scratch / f"{n}-memory", 1, {})["pairs"][0]
        found["modes"][mode] = of | {"peak": {arm: at["peak"] for arm, at in peaks.items()}}
    return found


def cost_text(found: dict[str, Any]) -> str:
    lines = []
    for mode, of in found["modes"].items():
        pairs = of["pairs"]
        ratio, low, high = interval([p["grid"]["seconds"] / p["none"]["seconds"] for p in pairs])
        worked, work_low, work_high = interval([p["grid"]["processor"] / p["none"]["processor"] for p in pairs])
        seconds = {arm: statistics.fmean(p[arm]["seconds"] for p in pairs) for arm in pairs[0]}
        lines.append(
            f"| {mode} | {seconds['grid']:.1f} | {seconds['none']:.1f} | {ratio:.3f} ({low:.3f}–{high:.3f}) "
            f"| {worked:.3f} ({work_low:.3f}–{work_high:.3f}) | {of['rounding_seconds']:.2f} "
            f"| {of['peak']['grid'] - of['peak']['none']:,.0f} | {of['rounded_weights'] * 4 / 2**20:,.0f} |"
        )
    pairs = len(next(iter(found["modes"].values()))["pairs"])
    head = [
        "trained", "on the grid, s", "off the grid, s", "ratio, wall clock (95 %)", "ratio, CPU time (95 %)",
        "rounding, s", "additional memory, MiB", "one copy of the quantized weights, MiB",
    ]  # fmt: skip
    return f"""## What a step costs

The shape of Gemma 3 270M with random weights (`tests/shape_270m.py`), float32, {found["tokens"]:,} tokens per step, of
which {found["trained_tokens"]:,} are trained. Both arms compute the KL from {TOP_K} cached probabilities per token,
with a forward pass, a backward pass and AdamW, in the trainer of `recipe=qat`. Off the grid, the same weights are
used as they are, and an adapter is PEFT's own, of rank 16. There are {pairs} pairs of steps in one process, after one
that isn't counted; the arms take turns to go first. The process keeps freed memory, so no time is spent on allocating
it again. "Rounding" is rounding all weights on the grid once. "Additional memory" is the difference of the peaks of a
pair in another process.

{table(head, lines)}

Required: the upper ends of both ratios at most {MOST_COST} (the ratio by wall clock needs a machine without other
work), and no more additional memory than one copy of the weights.
"""


# The teacher


def gsm8k_rows(count: int) -> list[Rendered]:
    """The first rows of GSM8K, in the embedded model's tokens."""
    data = os.environ.get("GEMMA_TUNE_TEST_DATA")
    if not data:
        sys.exit("bench-qat: GEMMA_TUNE_TEST_DATA names no folder with gsm8k/train.jsonl; nothing is measured.")
    rows = DataConfig(
        format="columns", train_file=str(Path(data) / "gsm8k" / "train.jsonl"), prompt_column="question",
        completion_column="answer", max_train_samples=count,
    )  # fmt: skip
    train, _ = load_rows(rows, AutoTokenizer.from_pretrained(ASSETS / "tiny"), LENGTH, seed=42)
    return list(train.rendered)


def teacher(options: argparse.Namespace, shape: Path, scratch: Path) -> dict[str, Any]:
    """A row's targets computed by themselves, in batches into the cache, and read from it."""
    found: dict[str, Any] = {}
    for name, count in TEACHER_ROWS.items():
        folder = shape if name == "270M shape" else ASSETS / "tiny"
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        rows = gsm8k_rows(count)
        top_k_of_rows(base, rows[:1], TOP_K)
        cache = TeacherCache(scratch / name, TOP_K, "m", "v")
        with timed() as live:
            alone = [top_k_of_rows(base, [row], TOP_K)[0] for row in rows]
        with timed() as filled:
            cache.fill(rows, lambda some, base=base: top_k_of_rows(base, some, TOP_K))
        with timed() as read:
            for row in rows:
                cache.get(row)
        tokens = sum(row.trained_tokens for row in rows)
        found[name] = {
            "rows": len(rows), "tokens": sum(len(row.input_ids) for row in rows), "trained_tokens": tokens,
            "live": live[0] / len(rows), "fill": filled[0] / len(rows), "read": read[0] / len(rows),
            "bytes": sum(f.stat().st_size for f in (scratch / name).iterdir()) / tokens,
            "difference": max(off_by(a, cache.get(row)) for a, row in zip(alone, rows, strict=True)),
        }  # fmt: skip
    return found


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """Seconds of processor time, in a list that is filled at the end: others at work on the machine don't count."""
    taken: list[float] = []
    begun = time.process_time()
    yield taken
    taken.append(time.process_time() - begun)


def off_by(live: TopK, kept: TopK) -> float:
    """The largest difference of probabilities."""
    return (live.log_probs.exp() - kept.log_probs.exp()).abs().max().item()


def teacher_text(found: dict[str, Any]) -> str:
    lines = [
        f"| {name} | {of['rows']} | {of['tokens'] / of['rows']:.0f} | {of['live']:.3f} | {of['fill']:.3f} "
        f"| {of['read'] * 1000:.2f} | {of['bytes']:.0f} | {of['difference']:.1e} |"
        for name, of in found.items()
    ]
    head = [
        "model", "rows", "tokens per row", "live, s per row", "filling, s per row", "reading, ms per row",
        "bytes per trained token", "difference",
    ]  # fmt: skip
    return f"""## The teacher

Rows of GSM8K, {TOP_K} probabilities per token. A live teacher (`quant.teacher=live`) computes a row at every step that
uses it; the cache is filled once, in length-grouped batches, and read at every step. Seconds are CPU time. Bytes are
those of all files of the cache. "Difference" is the largest difference between a probability that was computed live
and one that was read from the cache.

{table(head, lines)}

Required: at most {MOST_BYTES} bytes per trained token.
"""


# Sizes


def sizes(options: argparse.Namespace, shape: Path, scratch: Path) -> dict[str, Any]:
    """What `recipe=export` writes of the embedded model."""
    found: dict[str, Any] = {}
    for quant in ("q4_0", "q4_0_embedding"):
        folder = scratch / f"export-{quant}"
        asked = ["recipe=export", "model=tiny", f"quant={quant}", "export=int4", "export.quality_samples=0"]
        command = [sys.executable, "-m", "gemma_tune", *asked, f"output_dir={folder}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name, pattern in WEIGHTS.items():
            files = list((folder / "export" / name).glob(pattern))
            found[f"{name}, quant={quant}"] = sum(f.stat().st_size for f in files)
        merged = next((folder / "export" / "merged").glob("*.safetensors"))
    with safe_open(merged, "pt") as tensors:
        found["weights"] = sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118 (it is no dict)
    return found


def sizes_text(found: dict[str, Any]) -> str:
    lines = [f"| {k} | {n:,} | {8 * n / found['weights']:.2f} |" for k, n in found.items() if k != "weights"]
    return f"""## Sizes

`recipe=export` of the embedded model, {found["weights"]:,} weights; merged is bfloat16. The GGUF file also holds the
tokenizer; runs say the bits per weight of the tensors alone.

{table(["file", "bytes", "bits of the file over weights"], lines)}
"""


Measure = Callable[[argparse.Namespace, Path, Path], dict[str, Any]]
# In the page's order: what is measured, given the options, the 270M shape and an empty folder, and how it is told.
SECTIONS: dict[str, tuple[Measure, Callable[[dict[str, Any]], str]]] = {
    "cost": (cost, cost_text),
    "teacher": (teacher, teacher_text),
    "torchao": (lambda options, shape, scratch: torchao(), torchao_text),
    "sizes": (sizes, sizes_text),
}


def page(report: dict[str, Any]) -> str:
    """All sections that were measured, each with its conditions."""
    parts = ["# Training on the int4 grid\n\nMade by `make bench-qat`.\n"]
    for name, (_, told) in SECTIONS.items():
        if name in report:
            parts.append(told(report[name]["found"]) + f"\n{conditions_line(report[name])}\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between them")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of steps of each way of training, two or more")
    parser.add_argument("--steps", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps:
        mode, shape, scratch, pairs = options.steps
        print(json.dumps(steps(mode, Path(shape), Path(scratch), int(pairs))))
        return
    file = DOCS / "qat.json"
    with tempfile.TemporaryDirectory() as folder:
        shape = Path(folder) / "shape"
        shape_270m.make(shape)
        for name in options.only.split(","):
            scratch = Path(folder) / name
            scratch.mkdir()
            measured = {**conditions(), "found": SECTIONS[name][0](options, shape, scratch)}
            report = json.loads(file.read_text("utf-8")) if file.is_file() else {}
            report[name] = measured
            file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            (DOCS / "qat.md").write_text(page(report), encoding="utf-8")


if __name__ == "__main__":
    main()
