"""Runs that are killed or stopped at a given call of a function, and what a run leaves that others are compared by."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from short_runs import short_run

_TIMED = ("time", "second", "flos", "mfu")  # parts of the names of figures that no two runs share


def lines(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of each metrics.jsonl of a run and its stages, without times."""
    found = {}
    for file in sorted(folder.glob("**/metrics.jsonl")):
        read = map(json.loads, file.read_text("utf-8").splitlines())
        untimed = [{k: v for k, v in line.items() if not any(part in k for part in _TIMED)} for line in read]
        found[str(file.relative_to(folder))] = untimed
    return found


def weights(folder: Path) -> dict[str, bytes]:
    """The bytes of each file with weights that a run and its stages leave."""
    patterns = ("**/adapter/*.safetensors", "**/export/**/*.safetensors", "**/export/**/*.gguf")
    files = [file for pattern in patterns for file in folder.glob(pattern) if "checkpoints" not in file.parts]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def figures(folder: Path) -> dict[str, Any]:
    """What result.json says, without times, memory and what the check of files measures them by."""
    result = json.loads((folder / "result.json").read_text("utf-8"))
    return {key: result[key] for key in ("status", "headline", "artifacts", "failures")}


def stopped_at(whole: Path, folder: Path, step: int) -> None:
    """As a kill leaves the run some moments after the checkpoint of a step."""
    shutil.copytree(whole, folder)
    for gone in ("adapter", "export"):
        shutil.rmtree(folder / gone, ignore_errors=True)
    for later in folder.glob("checkpoints/step-*"):
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)
    (folder / "result.json").write_text('{"status": "running"}', encoding="utf-8")


@contextlib.contextmanager
def sent(number: int, at: str, call: int = 1) -> Iterator[None]:
    """Within it, this process is sent a signal when a function is called the n-th time.

    Args:
        number: The signal.
        at: The function, as `module.name` or `module.Class.name`; it must be looked up there by its callers.
        call: Which of its calls, from 1.
    """
    left = [call]
    with pytest.MonkeyPatch.context() as patch:
        inner: Callable[..., Any] = resolve_name(at)

        def call_it(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)
            return inner(*args, **kwargs)

        patch.setattr(at, call_it)
        yield
    assert left[0] <= 0, f"{at} was called {call - left[0]} times"


def killed(recipe: str, folder: Path, *words: str, steps: int, at: str, call: int = 1) -> None:
    """Runs a recipe in a child process that kills itself by SIGKILL, as `sent` says; nothing of Python's runs then."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # threads of OpenMP don't live in a forked process
            with sent(signal.SIGKILL, at, call):
                short_run(recipe, folder, *words, steps=steps)
            code = 0
        except BaseException as error:
            print(f"not killed: {error!r}", flush=True)
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == -signal.SIGKILL, f"{at}, call {call}: the run ended with {status}"
