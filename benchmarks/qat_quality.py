"""`make figures-qat`: how much of the cost of plain rounding quantization-aware training recovers, on the sample task.

Written to docs/benchmarks/. Each run is a process of its own, with the command line a user would type.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import DOCS, conditions, conditions_line, table

SEEDS = (42, 1, 2)
# By name: the words beside recipe=qat, and its seeds.
ARMS: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "all weights, projections and embedding": (["quant=q4_0_embedding", "export=gguf"], SEEDS),
    "adapter, projections": (["adapter=lora", "quant=q4_0", "export=gguf"], SEEDS),
    "all weights, projections in 3 bit": (["quant=q3_0", "export=merged"], (42,)),
}


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "gemma_tune", *words, "tracker=none"], check=True, stdout=subprocess.DEVNULL)


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return found


def run(arm: str, words: list[str], seed: int, start: Path, folder: Path) -> dict[str, Any]:
    """One training on the grid, and its GGUF in llama.cpp on the test rows."""
    begun = time.perf_counter()
    command("recipe=qat", f"model.model_name_or_path={start}", f"seed={seed}", *words, f"output_dir={folder}")
    found = {"arm": arm, "seed": seed, "wall_seconds": time.perf_counter() - begun, **result_of(folder)}
    files = list((folder / "export" / "gguf").glob("*.gguf"))
    if files:
        asked = [f"model.model_name_or_path={files[0]}", f"model.tokenizer_name_or_path={start}/export/merged"]
        command("recipe=evaluate", *asked, "eval.evaluators=[answers]", f"output_dir={folder}-gguf")
        found["gguf"] = result_of(Path(f"{folder}-gguf"))["metrics"]["after"]
    return found


def row(found: dict[str, Any]) -> str:
    quality, figures = found["metrics"]["quality"], found["metrics"]
    cells = [found["arm"], str(found["seed"]), f"{quality['plain_kl']:.4f} → {quality['trained_kl']:.4f}"]
    for name in ("kl", "perplexity"):
        share, low, high = (quality[f"recovered_{name}{end}"] for end in ("", "_low", "_high"))
        cells.append(f"{share:.0%} ({low:.0%} to {high:.0%})")
    cells.append(" / ".join(f"{figures[when]['test_exact_match']:.1%}" for when in ("unquantised", "before", "after")))
    cells.append(f"{found['gguf']['test_exact_match']:.1%}" if "gguf" in found else "")
    cells += [f"{found['seconds']['train']:.0f}", f"{found['wall_seconds']:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        start = Path(scratch) / "tuned"
        command("recipe=lora_sft", "export.dtype=float32", f"output_dir={start}")
        runs = [
            run(arm, words, seed, start, Path(scratch) / f"{number}-{seed}")
            for number, (arm, (words, seeds)) in enumerate(ARMS.items())
            for seed in seeds
        ]
    report = {**conditions(), "runs": runs}
    head = [
        "trained", "seed", "mean KL, plain → trained", "KL recovered", "perplexity recovered",
        "test rows correct: unquantized / plain / trained", "GGUF in llama.cpp", "training s", "whole command s",
    ]  # fmt: skip
    lines = [
        "# How much quantization-aware training recovers",
        "",
        f"Made by `make figures-qat` on {conditions_line(report)} The embedded model, fine-tuned on the sample "
        "task (`recipe=lora_sft export.dtype=float32`), then `recipe=qat` with its defaults on the same rows.",
        "",
        'KL is from the unquantized model, in nats per token, on the validation set. "Recovered" is a share of what '
        "plain rounding to the same grid costs, with its 95 % interval over the rows; for perplexity it is meaningful "
        "only where that cost is larger than its own interval.",
        "",
        table(head, [*map(row, runs)]),
        "",
        "Required: at least 54 % of the KL with all weights, at least 40 % with an adapter; the GGUF file within 1 "
        "point of the unquantized model.",
        "",
    ]
    (DOCS / "qat-quality.md").write_text("\n".join(lines), encoding="utf-8")
    (DOCS / "qat-quality.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
