"""`recipe=build_tiny` for two steps: a whole model folder, measured, and refused since it can do nothing yet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import gemma_tune
from tools.tiny_model.measure import LIMITS, TooWeak

pytestmark = pytest.mark.slow  # `make test-slow`: together they take minutes


def test_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data.max_train_samples=300", "train.max_steps=2", "train.warmup_steps=0", "eval.max_samples=8"]
    with pytest.raises(TooWeak, match="unseen spans copied right"):
        gemma_tune.run("build_tiny", [*words, f"output_dir={tmp_path / 'run'}"])
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["status"] == "failed"
    folder = tmp_path / "run" / "export" / "tiny"
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 256
    assert AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<eos>", "<bos>"]
    assert (folder / "chat_template.jinja").is_file() and (folder / "generation_config.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    said = capsys.readouterr().out
    for what, _, _ in LIMITS.values():
        assert what.split(",")[0][:30] in said


def test_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    result = gemma_tune.run("build_tiny", ["data.max_train_samples=50", "dry_run=true"])
    assert result.status == "dry_run"
    assert "1,536 tokens, 5,118,976 weights" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
