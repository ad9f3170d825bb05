"""`model.train_towers=lora` on Gemma 3n, whose image tower of convolutions has no layer for an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
from media_models import media_folder
from media_rows import media_rows, trained
from safetensors.torch import load_file


@pytest.mark.slow
def test_a_tower_of_convolutions_gets_no_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run says so; the projector for images is trained."""
    model, rows = media_folder("gemma3n", tmp_path / "model"), media_rows(tmp_path, turns=1)
    words = ["model.train_towers=lora", "train.warmup_steps=0", "export=none", "eval=none"]
    run = trained("lora_sft", model, rows, tmp_path / "run", *words)
    said = capsys.readouterr()
    assert "none of them in the image tower, which has no linear layer" in said.out + said.err
    stored = load_file(run / "adapter" / "adapter_model.safetensors")
    assert not any("vision_tower" in name for name in stored)
    assert any("embed_vision" in name and "lora_B" in name and weight.any() for name, weight in stored.items())
