"""The update with rewards: which rows share a forward pass, and which have none."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from trl import GRPOTrainer

from gemma_tune.models.family import BY_DOCUMENT
from gemma_tune.models.unwrap import language_part
from gemma_tune.rl.prompts import ROWS, PromptTrainer

Batch = dict[str, Any]
# Losses whose sum over micro-batches doesn't depend on how rows are grouped; `bnpo` divides by a micro-batch's tokens.
_ADDED_UP = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


class _Computed(NamedTuple):
    """The rows of a micro-batch that are computed.

    Attributes:
        rows: Their places.
        log_probs: What the others' log-probabilities are taken for, [B, C]: those by which their ratio is 1.
    """

    rows: torch.Tensor
    log_probs: torch.Tensor


class UpdateTrainer(PromptTrainer):
    """Stands before GRPOTrainer or RLOOTrainer, and in the update:

    - Rows whose advantages are 0 have no forward and backward pass: all completions of their prompts have the same
      reward, and their part of the loss, of its gradient and of the shares of clipped ratios is 0. They count in every
      denominator; only the logged `entropy` is the others'. So where the loss has another term for them (β of GRPO, an
      entropy bonus, the experts' loss, a threshold of entropies), or TRL logs their ratios (`vespo`), they stay in. Of
      a micro-batch without an advantage two tokens are computed, so that each weight has a gradient, 0, and processes
      meet as often.
    - TRL shuffles the rows of a generation. Of each optimizer step they are ordered by their prompts again, so that
      micro-batches hold completions that share one (`train.compact_batches`). Steps hold the rows that TRL drew.
    """

    _skip_zero_advantages: bool = True
    _computed: _Computed | None = None
    _buffered_inputs: Any
    loss_type: str
    beta: float

    @property
    def _grpo(self) -> bool:
        return isinstance(self, GRPOTrainer)

    @property
    def _rows_are_alike(self) -> bool:
        """Whether no term of the loss is one of a whole micro-batch."""
        entropies = getattr(self, "_entropy_bonus_enabled", False) or getattr(self, "top_entropy_quantile", 1.0) < 1
        return not entropies and not self.aux_loss_enabled

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        if self._buffered_inputs is before or not self._can_regroup():
            return inputs
        accumulated, count = self.args.gradient_accumulation_steps, self.args.steps_per_generation
        self._buffered_inputs = by_prompt(self._buffered_inputs, min(accumulated, count))
        return self._buffered_inputs[self._step % count]

    def _can_regroup(self) -> bool:
        together = self._compact_batches and language_part(self.model).config._attn_implementation == BY_DOCUMENT
        accumulated, count = sorted((self.args.gradient_accumulation_steps, self.args.steps_per_generation))
        added_up = not self._grpo or self.loss_type in _ADDED_UP
        return together and added_up and self._rows_are_alike and count % accumulated == 0

    def _can_skip(self) -> bool:
        """The same on all processes."""
        alone = not self._grpo or (self.beta == 0 and self.loss_type != "vespo")
        return self._skip_zero_advantages and self.model.training and alone and self._rows_are_alike

    def _compute_loss(self, model: Any, inputs: Batch) -> Any:
        if not self._can_skip():
            return super()._compute_loss(model, inputs)
        advantages = inputs["advantages"]
        rows = advantages.flatten(1).any(1) if advantages.ndim > 1 else advantages != 0
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        self._computed = None if rows.all() else _Computed(rows.nonzero()[:, 0], with_ratio_1(inputs))
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._computed = None
        self._entropy_of((mask * rows[:, None]).sum(), mask.sum())
        return loss

    def _entropy_of(self, computed: torch.Tensor, tokens: torch.Tensor) -> None:
        """Corrects the logged entropy, whose sum is that of the computed rows, and whose count that of all tokens."""
        some, every = self.accelerator.reduce(torch.stack([computed, tokens]).float(), reduction="sum").tolist()
        metrics = self._metrics["train"]
        last = metrics["entropy"].pop()
        if some:
            metrics["entropy"].append(last * every / some)
        elif not metrics["entropy"]:
            del metrics["entropy"]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """TRL's log-probabilities, entropies and the experts' loss; of rows that aren't computed ratios are 1."""
        compute, computed = super()._get_per_token_logps_and_entropies, self._computed
        if computed is None:
            return compute(model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs)
        rows, all_rows = computed.rows, self._rows
        if not len(rows) and not self._has_media:
            two = input_ids[:1, -logits_to_keep - 1 :][:, :2]
            found = compute(model, two, torch.ones_like(two), 1, **kwargs)[0]
            return computed.log_probs + 0 * found.sum(), torch.zeros_like(computed.log_probs), None
        rows = rows if len(rows) else rows.new_zeros(1)  # media need their soft tokens
        self._rows = [all_rows[row] for row in rows.tolist()]
        try:
            found, entropies, _ = compute(model, input_ids[rows], attention_mask[rows], logits_to_keep, **kwargs)
        finally:
            self._rows = all_rows
        log_probs = computed.log_probs.to(found.dtype)
        if entropies is not None:
            some = entropies[: len(computed.rows)].to(found.dtype)  # not that of the one that is there for its media
            entropies = torch.zeros_like(log_probs).index_copy(0, computed.rows, some)
        return log_probs.index_copy(0, rows, found), entropies, None


def with_ratio_1(inputs: Batch) -> torch.Tensor:
    """Log-probabilities, [B, C], with which each ratio of an update is 1."""
    mask = inputs["completion_mask"].float()
    if "old_logps" in inputs:  # of whole completions, RLOO
        found: torch.Tensor = inputs["old_logps"][:, None] * mask / mask.sum(1, keepdim=True).clamp(min=1)
        return found
    old = inputs.get("old_per_token_logps")
    return torch.zeros_like(mask) if old is None else old


def by_prompt(batches: list[Batch], together: int) -> list[Batch]:
    """Micro-batches of which each `together` have the same rows as before, ordered by their prompts.

    Prompts are in the order in which they first come, and so are the rows of each.

    Args:
        batches: With tensors of one row for each completion, or of a single number.
        together: How many of them are one optimizer step's.
    """
    found = []
    for start in range(0, len(batches), together):
        part = batches[start : start + together]
        first: dict[int, int] = {}
        rows = torch.cat([batch[ROWS] for batch in part]).tolist()
        order = torch.tensor([first.setdefault(row, len(first)) for row in rows]).argsort(stable=True)
        places = order.split(len(part[0][ROWS]))
        joined = {n: torch.cat([b[n] for b in part]) for n, x in part[0].items() if _has_rows(x)}
        found += [batch | {n: x[at] for n, x in joined.items()} for batch, at in zip(part, places, strict=True)]
    return found


def _has_rows(values: Any) -> bool:
    return isinstance(values, torch.Tensor) and values.ndim > 0
