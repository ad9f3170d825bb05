"""Completions of one prompt share its prefill, and are those of plain `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from document_models import CLASSES, text_model
from torch import nn

from gemma_tune.models.kernels.shared_prefill import prefilled_once

TOKENS = 9  # so that prompts of 9 tokens go beyond the window of 16, too


@pytest.fixture(scope="module", params=CLASSES)
def model(request: pytest.FixtureRequest) -> Any:
    return text_model(request.param, "sdpa").eval()


def prompts(lengths: tuple[int, ...], repeats: int) -> dict[str, torch.Tensor]:
    """Padded on the left, as GRPO pads, rows of a prompt not side by side."""
    draw, width = torch.Generator().manual_seed(3), max(lengths)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    ids = torch.randint(3, 1500, mask.shape, generator=draw) * mask
    return {"input_ids": ids.repeat(repeats, 1), "attention_mask": mask.long().repeat(repeats, 1)}


def widths_and_tokens(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> tuple[list[int], torch.Tensor]:
    widths: list[int] = []
    watch = model.base_model.layers[0].register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[-3]))
    torch.manual_seed(1)
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, pad_token_id=0, **options)
    watch.remove()
    return widths, found


def test_completions_are_the_same(model: Any) -> None:
    """Prompts beyond the window of 16 and within it; greedy, and sampled with the same random numbers."""
    sampled = {"do_sample": True, "temperature": 0.8, "top_k": 50}
    for lengths, options in (((30, 9, 1), {"do_sample": False}), ((30, 9, 1), sampled), ((30, 30), sampled)):
        inputs = prompts(lengths, 3)
        expected = widths_and_tokens(model, inputs, **options)
        with prefilled_once(model):
            widths, found = widths_and_tokens(model, inputs, **options)
        assert torch.equal(found, expected[1])
        rows = len(inputs["input_ids"])
        assert widths == [len(lengths)] + [rows] * (TOKENS - 1) and expected[0] == [rows] * TOKENS
    assert len({tuple(row) for row in found.tolist()}) == rows


def test_where_nothing_is_shared() -> None:
    model = text_model("gemma3_text")
    inputs = prompts((5, 4), 2)
    drop = model.base_model.layers[0].mlp.dropout = nn.Dropout(0.1)  # trains
    model.train()
    with prefilled_once(model):
        assert widths_and_tokens(model, inputs, do_sample=False)[0][0] == 4
    drop.eval()
    with prefilled_once(model):
        assert widths_and_tokens(model, inputs, do_sample=False)[0][0] == 2
        assert widths_and_tokens(model, prompts((5, 4), 1), do_sample=False)[0][0] == 2
        assert widths_and_tokens(model, inputs, do_sample=False, use_cache=False)[0][0] == 4
    assert not model.base_model._forward_pre_hooks and not model.base_model._forward_hooks
