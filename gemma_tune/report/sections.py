"""The report of a run, section by section: what, from what, how well, what it took, and how to use it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma_tune.compare.chart import Dot, interval_chart
from gemma_tune.config import Config
from gemma_tune.evals.evaluation import Evaluation, as_text
from gemma_tune.report.answers import moved_rows, sample_rows
from gemma_tune.report.artifacts import how_to_use, sizes
from gemma_tune.report.blocks import (
    Block,
    Cell,
    Code,
    Curves,
    Dots,
    Headline,
    Listing,
    Mono,
    SampleAnswers,
    Section,
    Table,
    Text,
)
from gemma_tune.report.curves import Panel
from gemma_tune.report.figures import BEFORE, Change, changes, headline, is_share
from gemma_tune.rl.completion_log import first_and_last, read_completions
from gemma_tune.run.folder import RunFolder

PICTURE = "loss.png"

_INTERVALS = (
    "Beside a value stands its 95% interval over the rows: Wilson’s for right and wrong answers, Student’s t for other "
    "scores."
)
_DIFFERENCES = (
    "A difference pairs each row with itself; it is better or worse where the test (McNemar’s exact one, or the paired "
    "t-test) gives p < 0.05, with Holm’s correction over all figures. Not told apart doesn’t mean equal."
)
_TERMS = (
    "Versions, seed and the digests of every input and artifact stand in manifest.json. The weights are under Gemma's "
    "licence where they come from a Gemma checkpoint: https://ai.google.dev/gemma/terms"
)


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made from.

    Attributes:
        cfg: The configuration.
        folder: The run folder, with its result.
        trained: What was trained, in one line.
        before: The evaluation before training, perhaps empty.
        after: The one after.
        panels: The values of metrics.jsonl.
        notes: What is to be said of the rows, a line each.
        checks: What was checked before training, a line each.
    """

    cfg: Config
    folder: RunFolder
    trained: str
    before: Evaluation
    after: Evaluation
    panels: Sequence[Panel] = ()
    notes: Sequence[str] = ()
    checks: Sequence[str] = ()

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The result's figures."""
        return self.folder.result.metrics


def sections(inputs: ReportInputs) -> list[Section]:
    """All sections that have something to say, in the order of the report."""
    figures = changes(inputs.before, inputs.after)
    result = inputs.folder.result
    failures = [f"{where}: {reason}" for where, reason in result.failures.items()]
    once = not inputs.before.figures
    samples = sample_rows(inputs.before, inputs.after)
    found = [
        Section("", _headline(inputs, figures)),
        Section("What could not be measured", [Listing(failures, "bad")] if failures else []),
        Section("Figures" if once else "Before and after", _figures(figures, once)),
        Section("Losses and figures over the steps", _curves(inputs)),
        Section("Answers", [SampleAnswers(samples, open=2)] if samples else []),
        Section("Completions while training", _completions(inputs)),
        Section("Rows that changed", [block for change in figures for block in moved_rows(change)]),
        Section("From what", _inputs(inputs)),
        Section("Rows and tokens", _row_counts(inputs.metrics.get("data", {}))),
        Section("What to know of the rows", [Listing(inputs.notes)] if inputs.notes else []),
        Section("What was trained", _trained(inputs)),
        Section("Checked before training", [Listing(inputs.checks)] if inputs.checks else []),
        Section("The exported model against the trained one", _export(inputs)),
        Section("What the grid costs, and what training took back", _recovered(inputs)),
        Section("The files against what was trained", _verified(inputs)),
        Section("What it took", _took(inputs)),
        Section("What is here", sizes(inputs.folder, inputs.metrics.get("weights"))),
        Section("How to use it", how_to_use(inputs.folder)),
        Section("How to repeat it", _repeat(inputs)),
    ]
    return [section for section in found if section.blocks]


def _headline(inputs: ReportInputs, figures: Sequence[Change]) -> list[Block]:
    head = inputs.folder.result.headline
    found = [change for change in (*figures, *headline(head)) if change.name == head.get("name")]
    blocks: list[Block] = []
    for change in found[:1]:
        note = ""
        if change.difference:
            note = f"{change.difference.line()}: {change.verdict}, on {_rows(change)}"
        elif change.figure:
            note = f"on {_rows(change)}"
        values = [said for said in (change.before, change.after) if said.value != "–"]
        blocks.append(Headline(change.name, values, note, change.verdict))
    if "steps" in inputs.metrics:
        said = f"{inputs.metrics['steps']:,} optimizer steps on {', '.join(_trained_on(inputs.cfg))}"
        blocks.append(Text(said, "quiet"))
    return blocks


