"""The run folder: its name (`folder_of`), and what a run writes there about itself. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gemma_tune.config import Config
from gemma_tune.config.renamed import as_before
from gemma_tune.errors import RunError, UserError
from gemma_tune.run.existing import aside, check_existing, has_files, stored_config
from gemma_tune.run.identity import as_one_run, identity
from gemma_tune.run.manifest import atomic_write, disk_is_full, file_digest, write_json, write_manifest
from gemma_tune.run.paths import RUNS


@dataclass
class RunResult:
    """What a run gives back; the same as `result.json`.

    Attributes:
        recipe: Name of the recipe.
        status: running, finished, interrupted, failed, or dry_run.
        headline: The recipe's first figure: `name`, `before`, `after`.
        metrics: Every other figure, by name.
        artifacts: What can be taken away: name → path relative to the run folder.
        seconds: Wall seconds of each step.
        failures: What could not be measured, by when and by what (`after: lm_eval`); the command ends with status 1.
        peak_memory_mb: MiB: the GPU's peak allocation, or the process's largest resident size without one.
        folder: The run folder.
    """

    recipe: str
    status: str = "running"
    headline: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    folder: Path | None = None

    def take(self, name: str, stage: RunResult) -> None:
        """Adds what a stage, a run of its own in the folder `name`, has left and measured."""
        self.artifacts |= {f"{name}/{key}": f"{name}/{path}" for key, path in stage.artifacts.items()}
        self.metrics[name] = stage.metrics
        self.failures |= {f"{name}: {where}": reason for where, reason in stage.failures.items()}
        self.peak_memory_mb = max(self.peak_memory_mb or 0.0, stage.peak_memory_mb or 0.0)

    @property
    def headline_after(self) -> float | None:
        """The headline figure after training, which sweepers optimise."""
        return self.headline.get("after")


def is_main_process() -> bool:
    """True on the one process that writes (rank 0)."""
    return int(os.environ.get("RANK", "0")) == 0


def folder_of(cfg: Config) -> Path:
    """`output_dir`, or `runs/<recipe>-<8 hex digits>`: every configuration has a folder of its own.

    A run that an earlier version has left there, with earlier names of keys in its configuration, keeps its folder.
    """
    if cfg.output_dir:
        return Path(cfg.output_dir).expanduser()
    trees = identity(cfg), as_before(identity(cfg))
    digests = [hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8] for tree in trees]
    now, before = (Path(RUNS) / f"{cfg.recipe}-{digest}" for digest in digests)
    return before if before.exists() and not now.exists() else now


class RunFolder:
    """One run's folder. `open` only looks; nothing is written before `recording` begins."""

    def __init__(self, path: Path, cfg: Config, finished: bool) -> None:
        self.path = path
        self.cfg = cfg
        self.finished = finished
        self.result = RunResult(cfg.recipe, folder=path)
        self.inputs: dict[str, str] = {}
        self.keep_on_error = False
        self._replaced: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """Whole checkpoints: step-N/."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The PEFT adapter, where there is one."""
        return self.path / "adapter"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def evals(self) -> Path:
        """Results of the evaluations."""
        return self.path / "eval"

    @property
    def report(self) -> Path:
        """report.md, which serves as the model card."""
        return self.path / "report.md"

    def export(self, name: str) -> Path:
        """Folder of an export format."""
        return self.path / "export" / name

    @classmethod
    def open(cls, cfg: Config) -> RunFolder:
        """Decides which folder the run has and whether it may use it.

        Raises:
            UserError: The folder holds another run, or an unfinished one with checkpoints.
        """
        path = folder_of(cfg)
        return cls(path, cfg, check_existing(cfg, path))

    def stored_result(self) -> RunResult:
        """The result of the finished run that this folder holds."""
        tree = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
        return RunResult(**tree, folder=self.path)

    def stored_inputs(self) -> dict[str, str]:
        """Path → digest of every input file of the run that this folder holds."""
        inputs: dict[str, str] = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))["inputs"]
        return inputs

    def add_inputs(self, *paths: Path | None, hashed: bool = True) -> None:
        """Records the digest of each input file, and of every file directly in an input folder.

        Args:
            *paths: Files and folders.
            hashed: Whether to record a digest; otherwise size and date, for files that are streamed.
        """
        if not is_main_process():
            return
        for path in paths:
            if path is not None:
                for file in sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]:
                    stat = file.stat()
                    seen = f"{stat.st_size} bytes, changed {stat.st_mtime_ns} ns after 1970; not read whole"
                    self.inputs[str(file)] = file_digest(file) if hashed else seen
        self._write_manifest()

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds the wall seconds of a step to the result."""
        start = time.perf_counter()
        yield
        seconds = self.result.seconds.get(step, 0.0) + time.perf_counter() - start
        self.result.seconds[step] = round(seconds, 3)

    @contextlib.contextmanager
    def leaving_no_empty_folder(self) -> Iterator[None]:
        """Deletes the empty folders that the trainer has made, after a UserError."""
        try:
            yield
        except UserError:
            if is_main_process() and self.path.exists() and not has_files(self.path):
                shutil.rmtree(self.path)
            raise

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Makes the folder, and always leaves a result.json that says how the run ended.

        After a UserError there is no folder, unless training had begun (a stream may hold a bad row far on).

        Raises:
            UserError: The folder can't be written.
            RunError: The disk was full.
        """
        if not is_main_process():
            yield
            return
        try:
            self._make()
            text = yaml.safe_dump(as_one_run(self.cfg), sort_keys=False, allow_unicode=True)
            atomic_write(self.path / "config.yaml", text)
            self._write_result()
            self._write_manifest()
        except OSError as error:
            self._undo()
            raise UserError(f"output_dir={self.path}: the folder can't be written ({error.strerror}).") from error
        try:
            yield
            self._write_manifest()
            self.result.status = "finished"
            self._write_result()
        except BaseException as error:
            for half in self.checkpoints.glob("checkpoint-*"):  # whole ones are step-N
                shutil.rmtree(half, ignore_errors=True)
            if isinstance(error, UserError) and not self.keep_on_error:
                self._undo()
                raise
            self.result.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(OSError):  # the first error is to be reported, not this one
                self._write_failure()
            if self._replaced:
                print(f"The run that was to be replaced is kept: {self._replaced}", file=sys.stderr)
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(self._how_to_resume()) from error
            if disk_is_full(error) and not isinstance(error, UserError | RunError):
                go_on = f" {self._how_to_resume()}" if self.keep_on_error else ""
                raise RunError(f"{self.path}: the disk is full; make room, and repeat the command.{go_on}") from error
            raise
        if self._replaced:
            shutil.rmtree(self._replaced)

    def _make(self) -> None:
        """Makes the folder; a run that is replaced stands beside it as `….replaced` until the new one is finished."""
        if self.path.exists() and not self.cfg.train.resume_from_checkpoint:
            if stored_config(self.path):
                self._replaced = self.path.rename(aside(self.path))
            else:
                shutil.rmtree(self.path)  # empty folders that the trainer has made
        self.path.mkdir(parents=True, exist_ok=True)

    def _undo(self) -> None:
        """Restores the state before `_make`; a resumed run keeps its files."""
        if not self.cfg.train.resume_from_checkpoint:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._replaced:
            self._replaced.rename(self.path)
            self._replaced = None

    def _how_to_resume(self) -> str:
        if any(self.checkpoints.glob("step-*")):
            return f"{self.path} has checkpoints: the same command with train.resume_from_checkpoint=latest resumes it."
        return f"{self.path} has no checkpoint yet (train.save_steps writes them)."

    def _write_manifest(self) -> None:
        write_manifest(self.path, self.cfg.seed, self.inputs, self.result.artifacts)

    def _write_failure(self) -> None:
        """Writes the result; on a full disk only its status, over the bytes that are there."""
        try:
            self._write_result()
        except OSError:
            with (self.path / "result.json").open("r+b") as file:
                begun = file.read()
                file.seek(0)
                file.write(begun.replace(b'"running"', b'"failed" ', 1))

    def _write_result(self) -> None:
        tree = {k: v for k, v in asdict(self.result).items() if k != "folder"}
        write_json(self.path / "result.json", tree)
