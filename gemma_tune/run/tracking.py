"""The tracker: metrics.jsonl always, and what `tracker.report_to` names (run/trackers.py)."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from gemma_tune.config import Config
from gemma_tune.nested import leaves
from gemma_tune.processes import is_main_process
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.manifest import atomic_write, write_json
from gemma_tune.run.paths import TRACKERS
from gemma_tune.run.resume import ResumePoint
from gemma_tune.run.trackers import RunOfTracker, open_tracker
from gemma_tune.untrusted import read_lines, read_object

Answers = Sequence[dict[str, Any]]

# Prefixes of our metric names, and what trackers get instead; the first prefix that fits counts.
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

_SUMS = "train_loss"  # the mean over all steps, in the line at the end of training


class Tracker:
    """Writes metrics, and sends them to the trackers that there are.

    A tracker that fails while the run goes on is left out from there on: a server that is down ends no training.

    Attributes:
        notes: Lines for the user about where to follow the run.
        summed: Whether the line at the end of training is there, of the run that this one goes on with.
    """

    def __init__(self, file: TextIO | None, runs: dict[str, RunOfTracker], log_samples: bool = False) -> None:
        self._file = file
        self._runs = runs
        self._log_samples = log_samples
        self._sent: Mapping[str, int] = {}
        self._step = 0
        self.notes: list[str] = []
        self.summed = False

    @classmethod
    @contextlib.contextmanager
    def open(cls, cfg: Config, folder: RunFolder) -> Iterator[Tracker]:
        """Opens the tracker; closes it with the run's status, whatever happens.

        Args:
            cfg: `tracker`, and the configuration that the trackers store.
            folder: The run folder. Of a resumed run, lines of metrics.jsonl after its step are dropped, since those
                steps are repeated; it goes on in the same run of each tracker.

        Raises:
            UserError: A tracker can't be used.
        """
        if not is_main_process():
            yield cls(None, {})
            return
        ids, sent = _stored(folder) if folder.resumed else ({}, {})
        runs: dict[str, RunOfTracker] = {}
        failed = True
        with contextlib.ExitStack() as opened:
            tracker = cls(None, runs, cfg.tracker.log_samples)
            opened.callback(lambda: tracker._finish(failed))
            for name in cfg.tracker.names:
                runs[name] = open_tracker(name, cfg, folder.path, ids.get(name))
            tracker._sent = _last_steps(folder, sent) if folder.resumed and (folder.path / TRACKERS).is_file() else {}
            if runs:
                ids = ids | {name: run.id for name, run in runs.items() if run.id}
                write_json(folder.path / TRACKERS, {"runs": ids, "sent": tracker._sent})
            kept = _lines_before(folder, folder.resumed) if folder.resumed else []
            # A kill leaves the lines of before, or these
            atomic_write(folder.metrics, "".join(json.dumps(line) + "\n" for line in kept))
            tracker.summed = any(_SUMS in line for line in kept)
            tracker._file = opened.enter_context(folder.metrics.open("a", encoding="utf-8"))
            yield tracker
            failed = False

    def _finish(self, failed: bool) -> None:
        self._each(lambda run: self.notes.append(run.finish(failed)))

    def _each(self, send: Callable[[RunOfTracker], None]) -> None:
        """Calls each tracker; one that fails is named, and left out from then on."""
        for name, run in list(self._runs.items()):
            try:
                send(run)
            except Exception as error:  # each has errors of its own: of its server, its disk, its database
                del self._runs[name]
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                print(f"tracker={name} has failed and gets nothing more of this run ({reason}).", file=sys.stderr)

    def log(self, metrics: Mapping[str, Any], step: int, group: str = "train") -> None:
        """Writes one line: `step` (optimizer steps done) and the metrics.

        Args:
            metrics: By name; nothing is written where there are none.
            step: Optimizer steps done.
            group: `train`, or `eval` for what evaluators measure; trackers have `train/loss`, `eval/held_out_loss`.
        """
        if not metrics:
            return
        self._step = max(self._step, step)
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
        said = {k: v for k, v in metrics.items() if not isinstance(v, str)}
        new = {k: v for k, v in said.items() if step > self._sent.get(k, -1)}

        def send(run: RunOfTracker) -> None:
            if figures := said if run.repeats else new:
                run.log({_name(k, group): v for k, v in figures.items()}, step)

        self._each(send)

    def log_samples(self, before: Answers, after: Answers, step: int) -> None:
        """Sends a table of answers side by side, only with `tracker.log_samples=true`."""
        if self._log_samples and after:
            old = {row["id"]: row for row in before}
            rows = []
            for row in after:
                first = old.get(row["id"], {})
                said = (row.get("prompt"), row.get("wanted"), first.get("answer"), row.get("answer"))
                rows.append([*said, first.get("score"), row.get("score")])
            columns = ["prompt", "wanted", "before", "after", "score before", "score after"]
            self._each(lambda run: run.table("eval/samples", columns, rows, step))

    def log_completions(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Sends completions with their rewards as a table, only with `tracker.log_samples=true`.

        Args:
            rows: All with the same keys.
            step: Optimizer steps done.
        """
        if self._log_samples and rows:
            columns = [name for name in rows[0] if name != "failed"]
            values = [[row[name] for name in columns] for row in rows]
            self._each(lambda run: run.table("train/completions", columns, values, step))

    def log_comparison(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sends the figures of a comparison as a table; they hold no texts.

        Args:
            rows: All with the same keys.
        """
        if rows:
            values = [list(row.values()) for row in rows]
            self._each(lambda run: run.table("eval/comparison", list(rows[0]), values, 0))

    def summary(self, figures: Mapping[str, Any]) -> None:
        """The run's final metrics, for a table of runs: `eval/…` as after training, `eval/before/…`, `train/…`.

        Args:
            figures: A result's metrics, nested as they are there.
        """
        named = summary_names(figures)
        self._each(lambda run: run.summary(named, self._step))


def _name(metric: str, group: str) -> str:
    """Without the doubled prefix of Transformers' final metrics (train_runtime, …); train_loss is their mean loss."""
    if group == "train":
        metric = "mean_loss" if metric == "train_loss" else metric.removeprefix("train_")
    return f"{group}/{metric}"


def summary_names(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a result under W&B's names, each `train/…` or `eval/…`."""
    found = {}
    for name, value in leaves(figures, "/"):
        if isinstance(value, Mapping):  # an empty one
            continue
        begin = next(begin for begin in _GROUPS if name.startswith(begin))
        found[_GROUPS[begin] + name.removeprefix(begin)] = value
    return found


def _lines_before(folder: RunFolder, resumed: ResumePoint) -> list[dict[str, Any]]:
    """The lines that a resumed run doesn't write anew: up to its step, and none of what is measured after training."""
    if not folder.metrics.is_file():
        return []
    kept = []
    for found in read_lines(folder.metrics):
        summed = _SUMS in found and not resumed.at_the_end
        if isinstance(found.get("step"), int) and found["step"] <= resumed.step and not summed and "when" not in found:
            kept.append(found)
    return kept


def _stored(folder: RunFolder) -> tuple[dict[str, str], dict[str, int]]:
    """The ids of the resumed run in its trackers, and the last steps sent; nothing of a run without them."""
    try:
        found = read_object(folder.path / TRACKERS)
        ids, sent = dict(found["runs"]), dict(found["sent"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}, {}
    return (
        {name: run for name, run in ids.items() if isinstance(run, str)},
        {name: step for name, step in sent.items() if isinstance(step, int)},
    )


def _last_steps(folder: RunFolder, sent: Mapping[str, int]) -> dict[str, int]:
    """The last step at which each metric was sent: a resumed run repeats some, and sends only those after it."""
    found = dict(sent)
    for line in read_lines(folder.metrics) if folder.metrics.is_file() else ():
        if isinstance(step := line.pop("step", None), int):
            found |= {name: max(step, found.get(name, -1)) for name in line}
    return found
