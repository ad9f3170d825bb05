"""Which files of a folder hold rows: data sets saved by `datasets`, and splits, which are never read as one set."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Iterable
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path
from typing import Any

from gemma_tune.errors import UserError
from gemma_tune.run.paths import ALL_TYPES, file_type
from gemma_tune.untrusted import read_object

# Files of a known type that are about a data set or a model
_NO_ROWS = (
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "*.index.json", "metadata.json",
    "croissant.json", "package.json", "config.json", "*_config.json", "tokenizer.json", "vocab.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.json", "readme*", "license*", "licence*", "notice*",
    "changelog*", "requirements*.txt", "cache-*.arrow", "indices-*.arrow",
)  # fmt: skip
# The names of splits are those that `datasets` knows, as whole words of a file's or a folder's name.
_SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_WANTED = {"validation_file": "validation", "test_files": "test"}  # by key
_ORDER = ("train", "validation", "test", "")
_BETWEEN_WORDS = re.compile(r"[-._ 0-9/]+")
_STATE, _DICT = "state.json", "dataset_dict.json"


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`: a data set, or one with several splits."""
    return (folder / _DICT).is_file() or ((folder / _STATE).is_file() and (folder / "dataset_info.json").is_file())


def folder_files(folder: Path, name: str, key: str) -> list[Path]:
    """The files of a folder, and of those below it, that hold rows, sorted; those of a saved data set in its order.

    Args:
        folder: The folder.
        name: As the user wrote it.
        key: Its key, for the message.

    Raises:
        UserError: There is none; files of several splits; running text beside rows; or a saved data set is not whole.
    """
    found = row_files(folder, f"{key}={name}")
    if not found:
        raise UserError(f"{key}={name}: no file of this folder is one of {ALL_TYPES}.")
    refuse_snapshots(found, name, key)
    splits = _by_split(folder, found)
    if len(splits) > 1:
        raise UserError(_several_splits(name, key, folder, splits))
    texts = [file for file in found if file_type(file) == ".txt"]
    if texts and len(texts) < len(found):
        raise UserError(
            f"{key}={name}: this folder holds running text ({_names(folder, texts)}) beside rows "
            f"({_names(folder, [f for f in found if f not in texts])}); name one kind by a glob: "
            f"{setting(key, os.path.join(name, f'*{texts[0].suffix}'))}"
        )
    return found


def refuse_snapshots(files: Iterable[Path], name: str, key: str) -> None:
    """Refuses files of several snapshots in the Hub's cache of one repository, which hold the same rows.

    Raises:
        UserError: They are; it names the one to read: that of `refs/main`, where it is there.
    """
    found: dict[Path, dict[str, None]] = {}
    for file in files:
        for place in file.parents:
            repository = place.parent.parent
            if place.parent.name == "snapshots" and (repository.name.startswith("datasets--") or _is_cache(repository)):
                found.setdefault(repository, {})[place.name] = None
    for repository, names in found.items():
        if len(names) > 1:
            main = repository / "refs" / "main"
            wanted = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
            places = [str(repository / "snapshots" / one) for one in ([wanted] if wanted in names else names)]
            raise UserError(
                f"{key}={name}: {repository} is a cache folder of the Hub, and its {len(names)} snapshots are versions "
                f"of the same rows; name {'that of its main branch' if wanted in names else 'one'}: "
                f"{' or '.join(setting(key, place) for place in places)}"
            )


def _is_cache(repository: Path) -> bool:
    return (repository / "blobs").is_dir() or (repository / "refs").is_dir()


def row_files(folder: Path, said: str = "") -> list[Path]:
    """The same files, of whatever splits.

    Raises:
        UserError: A file of a saved data set is missing; the message begins with `said`.
    """
    found: list[Path] = []
    for place in sorted({p.parent for p in folder.rglob("*") if p.is_file()} - {folder} | {folder}):
        if any(part.startswith(".") for part in place.relative_to(folder).parts):
            continue
        if (place / _STATE).is_file() and is_saved_dataset(place):
            found += _saved_files(place, said)
            continue
        files = sorted(p for p in place.iterdir() if p.is_file() and file_type(p) and not p.name.startswith("."))
        found += [p for p in files if not any(fnmatch(p.name.lower(), name) for name in _NO_ROWS)]
    return found


