"""The embedded model with an image tower learns to read a meter, and llama.cpp reads it as it does."""

from __future__ import annotations

from pathlib import Path

import pytest
from short_runs import metrics

import gemma_tune

WORDS = ["model=tiny_vision", "data=sample_images", "tracker=none"]


@pytest.mark.slow
def test_it_learns_to_read_a_meter(tmp_path: Path) -> None:
    result = gemma_tune.run("qlora_sft", [*WORDS, f"output_dir={tmp_path / 'run'}"])
    assert result.metrics["before"]["test_exact_match"] == 0
    assert result.metrics["after"]["test_exact_match"] >= 0.9
    words = [f"model.model_name_or_path={tmp_path / 'run'}", "export.formats=[gguf_f16]", "tracker=none"]
    exported = gemma_tune.run("export", [*words, f"output_dir={tmp_path / 'gguf'}"])
    assert all(line["verdict"] == "ok" for line in exported.metrics["verify"])


def test_a_few_steps(tmp_path: Path) -> None:
    """The recipe with its defaults: tower, projector and adapter are trained, and the loss falls."""
    few = ["train.max_steps=3", "data.max_train_samples=12", "eval=none", "eval.num_samples=0", "export=none"]
    gemma_tune.run("qlora_sft", [*WORDS, *few, f"output_dir={tmp_path / 'run'}"])
    losses = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert losses[-1] < losses[0]
    assert (tmp_path / "run" / "adapter" / "towers.safetensors").is_file()
