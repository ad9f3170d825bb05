"""The user's own Python: `path/to/file.py:function` where a short name of ours is accepted, and own recipes."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from gemma_tune.errors import UserError
from gemma_tune.neighbours import find_neighbours
from gemma_tune.run.paths import resolve
from gemma_tune.user_source import Definition, read_source


class Signed(Protocol):
    """What a function must take: one of `config/own_functions.py`."""

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
    if not name:
        return f"write path/to/file.py:function; {file.name} has {_listed(source.functions)}."
    if name not in source.names:
        return None if source.opaque else f"{file} has no function {name!r}; it has {_listed(source.functions)}."
    return definition_problem(file, source.names[name], call, name)


def definition_problem(file: Path, found: Sequence[Definition], call: Signed, name: str) -> str | None:
    """What is wrong with all definitions of a name; None where one may be called so."""
    problem = None
    for one in found:
        said = call.problem(one.signature) if one.signature else None
        if said is None:
            return None
        problem = f"{file}:{one.line}: {name}: {said}."
    return problem


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) or "none"


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
    if not file.is_file():
        raise UserError(f"{key}={reference}: {file} can't be loaded; write path/to/file.py:function.")
    module = load_module(file, f"{key}={reference}")
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{key}={reference}: {file} has no function {name!r}.")
    signature = _signature(function)
    if call and signature and (problem := call.problem(signature)):
        raise UserError(f"{key}={reference}: {problem}.")
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
        raise UserError(f"{said}: {file} can't be loaded; name a Python file.")
    module = importlib.util.module_from_spec(spec)
    find_neighbours(file)
    sys.modules.pop(name, None)
    sys.modules.setdefault(name, module)  # where dataclasses look for the module of a class
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{said}: {error.filename or file}:{error.lineno}: {error.msg}; fix it.") from error
    except Exception as error:  # whatever the user's file does where it is loaded
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file]
        where = f"{file}:{lines[-1]}" if lines else str(file)
        raise UserError(f"{said}: {where}: {type(error).__name__}: {error}; fix it.") from error
    return module
