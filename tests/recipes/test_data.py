"""Runs on rows that are streamed, mixed, or bad in part."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from file_opens import counted_opens
from short_runs import losses, metrics, short_run

from gemma_tune import UserError
from gemma_tune.run.manifest import file_digest

ADAPTER = "adapter/adapter_model.safetensors"


def rows_of(path: Path, count: int, name: str, *bad: int) -> str:
    """A file of conversations, some lines of which are no JSON."""
    said: list[Any] = [
        {"messages": [{"role": "user", "content": f"{name} {i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
        for i in range(1, count + 1)
    ]
    lines = ["{" if i in bad else json.dumps(row) for i, row in enumerate(said, start=1)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def streamed(file: str) -> list[str]:
    return ["data=auto", f"data.train_file={file}", "data.streaming=true", "data.max_train_samples=null",
            "data.shuffle_buffer_size=20", "eval=none", "export=none"]  # fmt: skip


def test_a_stream_shorter_than_the_run_resumes_exactly(tmp_path: Path) -> None:
    """30 rows, 12 steps of 4: the resumed half begins in the second pass."""
    words = [
        *streamed(rows_of(tmp_path / "rows.jsonl", 30, "Row")),
        "train.save_steps=9",
        "train.save_total_limit=null",
    ]
    short_run("lora_sft", tmp_path / "whole", *words, steps=12)
    begun = tmp_path / "begun"
    shutil.copytree(tmp_path / "whole", begun)
    shutil.rmtree(begun / "adapter")
    (begun / "result.json").write_text('{"status": "interrupted"}', encoding="utf-8")
    short_run("lora_sft", begun, *words, steps=12)
    assert losses(begun) == losses(tmp_path / "whole") and len(losses(begun)) == 12
    assert file_digest(begun / ADAPTER) == file_digest(tmp_path / "whole" / ADAPTER)


def test_bad_rows_of_a_stream_are_listed(tmp_path: Path) -> None:
    file = rows_of(tmp_path / "rows.jsonl", 30, "Row", 7, 23)
    folder = tmp_path / "run"
    result = short_run("lora_sft", folder, *streamed(file), "data.on_bad_row=skip", steps=4)
    assert result.metrics["data"]["training"]["rows_skipped"] == 2
    report = (folder / "report.md").read_text("utf-8")
    assert f"{file}:7" in report and f"{file}:23" in report and "2 bad rows were skipped" in report
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert "not read whole" in manifest["inputs"][file]


@pytest.mark.slow
def test_a_bad_row_met_while_training_leaves_the_run(tmp_path: Path) -> None:
    """What was trained so far is worth more than an empty folder."""
    file = rows_of(tmp_path / "rows.jsonl", 220, "Row", 210)
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"rows\.jsonl:210: this line is not JSON"):
        words = [*streamed(file), "train.save_steps=10", "train.per_device_train_batch_size=4"]
        short_run("lora_sft", folder, *words, steps=100)
    assert json.loads((folder / "result.json").read_text("utf-8"))["status"] == "failed"
    assert any((folder / "checkpoints").glob("step-*")) and len(losses(folder)) > 20


def test_sets_mixed(tmp_path: Path) -> None:
    files = [f"data.train_files.{name}={rows_of(tmp_path / f'{name}.jsonl', 40, name)}" for name in ("first", "second")]
    words = ["data=auto", *files, "data.weights.first=3", "eval=none", "export=none"]
    result = short_run("lora_sft", tmp_path / "run", *words, steps=3)
    counts = result.metrics["data"]["training"]
    assert (counts["rows"], counts["rows_repeated"]) == (53, 0)  # 40 of the first, and a third of that of the second
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    assert all(any(key.endswith(f"{name}.jsonl") for key in manifest["inputs"]) for name in ("first", "second"))
    assert len([line for line in metrics(tmp_path / "run") if "loss" in line]) == 3


@pytest.mark.slow
def test_a_run_opens_its_data_once(tmp_path: Path) -> None:
    """Read to its end, the file is hashed on the way; else once more for its digest."""
    file = rows_of(tmp_path / "rows.jsonl", 30, "Row")
    tests = rows_of(tmp_path / "tests.jsonl", 5, "Test")
    words = ["data=auto", f"data.train_file={file}", f"data.test_files.mine={tests}", "export=none", "tracker=none",
             "data.validation_split_percentage=20", "eval.evaluators=[answers,held_out_loss]"]  # fmt: skip
    for name, samples, most in (("part", 20, 2), ("all", "null", 1)):
        with counted_opens() as opens:
            short_run("qlora_sft", tmp_path / name, *words, f"data.max_train_samples={samples}", steps=1)
        assert (opens[file], opens[tests]) == (most, 1)
        inputs = json.loads((tmp_path / name / "manifest.json").read_text("utf-8"))["inputs"]
        for path in (file, tests):
            assert inputs[path] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
