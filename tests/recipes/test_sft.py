"""Each recipe runs on the embedded model; a rerun repeats to the last digit; what resuming refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from every_recipe import make_short_run, slow_marked
from resumed import lines
from short_runs import losses, metrics, short_run

import gemma_tune
from gemma_tune import UserError
from gemma_tune.cli.compose import load_stored
from gemma_tune.cli.runner import run_recipe
from gemma_tune.errors import RunError
from gemma_tune.models.padding import unpad_rows
from gemma_tune.run.manifest import file_digest
from gemma_tune.run.paths import ASSETS, CONFIGS
from gemma_tune.train.nonfinite import NonFiniteGuard, NonFiniteLoss

RECIPES = sorted(f.stem for f in (CONFIGS / "recipe").glob("*.yaml") if "\nmethod: sft\n" in f.read_text("utf-8"))


@pytest.fixture(params=slow_marked(RECIPES))
def ten_steps(request: pytest.FixtureRequest, finished: Any) -> tuple[str, Path, Any]:
    """Ten steps of each recipe."""
    return (request.param, *finished(request.param))


def test_run_folder(ten_steps: tuple[str, Path, Any]) -> None:
    recipe, folder, result = ten_steps
    stored = json.loads((folder / "result.json").read_text("utf-8"))
    assert stored["status"] == result.status == "finished" and stored["recipe"] == recipe
    assert stored["headline"]["after"] < stored["headline"]["before"]
    assert result.headline_after == stored["headline"]["after"]
    assert [line["step"] for line in metrics(folder) if "loss" in line] == list(range(1, 11))
    assert stored["peak_memory_mb"] > 100 and stored["seconds"]["train"] > 0
    expected = {"merged": "export/merged"} | ({} if recipe == "full_sft" else {"adapter": "adapter"})
    assert stored["artifacts"] == expected
    for path in expected.values():
        for file in ("chat_template.jinja", "generation_config.json", "tokenizer.json"):
            assert (folder / path / file).is_file(), f"{path}/{file}"
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    weights = "export/merged/model.safetensors"
    assert manifest["artifacts"]["merged"][weights] == file_digest(folder / weights)
    assert any(name.endswith("train.jsonl") for name in manifest["inputs"])
    report = (folder / "report.md").read_text("utf-8")
    assert "(loss.png)" in report and (folder / "loss.png").stat().st_size > 5_000
    for count in (stored["metrics"]["data"]["training"]["tokens"], stored["metrics"]["weights"]["trainable"]):
        assert f"{count:,}" in report


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.slow) for name in ("qlora_sft", "full_sft", "lora_sft")]
)
def test_rerun_repeats_every_figure(recipe: str, finished: Any, tmp_path: Path) -> None:
    """From config.yaml alone: every figure of metrics.jsonl to the last digit, but those that measure time."""
    folder, _ = finished(recipe)
    run_recipe(load_stored(folder / "config.yaml", [f"output_dir={tmp_path / 'again'}"]))
    first, second = (lines(one)["metrics.jsonl"] for one in (folder, tmp_path / "again"))
    assert first == second and len(first) >= 12


def test_finished_run_is_not_repeated(ten_steps: tuple[str, Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, folder, result = ten_steps
    before = (folder / "result.json").stat().st_mtime_ns
    again = make_short_run(recipe, folder)
    assert "done already" in capsys.readouterr().out
    assert again.headline == result.headline and (folder / "result.json").stat().st_mtime_ns == before


RESUMING = ["train.save_steps=5", "train.save_total_limit=null"]


@pytest.fixture
def two_checkpoints(finished: Any) -> Path:
    """A finished run of ten steps with two checkpoints."""
    folder: Path = finished("lora_sft")[0]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-10", "step-5"]
    return folder


def test_a_run_that_was_begun_is_not_begun_again(two_checkpoints: Path, tmp_path: Path) -> None:
    """Nor resumed with another setting; `test_every_recipe.py` resumes it."""
    begun = tmp_path / "begun"
    shutil.copytree(two_checkpoints, begun)
    (begun / "result.json").write_text('{"status": "interrupted"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"begun and has checkpoints.*=never to go on with it, .*overwrite=true"):
        short_run("lora_sft", begun, *RESUMING, "train.resume_from_checkpoint=never", steps=10)
    with pytest.raises(UserError, match=r"another configuration \(another train\.learning_rate\)"):
        short_run("lora_sft", begun, *RESUMING, "train.learning_rate=1", steps=10)


@pytest.mark.slow
def test_a_resumed_run_saves_as_it_is_set_now(two_checkpoints: Path, tmp_path: Path) -> None:
    """Transformers would take the steps between two checkpoints from the checkpoint."""
    begun = tmp_path / "begun"
    shutil.copytree(two_checkpoints, begun)
    shutil.rmtree(begun / "checkpoints" / "step-10")
    (begun / "result.json").write_text('{"status": "interrupted"}', encoding="utf-8")
    words = [*RESUMING, "train.save_steps=3", "export=none"]
    short_run("lora_sft", begun, *words, steps=10)
    assert sorted(p.name for p in (begun / "checkpoints").iterdir()) == ["step-10", "step-5", "step-6", "step-9"]


@pytest.mark.slow
def test_nothing_left_to_resume(two_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluation and export are; Transformers would take one step too many and change the weights."""
    before = file_digest(two_checkpoints / "adapter" / "adapter_model.safetensors")
    short_run("lora_sft", two_checkpoints, *RESUMING, "train.resume_from_checkpoint=latest", steps=10)
    assert "done already" in capsys.readouterr().out
    assert file_digest(two_checkpoints / "adapter" / "adapter_model.safetensors") == before
    begun = tmp_path / "begun"
    shutil.copytree(two_checkpoints, begun)
    (begun / "result.json").write_text('{"status": "failed"}', encoding="utf-8")
    for gone in ("adapter", "export"):
        shutil.rmtree(begun / gone)
    with pytest.raises(UserError, match=r"another configuration \(another train\.max_steps\)"):
        short_run("lora_sft", begun, *RESUMING, steps=16)
    words = metrics(begun)
    # Killed before the line at the end of training was written
    kept = [line for line in words if "train_loss" not in line]
    (begun / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    result = short_run("lora_sft", begun, *RESUMING, steps=10)
    assert "only evaluation and export are left" in capsys.readouterr().out
    assert file_digest(begun / "adapter" / "adapter_model.safetensors") == before
    whole = json.loads((two_checkpoints / "result.json").read_text("utf-8"))
    assert result.headline == whole["headline"] and result.metrics["after"] == whole["metrics"]["after"]
    assert result.metrics["train_loss_last"] == whole["metrics"]["train_loss_last"]
    assert [line["step"] for line in metrics(begun) if "loss" in line] == [w["step"] for w in words if "loss" in w]
    means = [[line["train_loss"] for line in found if "train_loss" in line] for found in (metrics(begun), words)]
    assert means[0] == means[1] and len(means[0]) == 1
    with pytest.raises(UserError, match="a run is resumed in its own folder"):
        path = two_checkpoints / "checkpoints" / "step-5"
        short_run("lora_sft", tmp_path / "new", *RESUMING, f"train.resume_from_checkpoint={path}", steps=10)


@pytest.mark.slow
def test_a_run_without_checkpoints_goes_on_behind_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was trained is kept until the run is finished, though no checkpoint was asked for."""
    words = ["eval.before=false", "eval.evaluators=[]"]
    with monkeypatch.context() as patch:
        patch.setattr("gemma_tune.export.unquantized.merged.export", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            short_run("lora_sft", tmp_path / "run", *words, steps=2)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    assert not (tmp_path / "run" / "checkpoints" / "step-2" / "optimizer.pt").exists()
    trained = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    short_run("lora_sft", tmp_path / "run", *words, steps=2)
    assert "only evaluation and export are left" in capsys.readouterr().out
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == trained
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_an_overwrite_that_fails_keeps_the_old_run(tmp_path: Path) -> None:
    short_run("lora_sft", tmp_path / "run", "export=none", "eval=none", "eval.num_samples=0", steps=1)
    words = ["train.learning_rate=1e6", "train.max_grad_norm=0", "train.warmup_steps=0", "overwrite=true", "eval=none"]
    with pytest.raises(NonFiniteLoss):
        short_run("full_sft", tmp_path / "run", *words, steps=10)
    kept = tmp_path / "run" / ".replaced"
    assert json.loads((kept / "result.json").read_text("utf-8"))["status"] == "finished"
    with pytest.raises(NonFiniteLoss):
        short_run("full_sft", tmp_path / "run", *words, steps=10)
    assert (kept / "result.json").is_file() and (tmp_path / "run" / "config.yaml").is_file()


@pytest.mark.slow
def test_half_a_checkpoint_is_passed_over(
    two_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(two_checkpoints, begun)
    (begun / "result.json").write_text('{"status": "failed"}', encoding="utf-8")
    (begun / "checkpoints" / "step-10" / "optimizer.pt").unlink()
    short_run("lora_sft", begun, *RESUMING, steps=10)
    said = capsys.readouterr().out
    assert "step-10: optimizer.pt is missing" in said and "from step 5" in said
    one, other = (f / "adapter" / "adapter_model.safetensors" for f in (two_checkpoints, begun))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_old_checkpoints_are_removed(tmp_path: Path) -> None:
    words = ["train.save_steps=1", "train.save_total_limit=2", "eval=none", "eval.num_samples=0", "export=none"]
    short_run("lora_sft", tmp_path / "run", *words, steps=4)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-3", "step-4"]


@pytest.mark.slow
def test_evaluations_while_training(tmp_path: Path) -> None:
    """The same quantity as before and after: at the last step the figures are equal."""
    result = short_run("lora_sft", tmp_path / "run", "train.eval_steps=2", "export=none", steps=4)
    found = [(line["step"], line["held_out_loss"]) for line in metrics(tmp_path / "run") if "held_out_loss" in line]
    assert [step for step, _ in found] == [0, 2, 4, 4]
    assert found[0][1] == result.metrics["before"]["held_out_loss"] == result.headline["before"]
    assert found[2][1] == pytest.approx(result.metrics["after"]["held_out_loss"], rel=1e-6)
    assert found[0][1] > found[1][1] != found[2][1]


@pytest.mark.slow
def test_logging_less_often_than_the_run_is_long(tmp_path: Path) -> None:
    result = short_run("lora_sft", tmp_path / "run", "train.logging_steps=50", "eval=none", "eval.num_samples=0",
                       "export=none")  # fmt: skip
    assert result.status == "finished" and [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [
        1,
        3,
    ]


def test_text_rows(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"Row {i} is about {i * 7} apples."}) for i in range(20)), "utf-8")
    words = ["data=text", f"data.train_file={file}", "data.validation_split_percentage=20"]
    result = short_run("full_sft", tmp_path / "run", *words)
    counts = result.metrics["data"]
    assert (counts["training"]["rows"], counts["held_out"]["rows"]) == (16, 4)
    assert counts["training"]["trained_tokens"] == counts["training"]["tokens"] - 16  # all but each row's <bos>


@pytest.mark.parametrize("packing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_nan_stops_the_run(packing: bool, tmp_path: Path) -> None:
    """Trap 9: a rate that breaks the weights ends in an error with the rows; no loss is logged in its place."""
    words = [
        "train.learning_rate=1e6",
        "model.fused_layers=false",  # our norms stay finite with such weights
        "train.max_grad_norm=0",
        "train.lr_scheduler_type=constant",
        "train.warmup_steps=0",
        "data=messages",
        f"data.train_file={ASSETS / 'sample' / 'train.jsonl'}",
        f"train.packing={packing}",
        "train.max_length=512",
    ]
    with pytest.raises(NonFiniteLoss, match=r"is (nan|inf) at step 2; this step updated no weight") as error:
        short_run("full_sft", tmp_path / "run", *words, steps=10)
    rows = re.findall(r"sample/train\.jsonl:(\d+)", str(error.value))
    assert len(rows) >= 2 and all(1 <= int(n) <= 64 for n in rows)
    assert "checkpoints/step-1" in str(error.value)
    assert (tmp_path / "run" / "checkpoints" / "step-1" / "trainer_state.json").is_file()
    assert json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["status"] == "failed"
    assert len(losses(tmp_path / "run")) == 1 and losses(tmp_path / "run")[0] > 1


def test_the_rows_of_a_bad_step_are_looked_for_last() -> None:
    """Files that have changed meanwhile cost the names of the rows, and nothing else."""

    def gone(rows: list[list[int]]) -> list[str]:
        raise UserError("rows.jsonl: the file can't be read")

    guard = NonFiniteGuard(gone)
    guard.saw({"input_ids": torch.tensor([[2, 5]])})
    assert guard.rows() == "Its rows can't be read again (rows.jsonl: the file can't be read)."
    assert NonFiniteGuard(lambda rows: []).rows() == "Its rows were not found again."


def test_packed_rows_with_a_mask_are_an_error() -> None:
    """Trap 7: with a mask of ones beside position ids the rows would attend to each other."""
    ids, positions = torch.tensor([[2, 5, 6, 2, 7]]), torch.tensor([[0, 1, 2, 0, 1]])
    guard = NonFiniteGuard(lambda rows: [])
    guard.saw({"input_ids": ids, "position_ids": positions})
    with pytest.raises(RunError, match="they would attend to each other"):
        guard.saw({"input_ids": ids, "position_ids": positions, "attention_mask": torch.ones_like(ids)})
    assert unpad_rows({"input_ids": ids, "position_ids": positions}, "input_ids") == [[2, 5, 6], [2, 7]]


@pytest.mark.slow
def test_only_warm_up_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short_run("lora_sft", tmp_path / "run", "export=none", "eval=none", "eval.num_samples=0", steps=1)
    assert "nothing was trained: set train.warmup_steps=0" in capsys.readouterr().err


def test_a_mistake_leaves_no_folder(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": []}\n', encoding="utf-8")
    with pytest.raises(UserError, match=rf"{bad}:1: "):
        short_run("lora_sft", tmp_path / "run", "data=messages", f"data.train_file={bad}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_python_entry(tmp_path: Path) -> None:
    """`gemma_tune.run` with nothing but a recipe and overrides; extra options reach TRL's own dataclass."""
    words = [f"output_dir={tmp_path / 'run'}", "train.max_steps=1", "tracker=none", "eval=none", "export=none"]
    words += ["eval.num_samples=0", "data.max_train_samples=32"]
    result = gemma_tune.run("qlora_sft", overrides=[*words, "train.extra.neftune_noise_alpha=5"])
    assert result.status == "finished" and result.folder == tmp_path / "run"
    with pytest.raises(UserError, match=r"^train: "):  # what TRL's dataclass alone refuses
        gemma_tune.run("qlora_sft", overrides=[*words, "overwrite=true", "train.extra.torch_empty_cache_steps=0"])


def test_rows_that_fill_no_batch(tmp_path: Path) -> None:
    words = ["train.extra.dataloader_drop_last=true", "train.per_device_train_batch_size=128"]
    with pytest.raises(UserError, match="drops all 64 rows: they fill no batch"):
        short_run("lora_sft", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()
