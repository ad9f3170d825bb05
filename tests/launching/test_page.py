"""docs/launching.md: every command and every file in it is read by whatever reads it, as far as that is here."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from code_blocks import blocks_of
from torch.distributed.run import parse_args

from gemma_tune.cli.compose import compose_config

BLOCKS = blocks_of("launching.md")
SHELL = [block for block in BLOCKS if block.kind == "sh"]
TASK, TRAIN, JOB = (yaml.safe_load(block.text) for block in BLOCKS if block.kind == "yaml")
NODES: dict[str, Any] = JOB["spec"]["pytorchReplicaSpecs"]


def commands() -> list[list[str]]:
    """Every command of the page, in words: those of shells, and those within files."""
    lines = [line for block in SHELL for line in block.commands] + TASK["commands"]
    in_pods = [node["template"]["spec"]["containers"][0]["command"] for node in NODES.values()]
    return [*map(shlex.split, lines), TRAIN["spec"]["trainer"]["command"], *in_pods]


OURS = [words for words in commands() if "gemma_tune" in words]
assert len(OURS) == 12, "one for each way, and two for two machines"


def test_a_shell_reads_it() -> None:
    subprocess.run(["bash", "-n", "-c", "\n".join(block.text for block in SHELL)], check=True)


@pytest.mark.parametrize("words", OURS[:2] + OURS[3:-1], ids=lambda words: words[0])  # one of two like one another
def test_the_words_pass_every_check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for variable in words[: next(i for i, w in enumerate(words) if "=" not in w)]:
        monkeypatch.setenv(*variable.split("=", 1))
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    if "launch.num_nodes=2" in words and "launch=slurm" not in words:
        monkeypatch.setenv("NODE_RANK", "0")
    given = [word for word in words[words.index("gemma_tune") + 1 :] if not word.startswith("data.train_file=")]
    recipe = given.pop(0).removeprefix("recipe=")
    cfg = compose_config(recipe, [*given, "data.train_file=assets://sample/train.jsonl"])
    assert cfg.launch.num_processes in (1, 8) and cfg.launch.num_nodes in (1, 2)


def test_torchrun_and_accelerate_read_their_options() -> None:
    torchrun = [words for words in OURS if words[0] == "torchrun"]
    for words in torchrun:
        read = parse_args(words[1:])
        assert (
            read.module and read.training_script == "gemma_tune" and read.training_script_args[0] == "recipe=lora_sft"
        )
    assert len(torchrun) == 4
    (words,) = [words for words in OURS if words[0] == "accelerate"]
    given = launch_command_parser().parse_args(words[2:])
    assert given.module and given.training_script == "gemma_tune" and given.num_processes == 8 and given.multi_gpu


def test_the_client_of_the_hub_reads_its_options(tmp_path: Path) -> None:
    """It shows what it would submit."""
    (words,) = [words for words in OURS if words[0] == "hf"]
    hf = str(Path(sys.executable).with_name("hf"))
    env = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_none", "HF_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([hf, *words[1:3], "--dry-run", *words[3:]], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "python -m gemma_tune recipe=lora_sft" in done.stdout and "h200x8" in done.stdout


def test_the_files_are_whole() -> None:
    """What each kind must have; the workers of a PyTorchJob are as its master."""
    assert TASK["nodes"] == 2 and TASK["commands"][1].split()[0] == "export"
    assert {"$DSTACK_NODE_RANK", "$DSTACK_MASTER_NODE_IP"} <= {w.split("=")[-1] for w in TASK["commands"][1].split()}
    assert TRAIN["spec"]["trainer"]["numNodes"] == 2 and TRAIN["spec"]["trainer"]["numProcPerNode"] == 8
    assert NODES["Master"] == NODES["Worker"] and JOB["spec"]["nprocPerNode"] == "8"
    pod = NODES["Master"]["template"]["spec"]
    assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_dstack_reads_its_file() -> None:
    models = pytest.importorskip("dstack._internal.core.models.configurations", reason="dstack isn't installed")
    assert models.parse_run_configuration(TASK).nodes == 2
