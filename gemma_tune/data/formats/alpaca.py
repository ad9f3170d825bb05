"""`data=alpaca`: instruction, optional input, and output, as in Stanford Alpaca's data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.records import BadRow, Record, checked_messages, parsed
from gemma_tune.data.sources import Source, map_rows, text_field


def fields(data: DataConfig) -> tuple[str, ...]:
    """Required fields."""
    return ("instruction", "output")


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one conversation per row; instruction and input form the user's turn, separated by an empty line.

    `system`, and earlier turns as pairs in `history`, are optional (LLaMA-Factory's fields).
    """

    def record(where: str, row: dict[str, Any]) -> Record:
        asked = text_field(row, "instruction", where)
        more = row.get("input") or ""
        if not isinstance(more, str):
            raise BadRow(f"{where}: the field 'input' is {type(more).__name__}, not a text.")
        said = [("system", text_field(row, "system", where))] if row.get("system") else []
        for pair in _history(row.get("history"), where):
            said += zip(("user", "assistant"), pair, strict=True)
        said.append(("user", f"{asked}\n\n{more}" if more.strip() else asked))
        said.append(("assistant", text_field(row, "output", where)))
        return Record(where, messages=checked_messages([{"role": r, "content": t} for r, t in said], where))

    return map_rows(source, record)


def _history(history: Any, where: str) -> list[list[str]]:
    pairs = (parsed(history, where, "history") if history else None) or []
    if not isinstance(pairs, list) or any(
        not isinstance(p, list) or len(p) != 2 or not all(isinstance(t, str) for t in p) for p in pairs
    ):
        raise BadRow(f"{where}: the field 'history' isn't a list of pairs of texts.")
    return pairs
