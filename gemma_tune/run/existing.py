"""The run folder before a run begins: whether the run may use what is there. No torch."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import yaml

from gemma_tune.config import Config
from gemma_tune.config.path_keys import NOT_READ, NamedPath, base_of_adapter, named_paths
from gemma_tune.config.renamed import translated
from gemma_tune.data.files import find_files
from gemma_tune.errors import UserError
from gemma_tune.run.identity import identity, not_resumable, without_operational
from gemma_tune.run.paths import folder_status, resolve

_WAYS = (
    "choose another output_dir, resume it with train.resume_from_checkpoint=latest, or replace it with overwrite=true"
)


def stored_config(path: Path) -> dict[str, Any] | None:
    """The configuration that a run left in its folder, or None where there is none."""
    try:
        tree = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        ours = "gemma_tune" in json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return tree if ours and isinstance(tree, dict) and tree.get("method") else None


def check_existing(cfg: Config, path: Path) -> bool:
    """Whether the folder holds this very run, finished.

    Raises:
        UserError: The run may not use the folder: it holds another run, an unfinished one with checkpoints, files that
            are not a run's, or, with `overwrite=true`, something that the run reads.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"output_dir={path}: this is a file; name a folder.")
    if not has_files(path):
        return False
    stored = stored_config(path)
    if stored is None:
        # overwrite=true would delete what is there: only a run of ours may be deleted
        raise UserError(f"output_dir={path}: this folder isn't empty and holds no run of ours; name another folder.")
    if cfg.overwrite:
        inside = [p.name for p in named_paths(cfg) if p.kind not in NOT_READ and _lies_in(p, path)]
        if inside:
            raise UserError(f"overwrite=true would delete {inside[0]}, which this run needs; name another folder.")
        _refuse_second_aside(path)
        return False
    mine, theirs = identity(cfg), without_operational(translated(stored, like=cfg))
    if cfg.train.resume_from_checkpoint:
        if differing := not_resumable(mine, theirs):
            raise UserError(
                f"output_dir={path}: the run in this folder has another {', '.join(differing)}, so it can't be resumed "
                "with yours; set it as it was, or choose another output_dir."
            )
        return theirs == mine and folder_status(path) == "finished"
    if theirs != mine:
        raise UserError(f"output_dir={path}: this folder holds a run with another configuration; {_WAYS}.")
    return _is_finished_or_restartable(path)


def _is_finished_or_restartable(path: Path) -> bool:
    """For a folder of this same run: True if it is finished, False if it left nothing worth keeping, else an error."""
    status = folder_status(path)
    runs_within = [manifest.parent for manifest in sorted(path.glob("*/manifest.json"))]
    places = (path / "checkpoints", path / "adapter", path / "export", *runs_within)
    held = [p.name for p in places if has_files(p)]
    if status == "running" or (status != "finished" and held):
        what = f"has {', '.join(held)}" if held else "may still be running"
        raise UserError(f"output_dir={path}: this run was begun and {what}; {_WAYS}.")
    if status != "finished":
        _refuse_second_aside(path)
    return status == "finished"


def _lies_in(named: NamedPath, folder: Path) -> bool:
    """Whether anything that the name stands for lies in a folder: files of a glob, and the base of an adapter, too."""
    places = [resolve(named.name)]
    if named.kind == "rows":
        with contextlib.suppress(UserError):  # no such file: said where rows are read
            places += find_files(named.name, named.key, any_type=True)
    if named.kind == "model" and (base := base_of_adapter(places[0])):
        places.append(base)
    # A link in the folder would be deleted, too, wherever it leads
    both = [(p.absolute(), folder.absolute()) for p in places] + [(p.resolve(), folder.resolve()) for p in places]
    return any(place.is_relative_to(within) for place, within in both)


def aside(path: Path) -> Path:
    """Where a run stands while another one is to replace it."""
    return path.with_name(f"{path.name}.replaced")


def _refuse_second_aside(path: Path) -> None:
    if aside(path).exists():
        raise UserError(
            f"{aside(path)} holds the run that an earlier overwrite=true was to replace and that did not finish; look "
            "at it, and delete it or give it another name."
        )


def has_files(path: Path) -> bool:
    """Whether there is a file in the folder or below it."""
    return any(p.is_file() for p in path.rglob("*"))
