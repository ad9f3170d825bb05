"""`preview=…`: how `recipe=preview` shows the rows, and where."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option

# Stands in the head of every page of ours: only such a file is replaced without `overwrite=true`.
PAGE_MARK = '<meta name="generator" content="gemma_tune preview">'


@dataclass
class PreviewConfig:
    """Rows as the model will see them: token by token, with what the loss counts."""

    rows: int = option(100, "Rows on the page, the first ones.", at_least=1, at_most=1000)
    rows_shown: int = option(
        3, "Rows printed where there is no terminal to page through them.", at_least=0, at_most=1000
    )
    output_file: str | None = option(
        "preview.html",
        "The page, an HTML file; null: none. An earlier page is replaced; any other file only with `overwrite=true`.",
        path="output",
    )
