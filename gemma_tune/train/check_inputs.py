"""What the checks before training look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemma_tune.config import Config
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.models.adapters.weight_counts import WeightCounts
from gemma_tune.models.estimate.size import ModelSize
from gemma_tune.models.unwrap import language_part


@dataclass(frozen=True)
class CheckInputs:
    """The inputs of the checks.

    Attributes:
        cfg: The configuration.
        model: What is trained: the model, or a PeftModel around it.
        tokenizer: Its tokenizer.
        rows: The rows to train on; of a stream, the first ones.
        counts: What is trained and what is quantized.
        shape: The sizes of the model.
        weighs_tokens: Whether the trainer divides each step's loss by the tokens of all its forward passes.
        memory: GiB that training needs, estimated, and GiB that are free.
        frozen: Weights that stay frozen on purpose where all others are trained.
    """

    cfg: Config
    model: Any
    tokenizer: Any
    rows: TokenizedRows
    counts: WeightCounts
    shape: ModelSize
    weighs_tokens: bool
    memory: tuple[float, float]
    frozen: int = 0

    @property
    def base(self) -> Any:
        """The model without its adapter's wrapper."""
        return language_part(self.model)

    @property
    def chats(self) -> bool:
        """Whether the rows are conversations."""
        return any(r.messages is not None for r in self.rows.records)
