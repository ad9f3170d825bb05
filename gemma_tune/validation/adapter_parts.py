"""What an adapter has beside the two matrices of linear layers, which not every kind of file can hold. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gemma_tune.config import Config
from gemma_tune.config.model import TRAIN_NOTHING


@dataclass(frozen=True)
class AdapterParts:
    """The parts that an adapter has.

    Attributes:
        dora: It rescales the rows of the weights.
        modules_to_save: It holds whole layers.
        token_rows: It trains rows of the embedding: those of added tokens, too.
        experts: It adapts fused experts.
        towers: Towers for images or sound are trained with it.
    """

    dora: bool = False
    modules_to_save: bool = False
    token_rows: bool = False
    experts: bool = False
    towers: bool = False

    def among(self, words: Mapping[str, str]) -> list[str]:
        """The words for those that it has, in their order; by the names of the attributes."""
        return [said for name, said in words.items() if getattr(self, name)]


def planned_parts(cfg: Config) -> AdapterParts:
    """What the adapter of a training will have."""
    a = cfg.adapter
    return AdapterParts(
        dora=a.use_dora,
        modules_to_save=bool(a.modules_to_save),
        token_rows=bool(a.trainable_token_indices or cfg.model.added_tokens),
        experts=bool(a.target_parameters),
        towers=cfg.model.train_towers != TRAIN_NOTHING,
    )
