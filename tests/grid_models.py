"""The embedded model on a grid, as after training: other weights than the checkpoint's, and norms in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.tensors import trained_tensors
from gemma_tune.models.source import Source
from gemma_tune.quant.layers import GridLora, put_on_grid
from gemma_tune.quant.plan import plan_of
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
ROWS = torch.randint(10, 1500, (4, 48), generator=torch.Generator().manual_seed(0)).tolist()


def source_of(folder: Path) -> Source:
    return Source(str(folder), None, None, str(folder))


def changed(model: Any, embedding: bool = True) -> Any:
    """Every weight moved by about 1 %, so that none is a bfloat16 number; without the embedding where it is kept."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if embedding or "embed_tokens" not in name:
                parameter.mul_(1 + 0.01 * torch.randn_like(parameter))
    return model


def with_adapter(model: Any, layer: type[nn.Module] | None) -> Any:
    """A LoRA adapter with weights as after training, on attention only: other projections have none."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    if layer is not None:
        config._register_custom_module({nn.Linear: layer})
    torch.manual_seed(2)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.02)
    return adapted.eval()


def on_grid(
    grid: str = "q4_0", embedding: str | None = None, adapter: bool = False, dtype: torch.dtype = torch.float32
) -> ModelOnGrid:
    """The embedded model on a grid, as after full training or with an adapter inside the quantizer."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=dtype).eval()
    if not adapter:
        changed(model, embedding is not None)
    plan = plan_of(model, grid, embedding)
    if adapter:
        model = with_adapter(model, GridLora)
    put_on_grid(model, plan)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return ModelOnGrid(model, plan, trained_tensors(model, plan), tokenizer, source_of(TINY))


def logits_of(model: Any) -> torch.Tensor:
    """Logits of `ROWS`, [4, 48, V]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor(ROWS)).logits
