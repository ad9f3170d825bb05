"""Checkpoints of the kind that Google publishes after QAT, made by the same rule: weights that are codes · scales."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file

from gemma_tune.run.paths import ASSETS

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# As vLLM's llm-compressor writes it
PACKED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["re:.*lm_head$", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32,
                "dynamic": False,
            },
        }
    },
}  # fmt: skip


def by_googles_rule(
    weight: torch.Tensor, scale_dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales, [..., N / 32, 32] and [..., N / 32, 1]: d = absmax / 8, and the code 8 is clipped to 7."""
    blocks = weight.float().unflatten(-1, (-1, 32))
    scales = (blocks.abs().amax(-1, keepdim=True) / 8).to(scale_dtype).float()
    codes = (blocks / torch.where(scales == 0, 1, scales)).round().clamp(-8, 7)
    return torch.where(scales == 0, 0, codes), scales


def products(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weights, float32."""
    return (codes * scales).flatten(-2)


def save(folder: Path, base: Path = ASSETS / "tiny", embedding: bool = True) -> dict[str, tuple[Any, Any]]:
    """A folder as `…-qat-q4_0-unquantized`: bfloat16 weights on the grid; config.json names no quantization method.

    Returns:
        Codes and scales of the weights on the grid, by their names in the files.
    """
    shutil.copytree(base, folder, dirs_exist_ok=True)
    made = {}
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            last = name.removesuffix(".weight").rsplit(".", 1)[-1]
            if "tower" in name:
                continue
            if last in PROJECTIONS or (embedding and last == "embed_tokens"):
                made[name] = by_googles_rule(tensor)
                tensors[name] = products(*made[name])
        save_file({n: t.bfloat16().contiguous() for n, t in tensors.items()}, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for part in (config, config.get("text_config", {})):
        part["quantization_config"] = {"bits": 4, "group_size": 32, "sym": True}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return made


def save_packed(folder: Path, base: Path = ASSETS / "tiny") -> dict[str, tuple[Any, Any]]:
    """A folder as `…-qat-w4a16-ct`: projections packed in groups of 32, scales and all else in bfloat16."""
    made = save(folder, base, embedding=False)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, (codes, scales) in made.items():
        shape = tensors.pop(name).shape
        tensors[f"{name}_packed"] = pack_to_int32(codes.flatten(-2).to(torch.int8), 4)
        tensors[f"{name}_scale"] = scales.squeeze(-1).bfloat16()
        tensors[f"{name}_shape"] = torch.tensor(shape)
    save_file({n: t.contiguous() for n, t in tensors.items()}, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = PACKED
    config.get("text_config", {}).pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return made
