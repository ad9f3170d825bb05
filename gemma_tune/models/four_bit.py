"""4-bit weights: how they are loaded or refused, and the layout of bitsandbytes' layers."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, CompressedTensorsConfig

from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.estimate.size import empty_model
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.source import Source
from gemma_tune.models.unwrap import is_of

# Of packed weights, by the method's name in config.json
_MEASURED = ("compressed-tensors", "gemma")


# A fused tensor of experts that is stored expert by expert
_ONE_EXPERT = re.compile(r"experts\.\d+\.\w+\.weight_packed$")


def is_four_bit(module: nn.Module) -> bool:
    """Whether a layer is bitsandbytes' Linear4bit (PEFT's layers around one are not)."""
    return is_of(module, "bitsandbytes.nn", "Linear4bit")


def keep_layout(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit layers for inference, which training does not survive.

    On CPUs with AVX512-BF16 the first pass in evaluation mode repacks the weight in place for a bfloat16 kernel
    without a backward pass. An evaluation before training thus cuts the gradients of all layers below, and what is
    read from the weight afterwards is scrambled (bitsandbytes 0.50, `Linear4bit.forward`).
    """
    for module in model.modules():
        if is_four_bit(module):
            module.support_avx512bf16_for_cpu = False


def quantization_config(model: ModelConfig, config: Any) -> BitsAndBytesConfig | CompressedTensorsConfig | None:
    """How Transformers is to load the weights: rounded to 4 bit (`model.load_in_4bit`), decoded, or as they are.

    Args:
        model: What is asked for.
        config: Of the whole checkpoint.
    """
    if stored := getattr(config, "quantization_config", None):
        # Else the first forward pass of the whole model decodes them, and losses call its parts
        return CompressedTensorsConfig(dequantize=True) if _method(stored) == "compressed-tensors" else None
    if not model.load_in_4bit:
        return None
    family, text = FAMILIES[config.model_type], config.get_text_config()
    kept = [n for n, m in empty_model(text).named_modules() if isinstance(m, nn.Linear) and not family.reaches(n)]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, str(model.bnb_4bit_compute_dtype or model.dtype)),
        llm_int8_skip_modules=kept,  # despite its name it holds for 4 bit, too
    )


def _method(stored: Any) -> str:
    return str(stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method)


def stored_quantized(config: Any) -> Any:
    """How the weights of a checkpoint are quantized, as its config.json says it; None where they are not."""
    found = getattr(config, "quantization_config", None)
    if found is None and getattr(config, "quantization", None):
        return {"quant_method": "MLX"}
    return found


def check_stored(model: ModelConfig, source: Source, config: Any, stored: Any, packed: bool) -> None:
    """Raises UserError for weights that are stored quantized, except packed ones that are only measured."""
    method = _method(stored)
    said = f"model.model_name_or_path={source.base}: its weights are stored quantized ({method}), and"
    if not packed or source.adapter is not None:
        raise UserError(
            f"{said} tuning needs full ones; name the checkpoint that it was made from (model.load_in_4bit=true "
            "rounds that itself). recipe=qat quant=q4_0_checkpoint trains on with codes of compressed-tensors."
        )
    if method not in _MEASURED:
        raise UserError(f"{said} only those of {' and '.join(_MEASURED)} are measured; name what it was made from.")
    if model.load_in_4bit:
        raise UserError(f"{said} model.load_in_4bit=true can't round them again; leave it out.")
    if config.get_text_config().dtype == torch.float32 and model.dtype != "float32":
        raise UserError(f"{said} model.dtype={model.dtype} can't hold their scales; set model.dtype=float32.")
    files = CheckpointFiles.of(source, FAMILIES[config.model_type]).files if source.folder else {}
    if any(_ONE_EXPERT.search(name) for name in files):
        raise UserError(
            f"{said} each of its experts is packed alone, as vLLM reads them and Transformers doesn't; name the folder "
            "w4a16_transformers (export.formats), or what it was made from."
        )


def check_trained_on(source: Source, config: Any) -> None:
    """Raises UserError for weights that are stored quantized in a form whose codes aren't trained on."""
    stored = stored_quantized(config)
    if stored and _method(stored) != "compressed-tensors":
        raise UserError(
            f"model.model_name_or_path={source.base}: its weights are stored quantized ({_method(stored)}), and "
            "quant.grid=q4_0_checkpoint trains on with numbers on the grid, packed codes of compressed-tensors, or "
            "those of a GGUF file (quant.checkpoint_file); name what it was made from."
        )
