"""What was not used of the rows of a file, for the user: fields by their names, and cells that hold no value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby

from gemma_tune.data.records import Record


class RowRemarks:
    """The fields of a file that no row used, and the rows whose cells read `nan` or `None`.

    Args:
        records: The rows to begin with.

    Attributes:
        unused: Rows by the name of a field that was not used.
        missing: Rows by the name of a field that only says that there is no value.
        first: File and line of the first of those.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
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
        if found.unused:
            files.setdefault(_listed(found.unused), []).append(file)
        if found.missing:
            warnings.append(
                f"warning: {name}: cells that read nan, None or null, as tools write a missing value: "
                f"{_listed(found.missing)}. The first: {found.first}"
            )
    lines = []
    for unused, those in files.items():
        where = those[0] if len(those) == 1 else f"each of {len(those)} files"
        lines.append(f"{name}: not used of {where}: {unused} (data.ignore_fields silences names)")
    return [*lines, *warnings]


def _listed(counts: Counter[str]) -> str:
    """`category, source: 1,350 rows; id: 7 rows`."""
    by_rows = groupby(sorted(counts, key=lambda name: -counts[name]), key=counts.__getitem__)
    text = "; ".join(f"{', '.join(names)}: {rows:,} row{'s' * (rows != 1)}" for rows, names in by_rows)
    return text.encode("utf-8", "backslashreplace").decode()  # half a character can't be printed
