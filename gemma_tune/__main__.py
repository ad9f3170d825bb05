"""`python -m gemma_tune`: see `gemma_tune/cli/main.py`."""

from __future__ import annotations

import importlib
import sys

if sys.modules[__package__ or "gemma_tune"].__file__ is None:
    # The current folder holds a folder named gemma_tune, a clone for example, and `python -m` looks there first: what
    # was imported is that folder, and not the installed package inside it.
    sys.path.pop(0)
    sys.modules.pop("gemma_tune")
    importlib.import_module("gemma_tune")

from gemma_tune.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
