"""The engine for a model loaded by Transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch

from gemma_tune.chat import Rendered
from gemma_tune.engines.generate import greedy_answers
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.head import head_of, nll, trained_positions, trained_states
from gemma_tune.models.padding import pad_rows
from gemma_tune.models.sharded import is_sharded
from gemma_tune.models.towers.media import media_inputs
from gemma_tune.models.towers.towers import seeing
from gemma_tune.models.unwrap import language_part
from gemma_tune.processes import in_shares
from gemma_tune.progress import progress


class TransformersEngine:
    """A model loaded by Transformers, with or without an adapter. It restores the model's mode and the random state.

    Args:
        model: The model, or a PeftModel around it.
        tokenizer: Its tokenizer.
        eval_batch_size: Rows per forward pass for losses.
        batch_size: Prompts per batch for answers, at most; fewer of long ones.
    """

    def __init__(self, model: Any, tokenizer: Any, eval_batch_size: int = 8, batch_size: int = 8) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length: int = model.config.get_text_config().max_position_embeddings
        self.stops = frozenset(model.generation_config.eos_token_id)
        self._eval_batch_size, self._batch_size = eval_batch_size, batch_size

    def losses(self, rows: Sequence[Rendered], name: str) -> list[float]:
        """See `Engine`."""
        return row_losses(self.model, rows, self.tokenizer, self._eval_batch_size, name)

    def log_probs(self, rows: Sequence[Sequence[int]], name: str) -> Iterator[torch.Tensor]:
        """See `Engine`."""
        device = self.model.get_input_embeddings().weight.device
        for row in progress(rows, desc=name, unit=" rows"):
            ids, media = torch.tensor([row], device=device), media_inputs(self.tokenizer, [row])
            with evaluating(self.model), seeing(self.model, media, ids) as given:
                logits = self.model(input_ids=ids, **given).logits[0]
            yield logits.float().log_softmax(-1).cpu()

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, name: str) -> list[list[int]]:
        """See `Engine`."""
        return greedy_answers(self.model, self.tokenizer, prompts, max_new_tokens, self._batch_size, name)


def row_losses(model: Any, rows: Sequence[Rendered], tokenizer: Any, batch_size: int, name: str) -> list[float]:
    """Negative log-likelihood of each row's trained tokens, summed, in nats, in the rows' order.

    Args:
        model: The model, or a PeftModel around it.
        rows: Rendered rows.
        tokenizer: For the padding id, and the processor of images, sounds and videos.
        batch_size: Rows per forward pass; batches are length-grouped.
        name: The label of the progress bar.
    """
    base, through = language_part(model), model if is_sharded(model) else None
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))  # little padding
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def of_share(share: list[list[int]]) -> Iterator[list[float]]:
        for places in progress(share, desc=name, unit=" batches"):
            batch = [rows[i] for i in places]
            yield _batch_losses(base, batch, tokenizer, through)

    with evaluating(model):
        losses = in_shares(batches, of_share)
    found: dict[int, float] = dict(zip(chain(*batches), chain(*losses), strict=True))
    return [found[place] for place in range(len(rows))]


def _batch_losses(base: Any, batch: Sequence[Rendered], tokenizer: Any, through: Any) -> list[float]:
    inputs = pad_rows(base, batch, tokenizer.pad_token_id)
    with seeing(base, media_inputs(tokenizer, batch), inputs["input_ids"]) as given:
        hidden_NH, labels_N = trained_states(base, inputs, through, given)
    trained, _ = trained_positions(inputs["labels"])
    losses_N = nll(hidden_NH, head_of(base), labels_N).double().cpu()
    sums = torch.zeros(len(batch), dtype=torch.float64)
    return list(sums.index_add(0, trained.nonzero()[:, 0].cpu(), losses_N).tolist())
