"""Where Python looks for modules: not in the current folder, and for a checkout's recipes at its top.

`python -m` puts the current folder before everything that is installed. A folder there named `vllm` or `deepspeed`, a
checkout for example, then makes TRL and Transformers believe that the package is installed, and a file `random.py`
takes the place of Python's own. This module is imported before any other of the package, and imports only what Python
has loaded at its start.
"""

import os
import sys

_NAME = "gemma_tune"


def _by_python_m() -> bool:
    """Whether `python -m gemma_tune…` imports the package; then `sys.argv[0]` is "-m" as long as it looks for it."""
    words = sys.orig_argv
    named = any(w.startswith(f"{_NAME}.") or w == _NAME or (w[:1] == "-" and f"m{_NAME}" in w) for w in words)
    return sys.argv[:1] == ["-m"] and named


def leave_current_folder() -> None:
    """Takes off the path what `python -m` has put there; a program that imports the package keeps its own path."""
    if _by_python_m() and not sys.flags.safe_path and sys.path:
        sys.path.pop(0)


def with_recipes(package: list[str]) -> list[str]:
    """The package's `__path__`, with the top of the checkout where `recipes/` stands there and not inside the package.

    So the recipes are those of the checkout that runs, installed or not, and not those of another one.
    """
    inside, top = package[0], os.path.dirname(package[0])
    in_wheel = os.path.isdir(os.path.join(inside, "recipes"))
    in_checkout = os.path.isfile(os.path.join(top, "recipes", "__init__.py"))
    return [*package, top] if in_checkout and not in_wheel else package
