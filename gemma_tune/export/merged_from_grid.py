"""`export=merged` for a model on a grid: a plain Transformers folder with the decoded weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from gemma_tune.config import ExportConfig
from gemma_tune.export.file_tensor import FileTensor
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.tensors import TrainedTensors, by_rows, decoded_blocks
from gemma_tune.export.transformers_folder import write_folder
from gemma_tune.quant.plan import Plan


def export(given: ModelOnGrid, folder: Path, options: ExportConfig) -> list[Path]:
    """A `FolderWriter` of the decoded weights.

    Each tensor has the narrower of bfloat16 and `options.dtype` that holds its numbers exactly; norms that were
    trained in float32 keep it.
    """
    trained, plan = given.trained, given.plan
    wide = options.dtype == "float32"
    tensors = {n: dense(n, trained, plan, torch.float32 if wide else None) for n in trained}
    dtype = torch.bfloat16
    if wide or any(tensors[name].dtype == torch.float32 for name in plan.grids):
        dtype = torch.float32
    if dtype == torch.float32 and not wide:
        grids = ", ".join(sorted({grid.name for grid in plan.grids.values()}))
        print(f"merged: written in float32: bfloat16 can't hold the weights of {grids}.", file=sys.stderr)
    return write_folder(tensors, dtype, None, given.model, given.tokenizer, folder, options, given.source)


def dense(name: str, trained: TrainedTensors, plan: Plan, dtype: torch.dtype | None = None) -> FileTensor:
    """The decoded weights of a tensor; where no type is given, in bfloat16 where that loses nothing, else float32."""
    dtype = dtype or narrowest(name, trained, plan)

    def blocks() -> Iterator[torch.Tensor]:
        return (block.to(dtype) for block in decoded_blocks(name, by_rows(trained, name).blocks, plan))

    return FileTensor(by_rows(trained, name).shape, dtype, blocks)


def narrowest(name: str, trained: TrainedTensors, plan: Plan) -> torch.dtype:
    """bfloat16 where it holds the decoded weights of a tensor exactly, else float32."""
    if name in plan.grids and plan.grids[name].fits_bfloat16:
        return torch.bfloat16
    blocks = decoded_blocks(name, by_rows(trained, name).blocks, plan)
    return torch.bfloat16 if all(torch.equal(b.bfloat16().float(), b) for b in blocks) else torch.float32
