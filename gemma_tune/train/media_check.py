"""The check before training that images and sounds reach the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gemma_tune.chat import Rendered
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.media import media_inputs
from gemma_tune.models.padding import pad_rows
from gemma_tune.models.towers import seeing
from gemma_tune.models.unwrap import language_part


def media_line(model: Any, tokenizer: Any, rows: Sequence[Rendered]) -> str | None:
    """The loss of the first row with media, with them and without; None where no row has any.

    Args:
        model: The model, or a PeftModel around it.
        tokenizer: Its tokenizer.
        rows: Rows to look at.

    Raises:
        ValueError: The loss isn't finite, or the media change nothing: then the towers give nothing.
    """
    row = next((row for row in rows if row.media), None)
    if row is None:
        return None
    inputs, first = pad_rows(language_part(model), [row]), row.media[0]["path"]
    with evaluating(model):
        without = model(**inputs).loss.item()
        with seeing(model, media_inputs(tokenizer, [row])):
            loss = model(**inputs).loss.item()
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss} with {first}: the towers overflow; set model.dtype=float32.")
    if loss == without:
        raise ValueError(f"{first} changes nothing: the loss is {loss:.4f} with it and without.")
    tokens = sum(medium["tokens"] for medium in row.media)
    return f"{tokens} of {len(row.input_ids)} tokens of a row; its loss is {loss:.4f}, and {without:.4f} without them"
