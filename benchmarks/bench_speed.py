"""`make bench-speed`: how fast training is, compared with TRL and with what the machine's matrix products reach.

The same command on a CPU and on a GPU. Each part writes its section of docs/benchmarks/speed.json and leaves the
others; docs/benchmarks/speed.md is made from all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speed_grpo
import speed_parts
import speed_sft
from figures import DOCS, conditions, conditions_line, table

PARTS = ("sft", "kv", "grpo", "dpo", "window", "grpo-step")
TITLES = {
    "sft": "LoRA on the shape of Gemma 3 270M",
    "kv": "Layers that share keys and values, at label positions alone",
    "grpo": "Completions that share a prompt",
    "dpo": "Chosen and rejected answers that share a prompt",
    "window": "Sliding layers over long packed rows",
    "grpo-step": "A whole step of GRPO on the shape of Gemma 3 270M",
}
LEAST = {
    "sft": "at least 2.2 times TRL's best and 40 % of the ceiling, at the lower end",
    "kv": "at least 1.85 times fewer operations and 1.6 times by the clock",
    "grpo": "of TRL / all on at least 2.3 times fewer operations of the body and 1.9 times by the clock",
    "dpo": "of TRL / all on at least 1.5 times by the clock",
    "window": "time grows linearly from 2k to 8k tokens, and no tensor has an entry for each pair of tokens",
}
SAME_LOSS = 1e-4  # relative difference of losses on and off that counts as rounding; TRL's have another head
FEW = 4  # blocks of steps below which an interval says nothing
MANY = FEW * speed_sft.BLOCK  # steps that make so many
Lines = list[str]


def measures(options: argparse.Namespace, scratch: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """The parts by name; with `--quick` a try-out whose figures say nothing."""
    quick, rounds = options.quick, options.rounds
    switches = [s for s in options.without.split(",") if s]
    if quick:
        return {
            "sft": lambda: speed_sft.measure(7, 3, switches, scratch, True),
            "kv": lambda: speed_parts.label_positions(2, 64),
            "grpo": lambda: speed_parts.group(2, 64, 4, 32, 1),
            "dpo": lambda: speed_parts.pair(2, 64, 16, 1),
            "window": lambda: speed_parts.window(1, (768, 1024), 1),
            "grpo-step": lambda: speed_grpo.measure(scratch, 64, 2, 4),
        }
    return {
        "sft": lambda: speed_sft.measure(options.steps, options.tried, switches, scratch, False),
        "kv": lambda: speed_parts.label_positions(rounds),
        "grpo": lambda: speed_parts.group(rounds),
        "dpo": lambda: speed_parts.pair(rounds),
        "window": lambda: speed_parts.window(rounds),
        "grpo-step": lambda: speed_grpo.measure(scratch, 512, 8, 256),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--steps", type=int, default=44, help="steps of the two arms that are compared")
    parser.add_argument("--tried", type=int, default=9, help="steps of the other arms, 6 or more")
    parser.add_argument("--rounds", type=int, default=4, help="measured passes of each side, two or more")
    parser.add_argument("--without", default="", help=f"arms of ours without {' and '.join(speed_sft.SWITCHES)}")
    parser.add_argument("--quick", action="store_true", help="a try-out with tiny counts")
    parser.add_argument("--output", type=Path, default=DOCS, help="where speed.json and speed.md are")
    options = parser.parse_args()
    if unknown := {*options.only.split(",")} - {*PARTS}:
        parser.error(f"--only: no part {', '.join(sorted(unknown))}")
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "speed.json"
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            begun = time.monotonic()
            found = measures(options, Path(scratch))[name]()
        command = "make bench-speed" + (f' SPEED="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else "")
        section = {**conditions(), "command": command, "minutes": (time.monotonic() - begun) / 60, "found": found}
        stored = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        stored = {part: stored.get(part) if part != name else section for part in PARTS}
        file.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        (options.output / "speed.md").write_text(as_markdown(stored), encoding="utf-8")


def as_markdown(stored: dict[str, Any]) -> str:
    """The page."""
    write = {"sft": _sft, "kv": _compared, "grpo": _compared, "dpo": _compared, "window": _window, "grpo-step": _step}
    lines = ["# How fast training is", ""]
    for name, section in stored.items():
        if section is not None:
            lines += [f"## {TITLES[name]}", "", f"Made by `{section['command']}` on {conditions_line(section)}", ""]
            lines += write[name](section["found"])
            lines += ["", f"Required: {LEAST[name]}." if name in LEAST else "", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _sft(found: dict[str, Any]) -> Lines:
    rates = found["ceiling"]
    top = max(rates.values())
    rows = []
    for name, arm in found["arms"].items():
        reached = arm["tokens_per_second"] * arm["flops_per_token"]
        low, high = (arm["tokens_per_second_95"] or [0, 0, 0])[1:]
        share = ""
        if len(arm["each"]) >= MANY:
            share = f" ({low * arm['flops_per_token'] / top:.0%}–{high * arm['flops_per_token'] / top:.0%})"
        trained = arm["trained_tokens"] and arm["trained_tokens"] / arm["tokens"] * arm["tokens_per_second"]
        rows.append(
            f"| {name} | {arm['steps']} | {arm['tokens_per_second']:.1f} | {f'{trained:.1f}' if trained else '–'} "
            f"| {arm['flops_per_token'] / 1e9:.2f} | {reached / 1e9:.0f} | {reached / top:.0%}{share} "
            f"| {arm['memory']:,.0f} | {arm['whole_run_seconds']:.0f} | {arm['losses'][-1]:.4f} |"
        )
    said = []
    for name, one in found["ratios"].items():
        if one["ratio"]:
            (mean, low, high), blocks = one["ratio"], len(one["each"])
            interval = f"**{mean:.2f}** ({low:.2f}–{high:.2f}, 95 %, {blocks} blocks of steps)"
            few = f"{mean:.2f} ({blocks} blocks of steps, too few for an interval)"
            said.append(f"- {name}: {few if blocks < FEW else interval}")
        else:
            reason = "there are fewer than two blocks of steps" if one["losses_agree"] else "the losses differ"
            said.append(f"- {name}: no ratio, {reason}")
    tried = ", ".join(f"{name} {rate:.1f}" for name, rate in found["search"].items())
    ceilings = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    head = ["", "steps", "tokens/s", "trained tokens/s", "GFLOP per token", "GFLOP/s", "of the ceiling (95 %)",
            "peak memory, MiB", "whole run, s", "last loss"]  # fmt: skip
    return [
        f"Random weights (`tests/shape_270m.py`) in bfloat16, rows of GSM8K, {speed_sft.ROWS} × {speed_sft.LENGTH} "
        f"tokens a step where rows are packed; device: {found['device']}. Each run is a process of its own, and all "
        "take turns of a second. Speeds are those from the end of step "
        f"{next(iter(found['arms'].values()))['from_step']} on, without the turns of others; tokens are without "
        "padding. The whole run has loading, rendering and saving besides, and the step whose operations are counted.",
        "",
        "Operations are those that torch's FlopCounterMode counts in the second step. It counts no attention kernel on "
        "a CPU; that is added by a formula, 2 products forward and 5 backward. What is computed twice counts "
        "twice, so a slower run can have a higher share of the ceiling. The ceiling is the fastest of these "
        f"bfloat16 products (medians, GFLOP/s), measured in the same job in turns: {ceilings}.",
        "",
        f"TRL, packed and without recomputation, tokens/s: {tried}. Its best is {found['best']}.",
        "",
        table(head, rows),
        "",
        "TRL's time divided by ours, over the same steps, where losses agree (the first to "
        f"{speed_sft.FIRST_LOSS:.2%}, each to {speed_sft.EACH_LOSS:.0%}, their mean to {speed_sft.MEAN_LOSS:.1%}):",
        "",
        *said,
    ]  # fmt: skip


def _compared(found: dict[str, Any]) -> Lines:
    """Off and on; and where it was measured, plain TRL."""
    first = next(iter(found.values()))
    with_trl = "trl" in first
    sides = [side for side in ("trl", "plain", "fast", "all") if side in first]
    ratios = ["trl_ratio", "ratio"] if with_trl else ["ratio"]
    rows = []
    for name, one in found.items():
        flops = [f"{one[side]['body_flops'] / 1e9:,.0f}" for side in sides]
        seconds = [f"{sum(one[side]['seconds']) / len(one[side]['seconds']):.2f}" for side in sides]
        of_flops = [f"{one[ratio.replace('ratio', 'flops_ratio')]:.2f}" for ratio in ratios]
        of_seconds = [_ratio(one, ratio) for ratio in ratios]
        losses = " / ".join(f"{one[side]['loss']:.6f}" for side in sides)
        rows.append("| " + " | ".join([name, *flops, *of_flops, *seconds, *of_seconds, losses]) + " |")
    names = ["TRL", "off", "on", "all on"] if with_trl else ["off", "on"]
    of = ["TRL / all on", "off / on"] if with_trl else ["ratio"]
    head = ["", "GFLOP " + names[0], *names[1:], *of, "seconds " + names[0], *names[1:]]
    head += [f"{n} (95 %)" for n in of] + ["loss " + " / ".join(names)]
    lines = [
        "Off and on in turns in one process, forward and backward where nothing else is said; operations without the "
        "head's where a vocabulary is named."
    ]
    if with_trl:
        lines = [
            "In turns in one process, with a vocabulary of 32k where none is named: the pass as TRL computes it with "
            "PEFT's adapters (TRL's head, SDPA, each row whole), ours without this speed-up (`off`: "
            "`train.compact_batches=false`, with attention by document, the head in tiles and "
            "`model.layers_at_labels=false`), with it (`on`), and with layers at labels besides (`all on`). `off / on` "
            "is what this key alone gives, `TRL / all on` what all of these give. Operations are those of the "
            "layers without the head; SDPA's are counted whole, whatever its mask. Update: forward and backward."
        ]
    return [*lines, "", table(head, rows)]


def _ratio(one: dict[str, Any], ratio: str) -> str:
    """The interval of a ratio of seconds, where losses agree."""
    losses = [one[side]["loss"] for side in (("trl", "all") if ratio == "trl_ratio" else ("plain", "fast"))]
    mean, low, high = one[ratio]
    agree = math.isclose(*losses, rel_tol=speed_sft.FIRST_LOSS if ratio == "trl_ratio" else SAME_LOSS)
    return f"{mean:.2f} ({low:.2f}–{high:.2f})" if agree else "none: the losses differ"


def _window(found: dict[str, Any]) -> Lines:
    rows = [
        f"| {attention} | {int(length):,} | {one['seconds']:.2f} | {1e6 * one['seconds'] / int(length):.0f} "
        f"| {one['largest_tensor'] / one['square']:.2f} |"
        for attention, lengths in found.items()
        for length, one in lengths.items()
    ]
    head = ["attention", "tokens", "seconds", "µs per token", "largest tensor / tokens²"]
    return [
        "Layers of the 270M shape with a window of 512, forward and backward, over a row of two documents (a quarter "
        "of it, and the rest). The largest tensor by document is one of the feed-forward block, tokens × 2,048.",
        "",
        table(head, rows),
    ]


def _step(found: dict[str, Any]) -> Lines:
    parts = [part for part in found["ours"] if part.startswith("time/")]
    wholes = {name: sum(one[part] for part in parts) for name, one in found.items()}
    rows = [
        f"| {name} | " + " | ".join(f"{one[part]:.1f}" for part in parts) + f" | {wholes[name]:.1f} "
        f"| {one['length']:.0f} |"
        for name, one in found.items()
    ]
    ratio = " | ".join(
        f"{found['TRL'][part] / found['ours'][part]:.2f}" if found["ours"][part] >= 0.1 else "–" for part in parts
    )
    rows.append(f"| TRL / ours | {ratio} | {wholes['TRL'] / wholes['ours']:.2f} | |")
    return [
        "Seconds of one step, the first, one run after the other: 8 completions of one prompt of 512 tokens, LoRA in "
        "bfloat16, SDPA in TRL's. TRL's reward is part of its scoring.",
        "",
        table(["", *(part.removeprefix("time/") for part in parts), "whole", "tokens of a completion"], rows),
    ]


if __name__ == "__main__":
    main()