def _saved_files(place: Path, said: str) -> list[Path]:
    try:
        state: dict[str, Any] = read_object(place / _STATE)
        files = [place / str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{said}: {place / _STATE} isn't as `save_to_disk` writes it ({type(error).__name__}); save it again, or "
            'write it with to_parquet("rows.parquet").'
        ) from error
    if state.get("_indices_data_files"):
        raise UserError(f"{said}: {place} has an index, as old versions of `datasets` write; save it again.")
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{said}: {place} lacks {', '.join(missing)}, which {_STATE} names; copy the whole folder.")
    return files


def _by_split(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """The files by split, if there are rows to measure by beside others; else one entry."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        relative = file.relative_to(folder)
        splits.setdefault(_saved_split(folder, relative) or _split(relative), []).append(file)
    splits = dict(sorted(splits.items(), key=lambda split: _ORDER.index(_split(Path(split[0])))))
    saved = (folder / _DICT).is_file()
    return splits if saved or splits.keys() & {"validation", "test"} else {"": files}


def _saved_split(folder: Path, relative: Path) -> str | None:
    return relative.parts[0] if (folder / _DICT).is_file() and len(relative.parts) > 1 else None


def _split(relative: Path) -> str:
    """The split that a file's name tells, or its folder's; "" where none does, or two do."""
    for part in reversed(relative.parts):
        words = {_SPLITS[word] for word in _BETWEEN_WORDS.split(part.lower()) if word in _SPLITS}
        if words:
            return words.pop() if len(words) == 1 else ""
    return ""


def _several_splits(name: str, key: str, folder: Path, splits: dict[str, list[Path]]) -> str:
    listed = "; ".join(f"{split or 'no split'}: {_names(folder, files)}" for split, files in splits.items())
    train = key.startswith("data.train_file")
    kinds = {split: _split(Path(split)) for split in splits}
    taken: dict[str, str] = {}
    for split, files in splits.items():
        place = _place(name, folder, files)
        if kinds[split] == "validation" and train:
            taken.setdefault("data.validation_file", place)
        elif kinds[split] == "test" and train:
            taken.setdefault("data.test_files.test", place)
        elif kinds[split] == _WANTED.get(key.split(".")[1], "train"):
            taken.setdefault(key, place)
    taken = taken or {key: _place(name, folder, next(iter(splits.values())))}
    fix = " ".join(setting(*pair) for pair in taken.items())
    return f"{key}={name}: this folder holds several splits ({listed}), which are no one set; name those to read: {fix}"


def _names(folder: Path, files: list[Path]) -> str:
    names = [str(file.relative_to(folder)) for file in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _place(name: str, folder: Path, files: list[Path]) -> str:
    """What stands for files of a folder, and for no others: one file, the folder below, or a glob."""
    if len(files) == 1 and not is_saved_dataset(files[0].parent):
        return os.path.join(name, str(files[0].relative_to(folder)))
    parent = Path(os.path.commonpath([file.parent for file in files]))
    if parent != folder and set(row_files(parent)) == set(files):
        return os.path.join(name, str(parent.relative_to(folder)))
    start = _common([str(file.relative_to(parent)) for file in files])
    end = _common([file.name[::-1] for file in files])[::-1]
    pattern = f"{glob.escape(start)}*{glob.escape(end)}"
    below = str(parent.relative_to(folder))
    if {Path(p) for p in glob.glob(os.path.join(glob.escape(str(parent)), pattern))} != set(files):
        pattern = f"{glob.escape(start)}…{glob.escape(end)}"  # no glob is exact: the user's to write
    return os.path.join(glob.escape(name), "" if below == "." else glob.escape(below), pattern)


def _common(names: list[str]) -> str:
    """What all names begin with."""
    return "".join(letters[0] for letters in takewhile(lambda found: len(set(found)) == 1, zip(*names, strict=False)))


def setting(key: str, value: str) -> str:
    """A setting as it is written in a shell."""
    return shlex.quote(f"{key}={value}")
