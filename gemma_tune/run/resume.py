"""Which checkpoint a run goes on from: the newest that is whole. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gemma_tune.config import Config, TrainConfig
from gemma_tune.errors import UserError
from gemma_tune.run.checkpoints import (
    CHECKPOINT,
    checkpoints,
    damage,
    has_optimizer,
    is_at_the_end,
    is_of_shards,
    state_of,
    step_of,
)
from gemma_tune.run.paths import without_tilde
from gemma_tune.run.result import RunResult

AUTO, LATEST, NEVER = "auto", "latest", "never"
_KEY = "train.resume_from_checkpoint"


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint to go on from.

    Attributes:
        path: Its folder.
        step: Optimizer steps done there.
        at_the_end: Whether nothing is left to train: evaluation and export are.
        passed_over: Newer checkpoints that can't be used, a line each.
        processes: How many processes have written it; each has left a random state.
    """

    path: Path
    step: int
    at_the_end: bool
    passed_over: tuple[str, ...] = ()
    processes: int = 1

    def lines(self, processes: int = 1) -> list[str]:
        """For the terminal, where so many processes go on."""
        rest = "only evaluation and export are left" if self.at_the_end else f"from step {self.step}"
        found = [*self.passed_over, f"goes on with the interrupted run, {rest} ({self.path})"]
        if processes != self.processes and not self.at_the_end:
            found.append(
                f"this checkpoint is of {self.processes} processes, and {processes} go on: sums are rounded in another "
                "order, and dropout, where there is some, draws other numbers"
            )
        return found


def way_on(cfg: Config, folder: Path, result: RunResult, has_checkpoints: bool) -> str:
    """What an interrupted run has left that can be used, and what the same command does.

    Args:
        cfg: The run's configuration.
        folder: The run folder.
        result: What the run has found so far.
        has_checkpoints: Whether there is something to go on from.
    """
    again = "the same command without overwrite=true" if cfg.overwrite else "the same command"
    files = [str(folder / result.artifacts[name]) for name in cfg.export.formats if name in result.artifacts]
    said = ""
    if files and {"verify", "export"} & result.metrics.keys():  # the checks of int4 files and of merged weights
        said = f"The exported files are complete and checked, and can be used: {', '.join(files)}. "
        if cfg.traits.quantizes and cfg.export.quality_samples:
            said += "What was not done is measuring their quality, which export.quality_samples=0 leaves out. "
    if has_checkpoints:
        return f"{said}{folder} has checkpoints: {again} goes on."
    if not cfg.traits.trains:
        return f"{said}{again[0].upper()}{again[1:]} begins anew."
    return f"{said}{folder} has no checkpoint (train.save_steps writes them): {again} begins anew."


def names_a_folder(train: TrainConfig) -> bool:
    """Whether `train.resume_from_checkpoint` names a checkpoint, and not a way to find one."""
    return train.resume_from_checkpoint not in (AUTO, LATEST, NEVER)


def asks_for_checkpoint(cfg: Config) -> bool:
    """Whether the run can't do without a checkpoint."""
    return cfg.train.resume_from_checkpoint == LATEST or names_a_folder(cfg.train)


def find_checkpoint(cfg: Config, folder: Path) -> ResumePoint | None:
    """The checkpoint that a run goes on from; None where it begins anew.

    Args:
        cfg: How a checkpoint is found, what decides on the best step, and who goes on.
        folder: The run's `checkpoints/`, of an interrupted run of the same configuration.

    Raises:
        UserError: The checkpoint that is named can't be used, or `latest` finds none; or the newest one is of the other
            kind of parallel training. A single process goes on from both.
    """
    found = _find(cfg.train, folder, cfg.train.generation_period)
    if found and cfg.processes > 1 and is_of_shards(found.path) != (cfg.parallel.strategy == "fsdp2"):
        kinds, written = ("ddp", "fsdp2"), ("whole weights", "a part of the weights from each process")
        i = is_of_shards(found.path)
        raise UserError(
            f"parallel={kinds[not i]}: {found.path} holds {written[i]}, and parallel={kinds[i]} or a single process "
            f"goes on from it; set parallel={kinds[i]}, or begin anew with overwrite=true."
        )
    return found


def _find(train: TrainConfig, folder: Path, period: int) -> ResumePoint | None:
    """As `find_checkpoint`; training can be resumed exactly only at multiples of `period` steps."""
    if names_a_folder(train):
        path = without_tilde(train.resume_from_checkpoint)
        if path.resolve().parent != folder.resolve():
            raise UserError(
                f"{_KEY}={train.resume_from_checkpoint}: a run is resumed in its own folder; set output_dir to the one "
                "that holds checkpoints/, or train on in a new run with model.model_name_or_path=."
            )
        if not path.is_dir() or not CHECKPOINT.match(path.name):
            raise UserError(
                f"{_KEY}={train.resume_from_checkpoint}: there is no such checkpoint; name a step-N, or leave it out "
                "for the newest one."
            )
        found = _look(train, path, period)
        if isinstance(found, str):
            raise UserError(
                f"{_KEY}={path}: {found}; name another checkpoint, or leave it out for the newest whole one."
            )
        return found
    passed_over: list[str] = []
    for path in reversed(checkpoints(folder)):
        found = _look(train, path, period)
        if isinstance(found, ResumePoint):
            return replace(found, passed_over=tuple(passed_over))
        passed_over.append(f"passed over {path}: {found}")
    if train.resume_from_checkpoint == LATEST or passed_over:
        reasons = "; ".join(passed_over) or f"{folder} holds no checkpoint (train.save_steps writes them)"
        raise UserError(f"{_KEY}={train.resume_from_checkpoint}: {reasons}; begin anew with overwrite=true.")
    return None


def _look(train: TrainConfig, path: Path, period: int) -> ResumePoint | str:
    """A checkpoint to go on from, or why it can't be used."""
    if why := damage(path):
        return why
    step, state = step_of(path), state_of(path)
    ends = is_at_the_end(state)
    if step % period and not ends:
        return (
            f"a run with rewards can be resumed only at multiples of {period} steps, when new completions are generated"
        )
    if not ends and not has_optimizer(path):
        return "it has no optimizer's state, with which the next step would be another one"
    best = state.get("best_global_step")
    if train.metric_for_best_model and best and best != step:
        kept = path.parent / f"step-{best}"
        if why := damage(kept):
            return f"the best step so far was {best}, and in {kept} {why}"
    states = len([*path.glob("rng_state*.pth")])
    return ResumePoint(path, step, ends, processes=max(1, states))
