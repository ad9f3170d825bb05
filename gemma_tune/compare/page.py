"""The comparison as a page: one HTML file that needs no network and no scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gemma_tune.compare.chart import Dot, interval_chart
from gemma_tune.compare.comparison import ComparedFigure, Comparison, DifferingRow
from gemma_tune.compare.wording import Wording, answers, facts, groups, head, methods, percent, plain, wanted
from gemma_tune.evals.statistics import Interval
from gemma_tune.page.text import document, escaped

PAGE_MARK = '<meta name="generator" content="gemma_tune compare">'

_ROWS = 200  # of a figure, over all its groups
_OPEN = 2  # rows of a group that are unfolded from the start
_LONG, _LINES = 700, 12  # a text of more characters or lines is folded
_BEGINNING = 300  # characters of it that are shown even so
_MOST = 20_000  # characters of a text at most: a browser must draw all rows
_ASKED = 160  # characters of what was asked in a folded row


def page(comparison: Comparison) -> str:
    """The page as the text of its file."""
    title = f"{len(comparison.models)} models on the same rows"
    lines = document(title, PAGE_MARK, Path(__file__).parent / "page.css", _body(comparison))
    return "".join(f"{line}\n" for line in lines)


def _body(comparison: Comparison) -> Iterator[str]:
    first, *others = (escaped(name) for name in comparison.models)
    yield f'<p class="quiet">Held against <b>{first}</b>: {", ".join(f"<b>{name}</b>" for name in others)}</p>'
    yield "</header>\n<main>"
    if comparison.notes:
        yield f'<ul class="notes">{"".join(f"<li>{escaped(note)}</li>" for note in comparison.notes)}</ul>'
    yield from _table(comparison)
    yield from _others(comparison)
    for number, figure in enumerate(comparison.figures):
        yield f'<section id="figure-{number}">\n<h2>{escaped(figure.name)}</h2>'
        yield from _figure(figure, comparison)
        yield "</section>"
    yield f'<h2>How it was computed</h2>\n<p class="quiet">{escaped(methods(comparison))}</p>\n</main>'


def _table(comparison: Comparison) -> Iterator[str]:
    names = head(comparison)
    yield '<h2>Figures</h2>\n<div class="scroll"><table class="figures">'
    yield f"<thead><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr></thead>"
    for number, figure in enumerate(comparison.figures):
        wording = Wording(figure)
        name = f'<a href="#figure-{number}">{escaped(figure.name)}</a> <small>{escaped(facts(figure))}</small>'
        yield f'<tbody><tr><th colspan="{len(names)}">{name}</th></tr>'
        for stats in figure.model_stats:
            cells = "".join(
                f'<td class="{_kind(said)}">{said}{f"<small>{span}</small>" if span else ""}</td>'
                for said, span in wording.cells(stats)
            )
            yield f"<tr><td>{escaped(stats.model)}</td>{cells}</tr>"
        yield "</tbody>"
    yield "</table></div>"


def _others(comparison: Comparison) -> Iterator[str]:
    if not comparison.others:
        return
    yield '<details class="list"><summary>Figures without rows of their own</summary>\n<div class="scroll"><table>'
    yield f"<thead><tr><th></th>{''.join(f'<th>{escaped(name)}</th>' for name in comparison.models)}</tr></thead>"
    for figure, values in comparison.others.items():
        yield f"<tr><td>{escaped(figure)}</td>{''.join(f'<td>{plain(value)}</td>' for value in values)}</tr>"
    yield "</table></div></details>"


def _figure(figure: ComparedFigure, comparison: Comparison) -> Iterator[str]:
    wording, level = Wording(figure), comparison.level
    for stats in figure.model_stats[1:]:
        yield f'<p class="said {_kind(stats.verdict)}">{escaped(wording.sentence(stats, level))}</p>'
    yield f'<div class="beside">\n{_drawing(figure, wording, level)}\n</div>'
    if not figure.rows:
        yield f'<p class="quiet">No row tells the models apart: they score the same on all {figure.count:,}.</p>'
    else:
        yield f"<p>They differ on {len(figure.rows):,} of {figure.count:,} rows.</p>"
    for title, some, rows in groups(figure, _ROWS):
        yield f"<h3>{escaped(title)} <small>({some})</small></h3>"
        for number, row in enumerate(rows, start=1):
            yield _row(number, row, figure, wording)


def _drawing(figure: ComparedFigure, wording: Wording, level: float) -> str:
    """Both drawings: where each model stands, and how far the others are from the first."""
    unit, points = ("%", " points") if figure.binary else ("", "")

    def tick(value: float, decimals: int) -> str:
        number = f"{100 * value:.{max(decimals - 2, 0)}f}" if figure.binary else f"{value:,.{decimals}f}"
        return (number if number.strip("-0.") else number.lstrip("-")).replace("-", "−")

    def said(value: str, interval: Interval, sign: str = "") -> str:
        return value if interval.low is None else f"{value} ({wording.span(interval, sign)})"

    first = figure.model_stats[0].model
    means = [Dot(s.model, s.mean, said(wording.mean(s.mean), s.mean)) for s in figure.model_stats]
    tests = [(s, s.test.difference) for s in figure.model_stats if s.test]
    apart = [Dot(s.model, d, said(wording.value(d.mean, "+"), d, "+"), _kind(s.verdict)) for s, d in tests]
    better = "← better" if figure.lower_is_better else "better →"
    charts = {
        f"Means with {percent(level)} intervals": interval_chart(
            means, figure.name, better, lambda v, n: tick(v, n) + unit, around_zero=False
        ),
        f"Differences from {first}{', in' + points if points else ''}": interval_chart(
            apart, f"{figure.name}, differences from {first}", better, tick, around_zero=True
        ),
    }
    return "\n".join(f"<figure><figcaption>{escaped(t)}</figcaption>{svg}</figure>" for t, svg in charts.items())


def _kind(verdict: str) -> str:
    return verdict if verdict in ("better", "worse") else ""


def _row(number: int, row: DifferingRow, figure: ComparedFigure, wording: Wording) -> str:
    """A row that unfolds: what was asked and wanted, and what each model said."""
    prompt, texts = row.text("prompt"), {"asked": row.text("prompt"), "wanted": wanted(row)}
    asked = " ".join((prompt or row.id)[: 2 * _ASKED].split())[:_ASKED]
    sides, scores = [], []
    for stats, score, answer, said in zip(figure.model_stats, row.scores, answers(row), row.rows, strict=True):
        kind = wording.score(score)
        mark = {"right": "✓", "wrong": "✗"}.get(kind, kind)
        name = escaped(stats.model)
        scores.append(f'<span title="{name}: {kind}" class="score {kind if figure.binary else ""}">{mark}</span>')
        notes = f"{mark} {kind}" if figure.binary else kind
        notes += ", cut off" if said.get("stopped") is False else ""
        sides.append(_part(f"{name} <small>{notes}</small>", answer, kind if figure.binary else ""))
    above = "".join(_part(name, text) for name, text in texts.items() if text is not None)
    tokens = f", {row.weight:,.0f} tokens" if row.weight != 1 else ""
    return (
        f'<details class="row"{" open" if number <= _OPEN else ""}><summary><b>{number:,}</b>'
        f'<span class="asked" dir="auto">{escaped(asked)}</span>{"".join(scores)}</summary><div class="parts">{above}'
        f'<div class="sides">{"".join(sides)}</div>'
        f'<p class="quiet"><small>row <code>{escaped(row.id)}</code>{tokens}</small></p></div></details>'
    )


def _part(title: str, text: str | None, kind: str = "") -> str:
    """A text below its title, folded where it is long; the title alone where there is none."""
    if text is None:
        return f'<div class="part {kind}"><b>{title}</b></div>'
    if not text.strip():
        return f'<div class="part {kind}"><b>{title} <small>(empty)</small></b></div>'
    whole = _pre(text)
    if len(text) > _LONG or text.count("\n") >= _LINES:
        begin = "\n".join(text[:_BEGINNING].split("\n")[: _LINES // 2])
        whole = (
            f'<details class="long"><summary>{_pre(f"{begin} …")}<span class="more">show all {len(text):,} characters'
            f'</span><span class="less">show less</span></summary>{whole}</details>'
        )
    return f'<div class="part {kind}"><b>{title}</b>{whole}</div>'


def _pre(text: str) -> str:
    if len(text) > _MOST:
        half = _MOST // 2
        text = f"{text[:half]}\n[… {len(text) - _MOST:,} characters are left out here …]\n{text[-half:]}"
    # A line break that begins a <pre> is dropped, hence one more
    return f'<pre dir="auto">\n{escaped(text)}</pre>'
