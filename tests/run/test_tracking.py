"""metrics.jsonl and W&B: what is in them, and what never is."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from short_runs import losses, metrics, short_run
from wandb.proto.wandb_internal_pb2 import Record

from gemma_tune.cli.compose import compose_config
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.tracking import Tracker, summary_names

SECRET = "5ec4e7" + "0123456789abcdef" * 2 + "77"  # as long as a key of W&B's
WHEN = ("before", "after")
OFFLINE = ["tracker=wandb", "tracker.mode=offline"]


def wandb_records(folder: Path) -> Iterator[Record]:
    """Reads a .wandb file: LevelDB's log format (blocks of 32 KiB; checksum, length, type), each entry a Record."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, position, entry = file.read_bytes(), 7, b""  # 7 bytes of header
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        entry += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(entry)
            yield record
            entry = b""


def keys_of(record: Record) -> list[str]:
    """The names that a record of the history has."""
    return [item.key or "/".join(item.nested_key) for item in record.history.item]


@pytest.fixture(scope="session")
def offline_run(once: Any) -> Path:
    """A run whose environment holds keys and tokens, tracked offline."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
                patch.setenv(name, SECRET)
            short_run("qlora_sft", folder, *OFFLINE)

    folder: Path = once("tracked_offline", make)[0]
    return folder


def test_the_file_holds_configuration_and_losses(offline_run: Path) -> None:
    records = list(wandb_records(offline_run))
    config: dict[str, Any] = {}
    for record in records:
        for item in (*record.run.config.update, *record.config.update):
            config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    stored = yaml.safe_load((offline_run / "config.yaml").read_text("utf-8"))
    assert {k: config[k] for k in stored} == stored
    logged = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.history.item
    ]
    assert [line["train/loss"] for line in logged if "train/loss" in line] == losses(offline_run)
    measured = [line["held_out_loss"] for line in metrics(offline_run) if "held_out_loss" in line]
    assert [line["eval/held_out_loss"] for line in logged if "eval/held_out_loss" in line] == measured
    assert {"train/runtime", "train/mean_loss", "train/grad_norm"} <= {key for line in logged for key in line}


def test_names_are_of_one_scheme(offline_run: Path) -> None:
    """History and summary: train/… and eval/…, beside W&B's own that begin with an underscore."""
    keys, summary = set(), {}
    for record in wandb_records(offline_run):
        keys |= set(keys_of(record))
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    assert len(keys) > 10 and len(summary) > 30
    assert [key for key in (*keys, *summary) if not key.startswith(("train/", "eval/", "_"))] == []
    assert not [key for key in keys if key.startswith(("train/train_", "eval/eval_"))]
    stored = json.loads((offline_run / "result.json").read_text("utf-8"))["metrics"]
    for name in ("held_out_loss", "perplexity"):
        assert summary[f"eval/{name}"] == stored["after"][name] != stored["before"][name]
        assert summary[f"eval/before/{name}"] == stored["before"][name]
        assert summary[f"eval/export/{name}"] == stored["export"][name]
    assert summary["train/loss"] == summary["train/loss_last"] == losses(offline_run)[-1]
    assert summary["train/loss_first"] == losses(offline_run)[0] and summary["train/steps"] == 3
    assert summary["train/data/tokens"] == stored["data"]["training"]["tokens"]
    assert summary["eval/data/held_out/tokens"] == stored["data"]["held_out"]["tokens"]
    assert summary["train/weights/trainable"] == stored["weights"]["trainable"]


def test_every_figure_has_a_name_of_its_own() -> None:
    figures = {
        "before": {"x": 1}, "after": {"x": 2, "before_x": 3}, "export": {"x": 4}, "steps": 5, "train_loss_last": 6,
        "data": {"training": {"x": 7}, "held_out": {"x": 8}}, "weights": {"x": 9},
        "test_accuracy": {"model/a": {"x": 10}},
    }  # fmt: skip
    assert summary_names(figures) == {
        "eval/before/x": 1, "eval/x": 2, "eval/before_x": 3, "eval/export/x": 4, "train/steps": 5, "train/loss_last": 6,
        "train/data/x": 7, "eval/data/held_out/x": 8, "train/weights/x": 9, "eval/test_accuracy/model/a/x": 10,
    }  # fmt: skip


