"""A run whose images attend otherwise than its checkpoint's: its loss, its exports, and what has it as its model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from media_models import media_folder
from media_rows import media_rows, trained
from short_runs import losses

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.load import load_config
from gemma_tune.models.source import find_source
from gemma_tune.report.use import use_commands

ASKED = "model.image_attention=bidirectional"


def stored(folder: Path) -> object:
    return json.loads((folder / "config.json").read_text("utf-8"))["text_config"]["use_bidirectional_attention"]


@pytest.mark.slow
def test_a_run_keeps_its_attention(tmp_path: Path) -> None:
    model, rows = media_folder("gemma4_e2b", tmp_path / "model"), media_rows(tmp_path, turns=2)
    published = shutil.copytree(model, tmp_path / "published")  # as if it were published so
    config = json.loads((published / "config.json").read_text("utf-8"))
    config["text_config"]["use_bidirectional_attention"] = "vision"
    (published / "config.json").write_text(json.dumps(config), encoding="utf-8")
    run = trained("lora_sft", model, rows, tmp_path / "run", ASKED, "train.packing=true", "train.max_length=2048")
    merged, adapter = run / "export" / "merged", run / "adapter"
    same = trained("lora_sft", published, rows, tmp_path / "same")
    causal = trained("lora_sft", model, rows, tmp_path / "causal")
    (mine,), (theirs,), (other,) = (losses(folder) for folder in (run, same, causal))
    assert mine == pytest.approx(theirs, rel=1e-5) and abs(mine - other) > 1e-4
    assert stored(model) is None and stored(merged) == "vision" == stored(same / "export" / "merged")
    for place in (run, adapter, merged):
        source = find_source(ModelConfig(str(place)))
        assert source.image_attention == "bidirectional"
        assert load_config(source).text_config.use_bidirectional_attention == "vision"
    for recipe in ("evaluate", "chat", "lora_sft"):
        words = [f"model.model_name_or_path={run}", *([f"data.validation_file={rows}"] * (recipe == "evaluate"))]
        assert compose_config(recipe, words).model.image_attention == "bidirectional"
        assert compose_config(recipe, [*words, "model.image_attention=causal"]).model.image_attention == "causal"
    card = (adapter / "README.md").read_text("utf-8")
    assert ASKED in card and 'use_bidirectional_attention = "vision"' in card.replace("'", '"')
    overrides = '{"text_config": {"use_bidirectional_attention": "vision"}}'
    assert overrides in use_commands("adapter", adapter)[0][1]
    assert "overrides" not in use_commands("merged", merged)[0][1]
    assert ASKED in (run / "report.md").read_text("utf-8")


@pytest.mark.slow
def test_a_model_without_the_choice(tmp_path: Path) -> None:
    model, rows = media_folder("gemma3", tmp_path / "model"), media_rows(tmp_path, turns=1)
    with pytest.raises(UserError, match=r"model\.image_attention=bidirectional: it is a choice of Gemma 4"):
        trained("lora_sft", model, rows, tmp_path / "run", ASKED)
