"""The run folder, and what a run writes there about itself. Imports no torch."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import yaml

from gemma_tune.config import Config
from gemma_tune.errors import RunError, UserError
from gemma_tune.process_failures import ending_together, on_failure
from gemma_tune.processes import is_main_process
from gemma_tune.run.checkpoints import checkpoints, has_optimizer
from gemma_tune.run.existing import Found, check_existing, has_files
from gemma_tune.run.identity import as_one_run, folder_of
from gemma_tune.run.inputs import REPEAT, digests_of, refuse_changed, refuse_outdated, stored_inputs
from gemma_tune.run.lock import locked
from gemma_tune.run.manifest import atomic_write, disk_is_full, write_json, write_manifest
from gemma_tune.run.media_used import UsedFile, media_digest, media_used, write_list
from gemma_tune.run.place import REPLACED, check_shared, delete_leftovers, drop_later, put_back, set_aside, stages
from gemma_tune.run.result import RunResult, failures_until
from gemma_tune.run.resume import ResumePoint, asks_for_checkpoint, find_checkpoint, way_on
from gemma_tune.run.stopping import Stopped, Stops, listening
from gemma_tune.untrusted import read_object


class RunFolder:
    """One run's folder. `open` only looks; nothing is written before `recording` begins."""

    def __init__(
        self, path: Path, cfg: Config, found: Found, resumed: ResumePoint | None, stops: Stops | None = None
    ) -> None:
        self.path, self.cfg = path, cfg
        self._found, self._seen = found, checkpoints(path / "checkpoints")
        self.finished, self.resumed = found is Found.FINISHED, resumed
        self.result = RunResult(cfg.recipe, folder=path)
        self.stops = stops or Stops()
        self.inputs: dict[str, str] = {}
        self._media: dict[str, UsedFile] = {}
        self.keep_on_error = False
        # A resumed run goes on with the files that are there, and so do stages, each for itself
        self._keeps = found is Found.BEGUN and bool(resumed or cfg.traits.stages)
        self._is_new, self._writes, self._replaces = not path.exists(), False, False
        self._before: bytes | None = None

    @property
    def goes_on(self) -> bool:
        """Whether it goes on with files that an interrupted run has left."""
        return self._keeps

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
        """report.md; the model card of each artifact is made from the same facts."""
        return self.path / "report.md"

    def export(self, name: str) -> Path:
        """Folder of an export format."""
        return self.path / "export" / name

    @classmethod
    def open(cls, cfg: Config, stops: Stops | None = None) -> RunFolder:
        """Decides which folder the run has and whether it may use it.

        Args:
            cfg: The configuration.
            stops: Of the run that this one is a stage of; its time began with that run.

        Raises:
            UserError: The folder holds another run, or an unfinished one with checkpoints.
        """
        path = folder_of(cfg)
        try:
            path = path.resolve() if path.is_symlink() else path  # a link stays one
        except (OSError, RuntimeError) as error:
            raise UserError(f"output_dir={path}: this link leads nowhere ({error}); name a folder.") from error
        found, resumed = check_existing(cfg, path), None
        trains = cfg.traits.trains and not cfg.traits.stages
        if trains and (found is Found.BEGUN or asks_for_checkpoint(cfg)):
            resumed = find_checkpoint(cfg, path / "checkpoints")
        return cls(path, cfg, found, resumed, stops)

    def stored_result(self, of_now: bool = False) -> RunResult:
        """The result of the finished run that this folder holds; `of_now` refuses one whose inputs have changed."""
        if of_now:
            refuse_outdated(self.path)
        file = self.path / "result.json"
        try:
            return RunResult(**read_object(file), folder=self.path)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{file} can't be read ({error}); {REPEAT}") from error

    def add_inputs(self, *paths: Path | None, hashed: bool = True, media: Iterable[str] = ()) -> None:
        """Records the digest of each input file, and of every file directly in an input folder.

        Args:
            *paths: Files and folders.
            hashed: Whether to record a digest; otherwise size and date, for files that are streamed.
            media: Images, sounds and videos, of which one digest is recorded.
        """
        if is_main_process():
            self._media |= media_used(media, self.path)
            self.note_inputs(digests_of(paths, hashed) | media_digest(self._media))

    def note_inputs(self, found: Mapping[str, str]) -> None:
        """Records inputs by their digest, commit or revision; `check_inputs` compares them and writes the manifest."""
        self.inputs |= found

    def check_inputs(self) -> None:
        """Compares what was recorded with what the run began with, where it goes on, and writes the manifest.

        Raises:
            UserError: An input has changed, is new, or is gone.
        """
        if is_main_process():
            if self._keeps and not self.cfg.train.resume_data_changed:
                refuse_changed(stored_inputs(self.path / "manifest.json"), self.inputs, self.path)
            write_list(self._media, self.path)
            self._write_manifest()

    def keep_failures(self, found: Mapping[str, str]) -> None:
        """Adds what could not be measured to the result, and writes it: a run that goes on from here has it, too."""
        self.result.failures |= found
        if self.result.failures and is_main_process():
            self._write_result()

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds the wall seconds of a step to the result."""
        start = time.perf_counter()
        yield
        self.result.seconds[step] = round(self.result.seconds.get(step, 0.0) + time.perf_counter() - start, 3)

    @contextlib.contextmanager
    def leaving_no_empty_folder(self) -> Iterator[None]:
        """Deletes the empty folders that the trainer has made, after a UserError."""
        try:
            yield
        except UserError:
            if is_main_process() and self._is_new and not has_files(self.path):
                shutil.rmtree(self.path, ignore_errors=True)
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
            with ending_together(), listening(self.stops):
                check_shared(self.path)
                yield
            return
        with contextlib.ExitStack() as held:
            try:
                self._make(held)
                text = yaml.safe_dump(as_one_run(self.cfg), sort_keys=False, allow_unicode=True)
                atomic_write(self.path / "config.yaml", text)
                self._write_result()
                if not self._keeps:  # else it has the inputs that the run began with
                    self._write_manifest()
            except OSError as error:
                self._undo()
                raise UserError(f"output_dir={self.path}: the folder can't be written ({error.strerror}).") from error
            held.enter_context(listening(self.stops))
            held.enter_context(on_failure(self._fail))
            try:
                with ending_together():
                    check_shared(self.path)  # from here on the others find it
                    yield
                self._write_manifest()
                self.result.status = "finished"
                self._write_result()
                self._delete_end()  # only now: a kill in between has something to go on from
                shutil.rmtree(self.path / REPLACED, ignore_errors=True)
            except BaseException as error:
                self._end_on(error)
                raise

    def _end_on(self, error: BaseException) -> None:
        """Leaves the folder as an error of this kind demands.

        Raises:
            Stopped: With the way to go on.
            RunError: The disk was full.
        """
        self.stops.writes = True  # no further signal leaves it half-written
        delete_leftovers(self.path)
        trained = any(checkpoints(stage / "checkpoints") for stage in stages(self.path))
        if isinstance(error, UserError) and not self.keep_on_error and not trained:
            self._undo()
            return
        if self.result.status == "finished":  # nothing but cleaning was left
            return
        stopped = isinstance(error, KeyboardInterrupt)
        why = None if stopped else str(error) or type(error).__name__
        self.result.status, self.result.reason = "interrupted" if stopped else "failed", why
        with contextlib.suppress(OSError):  # the first error is to be reported, not this one
            self._write_failure()
        if self._replaces:
            print(f"The run that was to be replaced is kept: {self.path / REPLACED}", file=sys.stderr)
        if stopped:
            raise Stopped(getattr(error, "code", 130), self._how_to_resume()) from error
        if disk_is_full(error) and not isinstance(error, UserError | RunError):
            go_on = f" {self._how_to_resume()}" if self.keep_on_error else ""
            raise RunError(f"{self.path}: the disk is full; make room, and repeat the command.{go_on}") from error

    def _make(self, held: contextlib.ExitStack) -> None:
        """Makes the folder and locks it; what a run has left there and the new one replaces is moved aside."""
        self.path.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(self.path))
        # The names say enough: the files' digests were compared when the checkpoint was chosen
        now = check_existing(self.cfg, self.path, locked=True), checkpoints(self.checkpoints)
        if now != (self._found, self._seen):
            raise UserError(f"output_dir={self.path}: another process has used it meanwhile; repeat the command.")
        self._writes = True
        if self._keeps:
            if (result := self.path / "result.json").is_file():
                self._before = result.read_bytes()
            delete_leftovers(self.path)
            if self.resumed:
                self.result.failures |= failures_until(self.resumed.step, self.path / "result.json")
                drop_later(self.path, self.resumed.step)
        elif has_files(self.path):
            self._replaces = set_aside(self.path)

    def _delete_end(self) -> None:
        """Deletes the checkpoints that nobody asked for: the weights kept until the end, and those of a stop."""
        asked = self.cfg.train.save_steps or self.cfg.train.metric_for_best_model
        for checkpoint in checkpoints(self.checkpoints):
            if not asked or not has_optimizer(checkpoint):
                shutil.rmtree(checkpoint, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.checkpoints.rmdir()

    def _undo(self) -> None:
        """Restores the state before `_make`; a resumed run keeps its files."""
        if self._writes and not self._keeps:
            put_back(self.path)
        elif self._writes and self._before is not None:
            with contextlib.suppress(OSError):
                (self.path / "result.json").write_bytes(self._before)
        if self._is_new and not has_files(self.path):
            shutil.rmtree(self.path, ignore_errors=True)

    def _how_to_resume(self) -> str:
        return way_on(self.cfg, self.path, self.result, bool(checkpoints(self.checkpoints) or stages(self.path)))

    def _write_manifest(self) -> None:
        write_manifest(self.path, self.cfg.seed, self.inputs, self.result.artifacts)

    def _fail(self, reason: str) -> None:
        """For a process that hangs since another one has failed."""
        self.result.status, self.result.reason = "failed", reason
        self._write_failure()

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
        write_json(self.path / "result.json", {k: v for k, v in asdict(self.result).items() if k != "folder"})
