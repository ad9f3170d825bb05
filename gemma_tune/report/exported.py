"""Quality, size and speed of exported files beside those of their source: as numbers, in the terminal, on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gemma_tune.compare.comparison import ComparedFigure, Comparison
from gemma_tune.compare.wording import Numbers, p_text
from gemma_tune.evals.evaluation import as_text, is_share
from gemma_tune.evals.statistics import Interval
from gemma_tune.page.blocks import Block, Cell, Code, FigureText, Headline, Listing, Section, Table, Text
from gemma_tune.page.terminal import print_figures
from gemma_tune.report.artifacts import bytes_text
from gemma_tune.report.figures import interval_text
from gemma_tune.report.use import unreadable, use_commands

if TYPE_CHECKING:
    from gemma_tune.engines.speed import TokenRates

_HEAD = ("", "{metric}", "difference", "verdict", "size (bits per weight)", "prompt (answer) tokens/s")
_NONE = "–"
_QUALITY = 4  # of these columns are about quality
_TESTED = (
    "With 95% intervals over the rows. Each file is compared with the source, row by row; p is corrected for "
    "all tests (Holm)."
)
_TIMED = "Tokens per second of a prompt that is read and of an answer that is written, one conversation alone."


@dataclass(frozen=True)
class FileFacts:
    """A model as it lies on the disk.

    Attributes:
        name: `source`, or the format.
        place: Where it is, or its name on the Hub.
        bytes: Of all its files; None: not known.
        bits: Bits per weight, as `Size.bits_per_weight`; None: not known.
        speed: Tokens a second; None: not timed.
    """

    name: str
    place: str
    bytes: int | None
    bits: float | None
    speed: TokenRates | None


def exported_metrics(
    figure: ComparedFigure | None, comparison: Comparison | None, files: Sequence[FileFacts], why: str
) -> dict[str, Any]:
    """`metrics.exported` of the result: everything that the table shows, as numbers.

    Args:
        figure: The figure of the table; None where nothing was compared.
        comparison: All figures of the evaluator.
        files: The source and the files.
        why: Why nothing was compared.
    """
    summary = comparison.summary() if comparison else {}
    of_files = summary.get(figure.name, {}) if figure else {}
    return {
        "metric": figure.name if figure else None,
        "rows": figure.count if figure else 0,
        "binary": bool(figure and figure.binary),
        "lower_is_better": bool(figure and figure.lower_is_better),
        "files": [
            {
                "name": f.name,
                "path": f.place,
                "bytes": f.bytes,
                "bits_per_weight": f.bits,
                "speed": asdict(f.speed) if f.speed else None,
                **of_files.get(f.name, {}),
            }
            for f in files
        ],
        "figures": summary,
        "notes": [*([why] if why else []), *(comparison.notes if comparison else [])],
    }


@dataclass(frozen=True)
class _Cells:
    """What the tables show of the source or of a file."""

    name: str
    mean: FigureText
    difference: FigureText
    verdict: FigureText
    size: str
    bits: str
    prompt: str
    answer: str

    @property
    def quality(self) -> list[Cell]:
        return [self.mean, self.difference, self.verdict]


def _cells(exported: Mapping[str, Any]) -> list[_Cells]:
    """The cells of the source and of each file, from the numbers."""
    means = [_interval(file, "mean", "low", "high") for file in exported["files"]]
    apart = [_interval(file, "difference", "difference_low", "difference_high") for file in exported["files"]]
    share = is_share(str(exported["metric"]), exported["binary"])
    numbers = Numbers(share, filter(None, [*means, *apart]))
    found = []
    for file, mean, difference in zip(exported["files"], means, apart, strict=True):
        bits, speed = file["bits_per_weight"], file["speed"] or {}
        p = file.get("p_corrected")
        found.append(
            _Cells(
                file["name"],
                FigureText(numbers.mean(mean), interval_text(numbers, mean)) if mean else FigureText(),
                FigureText(numbers.value(difference.mean, "+"), interval_text(numbers, difference, "+"))
                if difference
                else FigureText(""),
                FigureText(file["verdict"], "" if p is None else _p(p)) if difference else FigureText(""),
                bytes_text(file["bytes"]) if file["bytes"] else _NONE,
                f"{bits:.2f}" if bits else _NONE,
                *(_rate(speed.get(name)) for name in ("prompt", "answer")),
            )
        )
    return found


def _interval(file: Mapping[str, Any], *keys: str) -> Interval | None:
    return Interval(*(file[key] for key in keys)) if file.get(keys[0]) is not None else None


def _rows(exported: Mapping[str, Any]) -> list[list[Cell]]:
    """A row for the source and for each file; `_HEAD` names the columns."""
    rows = []
    for one in _cells(exported):
        size, speed = _together(one.size, one.bits), _together(one.prompt, one.answer)
        rows.append([one.name, *(one.quality if exported["metric"] else ()), size, speed])
    return rows


def _together(value: str, other: str) -> FigureText:
    return FigureText(value, "" if other == _NONE else other)


def _rate(tokens: float | None) -> str:
    if tokens is None:
        return _NONE
    return f"{tokens:,.0f}" if tokens >= 100 else f"{tokens:.3g}"


def _head(exported: Mapping[str, Any]) -> list[str]:
    metric = exported["metric"]
    head = _HEAD if metric else (_HEAD[0], *_HEAD[4:])
    return [name.format(metric=str(metric).replace("_", " ")) for name in head]


def _title(exported: Mapping[str, Any]) -> str:
    measured = f"{exported['metric']} on {exported['rows']:,} rows, " if exported["metric"] else ""
    return f"Exported files: {measured}size and speed"


def _engines(exported: Mapping[str, Any]) -> str:
    timed = {f["name"]: f["speed"]["engine"] for f in exported["files"] if f["speed"]}
    return f"Timed in: {', '.join(f'{name}: {engine}' for name, engine in timed.items())}." if timed else ""


def _other_figures(exported: Mapping[str, Any]) -> list[str]:
    """The figures beside that of the table, a line each."""
    found = []
    for figure, models in exported["figures"].items():
        said = []
        for name, stats in models.items():
            verdict = f" ({stats['verdict']}, {_p(stats['p_corrected'])})" if stats.get("p_corrected") else ""
            said.append(f"{name} {as_text(figure, stats['mean'])}{verdict}")
        found += [f"{figure}: {'; '.join(said)}"] if figure != exported["metric"] else []
    return found


def _p(value: float) -> str:
    text = p_text(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def say_exported(exported: Mapping[str, Any], artifacts: Mapping[str, Path], console: Console) -> None:
    """Prints the table, how to use each file, and at the end what is to be done.

    Args:
        exported: `exported_metrics`.
        artifacts: The formats and where they are.
        console: Where to print.
    """
    print_figures(console, _title(exported), _head(exported), _rows(exported))
    for line in filter(None, [_TESTED if exported["metric"] else "", f"{_TIMED} {_engines(exported)}"]):
        console.print(line, style="dim", markup=False)
    for line in [*_other_figures(exported), *exported["notes"]]:
        console.print(line, markup=False, soft_wrap=True)
    commands = [(name, *command) for name, place in artifacts.items() for command in use_commands(name, place)]
    if commands:
        console.print("How to use them:")
    for name, engine, command in commands:
        console.print(f"  {name}, {engine}:", markup=False)
        console.print(f"    {command}", markup=False, soft_wrap=True)
    lost = [why for name, place in artifacts.items() if (why := unreadable(name, place))]
    for line in [*lost, *exported["advice"]]:
        console.print(f"warning: {line}", style="yellow", markup=False, soft_wrap=True)


def exported_headline(exported: Mapping[str, Any], head: Mapping[str, Any]) -> Headline | None:
    """The headline of a run that has only exported: a file, by its name, against its source, with the test's verdict.

    Args:
        exported: `exported_metrics`; empty where nothing was exported.
        head: The headline of the result.

    Returns:
        None where the headline isn't about files.
    """
    if not exported or not exported["metric"] or exported["metric"] != head.get("name"):
        return None
    source, *files = _cells(exported)
    means = [file.get("mean") for file in exported["files"][1:]]
    if head.get("after") not in filter(None.__ne__, means):
        return None
    file = files[means.index(head["after"])]
    note = f"{file.difference.line()}: {_said(file.verdict)}, on {exported['rows']:,} rows"
    return Headline(f"{exported['metric']}: source → {file.name}", [source.mean, file.mean], note, file.verdict.value)


def _said(verdict: FigureText) -> str:
    return ", ".join(filter(None, [verdict.value, verdict.span]))


def files_section(metrics: Mapping[str, Any]) -> list[Section]:
    """The same as a section of the report, for a run that has exported; how to use the files has one of its own."""
    exported = metrics.get("exported")
    return [Section("Quality, size and speed of the files", _blocks(exported))] if exported else []


def quality_of_file(exported: Mapping[str, Any], name: str) -> list[Block]:
    """The rows of one file and of its source; nothing where its quality was not measured."""
    if not exported or not exported["metric"]:
        return []
    files = [file for place, file in enumerate(exported["files"]) if not place or file["name"] == name]
    if len(files) < 2 or files[1].get("mean") is None:
        return []
    cells = _cells({**exported, "files": files})
    table = Table(_head(exported)[:_QUALITY], [[one.name, *one.quality] for one in cells])
    return [Text(f"{exported['metric']} on {exported['rows']:,} rows:"), table, Text(_TESTED, "quiet")]


def _blocks(exported: Mapping[str, Any]) -> list[Block]:
    """Two tables, which a narrow page holds."""
    blocks: list[Block] = []
    cells = _cells(exported)
    if exported["metric"]:
        rows = [[one.name, *one.quality] for one in cells]
        blocks += [Text(f"{exported['metric']} on {exported['rows']:,} rows:"), Table(_head(exported)[:_QUALITY], rows)]
        blocks.append(Text(_TESTED, "quiet"))
    if lines := [*_other_figures(exported), *exported["notes"]]:
        blocks.append(Listing(lines))
    facts: list[list[Cell]] = [[one.name, one.size, one.bits, one.prompt, one.answer] for one in cells]
    blocks.append(Table(["", "size", "bits per weight", "prompt, tokens/s", "answer, tokens/s"], facts))
    blocks.append(Text(f"{_TIMED} {_engines(exported)}", "quiet"))
    for line in exported["advice"]:
        said, found, command = line.partition("python -m gemma_tune")
        blocks.append(Text(said.strip(), "verdict worse"))
        blocks += [Code(f"{found}{command}", "bash")] if found else []
    return blocks
