"""What is refused before any process is started, and what the processes are handed."""

from __future__ import annotations

import os
import re
import socket
import stat
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from gemma_tune import run, validation
from gemma_tune.cli.compose import checked, compose_config
from gemma_tune.errors import UserError
from gemma_tune.launching.handover import read_config, read_message, write_config, write_message
from gemma_tune.launching.local import killed_by
from gemma_tune.launching.place import Place, place_of, refuse_place
from gemma_tune.run.identity import folder_of

WORDS = ["model=tiny", "tracker=none", "launch.num_processes=2"]
RECIPES = ("qlora_sft", "grpo")
NAMES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No variables of torchrun, and a folder of its own."""
    for name in (*NAMES, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def refused(*words: str) -> str:
    with pytest.raises(UserError) as raised:
        refuse_place(compose_config("lora_sft", [*WORDS, *words]))
    assert not list(Path.cwd().iterdir())
    return str(raised.value)


@pytest.mark.parametrize(
    ("variables", "words", "said"),
    [
        ({"NNODES": "2"}, ["launch.num_nodes=3"], "launch.num_nodes=3, and NNODES=2 in the environment"),
        ({"NNODES": "two"}, [], "NNODES=two in the environment is not a number from 1"),
        ({"NNODES": "0"}, [], "NNODES=0 in the environment"),
        ({"NODE_RANK": "1"}, [], "NODE_RANK=1 in the environment: there is one machine"),
        ({"NODE_RANK": "2"}, ["launch.num_nodes=2"], "NODE_RANK=2 in the environment: the machines are 0 to 1"),
        ({"NODE_RANK": "-1"}, ["launch.num_nodes=2"], "NODE_RANK=-1 in the environment is not a number from 0"),
        ({"MASTER_ADDR": "a"}, ["launch.num_nodes=2"], "launch.num_nodes=2: NODE_RANK must be in the environment"),
        ({}, ["launch.num_nodes=2"], "launch.num_nodes=2: NODE_RANK and MASTER_ADDR must be in the environment"),
        ({"NNODES": "2", "NODE_RANK": "0"}, [], "launch.num_nodes=2: MASTER_ADDR must be in the environment"),
        ({"MASTER_PORT": "70000"}, [], "MASTER_PORT=70000 in the environment is not a number from 1 to 65535"),
        ({"MASTER_PORT": "http"}, [], "MASTER_PORT=http in the environment"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, [], "WORLD_SIZE=2 in the environment without LOCAL_RANK"),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, [], "launch.num_processes=2, and 1 were started"),
        (
            {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "no.such.invalid"}, [],
            "MASTER_ADDR=no.such.invalid: no machine has this name",
        ),
        ({"SLURM_STEP_NUM_TASKS": "8"}, [], "srun has started 8 tasks of this command"),
    ],
)  # fmt: skip
def test_an_environment_that_does_not_fit(
    variables: dict[str, str], words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert refused(*words).startswith(said)


def test_the_environment_says_where_a_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(name, value)
    cfg = compose_config("lora_sft", WORDS)
    assert cfg.launch.num_nodes == 2 and place_of(cfg.launch) == Place(2, 2, 1, "localhost", 1234, 30.0)
    monkeypatch.delenv("MASTER_PORT")
    assert place_of(cfg.launch).port == 29500, "torchrun's"


def test_a_configuration_of_accelerate_that_shards_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be used without a word, beside `parallel`."""
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"ACCELERATE_USE_FSDP=true .* parallel=fsdp2"):
        compose_config("lora_sft", ["model=tiny"])


def test_a_dry_run_needs_no_other_machine() -> None:
    assert compose_config("lora_sft", [*WORDS, "launch.num_nodes=2", "dry_run=true"]).launch.num_nodes == 2


def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        monkeypatch.setenv("MASTER_PORT", port)
        assert refused().startswith(f"MASTER_PORT={port}: this port is in use on this machine")
        for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "localhost"}.items():
            monkeypatch.setenv(name, value)
        assert refuse_place(compose_config("lora_sft", WORDS)).node_rank == 1, "it is the first machine's"


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both numbers, and why torch sees so few; on the CPU any number is allowed."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "launch.num_processes=2: this machine has 1 GPU for it (CUDA_VISIBLE_DEVICES isn't set)" in refused()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert "(CUDA_VISIBLE_DEVICES=3)" in refused() and "set launch.num_processes=1." in refused()
    refuse_place(compose_config("lora_sft", [*WORDS, "model.device=cpu"]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refuse_place(compose_config("lora_sft", WORDS))


def test_mistakes_are_found_before_a_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """In rows and in the model's name, from Python; and the folder of another run is refused."""
    monkeypatch.setattr("gemma_tune.launching.local.run_here", lambda cfg: pytest.fail("started"))
    for word, said in [("data.train_file=missing.jsonl", "missing.jsonl"), ("model.model_name_or_path=./none", "none")]:
        with pytest.raises(UserError, match=re.escape(said)):
            run("lora_sft", [*WORDS, "data=messages" if "data" in word else "data=sample", word])
    Path("notes").mkdir()
    Path("notes/mine.txt").touch()
    with pytest.raises(UserError, match="holds no run of ours"):
        run("lora_sft", [*WORDS, "output_dir=notes"])


def test_a_process_has_the_very_same_configuration(tmp_path: Path) -> None:
    """The same keys, so the same run folder; only this user can read the file."""
    for recipe in RECIPES:
        cfg = compose_config(recipe, WORDS)
        scratch = tmp_path / recipe
        scratch.mkdir()
        write_config(scratch, cfg)
        assert stat.S_IMODE(os.stat(scratch / "config.json").st_mode) == 0o600
        again = checked(OmegaConf.create(validation.literal(read_config(scratch))), "", "configuration")
        assert asdict(again) == asdict(cfg) and folder_of(again) == folder_of(cfg), recipe


def test_a_message_is_handed_back_whole(tmp_path: Path) -> None:
    write_message(tmp_path, 3, "zwei\nZeilen …")
    assert read_message(tmp_path, 3) == "zwei\nZeilen …" and read_message(tmp_path, 0) == ""


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (9, "killed by SIGKILL; mostly the machine was out of memory (see `dmesg`), or somebody ended it."),
        (11, "killed by SIGSEGV, a crash in compiled code of a library."),
        (7, "killed by SIGBUS, a crash in compiled code; in a container mostly too little shared memory (--shm-size)."),
        (60, "killed by signal 60."),
    ],
)
def test_what_a_signal_means(number: int, said: str) -> None:
    assert killed_by(number) == said


def test_completions_of_processes_that_torchrun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group may lie over both: 4 completions of each of two processes."""
    words = ["model=tiny", "tracker=none", "train.num_generations=8", "train.per_device_train_batch_size=4"]
    with pytest.raises(UserError, match="a generation has 4 completions"):
        compose_config("grpo", words)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    assert compose_config("grpo", words).processes == 2
