"""The warning for rows with undertrained tokens, which an adapter can hardly teach a model to say."""

from __future__ import annotations

from typing import Any

from gemma_tune.config import AdapterConfig
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.models.undertrained_tokens import undertrained_tokens

_NAMED = 8


def undertrained_warning(model: Any, tokenizer: Any, rows: TokenizedRows, adapter: AdapterConfig) -> str | None:
    """The warning for rows with undertrained tokens, where an adapter leaves their rows of the embedding frozen.

    Args:
        model: The base, before adapters are attached.
        tokenizer: Its tokenizer.
        rows: The rows to train on.
        adapter: What is trained.

    Returns:
        The warning, or None without such tokens.
    """
    if adapter.peft_type == "none":
        return None
    found = sorted({*undertrained_tokens(model, tokenizer, rows.ids)} - {*adapter.trainable_token_indices})
    if not found:
        return None
    found.sort(key=lambda i: i not in rows.trained_ids)  # those that it must learn to write come first
    names = ", ".join(repr(t) for t in tokenizer.convert_ids_to_tokens(found[:_NAMED]))
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    said = len(rows.trained_ids & set(found))
    ids = ",".join(map(str, sorted(found)))
    return (
        f"warning: the rows hold {len(found)} tokens that this model never trained, {said} of them in answers: {names}"
        f"{more}. The adapter leaves the embedding as it is, so the model will hardly learn to say them. Two ways out: "
        f"train their rows of the embedding, too (adapter.trainable_token_indices=[{ids}]), or write the rows in words "
        "that the model knows."
    )
