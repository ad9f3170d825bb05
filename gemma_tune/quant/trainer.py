"""Training on the grid: the model's probabilities are drawn to those of the unquantised one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gemma_tune.chat import Rendered
from gemma_tune.models.unwrap import head_of, language_part, padded
from gemma_tune.quant.layers import rounded_once
from gemma_tune.train.distill import Targets, summed_divergence, summed_loss, top_targets
from gemma_tune.train.sft import GemmaSFTTrainer


def trained_states(base: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states before each trained token, [N, H], and these tokens, [N]."""
    given = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "position_ids")}
    hidden = base.model(**given, use_cache=False).last_hidden_state[:, :-1]
    labels = inputs["labels"][:, 1:]
    return hidden[labels != -100], labels[labels != -100]


def targets_of(base: Any, row: Rendered, k: int) -> Targets:
    """What a model says before each trained token of a row: its K largest probabilities."""
    return targets_of_rows(base, [row], k)[0]


def targets_of_rows(base: Any, rows: Sequence[Rendered], k: int) -> list[Targets]:
    """The same of several rows at once; rows of like length leave little padding."""
    with torch.no_grad():
        hidden, _ = trained_states(base, padded(base, rows))
        found = top_targets(hidden, head_of(base), k)
    parts = [part.cpu().split([row.trained_tokens for row in rows]) for part in found]
    return [Targets(*part) for part in zip(*parts, strict=True)]


def rows_in(inputs: dict[str, Any]) -> list[Rendered]:
    """The rows of a batch, in its order: without padding, and where rows were packed, each by itself."""
    found = []
    for i, ids in enumerate(inputs["input_ids"]):
        labels = inputs["labels"][i]
        if "position_ids" in inputs:
            positions = inputs["position_ids"][i]
            starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(ids)]
            # Padding at the end has the position 0, too, a token at a time
            cuts = [(a, b) for a, b in itertools.pairwise(starts) if b > a]
            found += [Rendered(ids[a:b].tolist(), labels[a:b].tolist()) for a, b in cuts]
        else:
            n = int(inputs["attention_mask"][i].sum()) if "attention_mask" in inputs else len(ids)
            found.append(Rendered(ids[:n].tolist(), labels[:n].tolist()))
    return found


class GridTrainer(GemmaSFTTrainer):
    """GemmaSFTTrainer with KL to the unquantised model in place of cross-entropy.

    Args:
        teacher: Gives the targets of a row.
        cross_entropy: Share of cross-entropy in the loss.
    """

    def __init__(
        self, *args: Any, teacher: Callable[[Rendered], Targets], cross_entropy: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._teacher, self._cross_entropy = teacher, cross_entropy

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; the head's logits are computed again in the backward pass."""
        with rounded_once(language_part(model)):
            return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Nats a trained token of all forward passes of the step."""
        base = language_part(model)
        hidden, labels = trained_states(base, inputs)
        logits = head_of(base)
        total = hidden.new_zeros((), dtype=torch.float32)
        if self._cross_entropy < 1:
            found = [self._teacher(row) for row in rows_in(inputs) if row.trained_tokens]
            targets = Targets(*(torch.cat(part).to(hidden.device) for part in zip(*found, strict=True)))
            total = total + (1 - self._cross_entropy) * summed_divergence(hidden, logits, targets)
        if self._cross_entropy > 0:
            total = total + self._cross_entropy * summed_loss(hidden, logits, labels)
        count = len(labels) if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
        return (loss, None) if return_outputs else loss
