"""`export=w4a16`: int4 weights in blocks of 32 for vLLM and Transformers, in the format of compressed-tensors.

https://docs.vllm.ai/en/latest/features/quantization/llm_compressor/int4.html, with blocks of 32 in place of 128.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
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
from gemma_tune.export.file_tensor import FileTensor
from gemma_tune.export.merged_from_grid import dense, narrowest
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.tensors import TrainedTensors, by_rows
from gemma_tune.export.transformers_folder import write_folder
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.family import Family
from gemma_tune.models.load import family_of
from gemma_tune.quant.grid import Encoded
from gemma_tune.quant.plan import Plan

BITS, BLOCK = 4, 32


def export(given: ModelOnGrid, folder: Path, options: ExportConfig) -> list[Path]:
    """A `FolderWriter` of the codes, 8 in an int32, with their scales; every other tensor is dense.

    Fused experts are written one by one, under the names that vLLM reads (`experts.3.gate_proj.weight_packed`);
    Transformers has no place for these: see `export_dense_experts`.

    Weights that bfloat16 holds exactly get bfloat16 scales. For `q4_0_fp16`, llama.cpp's own rule, it doesn't: the
    scales are float16, and config.json says float32, because bfloat16 would move the weights by up to 0.8 %.
    """
    return _export(given, folder, options, packs_experts=True)


def export_dense_experts(given: ModelOnGrid, folder: Path, options: ExportConfig) -> list[Path]:
    """As `export`, with fused experts as plain numbers of the grid, so that Transformers loads the folder."""
    return _export(given, folder, options, packs_experts=False)


def _export(given: ModelOnGrid, folder: Path, options: ExportConfig, packs_experts: bool) -> list[Path]:
    trained, plan = given.trained, given.plan
    family = family_of(given.source)
    packed = [name for name in plan.grids if _is_packed(family, name, packs_experts)]
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
    dtype = torch.bfloat16 if narrow else torch.float16
    # Four parts of the file are of one expert's tensor, and follow each other: its codes are taken once
    of_expert = lru_cache(maxsize=4)(partial(_of_expert, trained))
    parts = {name: dict(_parts(name, trained, dtype, family, of_expert)) for name in packed}
    tensors = {n: next(iter(parts[n].values())) if n in parts else dense(n, trained, plan) for n in trained}
    return write_folder(
        tensors,
        torch.bfloat16 if narrow else torch.float32,
        quantization_config(CheckpointFiles.of(given.source, family), plan),
        given.model,
        given.tokenizer,
        folder,
        options,
        given.source,
        parts,
    )


def quantization_config(checkpoint: CheckpointFiles, plan: Plan) -> dict[str, Any]:
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
        ignore=_ignored(towers, checkpoint.family, plan),
    ).model_dump(mode="json")
    return {"version": compressed_tensors.__version__, "sparsity_config": {}, "transform_config": {}, **described}


def _ignored(towers: Iterable[str], family: Family, plan: Plan) -> list[str]:
    """Linear layers that stay dense, as patterns: vLLM and Transformers put different prefixes before a part's name."""
    parts = sorted({name.removeprefix("model.").split(".")[0] for name in towers})
    kept = [
        end
        for end in (*family.sixteen_bit, *family.float32)
        if any(re.search(rf"\.{re.escape(end)}(\.\d+)?\.weight$", name) for name in plan.kept)
    ]
    if not parts and not kept:
        return ["lm_head"]
    return [
        "re:.*lm_head$",
        *(rf"re:.*{re.escape(part)}\." for part in parts),
        *(rf"re:.*\.{re.escape(end)}(\.\d+)?$" for end in kept),
    ]


def _is_packed(family: Family, name: str, packs_experts: bool) -> bool:
    """Whether it is neither an embedding nor the head, which are dense in this format."""
    return packs_experts if family.is_expert(name) else ".layers." in name


def _parts(
    name: str,
    trained: TrainedTensors,
    dtype: torch.dtype,
    family: Family,
    of_expert: Callable[[str, int], Encoded],
) -> Iterator[tuple[str, FileTensor]]:
    """One tensor's parts in the file, by what its name there has at its end, or in place of its last word."""
    own, shape = name.rsplit(".", 1)[-1], by_rows(trained, name).shape
    if not family.is_expert(name):
        yield from _packed("", shape[0], shape[1], lambda: by_rows(trained, name).blocks, dtype)
        return
    experts, out, width = shape
    layers = ("gate_proj", "up_proj") if own == "gate_up_proj" else (own,)
    rows = out // len(layers)
    for expert in range(experts):
        for i, layer in enumerate(layers):
            read = partial(_some_rows, of_expert, name, expert, slice(i * rows, (i + 1) * rows))
            yield from _packed(f".{expert}.{layer}.weight", rows, width, read, dtype)


def _of_expert(trained: TrainedTensors, name: str, expert: int) -> Encoded:
    """The codes of one expert, [out, in]."""
    (block,) = by_rows(trained, name, slice(expert, expert + 1)).blocks
    return Encoded(*(part[0] for part in block))


def _some_rows(of_expert: Callable[[str, int], Encoded], name: str, expert: int, rows: slice) -> Iterator[Encoded]:
    yield Encoded(*(part[rows] for part in of_expert(name, expert)))


def _packed(
    name: str, rows: int, width: int, read: Callable[[], Iterator[Encoded]], dtype: torch.dtype
) -> Iterator[tuple[str, FileTensor]]:
    def codes() -> Iterator[torch.Tensor]:
        return (pack_to_int32(block.codes, BITS) for block in read())

    def scales() -> Iterator[torch.Tensor]:
        return (block.scales.to(dtype) for block in read())

    yield f"{name}_packed", FileTensor((rows, -(-width * BITS // 32)), torch.int32, codes)
    yield f"{name}_scale", FileTensor((rows, width // BLOCK), dtype, scales)
    yield f"{name}_shape", FileTensor.of(torch.tensor((rows, width)))
