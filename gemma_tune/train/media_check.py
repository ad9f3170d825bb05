"""The check before training that images and sounds reach the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from gemma_tune.chat import Rendered
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.padding import pad_rows
from gemma_tune.models.towers.media import media_inputs
from gemma_tune.models.towers.towers import seeing, towers_of
from gemma_tune.models.unwrap import language_part


def media_line(model: Any, tokenizer: Any, rows: Sequence[Rendered]) -> str | None:
    """The loss of the first row with media, with them and without; None where no row has any.

    Args:
        model: The model, or a PeftModel around it.
        tokenizer: Its tokenizer.
        rows: Rows to look at.

    Raises:
        ValueError: The loss isn't finite, the media change nothing: then the towers give nothing, or the gradient of an
            adapter on them is missing.
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
    adapters = _with_gradient(model, tokenizer, row, inputs)
    tokens = sum(medium["tokens"] for medium in row.media)
    said = f"{tokens} of {len(row.input_ids)} tokens of a row; its loss is {loss:.4f}, and {without:.4f} without them"
    return f"{said}; all {adapters} matrices of the towers' adapters have gradients" if adapters else said


def _with_gradient(model: Any, tokenizer: Any, row: Rendered, inputs: dict[str, Any]) -> int:
    """How many matrices of adapters are trained on the towers of a row's media; the row's loss reaches each.

    Raises:
        ValueError: It doesn't reach one.
    """
    towers, heard = towers_of(model), [medium["kind"] == "audio" for medium in row.media]
    named = [(n, p) for n, p in towers.named_parameters() if p.requires_grad and ".lora_" in n] if towers else []
    named = [(name, p) for name, p in named if (".audio_tower." in name or ".embed_audio." in name) in heard]
    if not named:
        return 0
    with evaluating(model), torch.enable_grad(), seeing(model, media_inputs(tokenizer, [row])):
        gradients = torch.autograd.grad(model(**inputs).loss, [p for _, p in named], allow_unused=True)
    lost = [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]
    if lost:
        raise ValueError(f"{len(lost)} matrices of the towers' adapters get no gradient, for example {lost[0]}.")
    return len(named)
