"""How often a run opens the files that it is made from, as Python's audit hook sees it."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from short_runs import short_run

from gemma_tune.run.paths import ASSETS

_OPENED: Counter[str] | None = None  # None: nobody counts. A hook can't be taken off again


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _OPENED is not None and isinstance(arguments[0], str | bytes | os.PathLike):
        _OPENED[os.path.realpath(os.fsdecode(arguments[0]))] += 1


sys.addaudithook(_count)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Opens by absolute path, from here to the end of the test."""
    found: Counter[str] = Counter()
    monkeypatch.setattr(sys.modules[__name__], "_OPENED", found)
    return found


@pytest.mark.slow
def test_the_base_s_config_is_opened_once(tmp_path: Path, opened: Counter[str]) -> None:
    """Defaults, tokenizer, sizes, weights, adapter, export, verification and manifest share one reading of it."""
    base = tmp_path / "base"
    shutil.copytree(ASSETS / "tiny", base)
    opened.clear()  # copying opens them, too
    words = [f"model.model_name_or_path={base}", "export.formats=[merged]", "train.save_steps=1"]
    short_run("qlora_sft", tmp_path / "run", *words, steps=2)
    assert opened[str(base / "config.json")] == 1
    assert opened[str(tmp_path / "run/export/merged/config.json")]  # another file, read as anyone would read it
