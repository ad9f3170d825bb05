"""report.md: what was done, from what, how well, and how to use it; and the loss curve as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_tune.chat.calls import shown
from gemma_tune.config import Config
from gemma_tune.evals.evaluation import Evaluation, as_text
from gemma_tune.runfolder import RunFolder


def loss_curve(metrics: Path, picture: Path) -> bool:
    """Draws the losses of metrics.jsonl; returns False where there are none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    train = [(r["step"], r["loss"]) for r in lines if "loss" in r]
    held_out = [(r["step"], r[k]) for r in lines for k in ("held_out_loss", "eval_loss") if k in r]
    if not train:
        return False
    figure = Figure(figsize=(7, 3.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = zip(*train, strict=True)
    axes.plot(
        steps, losses, color="#9db8d2", linewidth=1, label="training, each step" if len(train) > 20 else "training"
    )
    if len(train) > 20:
        smooth, value = [], losses[0]
        for loss in losses:
            value = 0.75 * value + 0.25 * loss
            smooth.append(value)
        axes.plot(steps, smooth, color="#1f5a99", linewidth=1.8, label="training, running mean")
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True),
            "o" if len(held_out) < 3 else "o--",
            color="#c4532d",
            linewidth=1.2,
            label="held out",
        )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(picture)
    return True


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|").replace("\n", "⏎") for c in line) + " |" for line in lines)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _evaluation_sections(before: Evaluation, after: Evaluation) -> dict[str, str]:
    sections = {}
    if before.figures:
        rows = [[k, as_text(k, v), as_text(k, after.figures[k])] for k, v in before.figures.items()]
        sections["Before and after"] = _table(["", "before", "after"], rows)
    if before.answers:
        rows = [
            [b["prompt"][-300:], *(shown(t)[:300] for t in (b["wanted"], b["answer"], a["answer"]))]
            for b, a in zip(before.answers, after.answers, strict=True)
        ]
        sections["Answers"] = _table(["prompt", "wanted", "before", "after"], rows)
    return sections


_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
inputs = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Hello!"}}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```

This run loaded it with Transformers, as above."""


def _rows_section(counts: dict[str, dict[str, int]]) -> str:
    names = list(next(iter(counts.values())))
    return _table(
        ["", *counts], [[n.replace("_", " "), *(_figure(c.get(n, "")) for c in counts.values())] for n in names]
    )


def write_report(
    cfg: Config,
    folder: RunFolder,
    trained: str,
    before: Evaluation,
    after: Evaluation,
    notes: Sequence[str] = (),
    checks: Sequence[str] = (),
) -> Path:
    """Writes report.md and loss.png.

    Args:
        cfg: The configuration.
        folder: The run folder, with its result.
        trained: What was trained, in one line.
        before: The evaluation before training.
        after: The same after training.
        notes: What is to be said of the rows, a line each.
        checks: What was checked before training, a line each.
    """
    metrics = folder.result.metrics
    sections = _evaluation_sections(before, after)
    sections["Rows and tokens"] = _rows_section(metrics["data"])
    if notes:
        sections["What to know of the rows"] = "\n".join(f"- {note}" for note in notes)
    sections["What was trained"] = f"{trained}."
    if checks:
        sections["Checked before training"] = "\n".join(f"- {line}" for line in checks)
    if "export" in metrics:
        rows = [[k.replace("_", " "), as_text(k, v)] for k, v in metrics["export"].items()]
        sections["The exported model against the trained one"] = _table(["", ""], rows)
    result = folder.result
    lines = [f"# {cfg.recipe}: {cfg.model.model_name_or_path}", ""]
    if "after" in result.headline:
        h = result.headline
        lines += [f"**{h['name']}: {as_text(h['name'], h['before'])} → {as_text(h['name'], h['after'])}**", ""]
    if loss_curve(folder.metrics, folder.path / "loss.png"):
        lines += ["![Loss over the optimizer steps](loss.png)", ""]
    for title, text in sections.items():
        lines += [f"## {title}", "", text, ""]
    lines += ["## What it took", "", _table(["step", "seconds"], [[k, f"{v:.1f}"] for k, v in result.seconds.items()])]
    lines += ["", f"Peak memory: {result.peak_memory_mb:,.0f} MiB.", ""]
    lines += [
        "## What is here",
        "",
        _table(["what", "where"], [[k, f"`{v}`"] for k, v in result.artifacts.items()]),
        "",
    ]
    if "merged" in result.artifacts:
        lines += ["## How to use it", "", _USE.format(folder=folder.path / result.artifacts["merged"]), ""]
    lines += [
        "## How to repeat it",
        "",
        f"`python -m gemma_tune rerun={folder.path / 'config.yaml'} output_dir=another_folder`",
        "",
        "Versions, seed and the digests of every input and artifact stand in `manifest.json`. The weights are under "
        "Gemma's licence where they come from a Gemma checkpoint: https://ai.google.dev/gemma/terms",
        "",
    ]
    folder.report.write_text("\n".join(lines), encoding="utf-8")
    return folder.report
