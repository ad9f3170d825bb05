"""Which checkpoint to resume from, and whether it holds all that an exact resumption needs."""

from __future__ import annotations

from pathlib import Path

from gemma_tune.errors import UserError
from gemma_tune.runfolder import RunFolder
from gemma_tune.train.trainer import checkpoints

# Without any one of these Transformers resumes in silence and ends elsewhere.
NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def find_checkpoint(name: str | None, folder: RunFolder) -> Path | None:
    """The folder to resume from, or None where none is asked for.

    Args:
        name: A checkpoint's folder, or `latest`.
        folder: The run's folder.

    Raises:
        UserError: There is none, or it isn't whole.
    """
    if name is None:
        return None
    if name == "latest":
        found = checkpoints(folder.checkpoints)
        if not found:
            raise UserError(
                f"train.resume_from_checkpoint=latest: {folder.checkpoints} holds no checkpoint (train.save_steps "
                "writes them); leave it out and set overwrite=true to begin anew."
            )
        path = found[-1]
    else:
        path = Path(name).expanduser()
    if not path.is_dir():
        raise UserError(f"train.resume_from_checkpoint={name}: there is no such folder; name a step-N, or latest.")
    missing = [f for f in NEEDED if not (path / f).is_file()]
    if missing:
        raise UserError(
            f"train.resume_from_checkpoint={path}: {', '.join(missing)} missing there, so training would not go on "
            "where it stopped; name another checkpoint."
        )
    return path
