"""The user's own Python: `path/to/file.py:function` where a short name of ours is accepted, and own recipes."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from gemma_tune.errors import RunError, UserError, listed
from gemma_tune.neighbours import find_neighbours, import_problem, with_neighbours
from gemma_tune.run.paths import resolve
from gemma_tune.user_source import Definition, read_source


class Signed(Protocol):
    """What a function must take: one of `config/own_functions.py`."""

    @property
    def awaits(self) -> bool:
        """Whether an `async` function may be called so."""
        ...

    def problem(self, signature: inspect.Signature) -> str | None:
        """Why a function with this signature can't be called; None where it can."""
        ...


def split(reference: str) -> tuple[Path, str]:
    """The file and the name of `path/to/file.py:function`; an empty name where there is none."""
    path, colon, name = reference.rpartition(":")
    return (resolve(path), name) if colon else (resolve(name), "")


def function_problem(reference: str, call: Signed) -> str | None:
    """What is wrong with a function as far as its file's text tells, with file and line; the file is not run.

    Args:
        reference: `path/to/file.py:function`.
        call: How it will be called.
    """
    file, name = split(reference)
    try:
        source = read_source(file)
    except UserError as error:
        return str(error)
    if problem := import_problem(file):
        return problem
    if source.relative:
        line, absolute = source.relative
        said = f"a relative import, and the file is in no package; write {absolute}: files beside it are found"
        return f"{file}:{line}: {said}."
    if not name:
        return f"write path/to/file.py:function; {file.name} has {_listed(source.functions)}."
    if name not in source.names:
        return None if source.opaque else f"{file} has no function {name!r}; it has {_listed(source.functions)}."
    problem = definition_problem(file, source.names[name], call, name)
    if problem and source.names[name][-1].value is not None:
        problem = f"{problem.removesuffix('.')}: {file.name} has {_listed(source.functions)}."
    return problem


def definition_problem(file: Path, found: Sequence[Definition], call: Signed, name: str) -> str | None:
    """What is wrong with all definitions of a name; None where one may be called so."""
    problem = None
    for one in found:
        if one.value is not None:
            said: str | None = f"this is {one.value}, and no function; name one"
        elif one.awaited and not call.awaits:
            said = (
                "an async function gives nothing before it is awaited, and nobody awaits it; write def, without async"
            )
        else:
            said = call.problem(one.signature) if one.signature else None
        if said is None:
            return None
        problem = f"{file}:{one.line}: {name}: {said}."
    return problem


def _listed(names: Sequence[str]) -> str:
    return listed(names) or "none"


def in_message(said: str, problem: str, file: Path) -> str:
    """A message about a user's file, which has the file's path once.

    Args:
        said: What named the file, perhaps by its whole path: `key=value`.
        problem: What is wrong, with the file's whole path.
        file: The file.
    """
    return f"{said}: {beside(said, problem, file)}"


def beside(said: str, problem: str, file: Path) -> str:
    """The same without what named the file, where another message begins with that."""
    return problem.replace(str(file), file.name) if str(file) in said else problem


def load_function(reference: str, key: str, call: Signed | None = None) -> Callable[..., Any]:
    """Loads the function named by `path/to/file.py:function`.

    Args:
        reference: The file and the function's name.
        key: The key of the configuration, for the message.
        call: How it will be called; None: its parameters are not looked at.

    Raises:
        UserError: No such file or function, a file that can't be run, or a function that can't be called so.
    """
    file, name = split(reference)
    said = f"{key}={reference}"
    if not file.is_file():
        raise UserError(in_message(said, f"{file} can't be loaded; write path/to/file.py:function.", file))
    module = load_module(file, said)
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        has = [n for n, one in vars(module).items() if inspect.isfunction(one)]
        is_bound = f"{name} is of type {type(function).__name__}, and no function" if hasattr(module, name) else ""
        why = is_bound or f"there is no function {name!r}"
        raise UserError(in_message(said, f"{file}: {why}; it has {_listed(has)}.", file))
    signature = _signature(function)
    if call and signature and (problem := call.problem(signature)):
        raise UserError(f"{said}: {problem}.")
    return function


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some callables of C say nothing of their parameters
        return None


def load_module(file: Path, said: str) -> ModuleType:
    """Runs a user's file.

    Args:
        file: The file.
        said: What named it, for the message: `key=value`.

    Raises:
        UserError: It can't be run.
    """
    file = file.absolute()
    name = f"{file.stem} of {file.parent}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(in_message(said, f"{file} can't be loaded; name a Python file.", file))
    module = importlib.util.module_from_spec(spec)
    find_neighbours(file)
    # As in Python's recipe for importing a source file (library/importlib): dataclasses look for a class's module there
    sys.modules.pop(name, None)
    sys.modules.setdefault(name, module)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file does where it is loaded
        raise UserError(in_message(said, failure(error, file), file)) from error
    return module


def failure(error: BaseException, file: Path) -> str:
    """What went wrong in a user's code, in one line: file, line, the exception, and a way where one is known.

    Args:
        error: What was raised.
        file: The user's file. The line is the innermost one in it or in the files beside it that it imports.
    """
    if isinstance(error, SyntaxError) and error.filename:
        line = f": {error.text.strip()}" if error.text else ""
        return f"{error.filename}:{error.lineno}: {error.msg}{line}"
    own = {path.absolute() for path in with_neighbours(file)}
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if Path(f.filename).absolute() in own]
    where = f"{theirs[-1].filename}:{theirs[-1].lineno}" if theirs else str(file)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    inside = _inside_ours(frames)
    return f"{where}: {what}{_way(error)}".rstrip(".") + "." + (f" Raised in {inside}." if inside else "")


def _inside_ours(frames: Sequence[traceback.FrameSummary]) -> str:
    """File and line of the last frame, if it is of this package: what was called there may be at fault."""
    ours = Path(__file__).parent
    last = Path(frames[-1].filename) if frames else Path()
    return f"{last.relative_to(ours.parent)}:{frames[-1].lineno}" if ours in last.parents else ""


def _way(error: BaseException) -> str:
    """What to do about an exception, where its type says so."""
    if isinstance(error, SystemExit):
        return ": it would end the whole command; return, or raise another exception"
    if isinstance(error, FileNotFoundError):
        return ": relative paths count from the current folder; Path(__file__).parent names that of the file"
    if isinstance(error, ImportError) and "relative import" in str(error):
        return ": leave the dot out (from helper import score); the files beside it are found by their names"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f": install the package, or put {error.name.partition('.')[0]}.py beside the file"
    return ""


@contextlib.contextmanager
def in_user_code(said: str, file: Path, ending: type[UserError | RunError] = UserError) -> Iterator[None]:
    """Around a call of a user's code: what it raises becomes one message with file and line.

    The project's own errors pass, and what is no fault of the code: a lack of memory, an output that nobody reads.

    Args:
        said: What named the code, for the message: `key=value`.
        file: Its file.
        ending: What is raised in place of the exception.

    Raises:
        UserError: The code raised an exception, or would have ended the command.
        RunError: The same, where `ending` says so.
    """
    try:
        yield
    except (UserError, RunError, MemoryError, BrokenPipeError):
        raise
    except (Exception, SystemExit) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which isn't imported here
            raise
        raise ending(in_message(said, failure(error, file), file)) from error
