"""What a path of the configuration means, and where the shipped folders are (in a checkout and in a wheel)."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from gemma_tune.run.lock import is_locked
from gemma_tune.untrusted import read_object, read_yaml

_PACKAGE = Path(__file__).resolve().parent.parent


def _shipped(inside_wheel: str, in_checkout: str) -> Path:
    inside = _PACKAGE / inside_wheel
    return inside if inside.is_dir() else _PACKAGE.parent / in_checkout


CONFIGS = _shipped("configs", "configs")
ASSETS = _shipped("assets", "data")
RECIPES = _shipped("recipes", "recipes")


def shipped_recipes() -> dict[str, Path]:
    """The shipped recipes by name, each with its YAML."""
    return {file.stem: file for file in sorted((CONFIGS / "recipe").glob("*.yaml"))}


# Folder of the runs without `output_dir`
RUNS = "runs"
# What a QAT run leaves in its folder
PLAN = "quant_plan.json"
# The runs inside a folder of recipe=tune_to_int4: the tuning, and the training for int4
TUNED, ON_GRID = "tuned", "int4"
# Of a run folder: TensorBoard's event files, and the ids of the run in each tracker
TRACKER_FOLDER, TRACKERS = "tensorboard", "trackers.json"
# Files at the top of a run folder that tell a cluster how to run it, and what it wrote: they are there before the run,
# and stay when it is replaced
JOB_FILE, TASK_FILE = "job.sbatch", "task.yaml"
_OF_A_CLUSTER = re.compile(r"(job\.sbatch|task\.yaml)(\.partial)?|slurm-\d+\.out")
# What a run of recipe=reward_model exports
REWARD_MODEL = "export/reward_model"
# Files that hold rows; each may be compressed (.jsonl.gz).
FILE_TYPES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
# The same in words
ALL_TYPES = f"{', '.join(FILE_TYPES)} (or one of them {', '.join(COMPRESSED)})"
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")


# How the name of a GGUF file of towers for images and sound begins, by which llama.cpp and Ollama know one, too
MMPROJ = "mmproj-"


def gguf_models(folder: Path, pattern: str = "*.gguf") -> list[Path]:
    """The GGUF files of a folder by their names, without those of towers, which stand beside them."""
    return sorted(file for file in folder.glob(pattern) if not file.name.startswith(MMPROJ))


def mmproj_beside(file: Path) -> Path | None:
    """The file of the towers that stands beside a GGUF file; None without one, or with several."""
    found = sorted(file.parent.glob(f"{MMPROJ}*.gguf"))
    return found[0] if len(found) == 1 else None


def file_type(path: Path) -> str | None:
    """Which of `FILE_TYPES` a file is by its name, or None."""
    suffixes = [s.lower() for s in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    kind = next(reversed(suffixes), "")
    return kind if kind in FILE_TYPES else None


def resolve(path: str) -> Path:
    """Turns a path of the configuration into a real one.

    `assets://…` stands for the shipped `data/` folder, wherever the package is installed, so that the
    configurations work from every folder; any other path is relative to the current folder.
    """
    if path.startswith("assets://"):
        return ASSETS / path.removeprefix("assets://")
    return without_tilde(path)


def without_tilde(path: str | Path) -> Path:
    """A path with the home folder in place of a leading `~`; as it is written where nobody has that home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def existing_folder(path: Path) -> Path:
    """The nearest folder above a path that is there, or the path itself."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def free_disk(path: Path) -> int:
    """Free bytes on the disk that holds a path, which need not be there yet."""
    return shutil.disk_usage(existing_folder(path)).free


def is_bundled(model: str) -> bool:
    """Whether a model's name means the one that ships with gemma_tune."""
    return resolve(model).resolve() == (ASSETS / "tiny").resolve()


def absolute(path: str) -> str:
    """The same path or glob from every folder; `assets://…` already is."""
    if path.startswith("assets://"):
        return path
    own = resolve(path)
    if own.is_absolute() or own.exists() or not glob.has_magic(path):
        plain = Path(os.path.normpath(own.absolute()))
        # `link/..` is the parent of what the link leads to
        return str(plain if plain.resolve() == own.resolve() else own.absolute())
    return str(Path(glob.escape(str(Path.cwd())), own))


def runs_in(folder: Path) -> list[Path]:
    """The run folders directly inside a folder that is neither a run nor a model itself; the newest first."""
    itself = ("manifest.json", "config.json", "adapter_config.json")
    if not folder.is_dir() or any((folder / name).is_file() for name in itself) or (folder / ON_GRID / PLAN).is_file():
        return []
    found = [file.parent for file in folder.glob("*/manifest.json") if file.parent.name not in (TUNED, ON_GRID)]
    return sorted(found, key=lambda run: (-(run / "manifest.json").stat().st_mtime, run.name))


def reward_model_of(name: str) -> Path:
    """The exported model of a run folder of `recipe=reward_model`; any other name as a path."""
    place = resolve(name)
    exported = place / REWARD_MODEL
    return exported if exported.is_dir() else place


def is_of_a_cluster(file: Path, folder: Path) -> bool:
    """Whether a file of a run folder is one that launches it on a cluster, or what the cluster wrote."""
    return file.parent == folder and bool(_OF_A_CLUSTER.fullmatch(file.name))


def looks_local(name: str) -> bool:
    """Whether a model's name means a folder: an existing one, one of `runs/`, or anything that is no `owner/name`."""
    if resolve(name).exists() or not _HUB_NAME.match(name):
        return True
    return Path(name).parent.is_dir() or Path(name).parts[0] == RUNS


def folder_status(folder: Path) -> str | None:
    """The status in a run folder's result.json; `died` where it says running and no process writes there.

    None without a result.json.
    """
    try:
        status: str = read_object(folder / "result.json")["status"]
        return "died" if status == "running" and not is_locked(folder) else status
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_results(name: str) -> bool:
    """Whether it is a run folder, perhaps of an unfinished run, with the results of the final evaluation."""
    return (resolve(name) / "manifest.json").is_file() and (resolve(name) / "eval" / "after.json").is_file()


def model_of_run(folder: Path) -> str | None:
    """The model of a run, from the config.yaml in its folder; None without one."""
    try:
        stored = read_yaml(folder / "config.yaml")
        return str(stored["model"]["model_name_or_path"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_run_with_results(name: str) -> bool:
    """Whether it is the folder of a finished run with the results of the final evaluation."""
    return has_results(name) and folder_status(resolve(name)) == "finished"


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Writes into `folder.part` and renames it to `folder` on success; deletes it on any error, Ctrl-C included."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except BaseException:  # Ctrl-C, too
        shutil.rmtree(part, ignore_errors=True)
        raise
