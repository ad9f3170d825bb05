"""What the model will see: `preview`. Rows are read, split, rendered and cut as for training; no weights are loaded."""

from __future__ import annotations

import sys

from gemma_tune.config import Config
from gemma_tune.data.loading import load_rows
from gemma_tune.data.stream import stream_rows
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import find_source
from gemma_tune.preview import terminal
from gemma_tune.preview.page import write_page
from gemma_tune.preview.rows import preview_data
from gemma_tune.run.only_printed import as_yaml
from gemma_tune.run.result import RunResult


def run(cfg: Config) -> RunResult:
    """Shows the rows. There is no run folder; `artifacts["page"]` of the result is the page."""
    out = terminal.console()

    # Rows as token ids and labels, by the functions that training calls
    tokenizer = load_tokenizer(find_source(cfg.model), cfg.model.chat_template)
    load = stream_rows if cfg.data.streaming else load_rows
    train, held_out = load(cfg.data, tokenizer, cfg.train.max_length, cfg.seed, labels=True)
    result = RunResult(cfg.recipe, metrics={"data": {"training": train.counts(), "held_out": held_out.counts()}})
    if cfg.dry_run:
        out.print(as_yaml(cfg), markup=False)
        terminal.print_counts(out, train, held_out, cfg.data.streaming)
        out.print("No row was shown and no page written: dry_run=true.")
        result.status = "dry_run"
        return result

    # Where rows are cut or too long, the same once more without an end: how long they are, and what is lost
    whole = load(cfg.data, tokenizer, sys.maxsize, cfg.seed, labels=True)[0] if train.cut or train.too_long else train
    seen = preview_data(cfg, tokenizer, train, held_out, whole)

    # As a page, and in the terminal: row by row where a person sits there, else the first few
    page = write_page(cfg, seen)
    if not terminal.in_terminal():
        for place in range(min(cfg.preview.rows_shown, len(seen.shown))):
            terminal.print_row(out, seen, place)
    terminal.print_counts(out, train, held_out, cfg.data.streaming)
    terminal.print_lengths(out, seen)
    if page is not None:
        out.print(f"Page: {page}", markup=False)
        result.artifacts["page"] = str(page)
    if terminal.in_terminal():
        terminal.turn_over(out, seen)
    result.status = "finished"
    return result