def _trained_on(cfg: Config) -> list[str]:
    if cfg.data.dataset_name:
        return [cfg.data.dataset_name]
    return [name for key, name in cfg.data.named().items() if key.startswith("data.train_file")]


def _rows(change: Change) -> str:
    count = change.figure.count if change.figure else 0
    return f"{count:,} rows" if count != 1 else "1 row"


def _figures(figures: Sequence[Change], once: bool) -> list[Block]:
    if not figures:
        return []
    counted = [change for change in figures if change.figure]
    blocks: list[Block] = []
    if once:
        blocks.append(Table(["", "value"], [[c.name, c.after] for c in figures]))
    else:
        head = ["", "before", "after", "difference", "", "rows better / worse / same"]
        rows: list[list[Cell]] = [[c.name, c.before, c.after, c.difference or "", c.verdict, c.moved] for c in figures]
        kinds = [c.verdict if c.verdict in ("better", "worse") else "" for c in figures]
        if not any(c.stats for c in figures):
            head, rows = head[:3], [row[:3] for row in rows]
        blocks.append(Table(head, rows, kinds))
    charts = {c.name: _chart(c) for c in counted}
    parts = [
        f"{c.name} is that of all rows; its interval and its difference are those of the first {c.part:,}, which were "
        "kept."
        for c in counted
        if c.part
    ]
    if charts:
        blocks += [Dots(charts), Text(_INTERVALS, "quiet")]
    if any(change.stats for change in figures):
        blocks.append(Text(_DIFFERENCES, "quiet"))
    return [*blocks, *(Text(part, "quiet") for part in parts)]


def _chart(change: Change) -> str:
    """Where the figure stood and stands, each with its interval."""
    figure = change.figure
    assert figure is not None  # asked for those alone
    share = is_share(figure)
    dots = []
    for stats in figure.model_stats:
        said = change.before if stats.model == BEFORE else change.after
        kind = change.verdict if stats.test and change.verdict in ("better", "worse") else ""
        dots.append(Dot(stats.model, stats.mean, said.line(), kind))

    def tick(value: float, decimals: int) -> str:
        if share:
            return f"{100 * value:.{max(decimals - 2, 0)}f}%".replace("-", "−")
        return f"{value:,.{decimals}f}".replace("-", "−")

    caption = "← better" if figure.lower_is_better else "better →"
    return interval_chart(dots, change.name, caption, tick, around_zero=False)


def _curves(inputs: ReportInputs) -> list[Block]:
    if not inputs.panels:
        return []
    few = [name for name in inputs.cfg.eval.during_training if name != "held_out_loss"]
    blocks: list[Block] = [Curves(inputs.panels, PICTURE)]
    if few and inputs.cfg.train.eval_steps:
        most = inputs.cfg.eval.max_samples_during_training
        said = f"While training, {', '.join(few)} took the first {most:,} rows at most; before and after, all."
        blocks.append(Text(said, "quiet"))
    return blocks


def _inputs(inputs: ReportInputs) -> list[Block]:
    files = inputs.folder.inputs.items()
    rows: list[list[Cell]] = [[Mono(path), Mono(said[:16]) if len(said) == 64 else said] for path, said in files]
    cfg = inputs.cfg
    names = {key.removeprefix("data."): name for key, name in cfg.data.named().items()}
    if "steps" not in inputs.metrics:
        names = {key: name for key, name in names.items() if not key.startswith("train_file")}
    if cfg.data.dataset_name:
        names["data set"] = cfg.data.dataset_name
    named = {"model": cfg.model.model_name_or_path, **names}
    blocks: list[Block] = [_pairs({key: Mono(name) for key, name in named.items()})]
    return [*blocks, Table(["file", "SHA-256, its first digits"], rows, texts=True)] if rows else blocks


def _row_counts(counts: Mapping[str, Mapping[str, int]]) -> list[Block]:
    if not counts:
        return []
    names = dict.fromkeys(name for part in counts.values() for name in part)
    rows = [[n.replace("_", " "), *(f"{part[n]:,}" if n in part else "" for part in counts.values())] for n in names]
    return [Table(["", *(part.replace("_", " ") for part in counts)], rows)]


