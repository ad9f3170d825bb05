"""What each tensor is quantized to: linear layers to the grid, embeddings as configured, norms not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_tune.errors import UserError
from gemma_tune.models.family import EMBEDDING, EXPERTS, FAMILIES, FLOAT32, LINEAR, PER_LAYER_EMBEDDING
from gemma_tune.models.unwrap import stored_tensors
from gemma_tune.processes import is_main_process
from gemma_tune.quant.grid import GRIDS, Grid
from gemma_tune.run.manifest import write_json
from gemma_tune.run.paths import PLAN

KEPT_16, KEPT_32 = "16 bit", "float32"


@dataclass(frozen=True)
class Plan:
    """The format of each tensor of a language part.

    Attributes:
        grids: The grid of each tensor that is on one, by its name in the language part. A head tied to the embedding
            is the same tensor, `model.embed_tokens.weight`.
        kept: `16 bit` or `float32` for every other tensor, buffers of the checkpoint among them.
        sizes: The number of weights of every tensor.
        remarks: What else is to be said before anything is trained.
        beside: Bytes of the int4 file that no bits per weight count: a format's scales of rows and of activations, and
            what it stores twice.
    """

    grids: Mapping[str, Grid]
    kept: Mapping[str, str]
    sizes: Mapping[str, int]
    remarks: tuple[str, ...] = ()
    beside: int = 0

    def lines(self) -> list[str]:
        """One line for each kind of tensor: its format, how many there are, and their size; then the remarks."""
        found: Counter[tuple[str, str]] = Counter()
        weights: Counter[tuple[str, str]] = Counter()
        for name in self.sizes:
            what = self.grids[name].name if name in self.grids else self.kept[name]
            kind = ".".join(part for part in name.split(".") if not part.isdigit())
            found[kind, what] += 1
            weights[kind, what] += self.sizes[name]
        lines = [f"{what}: {kind} ({n} × {weights[kind, what] // n:,})" for (kind, what), n in found.items()]
        total = f"{sum(self.sizes.values()):,} weights in {self.bytes:,} bytes"
        return [*lines, f"int4 file: {total} ({self.bits_per_weight:.2f} bits per weight)", *self.remarks]

    @property
    def frozen(self) -> int:
        """The number of weights that are kept in 16 bit and therefore not trained."""
        return sum(self.sizes[tensor] for tensor, kept in self.kept.items() if kept == KEPT_16)

    @property
    def has_experts(self) -> bool:
        """Whether fused experts are on a grid: tensors whose names don't end with `weight`."""
        return any(not name.endswith(".weight") for name in self.grids)

    @property
    def name(self) -> str:
        """The grid of most weights, which names the files."""
        sizes: Counter[str] = Counter()
        for tensor, grid in self.grids.items():
            sizes[grid.name] += self.sizes[tensor]
        return sizes.most_common(1)[0][0]

    def as_dict(self) -> dict[str, str]:
        """The format of each tensor by its name, for `quant_plan.json`."""
        return {name: self.grids[name].name if name in self.grids else self.kept[name] for name in self.sizes}

    def save(self, folder: Path) -> None:
        """Writes `quant_plan.json` into a run folder; of several processes the first one does."""
        if is_main_process():
            write_json(folder / PLAN, self.as_dict())

    @property
    def bytes(self) -> int:
        """Bytes of all tensors, scales included, as a GGUF file or a folder for phones holds them.

        Without metadata, tokenizer and towers.
        """
        bits = {KEPT_16: 16.0, KEPT_32: 32.0}
        total = sum(
            n * (self.grids[name].bits_per_weight if name in self.grids else bits[self.kept[name]])
            for name, n in self.sizes.items()
        )
        return round(total / 8) + self.beside

    @property
    def bits_per_weight(self) -> float:
        """Mean over all weights, scales included, as in `bytes`; of a file, see `Size.bits_per_weight`."""
        return 8 * self.bytes / sum(self.sizes.values())


def plan_of(model: Any, grid: str, embedding: str | None, per_layer_embedding: str | None = None) -> Plan:
    """The plan of a language part.

    Args:
        model: The model without an adapter.
        grid: Grid of the linear layers and experts, a name of `GRIDS`.
        embedding: Grid of the embedding (and the head tied to it); None keeps it in 16 bit.
        per_layer_embedding: Grid of the table of per-layer embeddings, half of Gemma 4 E2B; None keeps it in 16 bit.

    Raises:
        UserError: A width that is not a multiple of the block, or a tensor that the plan has no rule for.
    """
    family = FAMILIES[model.config.model_type]
    of_kind = {LINEAR: grid, EXPERTS: grid, EMBEDDING: embedding, PER_LAYER_EMBEDDING: per_layer_embedding}
    grids: dict[str, Grid] = {}
    kept: dict[str, str] = {}
    sizes: dict[str, int] = {}
    problems = []
    for name, tensor in stored_tensors(model):  # a tied pair is named once
        sizes[name] = tensor.numel()
        kind = family.kind_of(name, tensor.ndim)
        if kind is None:
            problems.append(f"{name}: the int4 plan has no rule for this tensor of {family.name}.")
        elif chosen := of_kind.get(kind):
            grids[name] = GRIDS[chosen]
        else:
            kept[name] = KEPT_32 if kind == FLOAT32 else KEPT_16
        if name in grids and tensor.shape[-1] % grids[name].block:
            width, block = tensor.shape[-1], grids[name].block
            problems.append(
                f"{name}: its width {width} is not a multiple of {block}, as the grid {grids[name].name} needs it."
            )
    if problems:
        raise UserError(*problems[:5])
    return Plan(grids, kept, sizes)
