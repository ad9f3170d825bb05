"""Functions of the user's: `path/to/file.py:function` wherever a short name of ours is accepted."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from gemma_tune.errors import UserError
from gemma_tune.paths import resolve


def load_function(reference: str, key: str) -> Callable[..., Any]:
    """Loads the function named by `path/to/file.py:function`.

    Args:
        reference: The file and the function's name.
        key: The key of the configuration, for the message.

    Raises:
        UserError: No such file or function.
    """
    path, _, name = reference.rpartition(":")
    file = resolve(path)
    spec = importlib.util.spec_from_file_location(file.stem, file) if file.is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"{key}={reference}: {file} can't be loaded; write path/to/file.py:function.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{key}={reference}: {file}:{error.lineno}: {error.msg}.") from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{key}={reference}: {file} has no function {name!r}.")
    return function