def _completions(inputs: ReportInputs) -> list[Block]:
    """Some of what the model said while it was trained with rewards, with each reward beside it."""
    rows = first_and_last(read_completions(inputs.folder.evals / "completions.jsonl"))
    if not rows:
        return []
    rewards = [name for name in rows[0] if name.startswith("reward.")]
    head = ["step", "prompt", "completion", *(name.removeprefix("reward.") for name in rewards), "sum"]
    cells = [
        [f"{row['step']:,}", row["prompt"], row["completion"] + ("" if row["stopped"] else " …")]
        + ["–" if row[name] is None else f"{row[name]:.3g}" for name in (*rewards, "reward")]
        for row in rows
    ]
    return [
        Text("Of the first and of the last generation; more in eval/completions.jsonl.", "quiet"),
        Table(head, cells, texts=True),
    ]


def _trained(inputs: ReportInputs) -> list[Block]:
    blocks: list[Block] = [Text(f"{inputs.trained}.")]
    if "steps" not in inputs.metrics:
        return blocks
    cfg, t = inputs.cfg, inputs.cfg.train
    rows = f"{t.per_device_train_batch_size} rows"
    if t.gradient_accumulation_steps > 1:
        rows += f" × {t.gradient_accumulation_steps} passes"
    adapter = "none: every weight was trained"
    if cfg.adapter.peft_type != "none":
        kinds = {"DoRA": cfg.adapter.use_dora, "rsLoRA": cfg.adapter.use_rslora, "LoRA": True}
        kind = next(name for name, chosen in kinds.items() if chosen)
        adapter = f"{kind}, r = {cfg.adapter.r}, lora_alpha = {cfg.adapter.lora_alpha}"
    losses = [f"{inputs.metrics[n]:.4g}" for n in ("train_loss_first", "train_loss_last") if n in inputs.metrics]
    rewards = [f"{inputs.metrics[n]:.4g}" for n in ("reward_first", "reward_last") if n in inputs.metrics]
    facts = {
        "adapter": adapter,
        "weights in memory": f"{cfg.model.dtype}{', linear layers in 4 bit' if cfg.model.load_in_4bit else ''}",
        "optimizer steps": f"{inputs.metrics['steps']:,}",
        "batch": f"{rows}, packed into {t.max_length:,} tokens" if t.packing else rows,
        "longest row": "" if rewards else f"{t.max_length:,} tokens",
        "longest completion": f"{t.max_completion_length:,} tokens" if rewards else "",
        "completions of a prompt": str(t.num_generations) if rewards else "",
        "learning rate": f"{t.learning_rate:g} at most, {t.lr_scheduler_type}" if t.learning_rate else "",
        "optimizer": t.optim,
        "loss of the first and of the last logged step": ", ".join(losses),
        "mean reward of the first and of the last fifth of the steps": ", ".join(rewards),
        "seed": str(cfg.seed),
    }
    return [*blocks, _pairs({name: said for name, said in facts.items() if said})]


def _export(inputs: ReportInputs) -> list[Block]:
    measured = inputs.metrics.get("export")
    if not measured:
        return []
    rows = [
        [name.replace("_", " "), as_text(name, inputs.after.figures.get(name)), as_text(name, value)]
        for name, value in measured.items()
    ]
    return [Table(["", "trained", "exported"], rows)]


def _verified(inputs: ReportInputs) -> list[Block]:
    """What was written on a grid, against what was trained."""
    lines = inputs.metrics.get("verify", [])
    rows = [[line["name"], line["must"], line["found"], line["verdict"]] for line in lines]
    return [Table(["", "must", "found", ""], rows)] if rows else []


def _recovered(inputs: ReportInputs) -> list[Block]:
    """What the grid costs, and what training took back."""
    quality = inputs.metrics.get("quality")
    return [_pairs({name.replace("_", " "): f"{value:.4g}" for name, value in quality.items()})] if quality else []


def _took(inputs: ReportInputs) -> list[Block]:
    result = inputs.folder.result
    rows = [[step, f"{seconds:,.1f} s"] for step, seconds in result.seconds.items()]
    rows.append(["together", f"{sum(result.seconds.values()):,.1f} s"])
    if result.peak_memory_mb is not None:
        rows.append(["peak memory", f"{result.peak_memory_mb:,.0f} MiB"])
    return [Table(["", ""], rows)]


def _repeat(inputs: ReportInputs) -> list[Block]:
    path = shlex.quote(f"rerun={inputs.folder.path / 'config.yaml'}")
    return [Code(f"python -m gemma_tune {path} output_dir=another_folder", "bash"), Text(_TERMS, "quiet")]


def _pairs(facts: Mapping[str, str]) -> Table:
    return Table(["", ""], [[name, said] for name, said in facts.items()], texts=True)
