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
from short_runs import losses, short_run
from wandb.proto.wandb_internal_pb2 import Record

SECRET = "5ec4e7" + "0123456789abcdef" * 2 + "77"  # as long as a key of W&B's
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


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose environment holds keys and tokens, tracked offline."""
    folder = tmp_path_factory.mktemp("wandb") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.setenv(name, SECRET)
        short_run("qlora_sft", folder, *OFFLINE)
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
    assert any("eval/held_out_loss" in line for line in logged)


def test_samples_stay_here_unless_asked_for(offline_run: Path, tmp_path: Path) -> None:
    assert not list(offline_run.rglob("*.table.json"))
    short_run("lora_sft", tmp_path / "run", *OFFLINE, "tracker.log_samples=true", steps=1)
    (table,) = (tmp_path / "run").rglob("*.table.json")
    found = json.loads(table.read_text("utf-8"))
    assert found["columns"] == ["prompt", "wanted", "before", "after"] and len(found["data"]) == 2


def test_no_key_reaches_a_file(offline_run: Path) -> None:
    files = [f for f in offline_run.rglob("*") if f.is_file()]
    assert len(files) > 15
    for file in files:
        assert SECRET.encode() not in file.read_bytes(), file


def test_the_sync_line_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    short_run("lora_sft", folder, *OFFLINE, "eval=none", "eval.num_samples=0", "export=none", steps=1)
    line = next(line for line in capsys.readouterr().out.splitlines() if "wandb sync" in line)
    assert Path(line.split("wandb sync ")[1]).samefile(next(folder.glob("wandb/offline-run-*")))


def test_auto_is_offline_without_a_key(tmp_path: Path) -> None:
    """In a process of its own: W&B keeps the keys that it has seen for the session."""
    words = ["recipe=lora_sft", "train.max_steps=1", "eval=none", "export=none", "data.max_train_samples=8"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"NETRC": str(tmp_path / "none"), "HOME": str(tmp_path)}

    def ask(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gemma_tune", *words, *more]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = ask("output_dir=run")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run").glob("wandb/offline-run-*"))
    done = ask("output_dir=two", "tracker.mode=online")
    assert done.returncode == 2 and "no W&B key is configured" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "two").exists()
