"""Lets a user's file import the files beside it, without putting its folder on the path.

On the path, a folder there named `vllm` or `datasets` would be taken for the package (see `search_path`). So only the
names that the user's files import themselves are looked for beside them, and only where nothing installed has the name.
Python keeps one module of a name, so two files can't each import a module of this name from a folder of their own.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from gemma_tune.errors import UserError, did_you_mean, listed
from gemma_tune.user_source import UserSource, read_source


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

    A file that can't be parsed is left to whoever runs it.

    Raises:
        UserError: A file of another folder has imported another module of one of these names.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)  # after all others
    if problem := name_clash([file], _FINDER.folders):
        raise UserError(problem)
    _FINDER.folders.update(dict.fromkeys(_modules_beside(file), file.absolute().parent))


def name_clash(files: Iterable[Path], before: Mapping[str, Path] | None = None) -> str | None:
    """What is wrong with files that import modules of one name, each from its own folder; None where none do.

    Args:
        files: Files of the user's.
        before: Folders of the modules that are importable already.
    """
    folders = dict(before or {})
    for file in files:
        folder = file.absolute().parent
        for name in _modules_beside(file):
            other = folders.setdefault(name, folder)
            if os.path.realpath(other) != os.path.realpath(folder):
                return (
                    f"{file} imports {name} from {folder}, and another file imports {name} from {other}: Python keeps "
                    "one module of a name; rename one of the two, or give each a command of its own."
                )
    return None


def _modules_beside(file: Path) -> list[str]:
    """The top-level modules of its folder that a file leads to."""
    return list(dict.fromkeys(name.partition(".")[0] for name in _reached(file)[1]))


def _is_elsewhere(name: str, folder: Path) -> bool:
    """Whether Python finds a top-level module in another place, without looking beside the user's files."""
    for finder in sys.meta_path:
        if finder is not _FINDER and (spec := finder.find_spec(name, None)):
            places = [spec.origin, *(spec.submodule_search_locations or ())]
            return not any(os.path.isabs(p) and folder in Path(p).parents for p in places if p)  # not "built-in"
    return False


def import_problem(file: Path) -> str | None:
    """What a user's file imports where it is loaded, and can't: file, line and a way. Nothing is run.

    The files beside it that it imports are looked at, too. Imports within `if`, `try` and functions may never be
    reached, and a file that changes Python's search path may import what can't be seen from here.
    """
    folder, left, seen = file.absolute().parent, [file.absolute()], set[Path]()
    try:
        while left:
            if (one := left.pop(0)) in seen:
                continue
            seen.add(one)
            source = read_source(one)
            if source.changes_path:
                return None
            for line, module, names in source.imports:
                if _is_elsewhere(module.partition(".")[0], folder):
                    continue
                if problem := _module_problem(module, folder) or _name_problem(_code(module, folder), names):
                    return f"{one}:{line}: {problem}"
                left += [path for path in _files(module, folder) if path.is_file()]
    except UserError as error:  # one beside it is no Python
        return str(error)
    return None


def _code(module: str, folder: Path) -> Path:
    """The file of a module below a folder, or its folder where it has no `__init__.py`."""
    place = folder.joinpath(*module.split("."))
    files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((path for path in files if path.is_file()), place)


def _module_problem(module: str, folder: Path) -> str | None:
    if _code(module, folder).exists():
        return None
    above, _, last = module.rpartition(".")
    if above and _module_problem(above, folder) is None:
        place = folder.joinpath(*above.split("."))
        return f"there is no module {last} in {place}.{_like(last, place)}"
    top = module.partition(".")[0]
    return f"there is no module {top}; install the package, or put {top}.py beside the file.{_like(top, folder)}"


def _like(name: str, folder: Path) -> str:
    return did_you_mean(name, [path.stem for path in folder.glob("*.py")])


def _name_problem(code: Path, names: Sequence[str]) -> str | None:
    """What is wrong with the names that a file imports from a module beside it."""
    source = read_source(code) if code.is_file() else UserSource(code)
    package = code.parent if code.name == "__init__.py" else code
    for name in names:
        is_dunder = name.startswith("__")  # which every module has
        if not (is_dunder or source.opaque or name in source.names or _code(name, package).exists()):
            known = [found for found in source.names if not found.startswith("_")]
            return f"{code} has no {name!r}; it has {listed(known) or 'none'}.{did_you_mean(name, known)}"
    return None


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
            if (found := list(_files(name, folder))) and not _is_elsewhere(name.partition(".")[0], folder):
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
