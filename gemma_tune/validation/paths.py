"""Checks that the files and folders which a configuration names are there or can be written, and their encoding."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from encodings import aliases
from pathlib import Path

from gemma_tune.config import Config
from gemma_tune.config.model import is_gguf
from gemma_tune.config.path_keys import NamedPath, read_paths
from gemma_tune.run.paths import RUNS, looks_local, resolve, runs_in, without_tilde
from gemma_tune.validation.suggest import did_you_mean, missing_path

_NAMED = 3  # of many runs


def missing_paths(cfg: Config, group: str) -> Iterator[str]:
    """What the keys of a group name and isn't there; of evaluators and rewards only where they are used."""
    for path in read_paths(cfg, group):
        if what := _missing(path):
            yield missing_path(path.key, path.name, what)
        elif path.kind == "model" and (runs := runs_in(resolve(path.name))):
            more = f" (and {len(runs) - _NAMED} more)" if len(runs) > _NAMED else ""
            names = " or ".join(str(Path(path.name) / run.name) for run in runs[:_NAMED])
            yield f"{path.key}={path.name}: this folder holds runs, and is no run itself; name one: {names}{more}."


def _missing(path: NamedPath) -> str | None:
    """What is not there, a file or a folder; None where it is, or need not be on this machine."""
    name, place = path.name, resolve(path.name)
    if path.kind in ("file", "function"):
        return None if place.is_file() else "file"
    if path.kind == "folder":
        return None if place.is_dir() else "folder"
    if path.kind == "rows":
        return None if place.exists() or glob.has_magic(name) else "file"
    if path.kind == "model" and looks_local(name) and not place.is_dir() and not is_gguf(name):
        return "model folder" if "/" in name else "model folder, and it is no `owner/name` of the Hub"
    return None


def encoding_problems(name: str) -> Iterator[str]:
    """What is wrong with `data.encoding`."""
    if not _encodes_text(name):
        known = sorted(filter(_encodes_text, {*aliases.aliases, *aliases.aliases.values()}))
        yield (
            f"data.encoding={name}: Python knows no encoding of text by this name; for example utf-8, cp1252, utf-16, "
            f"latin-1, shift_jis.{did_you_mean(name, known)}"
        )


def _encodes_text(name: str) -> bool:
    try:
        "".encode(name)
    except (LookupError, ValueError):  # LookupError, too, where a codec is none of text (rot13, base64)
        return False
    return True


def output_dir_problems(cfg: Config) -> Iterator[str]:
    """Whether the run folder may be written."""
    folder = without_tilde(cfg.output_dir or RUNS).absolute()
    there = next(p for p in (folder, *folder.parents) if os.path.exists(p))  # Path.exists raises without the right
    if not cfg.dry_run and os.path.isdir(there) and not os.access(there, os.W_OK | os.X_OK):
        yield f"output_dir={cfg.output_dir or RUNS}: you have no right to write in {there}; name another folder."
