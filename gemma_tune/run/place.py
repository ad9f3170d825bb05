"""What stands in a run folder: a run's files, those of others, and those of a run that is to be replaced. No torch.

A file that no run has written is never deleted. What a run is to replace is moved into `.replaced/` inside the folder,
which works for mounted disks and links, and is deleted only when the new run is finished.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path

from gemma_tune.errors import UserError
from gemma_tune.processes import gathered
from gemma_tune.run.checkpoints import CHECKPOINT, DIGESTS, STATE, checkpoints, step_of
from gemma_tune.run.lock import LOCK
from gemma_tune.run.media_used import LISTED
from gemma_tune.run.paths import ON_GRID, PLAN, TRACKER_FOLDER, TRACKERS, TUNED, folder_status, is_of_a_cluster
from gemma_tune.untrusted import read_object

REPLACED = ".replaced"
_SHARED_SECONDS = 10.0  # that a shared disk may take to show a file to another machine
# At the top of the folder; written under `NAME.partial` first
_FILES = (
    "config.yaml", "manifest.json", "metrics.jsonl", "result.json", "report.md", "report.html", "loss.png",
    "comparison.md", "comparison.html", LISTED, PLAN, TRACKERS,
)  # fmt: skip
_PARTS = {
    "adapter": re.compile(r".*"),
    "export": re.compile(r".*"),
    "eval": re.compile(r"[^/]+\.json(\.partial)?|completions\.jsonl(\.partial)?|media/[^/]+"),
    "teacher": re.compile(r"targets-\d+(\.\d+)?\.(arrow|part)"),
    "wandb": re.compile(r".*"),
    TRACKER_FOLDER: re.compile(r"events\.out\.tfevents\.[^/]+"),
}
# Of these a finished run's manifest lists every file
_LISTED = ("adapter/", "export/")
_HALF = re.compile(r"^checkpoint-(step-)?\d+$")
LEFTOVERS = (*(f"{part}.part" for part in _PARTS), "export/*.part", "export/.logits", "export/*/.float32-*")


def stages(path: Path) -> list[Path]:
    """The folders of runs inside a run: the stages of `recipe=tune_to_int4`."""
    found = [path / name for name in (TUNED, ON_GRID)]
    # Either file may be damaged or gone
    return [p for p in found if (p / "config.yaml").is_file() or (p / "manifest.json").is_file()]


def check_shared(path: Path) -> None:
    """For all processes of a run: the folder that the first one has made and locked is this one, too.

    Raises:
        UserError: It is not there, or another folder of the same path is.
    """
    held, end = gathered(_lock_text(path))[0], time.monotonic() + _SHARED_SECONDS
    mine = _lock_text(path)  # anew: before they met, the first one may not have made it
    while mine != held and time.monotonic() < end:
        time.sleep(0.5)
        mine = _lock_text(path)
    if mine != held:
        raise UserError(
            f"output_dir={path}: the folder that the first process has made is not there on this machine; a run on "
            "several machines needs a folder on a disk that all of them share."
        )


def _lock_text(path: Path) -> str | None:
    """What a process has written into the lock of a folder: its machine and its number."""
    try:
        return (path / LOCK).read_text(encoding="utf-8")
    except OSError:
        return None


def foreign_files(path: Path) -> list[str]:
    """The files of a run folder that no run has written, relative to it; a link is a file."""
    listed, inside = _listed_files(path), {stage.name for stage in stages(path)}
    found, of_checkpoints = [], dict[str, set[str] | None]()
    for file in sorted(p for p in path.rglob("*") if p.is_symlink() or not p.is_dir()):
        name = file.relative_to(path)
        top, rest = name.parts[0], "/".join(name.parts[1:])
        if top in (REPLACED, *inside):
            continue
        if not rest:
            own = top == LOCK or top.removesuffix(".partial") in _FILES or is_of_a_cluster(file, path)
        elif top == "checkpoints":
            within, _, inner = rest.partition("/")
            if within not in of_checkpoints:  # read once, and not for each of its files
                of_checkpoints[within] = _files_of_checkpoint(path / top / within)
            written = of_checkpoints[within]
            own = written is None or inner in written
        else:
            part = _PARTS.get(top.removesuffix(".part"))
            own = part is not None and bool(part.fullmatch(rest))
            if listed is not None and str(name).startswith(_LISTED):
                own = str(name) in listed
        if not own or (file.is_symlink() and top != "wandb"):
            found.append(str(name))
    return [*found, *(f"{stage.name}/{name}" for stage in stages(path) for name in foreign_files(stage))]


def _listed_files(path: Path) -> set[str] | None:
    """The files that a finished run's manifest lists; None of another run."""
    try:
        artifacts = read_object(path / "manifest.json")["artifacts"]
        listed = {name for files in artifacts.values() for name in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return listed if folder_status(path) == "finished" else None


def _files_of_checkpoint(within: Path) -> set[str] | None:
    """The files of a checkpoint's folder that a run has written: those that it lists; None where all are."""
    if _HALF.match(within.name):  # half-written, or half-deleted
        return None
    if not CHECKPOINT.match(within.name):
        return set()
    try:
        return {DIGESTS, *read_object(within / DIGESTS)["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None if (within / STATE).is_file() else set()


def set_aside(path: Path) -> bool:
    """Makes room for a new run: moves what a run has left into `.replaced/`; the teacher's cache stays.

    Where an earlier run stands there already, the files are those of a run that was to replace it, and are deleted.

    Returns:
        Whether a run now stands aside.
    """
    aside = path / REPLACED
    if aside.is_dir():
        delete_own(path)
        return True
    foreign = set(foreign_files(path))
    moved = False
    for file in _files(path):
        name = str(file.relative_to(path))
        if name not in foreign and not name.startswith(("teacher/", LOCK)):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            file.rename(aside / name)
            moved = True
    _delete_empty(path)
    return moved


def put_back(path: Path) -> None:
    """Deletes what a run has written, and restores what `set_aside` has moved."""
    delete_own(path)
    aside = path / REPLACED
    for file in _files(aside) if aside.is_dir() else ():
        place = path / file.relative_to(aside)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(place)
    shutil.rmtree(aside, ignore_errors=True)


def delete_own(path: Path) -> None:
    """Deletes the files of a run, but for the teacher's cache and what stands aside, and its empty folders."""
    foreign = set(foreign_files(path))
    for file in _files(path):
        name = str(file.relative_to(path))
        if name not in foreign and not name.startswith(("teacher/", f"{REPLACED}/", LOCK)):
            file.unlink(missing_ok=True)
    _delete_empty(path)


def delete_leftovers(path: Path) -> None:
    """Deletes what a process left half-written."""
    for half in (path / "checkpoints").glob("checkpoint-*"):
        if _HALF.match(half.name):
            shutil.rmtree(half, ignore_errors=True)
    for pattern in LEFTOVERS:
        for half in path.glob(pattern):
            if half.is_dir() and not half.is_symlink():
                shutil.rmtree(half, ignore_errors=True)
    for half in (*(path / f"{name}.partial" for name in _FILES), *(path / "eval").glob("*.partial")):
        half.unlink(missing_ok=True)


def drop_later(path: Path, step: int) -> None:
    """Moves checkpoints of later steps aside: the run goes on from an earlier one, and writes them anew."""
    for later in checkpoints(path / "checkpoints"):
        if step_of(later) > step:
            place = path / REPLACED / "checkpoints" / later.name
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            later.rename(place)


def _files(path: Path) -> list[Path]:
    every = (p for p in path.rglob("*") if p.is_symlink() or not p.is_dir())
    return [p for p in every if not is_of_a_cluster(p, path)]


def _delete_empty(path: Path) -> None:
    """Deletes the folders of runs that are empty; others may be somebody's."""
    tops = [path / name for part in (*_PARTS, "checkpoints", TUNED, ON_GRID) for name in (part, f"{part}.part")]
    for top in tops:
        if top.is_dir() and not top.is_symlink():
            for folder in (*sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True), top):
                with contextlib.suppress(OSError):
                    folder.rmdir()
