"""Which rows a model is measured on, in one line: a run's own, those that the user named, or the bundled sample."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gemma_tune.config import Config, DataConfig
from gemma_tune.config.renamed import translated
from gemma_tune.data.files import find_files
from gemma_tune.data.reading import validation
from gemma_tune.data.remarks import number
from gemma_tune.errors import UserError
from gemma_tune.run.existing import run_of, stored_config
from gemma_tune.run.inputs import is_digest
from gemma_tune.run.manifest import file_digest
from gemma_tune.untrusted import read_object

_WITH_ROWS_OF_THEIR_OWN = ("tool_calls", "lm_eval", "long_context")
_DRAWN = ("generator", "generator_options", "generator_seed")
_ON_HELD_OUT = ("held_out_loss", "kl", "preference")
_COUNTED = 10_000  # rows that are read only to say how many there are
_TESTS, _HELD_OUT = "test rows", "validation rows"


def rows_line(cfg: Config, tests: Mapping[str, Sequence[Any]], held_out: int) -> str:
    """`data: test rows of runs/a: test (/home/me/test.jsonl, 200 rows)`; says where a file is not what the run read.

    Args:
        cfg: The configuration.
        tests: The test rows by name.
        held_out: How many validation rows are used.
    """
    models = cfg.compare.models or [cfg.model.model_name_or_path]
    run = next((folder for folder in map(run_of, models) if folder), None)
    theirs = translated(stored_config(run) or {}).get("data", {}) if run else {}
    most, data = cfg.eval.max_samples, cfg.data
    parts = []
    if tests:
        said = [
            f"{name} ({_where(data.test_files.get(name) or data.generator, run)}, {_count(len(rows), most)})"
            for name, rows in tests.items()
        ]
        of_run = {k: v for k, v in (theirs.get("test_files") or {}).items() if k in tests}
        own = of_run == {k: v for k, v in data.test_files.items() if k in tests}
        if any(not data.test_files.get(name) for name in tests):  # drawn by the generator
            own &= all(getattr(data, key) == theirs.get(key) for key in _DRAWN)
        parts.append(f"{_TESTS}{_of(own, run, data.test_files.values())}: {', '.join(said)}")
    if held_out and _asked_for(cfg, bool(tests)):
        keys = ["validation_file", "validation_split", "validation_split_percentage"]
        if not data.validation_file:
            keys += ["train_file", "train_files", "dataset_name"]
        named = data.validation_file or _drawn(data)
        of = _of(all(getattr(data, key) == theirs.get(key) for key in keys), run, [data.validation_file])
        parts.append(f"{_HELD_OUT}{of}: {_where(named, run)}, {_of_all(data, held_out)}")
    theirs_own = [name for name in cfg.eval.evaluators if name in _WITH_ROWS_OF_THEIR_OWN]
    parts += [f"the rows of {', '.join(theirs_own)}"] if theirs_own else []
    none = "none: no rows of yours are named" if cfg.eval.evaluators else "none: nothing is measured (no evaluators)"
    return f"data: {'; '.join(parts) or none}"


def _asked_for(cfg: Config, tests: bool) -> bool:
    """Whether something is measured on validation rows: by an evaluator, or answers to their prompts as samples."""
    if any(name in _ON_HELD_OUT or ":" in name for name in cfg.eval.evaluators):
        return True
    return bool(cfg.eval.num_samples) and not tests


def _of_all(data: DataConfig, used: int) -> str:
    """`the first 20 of 60 rows`, where `data.max_eval_samples` leaves some out."""
    most, part = data.max_eval_samples, validation(data)
    if most is None or part is None:
        return number(used, "rows")
    try:
        there = sum(1 for _ in islice(part, max(most, _COUNTED) + 1))
    except UserError:  # a bad row behind those that are used
        return f"the first {number(used, 'rows')}"
    if there <= most:
        return number(used, "rows")
    return f"the first {used:,} of {f'more than {there - 1:,}' if there > _COUNTED else f'{there:,}'} rows"


def _drawn(data: DataConfig) -> str:
    names = ", ".join(filter(None, [data.train_file, *data.train_files.values(), data.dataset_name]))
    return f"{data.validation_split or f'{data.validation_split_percentage:g} %'} of {names}"


def _of(own: bool, run: Path | None, names: Any) -> str:
    if run is not None and own:
        near = os.path.relpath(run)
        return f" of {os.path.normpath(run) if near.startswith('..') else near}"
    return " of the bundled sample" if any(str(name).startswith("assets://") for name in names) else ""


def _count(rows: int, most: int | None) -> str:
    return number(rows, "rows") if most is None or rows <= most else f"the first {most:,} of {number(rows, 'rows')}"


def _where(name: str | None, run: Path | None) -> str:
    changed = any(_changed(str(name), run)) if run else False
    return f"{name}{', changed since that run' if changed else ''}"


def _changed(name: str, run: Path) -> Iterator[bool]:
    """Whether the content of each file is another one than the run has read."""
    try:
        inputs = read_object(run / "manifest.json")["inputs"]
        files = find_files(name, "data")
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return
    for file in files:
        digest = inputs.get(str(file)) if isinstance(inputs, dict) else None
        yield isinstance(digest, str) and is_digest(digest) and digest != file_digest(file)
