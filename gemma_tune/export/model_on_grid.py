"""A trained model on its grid, as every writer of a folder is given it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gemma_tune.config import ExportConfig
from gemma_tune.export.tensors import TrainedTensors
from gemma_tune.models.source import Source
from gemma_tune.quant.plan import Plan


@dataclass(frozen=True)
class ModelOnGrid:
    """A trained model, with the codes and scales that all its files hold.

    Attributes:
        model: The model, or a PeftModel around it: its configuration, generation config and activations' scales.
        plan: Which tensor is on which grid.
        trained: Every tensor of the language part (`trained_tensors`), those on a grid as codes and scales of `plan`.
        tokenizer: The tokenizer with our template.
        source: What the model was loaded from: the checkpoint's names, and its towers.
    """

    model: Any
    plan: Plan
    trained: TrainedTensors
    tokenizer: Any
    source: Source


class FolderWriter(Protocol):
    """What writes one of `export.formats` as a folder: weights, config.json, generation config and tokenizer."""

    def __call__(self, given: ModelOnGrid, folder: Path, options: ExportConfig) -> list[Path]:
        """Writes the folder.

        Args:
            given: The trained model.
            folder: Where to write.
            options: `max_shard_size`, and for plain numbers the `dtype` of the weights in the files.

        Returns:
            The files written.
        """
