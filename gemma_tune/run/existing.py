"""The run folder before a run begins: whether the run may use what is there. No torch."""

from __future__ import annotations

import contextlib
from enum import Enum
from pathlib import Path
from typing import Any

from gemma_tune.config import Config
from gemma_tune.config.path_keys import NOT_READ, NamedPath, base_of_adapter, named_paths
from gemma_tune.config.renamed import is_a_run, translated
from gemma_tune.data.files import find_files
from gemma_tune.errors import UserError, shortened
from gemma_tune.run.checkpoints import DIGESTS, checkpoints
from gemma_tune.run.identity import identity, identity_of, not_resumable
from gemma_tune.run.lock import LOCK, refuse_locked
from gemma_tune.run.paths import ON_GRID, PLAN, folder_status, is_of_a_cluster, resolve
from gemma_tune.run.place import foreign_files, stages
from gemma_tune.run.resume import AUTO, NEVER, names_a_folder
from gemma_tune.untrusted import read_object, read_yaml

_WAYS = "choose another output_dir, or replace it with overwrite=true"


_OF_EACH_RUN = ("recipe", "method", "seed", "model", "data", "train")  # keys of each configuration


class Found(Enum):
    """What a run finds in its folder."""

    NOTHING = "nothing, or what may be replaced"
    BEGUN = "this very run, not finished"
    FINISHED = "this very run, finished"


def stored_config(path: Path) -> Any:
    """The configuration that a run left in its folder, a mapping; None where no run has left anything.

    Raises:
        UserError: There is a run, and its config.yaml is missing or damaged.
    """
    tree, why = _read_config(path / "config.yaml")
    try:
        ours = "gemma_tune" in read_object(path / "manifest.json")
    except (OSError, ValueError):  # killed between its first two files, or damaged
        ours = any((p / DIGESTS).is_file() for p in checkpoints(path / "checkpoints"))
    if not ours:
        begun = isinstance(tree, dict) and is_a_run(tree) and not foreign_files(path)
        return tree if begun else None
    if why:
        raise UserError(
            f"{path / 'config.yaml'}: {why}, so it can't be told what the run in this folder is. Put it back as it "
            f"was; {_WAYS}, which keeps the old run until the new one is finished."
        )
    return tree


def _read_config(file: Path) -> tuple[Any, str]:
    """What a config.yaml holds, and what is wrong with it, if anything."""
    try:
        tree = read_yaml(file)
        whole = file.read_bytes().endswith(b"\n")
    except FileNotFoundError:
        return None, "this file is missing"
    except OSError as error:
        return None, f"this file can't be read ({error.strerror})"
    except ValueError as error:
        return None, f"this file is damaged ({shortened(str(error))})"
    lost = [name for name in _OF_EACH_RUN if not isinstance(tree, dict) or name not in tree]
    if lost or not whole:
        return tree, f"this file is damaged ({f'it has no {lost[0]}' if lost else 'its end is cut off'})"
    return tree, ""


def run_of(model: str) -> Path | None:
    """The run that a model's name means: its folder, or a file or folder inside it; of stages, that of the weights.

    None where there is no such run on this machine.
    """
    place = resolve(model).absolute()
    if not place.exists():
        return None
    place = place / ON_GRID if (place / ON_GRID / PLAN).is_file() else place
    return next((folder for folder in (place, *place.parents[:3]) if stored_config(folder)), None)


def images_kwargs_of(model: str) -> dict[str, Any]:
    """`model.images_kwargs` of the run that a model's name means; empty where it has none, or there is no such run."""
    kept = _model_of_run(model).get("images_kwargs")
    return dict(kept) if isinstance(kept, dict) else {}


def image_attention_of(model: str) -> str | None:
    """`model.image_attention` of the run that a model's name means; None where it has none, or there is no such run."""
    kept = _model_of_run(model).get("image_attention")
    return kept if isinstance(kept, str) else None


def _model_of_run(model: str) -> dict[str, Any]:
    run = run_of(model)
    stored = (stored_config(run) or {}).get("model") if run else None
    return stored if isinstance(stored, dict) else {}


def check_existing(cfg: Config, path: Path, locked: bool = False) -> Found:
    """What the folder holds of this run.

    Args:
        cfg: The configuration.
        path: The folder.
        locked: Whether this process holds its lock.

    Raises:
        UserError: The run may not use the folder: another process writes there, it holds another run, files that are
            not a run's, or, with `overwrite=true`, something that the run reads or that no run has written.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"output_dir={path}: this is a file; name a folder.")
    if Path.cwd().resolve().is_relative_to(path.resolve()):
        raise UserError(f"output_dir={path}: this is the folder that you are in, or one above it; name another folder.")
    if not has_files(path):
        return Found.NOTHING
    named = names_a_folder(cfg.train)
    replaces = cfg.overwrite and not named
    try:
        stored = stored_config(path)
    except UserError:
        if not replaces:
            raise
        stored = {}
    if stored is None:
        # overwrite=true would delete what is there: only a run of ours may be deleted
        raise UserError(f"output_dir={path}: this folder isn't empty and holds no run of ours; name another folder.")
    mine, theirs = identity(cfg), identity_of(translated(stored, like=cfg))
    finished = folder_status(path) == "finished"
    if finished and theirs == mine and not named and not cfg.overwrite:
        return Found.FINISHED
    if not locked:
        refuse_locked(path)
    if replaces:
        _check_overwrite(cfg, path)
        return Found.NOTHING
    exact = not cfg.traits.trains or bool(cfg.traits.stages)  # what such a run has left is not taken over
    differing = not_resumable(mine, theirs) or (["setting"] if exact and mine != theirs else [])
    if differing or (finished and cfg.train.resume_from_checkpoint in (AUTO, NEVER)):
        which = f" (another {', '.join(differing)})" if differing else ""
        raise UserError(f"output_dir={path}: this folder holds a run with another configuration{which}; {_WAYS}.")
    if cfg.train.resume_from_checkpoint == NEVER and (held := _worth_keeping(path)):
        raise UserError(
            f"output_dir={path}: this run was begun and has {', '.join(held)}; leave out "
            f"train.resume_from_checkpoint=never to go on with it, {_WAYS}."
        )
    return Found.BEGUN


def _worth_keeping(path: Path) -> list[str]:
    places = (path / "checkpoints", path / "adapter", path / "export", *stages(path))
    return [p.name for p in places if has_files(p)]


def _check_overwrite(cfg: Config, path: Path) -> None:
    inside = [p.name for p in named_paths(cfg) if p.kind not in NOT_READ and _lies_in(p, path)]
    if inside:
        raise UserError(f"overwrite=true would delete {inside[0]}, which this run needs; name another folder.")
    if foreign := foreign_files(path):
        more = f" and {len(foreign) - 1} more files" if len(foreign) > 1 else ""
        raise UserError(
            f"overwrite=true would delete {path / foreign[0]}{more}, which no run has written there; move it away, or "
            "name another folder."
        )


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


def has_files(path: Path) -> bool:
    """Whether there is a file in the folder or below it; what tells a cluster to run it is none."""
    found = (p for p in path.rglob("*") if not is_of_a_cluster(p, path))
    return any(p.is_symlink() or (p.is_file() and p.name != LOCK) for p in found)
