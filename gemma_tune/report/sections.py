"""The report of a run, section by section: results, inputs, training, resources, artifacts, and how to use them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma_tune.config import Config, EvalConfig
from gemma_tune.config.eval import ON_ANSWERS
from gemma_tune.evals.evaluation import Evaluation, as_text
from gemma_tune.page.blocks import Block, Cell, Code, Curves, Listing, Mono, Samples, Section, Table, Text
from gemma_tune.page.charts import Panel
from gemma_tune.page.media import Gallery
from gemma_tune.report.answers import moved_rows, sample_rows
from gemma_tune.report.artifacts import sizes
from gemma_tune.report.change_blocks import change_blocks, headline_block
from gemma_tune.report.exported import exported_headline, files_section
from gemma_tune.report.figures import Change, changes, headline
from gemma_tune.report.use import how_to_use
from gemma_tune.rl.completion_log import first_and_last, read_completions
from gemma_tune.run.folder import RunFolder

PICTURE = "loss.png"

_TERMS = (
    "manifest.json holds the versions, the seed, and the digests of all inputs and artifacts. Weights from a Gemma "
    "checkpoint are under Gemma's licence: https://ai.google.dev/gemma/terms"
)


@dataclass(frozen=True)
class ReportInputs:
    """The inputs of a report.

    Attributes:
        cfg: The configuration.
        folder: The run folder, with its result.
        trained: What was trained, in one line.
        before: The evaluation before training, perhaps empty.
        after: The evaluation after training.
        panels: The values of metrics.jsonl.
        notes: Notes about the rows, a line each.
        checks: The checks before training, a line each.
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
    """All sections that have content, in the order of the report."""
    figures = changes(inputs.before, inputs.after)
    result = inputs.folder.result
    failures = [f"{where}: {reason}" for where, reason in result.failures.items()]
    once = not inputs.before.figures
    gallery = Gallery()
    samples = sample_rows(inputs.before, inputs.after, gallery)
    found = [
        Section("", _headline(inputs, figures)),
        Section("What could not be measured", [Listing(failures, "bad")] if failures else []),
        Section("Figures" if once else "Before and after", change_blocks(figures, once)),
        Section("Losses and metrics over the steps", _curves(inputs)),
        *files_section(inputs.metrics),
        Section("Answers", [Samples(samples, open=2)] if samples else []),
        Section("Completions during training", _completions(inputs)),
        Section("Rows that changed", [block for change in figures for block in moved_rows(change, gallery)]),
        Section("Inputs", _inputs(inputs)),
        Section("Rows and tokens", _row_counts(inputs.metrics.get("data", {}))),
        Section("Notes on the rows", [Listing(inputs.notes)] if inputs.notes else []),
        Section("What was trained", training_facts(inputs)),
        Section("Checked before training", [Listing(inputs.checks)] if inputs.checks else []),
        Section("The exported model compared with the trained one", export_check(inputs)),
        Section("Quantization loss, and what training recovered", _recovered(inputs)),
        Section("The files compared with the trained model", verified(inputs.metrics.get("verify", []))),
        Section("Time and memory", _took(inputs)),
        Section("Artifacts", sizes(inputs.folder, inputs.metrics.get("weights"))),
        Section("How to use it", how_to_use(inputs.folder)),
        Section("How to repeat it", _repeat(inputs)),
    ]
    return [section for section in found if section.blocks]


def _headline(inputs: ReportInputs, figures: Sequence[Change]) -> list[Block]:
    head = inputs.folder.result.headline
    found = [change for change in (*figures, *headline(head)) if change.name == head.get("name")]
    of_files = exported_headline(inputs.metrics.get("exported", {}), head)
    blocks: list[Block] = [of_files] if of_files else [headline_block(change) for change in found[:1]]
    if "steps" in inputs.metrics:
        data = inputs.cfg.data
        files = [name for key, name in data.named().items() if key.startswith("data.train_file")]
        rows = data.dataset_name or ", ".join(files)
        blocks.append(Text(f"{inputs.metrics['steps']:,} optimizer steps on {rows}", "quiet"))
    return blocks


def _curves(inputs: ReportInputs) -> list[Block]:
    if not inputs.panels:
        return []
    blocks: list[Block] = [Curves(inputs.panels, PICTURE)]
    e, most = inputs.cfg.eval, _most_rows(inputs.cfg.eval)
    few = [name for name in e.during_training if name in most]
    if few and inputs.cfg.train.eval_steps:
        limits = [f"{name} {f'at most {most[name]:,}' if most[name] else 'all'}" for name in few]
        said = f"During training, {', '.join(few)} used at most {e.max_samples_during_training:,} rows of each test set"
        blocks.append(Text(f"{said} or task; before and after it: {', '.join(limits)}.", "quiet"))
    return blocks


