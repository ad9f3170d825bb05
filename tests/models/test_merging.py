"""A merge is held to the adapter's own logits: what changes the model can't pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reference import load_plain
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from gemma_tune.models.adapters import merging
from gemma_tune.models.four_bit import keep_layout
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
ROWS = torch.randint(10, 1500, (4, 32), generator=torch.Generator().manual_seed(0)).tolist()


def adapted(form: str = "float32", **options: Any) -> Any:
    """The embedded model with an adapter whose every weight is away from its start."""
    quantized = BitsAndBytesConfig(load_in_4bit=True) if "4 bit" in form else None
    dtype = torch.bfloat16 if "bfloat16" in form else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        TINY, dtype=dtype, quantization_config=quantized, device_map={"": "cpu"}
    )
    keep_layout(model)
    torch.manual_seed(2)
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 8, "target_modules": ["q_proj", "down_proj"], **options})
    found = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in (p for p in found.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return found


@pytest.mark.parametrize("form", ["float32", "bfloat16", "4 bit", "4 bit, bfloat16"])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"use_dora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
        {"trainable_token_indices": [5, 700]}, {"modules_to_save": ["norm"]},
    ],
    ids=["lora", "dora", "patterns", "tokens", "norm"],
)  # fmt: skip
def test_a_right_merge_passes(options: dict[str, Any], form: str) -> None:
    """Before rounding, whatever the weights are stored in; and the model is as it was."""
    model = adapted(form, **options)
    before = model(input_ids=torch.tensor(ROWS)).logits
    difference = merging.check_merge(model, ROWS)
    assert difference is not None and 0 < difference < 1e-4  # of logits of 18
    assert torch.equal(model(input_ids=torch.tensor(ROWS)).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"modules_to_save": ["embed_tokens"]},
        {"lora_bias": True},
    ],
    ids=["embedding", "head", "saved embedding", "bias"],
)
def test_a_merge_that_changes_the_model_fails(options: dict[str, Any]) -> None:
    """A head and an embedding that are one matrix in the files, and a bias that the files have no place for."""
    with pytest.raises(merging.MergeDiffers, match="another model: its logits differ by"):
        merging.check_merge(adapted(**options), ROWS)


def test_pefts_own_merge_is_compared_too() -> None:
    """As `recipe=export` and `recipe=qat` merge: right for LoRA, another model where the head is tied."""
    model = adapted()
    before = model(input_ids=torch.tensor(ROWS)).logits
    merged = merging.merge(model, ROWS, "here")
    assert (merged(input_ids=torch.tensor(ROWS)).logits - before).abs().max() < 1e-4
    with pytest.raises(merging.MergeDiffers, match="here: merged into the weights"):
        merging.merge(adapted(target_modules=["embed_tokens", "q_proj"]), ROWS, "here")


def test_a_model_without_an_adapter_has_nothing_to_compare() -> None:
    assert merging.check_merge(load_plain(TINY), ROWS) is None
