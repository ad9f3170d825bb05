"""The preview as an HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from gemma_tune.config import Config
from gemma_tune.config.preview import PAGE_MARK
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError
from gemma_tune.page.blocks import (
    Block,
    Cell,
    Charts,
    Folded,
    Listing,
    Mono,
    Section,
    Strong,
    Table,
    Text,
    Tile,
    Tiles,
    TokenRows,
)
from gemma_tune.page.histogram import length_chart
from gemma_tune.page.html import html
from gemma_tune.page.media import Gallery
from gemma_tune.page.token_rows import TokenRow
from gemma_tune.preview.figures import histogram, percentiles, sharing_hint
from gemma_tune.preview.rows import PreviewData, PreviewRow
from gemma_tune.preview.tokens import TokenTexts
from gemma_tune.run.paths import resolve

_OPEN = 3  # rows that are unfolded from the start
_LISTED = 1000  # places in a list


def write_page(cfg: Config, data: PreviewData) -> Path | None:
    """Writes `preview.output_file`; returns its path, or None where no page is wanted.

    Raises:
        UserError: The file can't be written.
    """
    if cfg.preview.output_file is None:
        return None
    file = resolve(cfg.preview.output_file).absolute()
    part = file.with_name(f"{file.name}.part")
    lines = html("What the model will see", PAGE_MARK, _sections(cfg, data))
    try:
        # Whole or not at all. File names may hold bytes that aren't UTF-8
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


def _sections(cfg: Config, data: PreviewData) -> list[Section]:
    shown = data.shown[: cfg.preview.rows]
    every = data.train.read
    title = f"The first {len(shown):,} of {every:,} rows" if len(shown) < every else f"All {every:,} rows"
    if cfg.data.streaming:
        title = f"The first {len(shown):,} rows"
    gallery = Gallery()
    rows = (_token_row(row, data.texts, gallery) for row in shown)
    return [
        Section("", [Text(_header(cfg, data), "quiet")]),
        Section("Counts", [*_streamed(cfg, every), _tiles(data.train), *_places(data)]),
        Section("Lengths", _lengths(cfg, data)),
        Section("Padding", _padding(data), width="half"),
        Section("Rows and tokens", [_counts(data)], width="half"),
        Section(title, [TokenRows(rows, _OPEN)]),
    ]


def _header(cfg: Config, data: PreviewData) -> list[str]:
    d = cfg.data
    files = [v for k, v in d.named().items() if k.startswith("data.train_file")]
    names = [d.dataset_name] if d.dataset_name else files
    return [
        *[part for name in names for part in (", ", Mono(name))][1:],
        ", for ",
        Mono(cfg.model.model_name_or_path),
        f" with the chat template of {data.form}, rows of at most {cfg.train.max_length:,} tokens (train.max_length)",
    ]


def _streamed(cfg: Config, read: int) -> list[Block]:
    text = f"The rows are streamed: these figures are those of the first {read:,} rows."
    return [Text(text)] if cfg.data.streaming else []


def _tiles(rows: TokenizedRows) -> Tiles:
    used = rows.read - len(rows.dropped)
    share = rows.trained_tokens / rows.tokens
    repeated, leaked = (
        "not looked for" if places is None else f"{len(places):,}" for places in (rows.repeated, rows.leaked)
    )
    bad = rows.left_out()
    return Tiles(
        [
            Tile("rows used", f"{used:,}", f"of {rows.read:,} read"),
            Tile("rows cut", f"{rows.cut:,}", "longer than train.max_length", rows.cut > 0),
            Tile("rows dropped", f"{len(rows.dropped):,}", _why_dropped(rows), bool(rows.dropped)),
            Tile("bad rows skipped", f"{len(bad):,}", "data.on_bad_row=skip", bool(bad)),
            Tile("duplicates", repeated, "equal to an earlier row", bool(rows.repeated)),
            Tile("leaked", leaked, "also in the validation or test set", bool(rows.leaked)),
            Tile("tokens", f"{rows.tokens:,}", f"{rows.tokens / used:,.0f} per row"),
            Tile("trained tokens", f"{rows.trained_tokens:,}", f"{share:.1%} of the tokens", share=share),
        ]
    )


def _why_dropped(rows: TokenizedRows) -> str:
    if not rows.too_long:
        return "no trained token left"
    some = "" if len(rows.too_long) == len(rows.dropped) else f"{len(rows.too_long):,} of them "
    return f"{some}with media, too long to be cut"


def _places(data: PreviewData) -> Iterator[Block]:
    """File and line of the rows that something became of."""
    for rows, name in ((data.train, "Training rows"), (data.held_out, "Validation rows")):
        too_long = set(rows.too_long)
        for what, places in (
            (
                "that were dropped, as no trained token is left within train.max_length",
                [where for where in rows.dropped if where not in too_long],
            ),
            ("with media that were dropped, as they are longer than train.max_length", rows.too_long),
            ("that were skipped as bad", rows.left_out()),
            ("that are equal to an earlier one", rows.repeated),
            ("that are also in the validation or test set, so that metrics there are too good", rows.leaked),
        ):
            if places:
                listed: list[Block] = [Listing(map(Mono, islice(places, _LISTED)), numbered=True)]
                if len(places) > _LISTED:
                    listed.append(Text(f"… and {len(places) - _LISTED:,} more"))
                yield Folded(f"{name} {what}: {len(places):,}", listed)


def _counts(data: PreviewData) -> Table:
    parts = {"training": data.train.counts()}
    if data.held_out.read:
        parts["validation"] = data.held_out.counts()
    rows = [
        [key.replace("_", " "), *(f"{c[key]:,}" if key in c else "" for c in parts.values())]
        for key in parts["training"]
    ]
    return Table(["", *parts], rows)


def _lengths(cfg: Config, data: PreviewData) -> list[Block]:
    counted = histogram(data.lengths, cfg.train.max_length)
    chart = length_chart(counted, percentiles(data.lengths), cfg.train.max_length)
    too_long = ", or dropped where they have media" if data.train.too_long else ""
    text = (
        f"Before cutting; bars beyond train.max_length are rows that are cut{too_long}. Half of the rows are as long "
        "as the median or shorter."
    )
    return [Charts({"": chart}, wide=True), Text(text, "quiet")]


def _padding(data: PreviewData) -> list[Block]:
    rows: list[Sequence[Cell]] = []
    for way in data.batches:
        cells = [
            f"{way.name} ← this configuration" if way.chosen else way.name,
            f"{way.passes:,}",
            f"{way.padding:.1%}",
            "" if way.computed is None else f"{way.computed:.1%}",
        ]
        rows.append([Strong(cell) if way.chosen else cell for cell in cells])
    text = (
        "A batch is as wide as its longest row; packed rows are computed without padding, and their figure is the "
        "share of places that stay empty. Where batches are compact (train.compact_batches; by default on a CPU) "
        "padding isn't computed, and what rows of a batch begin with alike once: the last column is the share of the "
        "tokens that is computed. Elsewhere all tokens are, and padding, which is discarded."
    )
    hint = sharing_hint(data.batches)
    table = Table(["", "batches per epoch", "padding", "computed"], rows)
    return [table, Text(text, "quiet"), *([Text(hint)] if hint else [])]


def _token_row(row: PreviewRow, texts: TokenTexts, gallery: Gallery) -> TokenRow:
    facts = [f"{row.tokens:,} tokens", f"{row.row.trained_tokens:,} trained ({row.share:.0%})"]
    cut = row.cut_line() if row.is_cut else ""
    return TokenRow(row.where, facts, row.badges(), texts.pieces(row.row), cut, gallery.media(row.row.media))
