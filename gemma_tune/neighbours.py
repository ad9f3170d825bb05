"""Lets a user's file import the files beside it, without putting its folder on the path.

On the path, a folder there named `vllm` or `datasets` would be taken for the package (see `search_path`). So only the
names that the user's files import themselves are looked for beside them, and only where nothing installed has the name.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


class _Beside(MetaPathFinder):
    """Finds top-level modules by the folders that they were seen in."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder = self.folders.get(fullname)
        return PathFinder.find_spec(fullname, [str(folder)]) if folder else None


_FINDER = _Beside()


def find_neighbours(file: Path) -> None:
    """Makes what a user's file imports from its own folder importable, and what those files import in turn.

    A file that can't be parsed is left to whoever runs it. Of two files with one name in different folders, the first
    counts, as Python keeps one module of a name.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)  # after all others
    folder = file.absolute().parent
    for name in _reached(file)[1]:
        _FINDER.folders.setdefault(name.partition(".")[0], folder)


def with_neighbours(file: Path) -> list[Path]:
    """A user's file, and the files of its folder that it imports, and those in turn: what a run that uses it reads."""
    beside = sorted(path for path in _reached(file)[0] - {file.absolute()} if path.is_file())
    return [file, *beside]


def _reached(file: Path) -> tuple[set[Path], list[str]]:
    """The files of its folder that a file leads to, itself included, and the dotted names that lead to them."""
    folder, left, seen, names = file.absolute().parent, [file.absolute()], set[Path](), list[str]()
    while left:
        if (one := left.pop()) in seen:
            continue
        seen.add(one)
        for name in _imported(one, folder):
            if found := list(_files(name, folder)):
                left += found
                names.append(name)
    return seen, names


def _imported(file: Path, folder: Path) -> Iterator[str]:
    """The dotted names that a file imports; relative ones as seen from the folder."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = file.relative_to(folder).parts[: -node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def _files(name: str, folder: Path) -> Iterator[Path]:
    """The files and folders below a folder that a dotted name leads through; the last part may be no module."""
    place = folder
    for part in name.split("."):
        place = place / part
        if place.with_suffix(".py").is_file():
            yield place.with_suffix(".py")
        if not place.is_dir():
            return
        yield place / "__init__.py"
