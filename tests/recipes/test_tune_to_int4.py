"""recipe=tune_to_int4: both trainings, the files, and one table that ends with the GGUF in llama.cpp."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError

pytest.importorskip("xllamacpp")


slow = pytest.mark.slow  # `make test-slow`: the run that they share takes two trainings


@pytest.fixture
def done(finished: Any) -> tuple[Path, Any]:
    folder, result = finished("tune_to_int4")
    return folder, result


@slow
def test_everything_is_there_and_verified(done: tuple[Path, Any]) -> None:
    folder, result = done
    assert result.status == "finished" and not result.failures
    assert all((folder / path).exists() for path in result.artifacts.values())
    assert {"tuned/merged", "int4/gguf", "report"} <= result.artifacts.keys()
    assert {line["verdict"] for line in result.metrics["int4"]["verify"]} <= {"ok", "warn"}
    assert result.headline["name"] == "test_exact_match"
    assert [file.name for file in (folder / "int4/export/gguf").glob("*.gguf")] == ["tiny-q4_0.gguf"]


@slow
def test_one_evaluator_for_all_four(done: tuple[Path, Any]) -> None:
    folder, _ = done
    rows = [
        json.loads((folder / file).read_text("utf-8"))["rows"]["test_exact_match"]
        for file in ("tuned/eval/before.json", "tuned/eval/after.json", "int4/eval/after.json", "eval/after.json")
    ]
    assert len({tuple(row["id"] for row in part) for part in rows}) == 1
    text = (folder / "report.md").read_text("utf-8")
    assert all(name in text for name in ("base", "tuned", "int4, trained", "GGUF in llama.cpp"))


@slow
def test_each_training_is_a_run_of_its_own(done: tuple[Path, Any]) -> None:
    """Its config.yaml repeats it: it passes every check."""
    folder, _ = done
    from gemma_tune.cli.compose import load_stored

    first, second = (load_stored(folder / name, [f"output_dir={folder}/x"]) for name in ("tuned", "int4"))
    assert (first.recipe, second.recipe) == ("lora_sft", "qat")
    assert second.model.model_name_or_path == str(folder / "tuned")
    assert (first.train.per_device_train_batch_size, second.train.per_device_train_batch_size) == (2, 2)
    assert second.model.dtype == "float32" and second.train.max_steps == 10 and second.quant.grid == "q4_0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export=merged"], "export.formats lacks gguf"),
        (["quant=none"], "choose a quantization format"),
        (["eval.evaluators=[answers,kl]", "eval.kl.reference=assets://tiny"], "one reference for four models"),
        (["eval.before=false"], "begins with the base"),
        (["quant.stage2.max_steps=0"], "would train nothing"),
        (["train.resume_from_checkpoint=latest"], "recipe=qat"),
        (["data.streaming=true", "train.max_steps=5"], "kept for each row"),
    ],
)
def test_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose_config("tune_to_int4", words)


def test_its_stages_share_its_time(tmp_path: Path) -> None:
    """The second training doesn't begin where the time of the command is over, and is stopped by the same clock."""
    from gemma_tune.recipes.tune_to_int4 import _stage
    from gemma_tune.run.folder import RunFolder
    from gemma_tune.run.stopping import Stopped

    clocks: list[Any] = []

    class Stage:
        """A recipe that only says which clock it has."""

        @staticmethod
        def run(cfg: Any, folder: RunFolder) -> Any:
            clocks.append(folder.stops)

    cfg = compose_config("tune_to_int4", ["train.max_time=1h", f"output_dir={tmp_path / 'run'}"])
    stage = replace(cfg, output_dir=str(tmp_path / "run" / "tuned"))
    whole = RunFolder.open(cfg)
    _stage(Stage, stage, whole)
    assert clocks == [whole.stops]
    whole.stops._begun -= 3600
    with pytest.raises(Stopped) as stopped:
        _stage(Stage, stage, whole)
    assert stopped.value.code == 0


def test_its_training_keys_belong_to_it() -> None:
    with pytest.raises(UserError, match=r"quant\.stage2 has no effect"):
        compose_config("qat", ["quant.stage2.max_steps=5"])
