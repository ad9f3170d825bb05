"""What a run has set of its image processor is used wherever its model is, and stands in its exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from media_models import media_folder
from media_rows import media_rows, trained
from transformers import AutoImageProcessor

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import ModelConfig
from gemma_tune.media.stored import with_images_kwargs
from gemma_tune.models.source import find_source
from gemma_tune.report.use import use_commands

PAN_AND_SCAN = "{do_pan_and_scan: true, pan_and_scan_min_crop_size: 40, pan_and_scan_min_ratio_to_activate: 1.1}"


def test_only_what_is_read_there_is_written_into_a_processors_file() -> None:
    given = {"max_soft_tokens": 70, "do_pan_and_scan": True}
    whole = {"image_processor": {"patch_size": 16}, "image_seq_length": 280}
    found = {"image_processor": {"patch_size": 16, "max_soft_tokens": 70}, "image_seq_length": 280}
    assert with_images_kwargs(whole, given) == found
    assert with_images_kwargs({"max_soft_tokens": 280}, given) == {"max_soft_tokens": 70}
    assert with_images_kwargs({"size": 896}, given) == {"size": 896}


@pytest.mark.slow
def test_a_run_of_gemma4_brings_its_number_of_tokens(tmp_path: Path) -> None:
    model, rows = media_folder("gemma4_e2b", tmp_path / "model"), media_rows(tmp_path, turns=2)
    run = trained("lora_sft", model, rows, tmp_path / "run", "model.images_kwargs={max_soft_tokens: 70}")
    merged, kept = run / "export" / "merged", {"max_soft_tokens": 70}
    before, after = (json.loads((p / "processor_config.json").read_text("utf-8")) for p in (model, merged))
    assert before["image_processor"].pop("max_soft_tokens") == 280 and after["image_processor"].pop("max_soft_tokens")
    assert before == after
    assert AutoImageProcessor.from_pretrained(merged, backend="pil", trust_remote_code=False).max_soft_tokens == 70
    for place in (run, run / "adapter", merged):
        assert dict(find_source(ModelConfig(str(place))).images_kwargs) == kept
    for recipe in ("evaluate", "chat", "lora_sft"):
        words = [f"model.model_name_or_path={run}", *([f"data.validation_file={rows}"] * (recipe == "evaluate"))]
        assert compose_config(recipe, words).model.images_kwargs == kept
        words += ["model.images_kwargs.max_soft_tokens=140"]
        assert compose_config(recipe, words).model.images_kwargs == {"max_soft_tokens": 140}
    assert '{"max_soft_tokens": 70}' in use_commands("adapter", run / "adapter")[0][1]
    assert "kwargs" not in use_commands("merged", merged)[0][1]
    assert "--image-max-tokens 70" in (run / "report.md").read_text("utf-8")


@pytest.mark.slow
def test_a_run_of_gemma3_brings_pan_and_scan(tmp_path: Path) -> None:
    """No file can hold it; what continues the run and what checks its export has it."""
    model, rows = media_folder("gemma3", tmp_path / "model"), media_rows(tmp_path, turns=2)
    run = trained("lora_sft", model, rows, tmp_path / "run", f"model.images_kwargs={PAN_AND_SCAN}")
    plain = trained("lora_sft", model, rows, tmp_path / "plain")
    tokens, fewer, again = (
        json.loads((folder / "result.json").read_text("utf-8"))["metrics"]["data"]["training"]["tokens"]
        for folder in (run, plain, trained("lora_sft", run, rows, tmp_path / "again"))
    )
    assert again == tokens > fewer
    assert (run / "export" / "merged" / "processor_config.json").read_bytes() == (
        model / "processor_config.json"
    ).read_bytes()
    assert "do_pan_and_scan" in use_commands("merged", run / "export" / "merged")[0][1]
    assert "can't be stored in an export" in (run / "report.md").read_text("utf-8")
