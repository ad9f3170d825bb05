"""Finds the checkpoint to resume from, and checks that it holds all that an exact resumption needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gemma_tune.config import TrainConfig
from gemma_tune.errors import UserError
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.base import checkpoints

# Without any one of these, Transformers resumes silently and ends with other weights.
NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint to resume from: its folder and the optimizer steps done there."""

    path: Path
    step: int


def _is_at_the_end(path: Path) -> bool:
    """Whether nothing is left to train (last step, or early stop): Transformers would silently train on."""
    try:
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # the check for what is missing answers that
    stopped = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {}).get("should_training_stop")
    return bool(state["global_step"] >= state["max_steps"] or stopped)


def find_checkpoint(train: TrainConfig, folder: RunFolder, period: int = 1) -> ResumePoint | None:
    """The checkpoint to resume from, or None where none is asked for.

    Args:
        train: `resume_from_checkpoint` names a checkpoint's folder, or `latest`: the newest one with steps left.
        folder: The run's folder.
        period: Training can be resumed exactly only at multiples of this many steps. A run stopped by a NaN loss may
            leave a checkpoint at another step; `latest` skips it.

    Raises:
        UserError: There is none, it isn't whole, or nothing is left to train.
    """
    name = train.resume_from_checkpoint
    if name is None:
        return None
    if name == "latest":
        every = checkpoints(folder.checkpoints)
        left = [c for c in every if not _is_at_the_end(c)]
        found = [c for c in left if int(c.name.removeprefix("step-")) % period == 0]
        if left and not found:
            raise UserError(
                f"train.resume_from_checkpoint=latest: a run with rewards can be resumed only at multiples of {period} "
                f"steps, when new completions are generated; {left[-1].name} is none. Begin anew with overwrite=true, "
                f"or train on in a new run: model.model_name_or_path={left[-1]}."
            )
        if every and not found:
            raise UserError(
                f"train.resume_from_checkpoint=latest: {every[-1]} is at the last step, so nothing is left to train; "
                f"begin anew with overwrite=true, or train on in a new run: model.model_name_or_path={folder.path}."
            )
        if not found:
            raise UserError(
                f"train.resume_from_checkpoint=latest: {folder.checkpoints} holds no checkpoint (train.save_steps "
                "writes them); leave it out and set overwrite=true to begin anew."
            )
        path = found[-1]
    else:
        path = Path(name).expanduser()
        if path.resolve().parent != folder.checkpoints.resolve():
            raise UserError(
                f"train.resume_from_checkpoint={name}: a run is resumed in its own folder; set output_dir to the one "
                "that holds checkpoints/, or train on in a new run with model.model_name_or_path=."
            )
    if not path.is_dir():
        raise UserError(f"train.resume_from_checkpoint={name}: there is no such folder; name a step-N, or latest.")
    if _is_at_the_end(path):
        raise UserError(
            f"train.resume_from_checkpoint={path}: it is at the last step, so nothing is left to train; name an "
            "earlier one, or latest."
        )
    missing = [f for f in NEEDED if not (path / f).is_file()]
    if missing:
        raise UserError(
            f"train.resume_from_checkpoint={path}: {', '.join(missing)} missing there, so training would not go on "
            "where it stopped; name another checkpoint."
        )
    state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    best = state.get("best_global_step")
    if train.metric_for_best_model and best and not (path.parent / f"step-{best}").is_dir():
        raise UserError(
            f"train.resume_from_checkpoint={path}: the best step so far was {best}, and {path.parent / f'step-{best}'} "
            "is gone; name an earlier checkpoint, or begin anew with overwrite=true."
        )
    step = int(state["global_step"])
    if step % period:
        raise UserError(
            f"train.resume_from_checkpoint={path}: a run with rewards can be resumed only at multiples of {period} "
            f"steps, when new completions are generated; {path.name} is none. Name another checkpoint."
        )
    return ResumePoint(path, step)
