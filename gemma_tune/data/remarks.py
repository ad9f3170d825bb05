"""What was not used of the rows of a file, for the user: fields by their names, and cells that hold no value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby

from gemma_tune.data.records import Record
from gemma_tune.validation.suggest import did_you_mean

SILENCES = " (data.ignore_fields silences names)"
_ONE = {"rows": "row", "pairs": "pair", "are": "is", "have": "has", "were": "was", "don't": "doesn't", "their": "its"}


class RowRemarks:
    """The fields of a file that no row used, and the rows whose cells read `nan` or `None`.

    Args:
        records: The rows to begin with.
        ignored: The names in `data.ignore_fields`, where rows are looked for that have them.

    Attributes:
        unused: Rows by the name of a field that was not used.
        missing: Rows by the name of a field that only says that there is no value.
        first: File and line of the first of those.
        beside: Names of the file's fields beside its rows.
        absent: The names to ignore that no row has.
        doubts: What seems wrong with how the file is read.
    """

    def __init__(self, records: Iterable[Record] = (), ignored: Iterable[str] = ()) -> None:
        self.beside: dict[str, None] = {}
        self.doubts: dict[str, None] = {}
        self.absent = set(ignored)
        self.unused: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.first = ""
        self._rows = 0
        for record in records:
            self.add(record)

    def __len__(self) -> int:
        """Number of rows counted."""
        return self._rows

    def add(self, record: Record) -> None:
        """Counts a row."""
        self._rows += 1
        self.unused.update(record.unused)
        self.missing.update(record.missing)
        self.beside |= dict.fromkeys(record.beside)
        self.doubts |= dict.fromkeys(record.doubts)
        self.absent.difference_update(record.ignored)
        self.first = self.first or (record.where if record.missing else "")


def remark_lines(remarks: Mapping[str, RowRemarks], name: str) -> list[str]:
    """The remarks as lines for the user; files with the same ones share a line.

    Args:
        remarks: By the file's name.
        name: Which rows these are.
    """
    files: dict[str, list[str]] = {}
    warnings = []
    for file, found in remarks.items():
        left = [_listed(found.unused), "beside the rows: " * bool(found.beside) + ", ".join(found.beside)]
        if any(left):
            files.setdefault("; ".join(filter(None, left)), []).append(file)
        warnings += [f"warning: {name}: {doubt}" for doubt in found.doubts]
        if found.missing:
            warnings.append(
                f"warning: {name}: cells that read nan, N/A, None or null, as tools write a missing value: "
                f"{_listed(found.missing)}. They are read as text where a text must stand. Leave such rows out of the "
                f"file, or write their values. The first: {found.first}"
            )
    known = {field for found in remarks.values() for field in (*found.unused, *found.beside)}
    for field in sorted(set.intersection(*(found.absent for found in remarks.values())) if remarks else ()):
        warnings.append(f"warning: {name}: no row has {field} of data.ignore_fields.{did_you_mean(field, known)}")
    lines = []
    for unused, those in files.items():
        where = those[0] if len(those) == 1 else f"each of {len(those)} files"
        lines.append(f"{name}: not used of {where}: {unused}{SILENCES}")
    return [*lines, *warnings]


def number(count: int, what: str) -> str:
    """`3 rows were skipped`, `1 row was skipped`."""
    return f"{count:,} {' '.join(_ONE.get(word, word) for word in what.split()) if count == 1 else what}"


def _listed(counts: Counter[str]) -> str:
    """`category, source: 1,350 rows; id: 7 rows`."""
    by_rows = groupby(sorted(counts, key=lambda name: -counts[name]), key=counts.__getitem__)
    text = "; ".join(
        f"{', '.join(name or repr(name) for name in names)}: {number(rows, 'rows')}" for rows, names in by_rows
    )
    return text.encode("utf-8", "backslashreplace").decode()  # half a character can't be printed
