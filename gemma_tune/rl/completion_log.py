"""Keeps a few completions of each generation with all their rewards, for people to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_tune.processes import is_main_process
from gemma_tune.run.manifest import atomic_write
from gemma_tune.untrusted import read_lines

_KEPT, _SHOWN = 8, 4  # completions of one generation: in the file, and in the report


class CompletionLog:
    """Writes `eval/completions.jsonl`, one completion per line.

    Args:
        file: The file.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._writes = file, is_main_process()

    def begin(self, resumed_step: int | None) -> None:
        """Starts a new file; for a resumed run, keeps the completions before its step.

        Args:
            resumed_step: The step that the run is resumed from, or None.
        """
        kept = (
            [] if resumed_step is None else [row for row in read_completions(self._file) if row["step"] < resumed_step]
        )
        if not self._writes:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self._file, "".join(map(_line, kept)))

    def add(self, completions: Sequence[dict[str, Any]]) -> None:
        """Appends the first few completions of a generation; of several processes those of the first."""
        if not self._writes:
            return
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, completions[:_KEPT]))

    def shown(self) -> list[dict[str, Any]]:
        """The completions to show; see `first_and_last`."""
        return first_and_last(read_completions(self._file))


def read_completions(file: Path) -> list[dict[str, Any]]:
    """The completions in a file; empty if it is missing. An incomplete last line is ignored."""
    if not file.is_file():
        return []
    return list(read_lines(file))


def first_and_last(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few completions of the first and of the last generation."""
    if not rows:
        return []
    first = [row for row in rows if row["step"] == rows[0]["step"]][:_SHOWN]
    last = [row for row in rows if row["step"] == rows[-1]["step"]][:_SHOWN]
    return first if rows[0]["step"] == rows[-1]["step"] else [*first, *last]


def _line(row: dict[str, Any]) -> str:
    # A model may write half of a surrogate pair
    return json.dumps(row, ensure_ascii=True) + "\n"
