"""What is looked at before a model is trained."""

from __future__ import annotations

from typing import Any

from gemma_tune.data.dataset import Rows
from gemma_tune.models.untrained import untrained_tokens

_NAMED = 8


def untrained_warning(model: Any, tokenizer: Any, rows: Rows) -> str | None:
    """The warning for rows with tokens that the model never trained, where adapters leave the embedding frozen.

    Args:
        model: The base, before adapters are attached.
        tokenizer: Its tokenizer.
        rows: The rows to train on.

    Returns:
        The warning, or None where there is no such token.
    """
    found = untrained_tokens(model, tokenizer, rows.ids)
    if not found:
        return None
    found.sort(key=lambda i: i not in rows.trained_ids)  # those that it must learn to say come first
    names = ", ".join(repr(t) for t in tokenizer.convert_ids_to_tokens(found[:_NAMED]))
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    said = len(rows.trained_ids & set(found))
    return (
        f"warning: the rows hold {len(found)} tokens that this model never trained, {said} of them in answers: {names}"
        f"{more}. Adapters leave the embedding as it is, so the model will hardly learn to say them. Two ways out: "
        "train the embedding, too (recipe=full_sft), or write the rows in words that the model knows."
    )
