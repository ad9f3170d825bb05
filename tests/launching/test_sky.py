"""`launch=sky`: the task's file, what is refused, and what SkyPilot's own parser says where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gemma_tune import run
from gemma_tune.cli.main import main
from gemma_tune.errors import UserError

WORDS = ["recipe=lora_sft", "model=tiny", "tracker=none", "launch=sky", "launch.num_nodes=2", "output_dir=runs/My_Run"]
SKY = ["launch.sky.accelerators=H100:8", "launch.sky.infra=k8s", "launch.sky.setup=[pip install gemma_tune,nvidia-smi]"]


@pytest.fixture
def written(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """The file of a dry run, read back, and what was printed."""
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "COMET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "not-to-be-seen")
    assert main([*WORDS, *SKY, "launch.sky.use_spot=true", "dry_run=true"]) == 0
    text = (folder / "runs" / "My_Run" / "task.yaml").read_text("utf-8")
    assert "not-to-be-seen" not in text
    return yaml.safe_load(text), capsys.readouterr().out


def test_the_file_as_a_whole(written: tuple[Any, str], folder: Path) -> None:
    """Each GPU has a process; keys go by name, and their values from the environment."""
    task, said = written
    assert task == {
        "name": "gemma-tune-my-run",
        "resources": {"accelerators": "H100:8", "infra": "k8s", "use_spot": True},
        "num_nodes": 2,
        "workdir": str(folder),
        "secrets": {"HF_TOKEN": None},
        "setup": "pip install gemma_tune\nnvidia-smi",
        "run": 'export NODE_RANK="$SKYPILOT_NODE_RANK"\n'
        'export MASTER_ADDR="$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"\n'
        "python -m gemma_tune recipe=lora_sft model=tiny tracker=none output_dir=runs/My_Run launch.by=local "
        "launch.num_processes=8 launch.num_nodes=2",
    }
    command = "sky launch --yes --detach-run --cluster gemma-tune-my-run --secret HF_TOKEN"
    assert f"{command} {folder}/runs/My_Run/task.yaml" in said


def test_skypilot_reads_it(written: tuple[Any, str]) -> None:
    sky = pytest.importorskip("sky", reason="SkyPilot isn't installed (an environment of its own has it)")
    read = sky.Task.from_yaml_config(written[0])
    assert read.num_nodes == 2 and read.name == "gemma-tune-my-run"
    assert {str(r.accelerators) for r in read.resources} == {"{'H100': 8}"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch.sky.accelerators='{H100:8,A100:8}'"], "write the name of a GPU and how many, as H100:8"),
        (["launch.sky.accelerators=H100:4", "launch.num_processes=8"], "each process needs a GPU of its own"),
        (["launch.sky.accelerators=H100", "launch.num_processes=2"], "each process needs a GPU of its own"),
        (["launch.sky.setup=['a\nb']"], "has a line break"),
        (["launch.sky.setup=[export WANDB_API_KEY=abc]"], "launch.sky.setup: it sets WANDB_API_KEY"),
        (["launch.slurm.partition=gpu"], "launch.slurm has no effect with launch=sky"),
    ],
)
def test_what_is_refused(words: list[str], said: str, folder: Path) -> None:
    with pytest.raises(UserError) as raised:
        run("lora_sft", [*WORDS[1:], "dry_run=true", *words])
    assert said in str(raised.value) and not list(folder.iterdir())


def test_it_is_launched_where_sky_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert main(WORDS) == 2
    assert "task.yaml was written, and not submitted: there is no program sky" in capsys.readouterr().err
    (folder / "sky").write_text('#!/bin/sh\necho "$@" > called\n')
    (folder / "sky").chmod(0o755)
    assert main(WORDS) == 0
    assert "Launched on the cluster gemma-tune-my-run" in capsys.readouterr().out
    assert (folder / "called").read_text().startswith("launch --yes --detach-run --cluster gemma-tune-my-run ")
