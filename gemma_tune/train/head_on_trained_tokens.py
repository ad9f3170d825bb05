"""On a CPU, computes logits only where the next token is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from gemma_tune.models.head import trained_positions
from gemma_tune.models.unwrap import language_part


@contextlib.contextmanager
def head_on_trained_tokens(model: Any, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Within it, the model's head sees only the positions before a trained token; yields the forward pass's inputs.

    Where Triton is installed, TRL skips the other positions itself. Elsewhere it computes logits for every position,
    which on a CPU takes half of a step when the vocabulary is large or prompts are long. The loss of these positions
    is masked either way, so it is the same.

    Args:
        model: The model, or a PeftModel around it.
        inputs: The batch, with `labels`, [B, S]; a batch without a trained token is passed on as it is.
    """
    labels = inputs.get("labels")
    if labels is None or not (labels[:, 1:] != -100).any():
        yield inputs
        return
    trained, labels_N = trained_positions(labels)

    def keep(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, :-1][trained].unsqueeze(0)
        return output

    hook = language_part(model).base_model.register_forward_hook(keep)
    try:
        kept = {k: v for k, v in inputs.items() if k != "labels"}
        yield {**kept, "shift_labels": labels_N.unsqueeze(0)}
    finally:
        hook.remove()
