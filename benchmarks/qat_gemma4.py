"""`make figures-qat-gemma4`: what quantization-aware training takes back on small Gemma 4 models, on the sample task.

Written to docs/benchmarks/. One model has per-layer embeddings and shared keys and values, as E2B, the other experts,
as 26B-A4B (tools/small_gemma4.py). Each run is a process of its own, with the command line a user would type.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import DOCS, conditions, conditions_line, table
from qat_quality import command, run

TOOL = Path(__file__).resolve().parents[1] / "tools" / "small_gemma4.py"
_EXPERTS = "adapter.target_parameters=[experts.gate_up_proj,experts.down_proj]"
_FEWER = ["eval.max_samples=60", "export=merged", "eval.evaluators=[answers]"]
# By the kind of model: the runs by name, each the words beside recipe=qat.
ARMS: dict[str, dict[str, list[str]]] = {
    "e2b": {
        "E2B-like, all weights, embeddings too": ["quant=q4_0_embedding"],
        "E2B-like, adapter": ["adapter=lora", "quant=q4_0"],
    },
    "experts": {
        "experts, all weights, embedding too": ["quant=q4_0_embedding"],
        "experts, adapter on experts, too": ["adapter=lora", "quant=q4_0", _EXPERTS],
    },
}


def tuned(kind: str, scratch: Path) -> Path:
    """A run folder with the model of this kind, fine-tuned on the sample task."""
    subprocess.run([sys.executable, str(TOOL), kind, str(scratch / kind)], check=True, stdout=subprocess.DEVNULL)
    model = f"model.model_name_or_path={scratch / kind}"
    words = ["train.num_train_epochs=2", "eval.before=false", "export=merged"]
    command("recipe=full_sft", model, *words, f"output_dir={scratch / kind}-tuned")
    return scratch / f"{kind}-tuned"


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    figures = found["metrics"]
    quality = figures["quality"]
    share, low, high = (quality[f"recovered_kl{end}"] for end in ("", "_low", "_high"))
    right = " / ".join(f"{figures[when]['test_exact_match']:.1%}" for when in ("unquantised", "before", "after"))
    cells = [found["arm"], f"{quality['plain_kl']:.4f} → {quality['trained_kl']:.4f}"]
    cells += [f"{share:.0%} ({low:.0%} to {high:.0%})", right]
    return "| " + " | ".join([*cells, f"{found['seconds']['train']:.0f}", f"{found['wall_seconds']:.0f}"]) + " |"


def page(report: dict[str, Any]) -> str:
    """The page, from what was measured."""
    head = [
        "trained", "mean KL, plain → trained", "KL recovered", "test rows correct: unquantized / plain / trained",
        "training s", "whole command s",
    ]  # fmt: skip
    lines = [
        "# Quantization-aware training of small Gemma 4 models",
        "",
        f"Made by `make figures-qat-gemma4` on {conditions_line(report)} The models of `tools/small_gemma4.py` (hidden "
        "size 256): one with per-layer embeddings, shared keys and values and wide MLPs, one with eight experts of "
        "which two are at work. Each fine-tuned on the sample task (`recipe=full_sft`, two epochs), then `recipe=qat` "
        "on the same rows, 60 test rows.",
        "",
        'KL is from the unquantized model, in nats per token, on the validation set. "Recovered" is a share of what '
        "plain rounding to the same grid costs, with its 95 % interval over the rows.",
        "",
        table(head, [row(found) for found in report["runs"]]),
        "",
        "Required: at least 54 % of the KL with all weights, at least 40 % with an adapter.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures every arm, or some, and writes the page; arms that aren't measured keep their figures."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tuned", action="append", default=[], metavar="KIND=FOLDER", help="a fine-tuned run folder")
    parser.add_argument("--arm", action="append", default=[], help="arms to measure, by name; none: all")
    parser.add_argument("words", nargs="*", help="further words of each recipe=qat")
    asked = parser.parse_args()
    folders = {kind: Path(folder) for kind, _, folder in (given.partition("=") for given in asked.tuned)}
    stored = DOCS / "qat-gemma4.json"
    with tempfile.TemporaryDirectory() as scratch:
        for kind, arms in ARMS.items():
            for number, (arm, words) in enumerate(arms.items()):
                if asked.arm and arm not in asked.arm:
                    continue
                start = folders.setdefault(kind, folders.get(kind) or tuned(kind, Path(scratch)))
                found = run(arm, [*words, *_FEWER, *asked.words], 42, start, Path(scratch) / f"{kind}-{number}")
                kept = json.loads(stored.read_text("utf-8"))["runs"] if stored.exists() else []
                runs = {one["arm"]: one for one in [*kept, found]}
                report = {**conditions(), "runs": [runs[a] for arms in ARMS.values() for a in arms if a in runs]}
                stored.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
                (DOCS / "qat-gemma4.md").write_text(page(report), encoding="utf-8")


if __name__ == "__main__":
    main()
