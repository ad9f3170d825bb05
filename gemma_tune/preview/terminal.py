"""Rows in the terminal, one at a time; as plain text where there is no terminal."""

from __future__ import annotations

import sys
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma_tune.data.tokenized import TokenizedRows, notes_of
from gemma_tune.page.token_rows import Piece
from gemma_tune.preview.figures import percentiles, sharing_hint
from gemma_tune.preview.rows import PreviewData, PreviewRow
from gemma_tune.preview.tokens import TokenTexts, runs

_TRAINED, _READ = "bold bright_white on dark_green", "dim"
KEYS = {
    "Enter": "the next row",
    "b": "the row before",
    "a number": "that row",
    "q": "quit (so does Ctrl-D)",
    "?": "this list",
}


def in_terminal() -> bool:
    """Whether both stdin and stdout are a terminal."""
    return bool(sys.stdin and sys.stdin.isatty() and sys.stdout.isatty())


def console() -> Console:
    """A console that wraps no lines, and that writes plain text where there is no terminal."""
    return Console(highlight=False, soft_wrap=True, force_terminal=None if in_terminal() else False)


def header(shown: PreviewRow, number: int, every: int) -> Text:
    """One line about a row: file and line, its tokens, and what happened to it."""
    line = Text(f"{number:,}/{every:,}  {shown.where}", style="bold")
    trained = f"{shown.row.trained_tokens:,} trained ({shown.share:.0%})"
    line.append(f"  {shown.tokens:,} tokens, {trained}", style="not bold")
    for badge in shown.badges():
        line.append(f"  [{badge}]", style="not bold yellow")
    return line


def body(shown: PreviewRow, texts: TokenTexts, colours: bool) -> Text:
    """The tokens of a row.

    Args:
        shown: The row.
        texts: The texts of its tokens.
        colours: Whether colours mark what is trained; if not, ⟦ and ⟧ do.
    """
    text = Text()
    for trained, run in runs(texts.pieces(shown.row)):
        marked = trained and not colours
        text.append("⟦" if marked else "")
        for special, pieces in groupby(run, key=lambda piece: piece.special):
            style = f"{_TRAINED if trained else _READ}{' underline' if special else ''}"
            text.append("".join(map(_seen, pieces)), style=style)
        text.append("⟧" if marked else "")
    if shown.is_cut:
        text.append(f"\n✂ {shown.cut_line()}", style="yellow")
    return text


def _seen(piece: Piece) -> str:
    return f"[{piece.medium}, {piece.times:,} tokens]" if piece.medium else piece.text


def print_row(out: Console, seen: PreviewData, place: int) -> None:
    """Prints a row: its header and its tokens."""
    out.print()
    out.print(header(seen.shown[place], place + 1, seen.train.read))
    text = body(seen.shown[place], seen.texts, colours=out.is_terminal and not out.no_color)
    out.print(text, end="\n" if text.plain.endswith("\n") else "\n\n")


def print_counts(out: Console, train: TokenizedRows, held_out: TokenizedRows, streamed: bool) -> None:
    """Prints counts of rows and tokens, and notes about them."""
    counts = {"training": train.counts(), "validation": held_out.counts()}
    table = Table(title="Rows and tokens", title_justify="left")
    table.add_column("")
    for name in counts:
        table.add_column(name, justify="right")
    for key in counts["training"]:
        table.add_row(key.replace("_", " "), *(f"{c[key]:,}" if key in c else "" for c in counts.values()))
    out.print(table)
    if streamed:
        out.print(f"Training rows are streamed: these are the first {train.read:,}.")
    for note in notes_of(train, held_out):
        out.print(note, markup=False)


def print_lengths(out: Console, seen: PreviewData) -> None:
    """Prints the lengths of the rows, and in each way of batching the shares of padding and of computed tokens."""
    out.print("Lengths before cutting: " + ", ".join(f"{k} {v:,}" for k, v in percentiles(seen.lengths).items()) + ".")
    for way in seen.batches:
        computed = "" if way.computed is None else f", {way.computed:.1%} computed"
        out.print(f"Padding: {way.padding:6.1%} {way.name}{computed}{' ← this configuration' if way.chosen else ''}")
    if hint := sharing_hint(seen.batches):
        out.print(hint)


def turn_over(out: Console, seen: PreviewData) -> None:
    """Shows one row after the other, by the keys that are pressed."""
    every, place = seen.train.read, 0
    print_row(out, seen, place)
    while True:
        try:
            out.print(f"row {place + 1:,} of {every:,} (Enter: next, b: back, a number, q: quit, ?: help)> ", end="")
            key = input().strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        wanted = _wanted(key, place)
        if key == "q":
            return
        if wanted is None:
            if key != "?":
                out.print(f"(there is no key {key})", markup=False)
            for name, meaning in KEYS.items():
                out.print(f"  {name:9} {meaning}")
        elif 0 <= wanted < len(seen.shown):
            place = wanted
            print_row(out, seen, place)
        else:
            out.print(f"(rows 1 to {len(seen.shown):,} can be shown here; this is row {place + 1:,})")


def _wanted(key: str, place: int) -> int | None:
    """The place of the row that a key asks for; None for any other key."""
    number = key.replace(",", "")
    if number.isdecimal():
        return int(number) - 1
    return {"": place + 1, "b": place - 1}.get(key)
