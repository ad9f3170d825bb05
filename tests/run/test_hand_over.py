"""A run folder on another machine, where nothing is that it was made from: its base, its rows, its own old place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import gemma_tune
from gemma_tune.errors import UserError

Finished = Callable[[str], tuple[Path, gemma_tune.RunResult]]


@pytest.fixture
def copied(finished: Finished, folder: Path) -> Path:
    """`runs/mine` in an empty current folder: a copy of a LoRA run whose base and rows are gone."""
    made, _ = finished("lora_sft")
    run = Path(shutil.copytree(made, "runs/mine", ignore=shutil.ignore_patterns("checkpoints")))
    adapter = run / "adapter" / "adapter_config.json"
    stored = json.loads(adapter.read_text("utf-8"))
    adapter.write_text(json.dumps(stored | {"base_model_name_or_path": "/nix/base"}), encoding="utf-8")
    for file in (run / "config.yaml", run / "manifest.json"):
        text = file.read_text("utf-8").replace(str(made), "/nix/runs/mine").replace("assets://", "/nix/data/")
        file.write_text(text, encoding="utf-8")
    return run


@pytest.mark.slow
def test_chat_takes_the_merged_weights(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"model.model_name_or_path={copied}", "chat.prompt=Hello!", "chat.max_new_tokens=3"]
    result = gemma_tune.run("chat", words)
    first = capsys.readouterr().err.splitlines()[0]
    named = copied.absolute()
    assert first == f"{named}: the adapter's base, /nix/base, is not on this machine; {_merged(named)} is used."
    merged = gemma_tune.run("chat", [f"model.model_name_or_path={_merged(copied)}", *words[1:]])
    assert result.metrics["answers"] == merged.metrics["answers"]


@pytest.mark.slow
def test_evaluate_asks_for_rows_and_takes_others(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"model.model_name_or_path={copied}", "tracker=none", "output_dir=measured"]
    with pytest.raises(UserError, match=r"/nix/data/.*: the rows of runs/mine are no longer there; .* name others"):
        gemma_tune.run("evaluate", words)
    result = gemma_tune.run("evaluate", [*words, "data=sample", "eval.evaluators=[held_out_loss]"])
    assert "is not on this machine" in capsys.readouterr().err.splitlines()[0]
    stored = json.loads((copied / "result.json").read_text("utf-8"))["metrics"]["export"]["held_out_loss"]
    assert result.metrics["after"]["held_out_loss"] > 0 and stored > 0


@pytest.mark.slow
def test_training_goes_on_from_the_merged_weights_by_name(copied: Path) -> None:
    """An adapter continues on its own base alone: another one in its place is chosen by the user."""
    with pytest.raises(UserError, match=r"base, /nix/base, is not there; .* need no base: name \S+/mine/export/merged"):
        gemma_tune.run("lora_sft", [f"model.model_name_or_path={copied}", "dry_run=true"])
    merged = [f"model.model_name_or_path={_merged(copied)}", "dry_run=true", "output_dir=next"]
    assert gemma_tune.run("lora_sft", merged).status == "dry_run"


def _merged(run: Path) -> Path:
    return run / "export" / "merged"
