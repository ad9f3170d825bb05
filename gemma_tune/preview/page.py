"""The page: one HTML file that needs no network and no scripts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from html import escape
from itertools import islice
from pathlib import Path

from gemma_tune.config import Config
from gemma_tune.config.preview import PAGE_MARK
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError
from gemma_tune.page.text import document
from gemma_tune.preview.chart import length_chart
from gemma_tune.preview.figures import histogram, percentiles
from gemma_tune.preview.rows import PreviewData, PreviewRow
from gemma_tune.preview.tokens import Piece, TokenTexts, runs
from gemma_tune.run.paths import resolve

_OPEN = 3  # rows that are unfolded from the start
_LISTED = 1000  # places that a list names
_TOKENS = 4000  # of a row that is longer, the middle is left out: a browser must draw all rows


def write_page(cfg: Config, seen: PreviewData) -> Path | None:
    """Writes `preview.output_file`; gives back where it is, or None where none is wanted.

    Raises:
        UserError: The file can't be written.
    """
    if cfg.preview.output_file is None:
        return None
    file = resolve(cfg.preview.output_file).absolute()
    part = file.with_name(f"{file.name}.part")
    lines = document("What the model will see", PAGE_MARK, Path(__file__).parent / "page.css", _body(cfg, seen))
    try:
        # Whole or not at all; file names need not be UTF-8
        with part.open("w", encoding="utf-8", errors="backslashreplace") as out:
            out.writelines(f"{line}\n" for line in lines)
        part.replace(file)
    except OSError as error:
        raise UserError(
            f"preview.output_file={cfg.preview.output_file}: it can't be written ({error.strerror or error})."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return file


def _body(cfg: Config, seen: PreviewData) -> Iterator[str]:
    files = ", ".join(f"<code>{escape(n)}</code>" for n in _sources(cfg))
    shown = seen.shown[: cfg.preview.rows]
    yield (
        f'<p class="quiet">{files}, for <code>{escape(cfg.model.model_name_or_path)}</code> in the form of '
        f"{escape(seen.form)}, rows of at most {cfg.train.max_length:,} tokens (train.max_length)</p>"
    )
    yield "</header>\n<main>"
    if cfg.data.streaming:
        yield f"<p>The rows are streamed: these figures are those of the first {seen.train.read:,} rows.</p>"
    yield from _tiles(seen.train)
    yield from _lists(seen)
    yield from _lengths(cfg, seen)
    yield '<div class="beside">\n<section>'
    yield from _padding(seen)
    yield "</section>\n<section>"
    yield from _counts(seen)
    yield "</section>\n</div>"
    yield f'<h2>{_some(len(shown), None if cfg.data.streaming else seen.train.read)}</h2>\n<ul class="legend">'
    yield "<li><mark>the loss counts it: trained</mark></li><li class=quiet>the model reads it: not trained</li>"
    yield '<li><span class="special">&lt;bos&gt;</span> special token</li><li>⏎ line break, ⇥ tab</li>'
    yield "<li class=quiet>a token’s id stands in its tooltip</li></ul>"
    for number, row in enumerate(shown, start=1):
        yield _row(number, row, seen.texts)
    yield "</main>"


def _sources(cfg: Config) -> list[str]:
    d = cfg.data
    return [d.dataset_name] if d.dataset_name else [v for k, v in d.named().items() if k.startswith("data.train_file")]


def _some(rows: int, every: int | None) -> str:
    if every is None:
        return f"The first {rows:,} rows"
    return f"The first {rows:,} of {every:,} rows" if rows < every else f"All {every:,} rows"


def _tiles(rows: TokenizedRows) -> Iterator[str]:
    used = rows.read - len(rows.dropped)
    share = rows.trained_tokens / rows.tokens
    yield '<dl class="tiles">'
    for name, value, note, is_warning in (
        ("rows used", used, f"of {rows.read:,} read", False),
        ("rows cut", rows.cut, "longer than train.max_length", rows.cut > 0),
        ("rows dropped", len(rows.dropped), "no trained token left", bool(rows.dropped)),
        ("bad rows skipped", len(rows.left_out()), "data.on_bad_row=skip", bool(rows.left_out())),
        ("duplicates", rows.repeated, "equal to an earlier row", bool(rows.repeated)),
        ("leaked", rows.leaked, "held out or tested, too", bool(rows.leaked)),
        ("tokens", rows.tokens, f"{rows.tokens / used:,.0f} a row", False),
    ):
        number = f"{value:,}" if isinstance(value, int) else "not looked for" if value is None else f"{len(value):,}"
        warn = ' class="warn"' if is_warning else ""
        yield f"<div{warn}><dt>{name}</dt><dd>{number}<small>{note}</small></dd></div>"
    yield (
        f"<div><dt>trained tokens</dt><dd>{rows.trained_tokens:,}<small>{share:.1%} of the tokens</small></dd>"
        f'<div class="share"><span style="width:{share:.1%}"></span></div></div>\n</dl>'
    )


def _lists(seen: PreviewData) -> Iterator[str]:
    for rows, name in ((seen.train, "Rows to train on"), (seen.held_out, "Held-out rows")):
        for what, places in (
            ("that were dropped, since no trained token is left within train.max_length", rows.dropped),
            ("that were skipped as bad", rows.left_out()),
            ("that are equal to an earlier one", rows.repeated),
            ("that are also held out or tested, so that what is measured there was trained on", rows.leaked),
        ):
            if places:
                yield from _list(f"{name} {what}: {len(places):,}", places)


def _list(title: str, places: Collection[str]) -> Iterator[str]:
    yield f'<details class="list"><summary>{title}</summary><ol>'
    yield from (f"<li><code>{escape(place)}</code></li>" for place in islice(places, _LISTED))
    yield "</ol>" + (f"<p>… and {len(places) - _LISTED:,} more</p>" if len(places) > _LISTED else "") + "</details>"


def _counts(seen: PreviewData) -> Iterator[str]:
    parts = {"to train on": seen.train.counts()}
    if seen.held_out.read:
        parts["held out"] = seen.held_out.counts()
    yield '<h2>Rows and tokens</h2>\n<div class="scroll"><table>'
    yield f"<thead><tr><th></th>{''.join(f'<th>{name}</th>' for name in parts)}</tr></thead>"
    for key in next(iter(parts.values())):
        cells = "".join(f"<td>{c[key]:,}</td>" if key in c else "<td></td>" for c in parts.values())
        yield f"<tr><td>{key.replace('_', ' ')}</td>{cells}</tr>"
    yield "</table></div>"


def _lengths(cfg: Config, seen: PreviewData) -> Iterator[str]:
    yield "<h2>Lengths</h2>"
    chart = length_chart(histogram(seen.lengths, cfg.train.max_length), percentiles(seen.lengths), cfg.train.max_length)
    yield f'<div class="scroll">{chart}</div>'
    yield (
        '<p class="quiet">Before cutting; bars beyond train.max_length are rows that are cut. Half of the rows are as '
        "long as the median or shorter.</p>"
    )


def _padding(seen: PreviewData) -> Iterator[str]:
    yield '<h2>Padding</h2>\n<div class="scroll"><table>'
    yield "<thead><tr><th></th><th>passes an epoch</th><th>padding</th></tr></thead>"
    for way in seen.batches:
        chosen = ' class="chosen"' if way.chosen else ""
        yield f"<tr{chosen}><td>{way.name}</td><td>{way.passes:,}</td><td>{way.padding:.1%}</td></tr>"
    yield "</table></div>"
    yield (
        '<p class="quiet">Padding is computed and thrown away. A batch is as wide as its longest row; packed rows are '
        "computed without padding, and the figure is the room in them that stays empty.</p>"
    )


def _row(number: int, shown: PreviewRow, texts: TokenTexts) -> str:
    trained = shown.row.trained_tokens
    says = [
        f"<b>{number:,}</b> <b>{escape(shown.where)}</b>",
        f"<span>{shown.tokens:,} tokens</span>",
        f"<span>{trained:,} trained ({shown.share:.0%})</span>",
        *(f'<span class="badge">{escape(badge)}</span>' for badge in shown.badges()),
    ]
    body = _tokens(texts.pieces(shown.row))
    if shown.is_cut:
        body += f'<span class="gap">{shown.cut_line()}</span>'
    unfolded = " open" if number <= _OPEN else ""
    return (
        f'<details class="row"{unfolded}><summary>{" ".join(says)}</summary>'
        f'<pre class="tokens" dir="auto">{body}</pre></details>'
    )


def _tokens(pieces: list[Piece]) -> str:
    half = _TOKENS // 2
    if len(pieces) <= _TOKENS:
        return _marked(pieces)
    hidden = pieces[half:-half]
    trained = sum(len(piece.ids) for piece in hidden if piece.trained)
    said = f"{sum(len(piece.ids) for piece in hidden):,} tokens are left out here, {trained:,} of them trained"
    return f'{_marked(pieces[:half])}<span class="gap">{said}</span>{_marked(pieces[-half:])}'


def _marked(pieces: list[Piece]) -> str:
    parts = []
    for trained, run in runs(pieces):
        text = "".join(map(_span, run))
        parts.append(f"<mark>{text}</mark>" if trained else text)
    return "".join(parts)


def _span(piece: Piece) -> str:
    ids = " ".join(map(str, piece.ids))
    kind = ' class="special"' if piece.special else ""
    return f'<span{kind} title="{ids}">{escape(piece.text)}</span>'
