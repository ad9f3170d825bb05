"""Small text models for tests of attention by document, and blocks small enough that short rows have several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from small_models import MODELS

from gemma_tune.models.kernels import attention_plan, document_attention, documents

# By the names of small_models.MODELS
CLASSES = {"gemma3_text": "Gemma3", "gemma4_e2b": "Gemma4", "gemma4_31b": "Gemma4", "gemma3n": "Gemma3n"}


def text_model(name: str, kernel: str = "sdpa") -> Any:
    """The language model of a small model, with random weights, in training mode."""
    torch.manual_seed(0)
    family = CLASSES[name]
    config = getattr(transformers, f"{family}TextConfig")(**MODELS[name][1], attn_implementation=kernel)
    return getattr(transformers, f"{family}ForCausalLM")(config).float().train()


def use_small_blocks(monkeypatch: pytest.MonkeyPatch, products: int) -> None:
    """Blocks of 16 queries, 32 for torch's kernel; few at once; plain products up to so many keys of a full layer."""
    monkeypatch.setattr(documents, "QUERIES", 16)
    monkeypatch.setattr(attention_plan, "QUERIES", 32)
    monkeypatch.setattr(attention_plan, "BLOCK", 16)
    monkeypatch.setattr(attention_plan, "_KEYS", 128)
    monkeypatch.setattr(attention_plan, "_SCORES", 8192)
    monkeypatch.setattr(document_attention, "PRODUCTS", products)