def _most_rows(e: EvalConfig) -> dict[str, int | None]:
    """The evaluators that use fewer rows during training, each with its largest number before and after it."""
    of_tasks = [n for n in (e.lm_eval.limit, e.max_samples) if n is not None]
    return {
        **dict.fromkeys((*ON_ANSWERS, "rewards", "tool_calls"), e.max_samples),
        "kl": e.kl.max_samples,
        "lm_eval": min(of_tasks, default=None),
        "long_context": None,
    }


def _inputs(inputs: ReportInputs) -> list[Block]:
    files = inputs.folder.inputs.items()
    rows: list[list[Cell]] = [[Mono(path), Mono(said[:16]) if len(said) == 64 else said] for path, said in files]
    cfg = inputs.cfg
    names = {key.removeprefix("data."): name for key, name in cfg.data.named().items()}
    if "steps" not in inputs.metrics:
        names = {key: name for key, name in names.items() if not key.startswith("train_file")}
    if cfg.data.dataset_name:
        names["data set"] = cfg.data.dataset_name
    own = {name: said for name, said in (("recipe", cfg.recipe_file), ("loss", cfg.train.loss)) if said}
    named = {**own, "model": cfg.model.model_name_or_path, **names}
    blocks: list[Block] = [pairs({key: Mono(name) for key, name in named.items()})]
    return [*blocks, Table(["file", "SHA-256, first digits"], rows, texts=True)] if rows else blocks


def _row_counts(counts: Mapping[str, Mapping[str, int]]) -> list[Block]:
    if not counts:
        return []
    names = dict.fromkeys(name for part in counts.values() for name in part)
    rows = [[n.replace("_", " "), *(f"{part[n]:,}" if n in part else "" for part in counts.values())] for n in names]
    return [Table(["", *(part.replace("_", " ") for part in counts)], rows)]


def _completions(inputs: ReportInputs) -> list[Block]:
    """Completions of the model during training with rewards, each with its rewards."""
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
        Text("From the first and the last generation; more in eval/completions.jsonl.", "quiet"),
        Table(head, cells, texts=True),
    ]


def training_facts(inputs: ReportInputs) -> list[Block]:
    """What was trained, and how: adapter, batch, learning rate, losses."""
    blocks: list[Block] = [Text(f"{inputs.trained}.")]
    if "steps" not in inputs.metrics:
        return blocks
    cfg, t = inputs.cfg, inputs.cfg.train
    rows = f"{t.per_device_train_batch_size} rows"
    if t.gradient_accumulation_steps > 1:
        rows += f" × {t.gradient_accumulation_steps} accumulation steps"
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
        "limit of a row": "" if rewards else f"{t.max_length:,} tokens (train.max_length)",
        "limit of a completion": f"{t.max_completion_length:,} tokens (train.max_completion_length)" if rewards else "",
        "completions per prompt": str(t.num_generations) if rewards else "",
        "learning rate": f"{t.learning_rate:g} (peak), {t.lr_scheduler_type}" if t.learning_rate else "",
        "optimizer": t.optim,
        "loss at the first and the last logged step": ", ".join(losses),
        "mean reward over the first and the last fifth of the steps": ", ".join(rewards),
        "seed": str(cfg.seed),
    }
    return [*blocks, pairs({name: said for name, said in facts.items() if said})]


def export_check(inputs: ReportInputs) -> list[Block]:
    """The figures of the merged weights or the reward model, beside those of the trained model."""
    measured = inputs.metrics.get("export")
    if not measured:
        return []
    rows = [
        [name.replace("_", " "), as_text(name, inputs.after.figures.get(name)), as_text(name, value)]
        for name, value in measured.items()
    ]
    return [Table(["", "trained", "exported"], rows)]


def verified(lines: Sequence[Mapping[str, str]]) -> list[Block]:
    """Checks of the written files against the trained model: lines of `metrics.verify`."""
    rows = [[line["name"], line["must"], line["found"], line["verdict"]] for line in lines]
    return [Table(["", "must", "found", ""], rows)] if rows else []


def _recovered(inputs: ReportInputs) -> list[Block]:
    """The loss from quantization, and how much of it training recovered."""
    quality = inputs.metrics.get("quality")
    return [pairs({name.replace("_", " "): f"{value:.4g}" for name, value in quality.items()})] if quality else []


def _took(inputs: ReportInputs) -> list[Block]:
    result = inputs.folder.result
    rows = [[step, f"{seconds:,.1f} s"] for step, seconds in result.seconds.items()]
    rows.append(["total", f"{sum(result.seconds.values()):,.1f} s"])
    if result.peak_memory_mb is not None:
        rows.append(["peak memory", f"{result.peak_memory_mb:,.0f} MiB"])
    return [Table(["", ""], rows)]


def _repeat(inputs: ReportInputs) -> list[Block]:
    path = shlex.quote(f"rerun={inputs.folder.path / 'config.yaml'}")
    return [Code(f"python -m gemma_tune {path} output_dir=another_folder", "bash"), Text(_TERMS, "quiet")]


def pairs(facts: Mapping[str, str]) -> Table:
    """Names and what is said of each."""
    return Table(["", ""], [[name, said] for name, said in facts.items()], texts=True)
