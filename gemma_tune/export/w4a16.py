"""`export=w4a16`: int4 weights in blocks of 32 for vLLM and Transformers, in the format of compressed-tensors.

https://docs.vllm.ai/en/latest/features/quantization/llm_compressor/int4.html, with blocks of 32 in place of 128.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import compressed_tensors
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
    QuantizationType,
)

from gemma_tune.config import ExportConfig
from gemma_tune.config.quant import STORED
from gemma_tune.errors import UserError
from gemma_tune.export.file_tensor import FileTensor
from gemma_tune.export.merged_from_grid import dense, narrowest
from gemma_tune.export.tensors import TrainedTensors, by_rows
from gemma_tune.export.transformers_folder import write_folder
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.load import family_of
from gemma_tune.models.source import Source
from gemma_tune.quant.plan import Plan

BITS, BLOCK = 4, 32


def export(
    trained: TrainedTensors, plan: Plan, model: Any, tokenizer: Any, folder: Path, options: ExportConfig, source: Source
) -> list[Path]:
    """Writes the codes, 8 in an int32, with their scales; every other tensor is dense.

    Weights that bfloat16 holds exactly get bfloat16 scales. For `q4_0_fp16`, llama.cpp's own rule, it doesn't: the
    scales are float16, and config.json says float32, because bfloat16 would move the weights by up to 0.8 %.

    Args:
        trained: Every tensor of the language part (`trained_tensors`).
        plan: The plan that its codes are of.
        model: The trained model, or a PeftModel around it: its generation config.
        tokenizer: The tokenizer with our template.
        folder: Where to write.
        options: `max_shard_size`.
        source: What the model was loaded from.

    Returns:
        The files written.

    Raises:
        UserError: A grid whose codes have more than 4 bits, or whose blocks are not 32 wide.
    """
    packed = [name for name in plan.grids if _is_projection(name)]
    for name in packed:
        grid = plan.grids[name]
        if grid.bits > BITS or grid.block != BLOCK:
            raise UserError(
                f"export.formats: w4a16 holds codes of {BITS} bits in blocks of {BLOCK}, and {name} is on the grid "
                f"{grid.name}: set quant.grid=q4_0, or leave w4a16 out."
            )
    narrow = all(narrowest(name, trained, plan) == torch.bfloat16 for name in plan.grids)
    if not narrow:
        rounds = (
            "rounds the products of codes and scales, as it does with the checkpoint's own"
            if plan.name == STORED
            else "moves these weights by up to 0.8 %; with quant.grid=q4_0 it serves what was trained"
        )
        print(
            f"w4a16: exact where it is computed in float32. vLLM computes in bfloat16, which {rounds}.", file=sys.stderr
        )
    parts = {name: _parts(name, trained, torch.bfloat16 if narrow else torch.float16) for name in packed}
    tensors = {n: parts[n]["_packed"] if n in parts else dense(n, trained, plan) for n in trained}
    return write_folder(
        tensors,
        torch.bfloat16 if narrow else torch.float32,
        quantization_config(CheckpointFiles.of(source, family_of(source))),
        model,
        tokenizer,
        folder,
        options,
        source,
        parts,
    )


def quantization_config(checkpoint: CheckpointFiles) -> dict[str, Any]:
    """The `quantization_config` of config.json, with all keys that llm-compressor writes."""
    towers = [name for name in checkpoint.files if checkpoint.family.is_tower(name)]
    described = QuantizationConfig(
        config_groups={
            "group_0": QuantizationScheme(
                targets=["Linear"],
                weights=QuantizationArgs(
                    num_bits=BITS,
                    type=QuantizationType.INT,
                    symmetric=True,
                    strategy=QuantizationStrategy.GROUP,
                    group_size=BLOCK,
                    dynamic=False,
                ),
                format=CompressionFormat.pack_quantized,
            )
        },
        format=CompressionFormat.pack_quantized.value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=_ignored(towers),
    ).model_dump(mode="json")
    return {"version": compressed_tensors.__version__, "sparsity_config": {}, "transform_config": {}, **described}


def _ignored(towers: Iterable[str]) -> list[str]:
    """Linear layers that stay dense, as patterns: vLLM and Transformers put different prefixes before a part's name."""
    parts = sorted({name.removeprefix("model.").split(".")[0] for name in towers})
    return ["lm_head" if not parts else "re:.*lm_head$", *(rf"re:.*{re.escape(part)}\." for part in parts)]


def _is_projection(name: str) -> bool:
    """Whether it is neither the embedding nor the head, which are dense in this format."""
    return ".layers." in name


def _parts(name: str, trained: TrainedTensors, dtype: torch.dtype) -> Mapping[str, FileTensor]:
    """One layer's tensors, by the suffix of their names after `.weight`."""
    rows, width = shape = by_rows(trained, name).shape

    def packed() -> Iterator[torch.Tensor]:
        return (pack_to_int32(block.codes, BITS) for block in by_rows(trained, name).blocks)

    def scales() -> Iterator[torch.Tensor]:
        return (block.scales.to(dtype) for block in by_rows(trained, name).blocks)

    return {
        "_packed": FileTensor((rows, -(-width * BITS // 32)), torch.int32, packed),
        "_scale": FileTensor((rows, width // BLOCK), dtype, scales),
        "_shape": FileTensor.of(torch.tensor(shape)),
    }
