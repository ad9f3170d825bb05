"""Weights with NaN or infinite numbers are refused wherever a model is loaded, and no run folder is left."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import gemma_tune
from gemma_tune.errors import UserError
from gemma_tune.models.finite import not_finite
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
DOWN, NORM = "model.layers.0.mlp.down_proj.weight", "model.norm.weight"
CHAT = ["chat.prompt=Hello", "chat.max_new_tokens=2"]
# The recipe and its words; chat has no folder
WAYS = {
    "chat": ("chat", CHAT),
    "sampled": ("chat", ["chat=sampled", *CHAT]),
    "chat in 4 bit": ("chat", ["model.load_in_4bit=true", *CHAT]),
    "lora_sft": ("lora_sft", []),
    "qlora_sft": ("qlora_sft", []),
    "qat": ("qat", []),
    "export": ("export", ["export.formats=[merged]"]),
    "evaluate": ("evaluate", ["data=sample", "eval.evaluators=[held_out_loss]"]),
    "reward_model": ("reward_model", []),
}  # fmt: skip


def spoilt(file: Path, name: str, value: float) -> Path:
    """The folder of a safetensors file, after one number of a tensor has become `value`."""
    weights = load_file(file)
    weights[name].view(-1)[3] = value
    save_file(weights, file, metadata={"format": "pt"})
    return file.parent


def refused(way: str, folder: Path, out: Path) -> str:
    recipe, words = WAYS[way]
    words = [f"model.model_name_or_path={folder}", "model.device=cpu", *words]
    if recipe != "chat":
        words += [f"output_dir={out}", "tracker=none"]
    with pytest.raises(UserError) as caught:
        gemma_tune.run(recipe, words)
    assert not out.exists(), way
    return str(caught.value)


FAST = ("chat", "chat in 4 bit", "export")


@pytest.mark.parametrize("way", [w if w in FAST else pytest.param(w, marks=pytest.mark.slow) for w in WAYS])
def test_a_model_with_a_number_that_is_none(way: str, tmp_path: Path) -> None:
    """Every way to load a model, in 4 bit, too, refuses it with the folder, the tensor and the way out."""
    for name, value in ((DOWN, math.nan), (NORM, math.inf)):
        folder = tmp_path / name
        shutil.copytree(TINY, folder)
        spoilt(folder / "model.safetensors", name, value)
        said = refused(way, folder, tmp_path / "run")
        assert f"model.model_name_or_path={folder}: {name} holds NaN or infinite numbers" in said, said
        assert "fetch the checkpoint again" in said and "\n" not in said


def test_an_adapter_with_a_number_that_is_none(tmp_path: Path) -> None:
    """It is refused before the base is loaded."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(TINY), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    model.save_pretrained(tmp_path / "adapter")
    layer = "model.layers.1.self_attn.q_proj.lora_B.weight"
    folder = spoilt(tmp_path / "adapter" / "adapter_model.safetensors", f"base_model.model.{layer}", math.nan)
    for way in ("chat", "lora_sft", "qat", "export", "evaluate"):
        said = refused(way, folder, tmp_path / "run")
        assert f"{folder}: {layer} holds NaN or infinite numbers" in said, (way, said)
        assert "fetch it again" in said and "\n" not in said
    with pytest.raises(UserError, match="holds NaN"):
        gemma_tune.run("chat", [f"model.model_name_or_path={folder}", *CHAT, "dry_run=true"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_number_anywhere_is_found(dtype: torch.dtype) -> None:
    """In any place of a tensor; the largest numbers of a type are numbers, and so is what has none."""
    most = torch.finfo(dtype).max
    tensors = {"fine": torch.full((7, 37), most, dtype=dtype), "empty": torch.ones(0, dtype=dtype)}
    tensors |= {"whole": torch.ones(3, dtype=torch.uint8), "below": torch.full((5,), -most, dtype=dtype)}
    assert not_finite(tensors.items()) == []
    for place in (0, 100, 258):
        for value in (math.nan, math.inf, -math.inf):
            bad = torch.randn(7, 37).to(dtype)
            bad.view(-1)[place] = value
            assert not_finite([*tensors.items(), ("bad", bad)]) == ["bad"]