@pytest.mark.slow
def test_samples_stay_here_unless_asked_for(offline_run: Path, tmp_path: Path) -> None:
    assert not list(offline_run.rglob("*.table.json"))
    short_run("lora_sft", tmp_path / "run", *OFFLINE, "tracker.log_samples=true", "eval.num_samples=2", steps=1)
    (table,) = (tmp_path / "run").rglob("*.table.json")
    found = json.loads(table.read_text("utf-8"))
    assert found["columns"] == ["prompt", "wanted", "before", "after", "score before", "score after"]
    assert len(found["data"]) == 2
    before, after = (json.loads((tmp_path / "run" / "eval" / f"{w}.json").read_text())["answers"] for w in WHEN)
    for row, old, new in zip(found["data"], before, after, strict=True):
        assert row == [new["prompt"], new["wanted"], old["answer"], new["answer"], old.get("score"), new.get("score")]
    assert any(key.startswith("eval/samples") for record in wandb_records(tmp_path / "run") for key in keys_of(record))


def test_a_comparison_as_a_table(tmp_path: Path) -> None:
    cfg = compose_config("lora_sft", [*OFFLINE, "tracker.group=mine", f"output_dir={tmp_path / 'run'}"])
    folder = RunFolder.open(cfg)
    rows = [
        {"figure": "x", "model": "a", "mean": 0.5, "p_value": None},
        {"figure": "x", "model": "b", "mean": 1, "p_value": 0.25},
    ]
    with folder.recording(), Tracker.open(cfg, folder) as tracker:
        tracker.log_comparison(rows)
    (table,) = (tmp_path / "run").rglob("*.table.json")
    found = json.loads(table.read_text("utf-8"))
    assert found["columns"] == ["figure", "model", "mean", "p_value"]
    assert found["data"] == [["x", "a", 0.5, None], ["x", "b", 1, 0.25]]
    assert {record.run.run_group for record in wandb_records(tmp_path / "run") if record.HasField("run")} == {"mine"}


def test_no_key_reaches_a_file(offline_run: Path) -> None:
    files = [f for f in offline_run.rglob("*") if f.is_file()]
    assert len(files) > 15
    for file in files:
        assert SECRET.encode() not in file.read_bytes(), file


@pytest.mark.slow
def test_the_sync_line_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    short_run("lora_sft", folder, *OFFLINE, "eval=none", "eval.num_samples=0", "export=none", steps=1)
    line = next(line for line in capsys.readouterr().out.splitlines() if "wandb sync" in line)
    assert Path(line.split("wandb sync ")[1]).samefile(next(folder.glob("wandb/offline-run-*")))


@pytest.mark.slow
def test_without_a_key_auto_is_offline_and_online_is_refused(tmp_path: Path) -> None:
    """In a process of its own: W&B keeps the keys that it has seen for the session.

    The missing key is only noticed when the run begins: a run that it was to replace is still there afterwards.
    """
    words = ["recipe=lora_sft", "train.max_steps=1", "eval=none", "export=none", "data.max_train_samples=8",
             "data.max_eval_samples=4", "eval.num_samples=0"]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"NETRC": str(tmp_path / "none"), "HOME": str(tmp_path)}
    online = [*words, "tracker.mode=online"]
    asked = [[*words, "output_dir=run"], [*online, "output_dir=two"], [*online, "output_dir=run", "overwrite=true"]]
    code = f"import sys; from gemma_tune.__main__ import main; sys.exit(str([main(words) for words in {asked}]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == "[0, 2, 2]", done.stderr
    assert done.stderr.count("no W&B key is configured") == 2 and "Traceback" not in done.stderr
    assert list((tmp_path / "run").glob("wandb/offline-run-*"))
    assert json.loads((tmp_path / "run/result.json").read_text("utf-8"))["status"] == "finished"
    assert not (tmp_path / "two").exists() and not [p for p in tmp_path.iterdir() if "replaced" in p.name]
