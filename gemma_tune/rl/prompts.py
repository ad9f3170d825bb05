"""Prompts as they were rendered, with their images, sounds and videos in every forward pass of a step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from gemma_tune.chat.render import Prompt
from gemma_tune.models.kernels.shared_prefill import prefilled_once
from gemma_tune.models.towers.media import media_inputs
from gemma_tune.models.towers.towers import seeing
from gemma_tune.rl.tasks import Tasks
from gemma_tune.train.base import GemmaTrainer

ROWS = "rows"  # of each completion of a batch, the index of its row


class PromptTrainer(GemmaTrainer):
    """Stands before GRPOTrainer or RLOOTrainer: prompts are the rows', not those that TRL would make of their texts.

    TRL would prepend a second `<bos>`, and knows of media only where the whole class is trained. Here the language part
    gets them beside its token ids: when completions are generated, for their log-probabilities under policy and
    reference, and in each forward pass of the update. Rows are shuffled and split after a generation, so each carries
    its index.

    Attributes:
        _tasks: The rows.
        _prefix_caching: Whether the completions of a prompt share its prefill (`train.prefix_caching`).
    """

    _tasks: Tasks
    _prefix_caching: bool = True
    _rows: Sequence[int] = ()  # of the completions that the next forward passes are about
    _prompts: dict[int, Prompt]
    ref_model: Any
    generation_config: Any

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._rows = [row["row"] for row in inputs]
        self._prompts = {place: Prompt(self._tasks.rendered(place)) for place in dict.fromkeys(self._rows)}
        if self._has_media:
            self._write_no_soft_token()
        found = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        return {**found, ROWS: torch.tensor(self._rows)}

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        return [list(self._prompts[place]) for place in self._rows], None, {}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        # With media rows have vectors in the place of token ids
        shared = self._prefix_caching and not self._has_media
        with seeing(self.model, self._media(self._rows)), prefilled_once(self.model) if shared else nullcontext():
            return super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self._rows = inputs[ROWS].tolist()
        return super()._compute_loss(model, inputs)  # type: ignore[misc]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """TRL's log-probabilities, entropies and the experts' loss; with media one chunk of rows at a time."""
        compute = super()._get_per_token_logps_and_entropies  # type: ignore[misc]
        if not self._has_media:
            return compute(model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs)
        whose = self.ref_model if model is self.ref_model else self.model
        size, parts = batch_size or len(input_ids), []
        for start in range(0, len(input_ids), size):
            part = slice(start, start + size)
            with seeing(whose, self._media(self._rows[part])):
                parts.append(compute(model, input_ids[part], attention_mask[part], logits_to_keep, **kwargs))
        logps, entropies, losses = zip(*parts, strict=True)
        return (
            torch.cat(logps),
            None if entropies[0] is None else torch.cat(entropies),
            None if losses[0] is None else torch.stack(losses).mean(),
        )

    @property
    def _has_media(self) -> bool:
        return any(self._prompts[place].media for place in self._rows)

    def _media(self, places: Sequence[int]) -> dict[str, Any]:
        return media_inputs(self.processing_class, [self._prompts[place] for place in places])

    def _write_no_soft_token(self) -> None:
        """Forbids the model to write what stands for a medium: there would be none for it in the next forward pass."""
        soft = self.processing_class.media.soft_ids.values()
        self.generation_config.suppress_tokens = sorted({*(self.generation_config.suppress_tokens or ()), *soft})
