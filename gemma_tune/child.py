"""Runs a module of this very package in another process: `python -P gemma_tune/child.py gemma_tune.chat.foreign`.

With `-P` neither the current folder nor this file's is searched for modules, and the package is loaded from where this
file is: also from a checkout that isn't installed, or beside another one that is.
"""

import importlib
import importlib.util
import runpy
import sys
from pathlib import Path

_PACKAGE = "gemma_tune"


def python_module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours, by its dotted name; it finds the arguments in `sys.argv[1:]`."""
    return [sys.executable, "-P", __file__, name, *arguments]


def _run(name: str) -> None:
    spec = importlib.util.spec_from_file_location(_PACKAGE, Path(__file__).with_name("__init__.py"))
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules.update({_PACKAGE: package})  # its own modules import it by its name
    spec.loader.exec_module(package)
    importlib.import_module("gemma_tune.collector").look_seldom()
    runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(sys.argv.pop(1))
