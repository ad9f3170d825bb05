"""`python -m gemma_tune`: see `gemma_tune/cli/main.py`."""

import importlib
import os
import sys

if not __package__ or sys.modules[__package__].__file__ is None:
    # `python gemma_tune` puts that folder first on the path; and where the current folder holds a folder named
    # gemma_tune, a clone for example, `python -m` has imported that folder, and not the installed package inside it.
    sys.path.pop(0)
    sys.modules.pop("gemma_tune", None)
    importlib.import_module("gemma_tune")

os.environ["PYTHONSAFEPATH"] = "1"  # processes that libraries start don't look into the current folder either

from gemma_tune.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
