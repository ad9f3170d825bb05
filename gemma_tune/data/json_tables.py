"""Finds the rows in a file that is one JSON object: a row, a table as pandas writes it, or rows under a field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gemma_tune.data.file_rows import FileOptions
from gemma_tune.data.known_fields import CONVERSATIONS, HISTORY, SYSTEM, TOOLS
from gemma_tune.data.records import BadRow

# An object with one of these is a row, unless it holds a list of texts or numbers under each field.
_ROW_FIELDS = frozenset((
    *CONVERSATIONS, *SYSTEM, *TOOLS, HISTORY, "prompt", "completion", "chosen", "rejected", "instruction", "input",
    "output", "question", "answer", "query", "response", "text", "label",
))  # fmt: skip
# What stands beside a row's conversation, and beside rows is said to reach none of them
_BESIDE = frozenset((*SYSTEM, *TOOLS, HISTORY))


def rows_of_object(value: dict[str, Any], options: FileOptions, where: str) -> Iterable[Any] | None:
    """The rows that the one object of a file holds; None where it is a row itself.

    Raises:
        BadRow: `data.field` is not there or holds no rows; columns of different lengths; or several lists of rows.
    """
    if options.field is not None:
        return _under(value, options, options.field, where)
    rows = _table(value, options, where)
    if rows is not None or ((_ROW_FIELDS | options.row_fields) - _BESIDE) & value.keys():
        return rows
    lists = [name for name, entry in value.items() if name not in _BESIDE and _is_rows(entry)]
    if _BESIDE & value.keys() and len(lists) != 1:
        return rows
    objects = [(a, e) for a, e in value.items() if isinstance(e, dict) and not _ROW_FIELDS & e.keys()]
    inner = {f"{a}.{b}": e for a, entry in objects for b, e in entry.items() if _is_rows(e)}
    if len(lists) == 1:
        rows = value[lists[0]]
        options.beside.update({name: entry for name, entry in value.items() if name != lists[0]})
    elif several := {name: value[name] for name in lists} or inner:
        longest = max(several, key=lambda name: len(several[name]))
        raise BadRow(
            f"{where}: this file is one object, with rows under {', '.join(several)}; say which to read: "
            f"data.field={longest}"
        )
    return rows


def _is_rows(value: Any) -> bool:
    """Whether it is a list of objects that aren't messages: those are a conversation, under whatever name."""
    return _are_objects(value) and not any("role" in entry or "from" in entry for entry in value)


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _under(value: dict[str, Any], options: FileOptions, field: str, where: str) -> Iterable[Any]:
    found: Any = value
    parts = [field] if field in value else field.split(".")
    for place, part in enumerate(parts):
        if not isinstance(found, dict) or part not in found:
            has = ", ".join(found) if isinstance(found, dict) else type(found).__name__
            raise BadRow(f"{where}: data.field={field}: there is no field {part!r}; found: {has or 'none'}.")
        others = {name: entry for name, entry in found.items() if name != part}
        options.beside.update({".".join([*parts[:place], name]): entry for name, entry in others.items()})
        found = found[part]
    if isinstance(found, list):
        return found
    if isinstance(found, dict):
        rows = _table(found, FileOptions(), where)
        return [found] if rows is None else rows
    raise BadRow(f"{where}: data.field={field} holds {type(found).__name__}, not a list of rows.")


def _table(value: dict[str, Any], options: FileOptions, where: str) -> list[dict[str, Any]] | None:
    """The rows of a table: `DataFrame.to_json()` in its layouts, or a list of values under each field."""
    columns = list(value.values())
    if value.keys() == {"columns", "index", "data"} and all(isinstance(c, list) for c in columns):
        if any(not isinstance(cells, list) or len(cells) != len(value["columns"]) for cells in value["data"]):
            raise BadRow(f"{where}: pandas' table (orient='split') has a row of another length than its columns.")
        if value["index"] != list(range(len(value["index"]))):
            options.beside["index"] = value["index"]
        return [dict(zip(value["columns"], cells, strict=True)) for cells in value["data"]]
    if columns and all(isinstance(column, dict) and column for column in columns):
        if all(_is_index(column) for column in columns):
            if any(column.keys() != columns[0].keys() for column in columns):
                raise _unequal(value, where)
            return [{name: column[key] for name, column in value.items()} for key in columns[0]]
        return columns if _is_index(value) else None  # orient="index"
    if not columns or not all(isinstance(column, list) for column in columns) or all(map(_are_objects, columns)):
        return None
    if any(name in _ROW_FIELDS | options.row_fields and (not c or _are_objects(c)) for name, c in value.items()):
        return None
    if len({len(column) for column in columns}) > 1:
        raise _unequal(value, where)
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _is_index(names: Iterable[str]) -> bool:
    return all(name.isdecimal() for name in names)


def _unequal(value: dict[str, Any], where: str) -> BadRow:
    lengths = ", ".join(f"{name}: {len(column)}" for name, column in value.items())
    return BadRow(
        f"{where}: this file is a table by columns, and they differ ({lengths}); write one object a row: pandas' "
        'to_json("rows.jsonl", orient="records", lines=True).'
    )
