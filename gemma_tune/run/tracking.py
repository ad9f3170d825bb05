"""The tracker: metrics.jsonl always, Weights & Biases when chosen. The only file that imports wandb."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.run.folder import RunFolder, is_main_process
from gemma_tune.run.manifest import atomic_write
from gemma_tune.run.resume import ResumePoint
from gemma_tune.untrusted import read_lines

Answers = Sequence[dict[str, Any]]

# Prefixes of our metric names, and what W&B gets instead; the first prefix that fits counts.
_GROUPS = {
    "after/": "eval/",
    "before/": "eval/before/",
    "export/": "eval/export/",
    "data/training/": "train/data/",
    "data/": "eval/data/",
    "weights/": "train/weights/",
    "steps": "train/steps",
    "train_": "train/",
    "": "eval/",
}


class Tracker:
    """Writes metrics, and sends them to W&B where there is a W&B run.

    Attributes:
        note: A line for the user about where to follow the run, or None.
    """

    def __init__(self, file: TextIO | None, run: Any, log_samples: bool) -> None:
        self._file = file
        self._run = run
        self._log_samples = log_samples
        self.note: str | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, cfg: Config, folder: RunFolder) -> Iterator[Tracker]:
        """Opens the tracker; closes it with the run's status, whatever happens.

        Args:
            cfg: `tracker`, and the configuration that W&B stores.
            folder: The run folder. Of a resumed run, lines of metrics.jsonl after its step are dropped, since those
                steps are repeated.

        Raises:
            UserError: `tracker.mode=online` without a key.
        """
        if not is_main_process():
            yield cls(None, None, False)
            return
        run = _wandb_run(cfg, folder) if cfg.tracker.report_to == "wandb" else None
        kept = _lines_before(folder, folder.resumed) if folder.resumed else []
        atomic_write(folder.metrics, "".join(kept))  # a kill leaves the lines of before, or these
        with folder.metrics.open("a", encoding="utf-8") as file:
            tracker = cls(file, run, cfg.tracker.log_samples)
            failed = True
            try:
                yield tracker
                failed = False
            finally:
                if run is not None:
                    sync_dir, offline, url = run.settings.sync_dir, run.offline, run.url
                    run.finish(exit_code=int(failed))
                    tracker.note = f"W&B (offline): wandb sync {sync_dir}" if offline else f"W&B: {url}"

    def log(self, metrics: Mapping[str, Any], step: int, group: str = "train") -> None:
        """Writes one line: `step` (optimizer steps done) and the metrics.

        Args:
            metrics: By name; nothing is written where there are none.
            step: Optimizer steps done.
            group: `train`, or `eval` for what evaluators measure; W&B has `train/loss`, `eval/held_out_loss`.
        """
        if not metrics:
            return
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
        if self._run is not None:
            sent = {_name(k, group): v for k, v in metrics.items() if not isinstance(v, str)}
            self._run.log(sent, step=step)

    def log_samples(self, before: Answers, after: Answers, step: int) -> None:
        """Sends a table of answers side by side to W&B, only with `tracker.log_samples=true`."""
        if self._run is not None and self._log_samples and after:
            old = {row["id"]: row for row in before}
            rows = []
            for row in after:
                first = old.get(row["id"], {})
                said = (row.get("prompt"), row.get("wanted"), first.get("answer"), row.get("answer"))
                rows.append([*said, first.get("score"), row.get("score")])
            columns = ["prompt", "wanted", "before", "after", "score before", "score after"]
            self._send_table("eval/samples", columns, rows, step)

    def log_completions(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Sends completions with their rewards to W&B as a table, only with `tracker.log_samples=true`.

        Args:
            rows: All with the same keys.
            step: Optimizer steps done.
        """
        if self._run is not None and self._log_samples and rows:
            columns = [name for name in rows[0] if name != "failed"]
            self._send_table("train/completions", columns, [[row[name] for name in columns] for row in rows], step)

    def log_comparison(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sends the figures of a comparison to W&B as a table; they hold no texts.

        Args:
            rows: All with the same keys.
        """
        if self._run is not None and rows:
            self._send_table("eval/comparison", list(rows[0]), [list(row.values()) for row in rows], step=0)

    def _send_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        import wandb

        self._run.log({name: wandb.Table(columns=columns, data=rows)}, step=step)

    def summary(self, figures: Mapping[str, Any]) -> None:
        """The run's final metrics, for W&B's table of runs: `eval/…` as after training, `eval/before/…`, `train/…`.

        Args:
            figures: A result's metrics, nested as they are there.
        """
        if self._run is not None:
            self._run.summary.update(summary_names(figures))


def _name(metric: str, group: str) -> str:
    """Without the doubled prefix of Transformers' final metrics (train_runtime, …); train_loss is their mean loss."""
    if group == "train":
        metric = "mean_loss" if metric == "train_loss" else metric.removeprefix("train_")
    return f"{group}/{metric}"


def summary_names(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a result under W&B's names, each `train/…` or `eval/…`."""
    found = {}
    for name, value in _flat(figures):
        begin = next(begin for begin in _GROUPS if name.startswith(begin))
        found[_GROUPS[begin] + name.removeprefix(begin)] = value
    return found


def _flat(figures: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", v) for inner, v in _flat(value))
        else:
            yield name, value


def _lines_before(folder: RunFolder, resumed: ResumePoint) -> list[str]:
    """The lines that a resumed run doesn't write anew: up to its step, and none of what is measured after training."""
    if not folder.metrics.is_file():
        return []
    kept = []
    for found in read_lines(folder.metrics):
        summed = "train_runtime" in found and not resumed.at_the_end
        if isinstance(found.get("step"), int) and found["step"] <= resumed.step and not summed and "when" not in found:
            kept.append(json.dumps(found) + "\n")
    return kept


def _wandb_run(cfg: Config, folder: RunFolder) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    t = cfg.tracker
    mode: Any = os.environ.get("WANDB_MODE") if t.mode == "auto" else t.mode
    try:
        has_key = mode not in ("offline", "disabled") and has_wandb_key()
    except (wandb.errors.Error, ValueError) as error:
        raise UserError(f"tracker=wandb: {str(error).splitlines()[0]}; use tracker.mode=offline.") from error
    if mode == "online" and not has_key:
        raise UserError(
            "tracker=wandb, online: no W&B key is configured; run `wandb login`, or use tracker.mode=offline."
        )
    try:
        return _init(cfg, folder, mode or ("online" if has_key else "offline"))
    except (wandb.errors.Error, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"tracker=wandb: W&B can't be used ({reason}); use tracker.mode=offline.") from error


def has_wandb_key() -> bool:
    """Whether a key of W&B is configured (environment, settings, netrc); asks neither the user nor the server.

    Raises:
        ValueError: The key is none; wandb's own errors.
    """
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def _init(cfg: Config, folder: RunFolder, mode: Any) -> Any:
    import wandb

    t = cfg.tracker
    return wandb.init(
        project=t.project,
        entity=t.entity,
        name=t.name or folder.path.name,
        group=t.group,  # None: as WANDB_RUN_GROUP says
        dir=str(folder.path),
        mode=mode,
        config=asdict(cfg),
        reinit="finish_previous",
        # The command line, the git remote and the console could carry secrets; the configuration says it all.
        settings=wandb.Settings(
            console="off", disable_git=True, disable_code=True, save_code=False, x_disable_meta=True, silent=True
        ),
    )
