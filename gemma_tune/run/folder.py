"""The run folder, and what a run writes there about itself. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import yaml

from gemma_tune.config import Config
from gemma_tune.errors import RunError, UserError
from gemma_tune.run.checkpoints import checkpoints
from gemma_tune.run.existing import Found, aside, check_existing, has_files, stored_config
from gemma_tune.run.identity import as_one_run, folder_of
from gemma_tune.run.lock import locked
from gemma_tune.run.manifest import atomic_write, disk_is_full, file_digest, write_json, write_manifest
from gemma_tune.run.result import RunResult
from gemma_tune.run.resume import ResumePoint, asks_for_checkpoint, find_checkpoint
from gemma_tune.run.stopping import Stopped, Stops, listening
from gemma_tune.untrusted import read_object


def is_main_process() -> bool:
    """True on the one process that writes (rank 0)."""
    return int(os.environ.get("RANK", "0")) == 0


_REPEAT = "repeat the run with overwrite=true."


class RunFolder:
    """One run's folder. `open` only looks; nothing is written before `recording` begins."""

    def __init__(self, path: Path, cfg: Config, found: Found, resumed: ResumePoint | None) -> None:
        self.path = path
        self.cfg = cfg
        self.finished = found is Found.FINISHED
        self.resumed = resumed
        self.result = RunResult(cfg.recipe, folder=path)
        self.stops = Stops()
        self.inputs: dict[str, str] = {}
        self.keep_on_error = False
        # A resumed run goes on with the files that are there, and so do stages, each for itself
        self._keeps = found is Found.BEGUN and bool(resumed or cfg.traits.stages)
        self._replaced: Path | None = None
        self._before: bytes | None = None

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
        path = path.resolve() if path.is_symlink() else path  # a link stays one
        found = check_existing(cfg, path)
        resumed = None
        if cfg.traits.trains and not cfg.traits.stages and (found is Found.BEGUN or asks_for_checkpoint(cfg)):
            resumed = find_checkpoint(cfg.train, path / "checkpoints", cfg.train.generation_period)
        return cls(path, cfg, found, resumed)

    def stored_result(self) -> RunResult:
        """The result of the finished run that this folder holds."""
        try:
            return RunResult(**read_object(self.path / "result.json"), folder=self.path)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.path / 'result.json'} can't be read ({error}); {_REPEAT}") from error

    def stored_inputs(self) -> dict[str, str]:
        """Path → digest of every input file of the run that this folder holds."""
        try:
            inputs = read_object(self.path / "manifest.json")["inputs"]
            return {str(path): str(digest) for path, digest in inputs.items()}
        except FileNotFoundError:  # killed between its first two files
            return {}
        except (OSError, ValueError, LookupError, AttributeError) as error:
            raise UserError(f"{self.path / 'manifest.json'} can't be read ({error}); {_REPEAT}") from error

    def add_inputs(self, *paths: Path | None, hashed: bool = True) -> None:
        """Records the digest of each input file, and of every file directly in an input folder.

        Args:
            *paths: Files and folders.
            hashed: Whether to record a digest; otherwise size and date, for files that are streamed.
        """
        if not is_main_process():
            return
        found: dict[str, str] = {}
        for path in paths:
            if path is not None:
                for file in sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]:
                    stat = file.stat()
                    seen = f"{stat.st_size} bytes, changed {stat.st_mtime_ns} ns after 1970; not read whole"
                    found[str(file)] = file_digest(file) if hashed else seen
        self.note_inputs(found)

    def note_inputs(self, found: Mapping[str, str]) -> None:
        """Records inputs by their digest, commit or revision.

        Raises:
            UserError: The run goes on, and began with another content of one of them.
        """
        before = self.stored_inputs() if self._keeps else {}
        changed = [name for name, seen in found.items() if before.get(name, seen) != seen]
        if changed and not self.cfg.train.resume_data_changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise UserError(
                f"{changed[0]}{more}: this file has changed since the run in {self.path} began, and the rest would be "
                "trained with another content. Put it back as it was; or set train.resume_data_changed=true, or "
                "overwrite=true to begin anew."
            )
        self.inputs |= found
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
            UserError: The folder can't be written, or another process writes there.
            RunError: The disk was full.
            Stopped: The run was asked to end.
        """
        if not is_main_process():
            yield
            return
        with contextlib.ExitStack() as held:
            try:
                self._make(held)
                text = yaml.safe_dump(as_one_run(self.cfg), sort_keys=False, allow_unicode=True)
                atomic_write(self.path / "config.yaml", text)
                self._write_result()
                self._write_manifest()
            except OSError as error:
                self._undo()
                raise UserError(f"output_dir={self.path}: the folder can't be written ({error.strerror}).") from error
            held.enter_context(listening(self.stops))
            try:
                yield
                self._delete_end()
                self._write_manifest()
                self.result.status = "finished"
                self._write_result()
            except BaseException as error:
                self._end_on(error)
                raise
        for old in (self._replaced, aside(self.path)):  # this one's, or that of a run that was killed in between
            if old is not None and old.exists() and stored_config(old):
                shutil.rmtree(old)

    def _end_on(self, error: BaseException) -> None:
        """Leaves the folder as an error of this kind demands.

        Raises:
            Stopped: With the way to go on.
            RunError: The disk was full.
        """
        self._delete_leftovers()
        if isinstance(error, UserError) and not self.keep_on_error:
            self._undo()
            return
        stopped = isinstance(error, KeyboardInterrupt)
        self.result.status = "interrupted" if stopped else "failed"
        with contextlib.suppress(OSError):  # the first error is to be reported, not this one
            self._write_failure()
        if self._replaced:
            print(f"The run that was to be replaced is kept: {self._replaced}", file=sys.stderr)
        if stopped:
            raise Stopped(getattr(error, "code", 130), self._how_to_resume()) from error
        if disk_is_full(error) and not isinstance(error, UserError | RunError):
            go_on = f" {self._how_to_resume()}" if self.keep_on_error else ""
            raise RunError(f"{self.path}: the disk is full; make room, and repeat the command.{go_on}") from error

    def _make(self, held: contextlib.ExitStack) -> None:
        """Makes the folder and locks it; a run that is replaced stands beside it until the new one is finished."""
        if self.path.exists() and not self._keeps:
            held.enter_context(locked(self.path))
            if self.cfg.overwrite and has_files(self.path) and not aside(self.path).exists():
                self._replaced = self.path.rename(aside(self.path))
            else:
                shutil.rmtree(self.path)  # what a run left that can't go on, or empty folders of the trainer
        self.path.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(self.path))
        if self._keeps:
            if (result := self.path / "result.json").is_file():
                self._before = result.read_bytes()
            self.inputs = self.stored_inputs()
            self._delete_leftovers()

    def _delete_end(self) -> None:
        """Deletes the checkpoints that nobody asked for: the weights kept until the end, and those of a stop."""
        asked = self.cfg.train.save_steps or self.cfg.train.metric_for_best_model
        for checkpoint in checkpoints(self.checkpoints):
            if not asked or not (checkpoint / "optimizer.pt").is_file():
                shutil.rmtree(checkpoint, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.checkpoints.rmdir()

    def _delete_leftovers(self) -> None:
        """Deletes what a process left half-written."""
        patterns = ("checkpoints/checkpoint-*", "*.part", "export/*.part", "export/.logits", "export/*/.float32-*")
        for pattern in patterns:
            for half in self.path.glob(pattern):
                shutil.rmtree(half, ignore_errors=True)
        for half in self.path.rglob("*.partial"):
            half.unlink(missing_ok=True)

    def _undo(self) -> None:
        """Restores the state before `_make`; a resumed run keeps its files."""
        if not self._keeps:
            shutil.rmtree(self.path, ignore_errors=True)
        elif self._before is not None:
            with contextlib.suppress(OSError):
                (self.path / "result.json").write_bytes(self._before)
        if self._replaced:
            self._replaced.rename(self.path)
            self._replaced = None

    def _how_to_resume(self) -> str:
        if any(self.checkpoints.glob("step-*")):
            return f"{self.path} has checkpoints: the same command goes on."
        return f"{self.path} has no checkpoint (train.save_steps writes them): the same command begins anew."

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
