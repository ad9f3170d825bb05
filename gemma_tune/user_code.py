"""User functions: `path/to/file.py:function` wherever a short name of ours is accepted."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gemma_tune.errors import UserError
from gemma_tune.neighbours import find_neighbours
from gemma_tune.run.paths import resolve


def load_function(reference: str, key: str, takes: Sequence[str] = ()) -> Callable[..., Any]:
    """Loads the function named by `path/to/file.py:function`.

    Args:
        reference: The file and the function's name.
        key: The key of the configuration, for the message.
        takes: Names of what it will be called with, in this order; empty: its parameters are not looked at.

    Raises:
        UserError: No such file or function, a file that can't be run, or a function that can't be called so.
    """
    path, _, name = reference.rpartition(":")
    file = resolve(path)
    spec = importlib.util.spec_from_file_location(file.stem, file) if file.is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"{key}={reference}: {file} can't be loaded; write path/to/file.py:function.")
    module = importlib.util.module_from_spec(spec)
    find_neighbours(file)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"{error.filename or file}:{error.lineno}"
        raise UserError(f"{key}={reference}: {where}: {error.msg}; fix it.") from error
    except Exception as error:  # whatever the user's file does where it is loaded
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file.absolute()]
        where = f"{file}:{lines[-1]}" if lines else str(file)
        raise UserError(f"{key}={reference}: {where}: {type(error).__name__}: {error}; fix it.") from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{key}={reference}: {file} has no function {name!r}.")
    if takes:
        _check_parameters(function, f"{key}={reference}", takes)
    return function


def _check_parameters(function: Callable[..., Any], said: str, takes: Sequence[str]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables of C say nothing of their parameters
        return
    try:
        signature.bind(*takes)
    except TypeError as error:
        raise UserError(
            f"{said}: its parameters are {signature}, and it is called with ({', '.join(takes)}): {error}."
        ) from error
