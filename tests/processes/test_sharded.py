"""FSDP2 on two gloo processes with 4 rows each is one process with 8, for every family: full tuning and LoRA."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
import transformers
from every_recipe import write_rows
from runs import SHORT, assert_equal, started, steps
from safetensors.torch import load_file
from small_models import MODELS, save
from transformers import AutoConfig

import gemma_tune
from gemma_tune.models.family import FAMILIES

RATE = {"full_sft": "train.learning_rate=1e-3", "lora_sft": "train.learning_rate=1e-2"}
AGAIN = "parallel.activation_checkpointing=true"  # activations are computed again
SMALL = "FOLDER/gemma3_text"
CASES = {
    "full": ["full_sft"],
    "lora": ["lora_sft"],
    "packed": ["lora_sft", SMALL, "train.packing=true", "train.max_length=64"],
    "accumulated": ["lora_sft", SMALL, "train.gradient_accumulation_steps=2"],
    "kept_gathered": ["full_sft", SMALL, "parallel.reshard_after_forward=false"],
    "all_read": ["full_sft", SMALL, "parallel.cpu_ram_efficient_loading=false"],
    "again": ["full_sft", SMALL, AGAIN],
    "checkpointed": ["lora_sft", SMALL, "train.gradient_checkpointing=true"],
    "dora": ["lora_sft", SMALL, "adapter.use_dora=true"],
    "rslora": ["lora_sft", SMALL, "adapter.use_rslora=true", "adapter.r=1"],  # one process has no row of A
    "loraplus": ["lora_sft", SMALL, "adapter.loraplus_lr_ratio=4"],
    "not_clipped": ["lora_sft", SMALL, "train.max_grad_norm=0"],
    "measured": ["lora_sft", SMALL, "eval.evaluators=[held_out_loss,answers]", "eval.num_samples=2"],
    "best": [
        "full_sft",
        SMALL,
        "train.eval_steps=2",
        "train.save_steps=2",
        "train.metric_for_best_model=held_out_loss",
        "eval.evaluators=[held_out_loss]",
        "eval.during_training=[held_out_loss]",
        "train.learning_rate=1e-1",
    ],
    "adamw": ["lora_sft", SMALL, "train.optim=adamw_torch", "train.learning_rate=1e-3"],
    "reward_model": ["reward_model", SMALL, "train.learning_rate=1e-3", "SCORED"],
    **{f"{name}-full": ["full_sft", f"FOLDER/{name}"] for name in MODELS},
    **{f"{name}-lora": ["lora_sft", f"FOLDER/{name}"] for name in MODELS},
    "gemma4_e2b-again": ["full_sft", "FOLDER/gemma4_e2b", AGAIN],
    "gemma4_e2b-checkpointed": ["lora_sft", "FOLDER/gemma4_e2b", "train.gradient_checkpointing=true"],
    "gemma3n-again": ["full_sft", "FOLDER/gemma3n", AGAIN],
    "gemma4_26b-again": ["full_sft", "FOLDER/gemma4_26b", AGAIN],
}
FSDP2 = ["parallel=fsdp2", "train.save_steps=5"]


def cases(names: Any, folder: Path, rows: int) -> dict[str, list[str]]:
    """The runs of these names, with so many rows for each process."""
    found = {}
    for name in names:
        recipe, *words = CASES[name]
        said = [RATE.get(recipe, ""), *FSDP2, f"train.per_device_train_batch_size={rows}"]
        for word in words:
            if word == "SCORED":
                said += write_rows("scored_pairs", folder)
            elif word.startswith("FOLDER/"):
                place = folder / word.removeprefix("FOLDER/")
                if not place.is_dir():
                    save(place.name, place)
                said.append(f"model.model_name_or_path={place}")
                said += [] if "SCORED" in words else write_rows("answers", folder)
            else:
                said.append(word)
        found[name] = [recipe, *filter(None, said)]
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Path]]:
    """The runs of one process and those of two."""
    folder = tmp_path_factory.mktemp("sharded")
    return (
        started(1, cases(CASES, folder, 8), folder / "one", timeout=1800),
        started(2, cases(CASES, folder, 4), folder / "two", timeout=1800),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_times_four_is_eight(name: str, both: Any) -> None:
    # Of the first step; later ones have weights that are rounded otherwise
    assert_equal(name, *(of[name] for of in both), norms=1)


@pytest.mark.slow
def test_the_same_measurements(both: Any) -> None:
    """Before and after training: answers, held-out loss, scores."""
    for name in CASES:
        for when in ("before", "after"):
            one, two = (json.loads((of[name] / "eval" / f"{when}.json").read_text("utf-8")) for of in both)
            assert one["figures"] == pytest.approx(two["figures"], rel=1e-5), (name, when)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_layer_class(model_type: str) -> None:
    """What FSDP2 makes a group of is the class of the decoder layers of the installed Transformers."""
    family = FAMILIES[model_type]
    module = __import__(getattr(transformers, family.language_class).__module__, fromlist=["_"])
    assert isinstance(getattr(module, family.layer_class), type)
    config = AutoConfig.for_model(model_type).get_text_config()
    with torch.device("meta"):
        layer = getattr(module, family.layer_class)(config, 0)
    assert family.layer_class in getattr(transformers, family.language_class)._no_split_modules
    assert layer.self_attn is not None


EXPORTS = {
    "lora": ["lora_sft", "train.learning_rate=1e-2", "eval.evaluators=[held_out_loss,answers]", "eval.num_samples=2"],
    "full": ["full_sft", "train.learning_rate=1e-3"],
    "reward_model": ["reward_model", "train.learning_rate=1e-3"],
    "stored_once": ["full_sft", "FOLDER/gemma4_e2b", "train.learning_rate=1e-3"],
}


def _exported(names: Any, folder: Path, *more: str) -> dict[str, list[str]]:
    found = {}
    for name in names:
        recipe, *words = EXPORTS[name]
        model = next((w.removeprefix("FOLDER/") for w in words if w.startswith("FOLDER/")), "gemma3_text")
        if not (folder / model).is_dir():
            save(model, folder / model)
        rows = write_rows("scored_pairs" if name == "reward_model" else "answers", folder)
        export = [f"model.model_name_or_path={folder / model}", "export=merged", "export.dtype=float32"]
        kept = [word for word in words if "/" not in word]
        found[name] = [recipe, *kept, *rows, *export, "train.save_steps=null", "train.max_steps=3", *more]
    return found


def assert_same_artifacts(name: str, one: Path, two: Path) -> None:
    """Whole weights, adapter and measurements of a run on shared weights are those of another one."""
    assert [line["loss"] for line in steps(two)] == pytest.approx([line["loss"] for line in steps(one)], rel=1e-6)
    files = [{str(p.relative_to(run)) for p in run.rglob("*.safetensors")} for run in (one, two)]
    assert files[0] == files[1] != set()
    for file in files[0]:
        ones, twos = (load_file(run / file) for run in (one, two))
        assert ones.keys() == twos.keys()
        for key, value in ones.items():
            torch.testing.assert_close(twos[key], value, rtol=0, atol=1e-5, msg=f"{file}: {key}")
    for when in ("before", "after"):
        found = [json.loads((run / "eval" / f"{when}.json").read_text("utf-8")) for run in (one, two)]
        assert found[0]["figures"] == pytest.approx(found[1]["figures"], rel=1e-5)
        assert found[0]["answers"] == found[1]["answers"]
    results = [json.loads((run / "result.json").read_text("utf-8")) for run in (one, two)]
    assert results[0]["status"] == results[1]["status"] == "finished"
    assert (
        results[0]["artifacts"] == results[1]["artifacts"]
        and results[0]["metrics"].keys() == results[1]["metrics"].keys()
    )


def test_trains_and_exports(tmp_path: Path) -> None:
    """The run of the fast tests: what two processes that share the weights leave is what one process leaves."""
    words = _exported(["lora"], tmp_path)["lora"]
    two = started(2, {"lora": [*words, "parallel=fsdp2", "train.per_device_train_batch_size=4"]}, tmp_path / "two")
    every = [*SHORT, *words[1:], f"output_dir={tmp_path / 'one'}", "train.per_device_train_batch_size=8"]
    gemma_tune.run(words[0], list({w.split("=", 1)[0]: w for w in every}.values()))
    assert_same_artifacts("lora", tmp_path / "one", two["lora"])


@pytest.mark.slow
def test_exports_what_ddp_exports(tmp_path: Path) -> None:
    """Merged weights, reward model and adapter of fsdp2 are those of ddp."""
    batch = "train.per_device_train_batch_size=4"
    found = [
        started(2, _exported(EXPORTS, tmp_path, batch, f"parallel={kind}"), tmp_path / kind, timeout=1800)
        for kind in ("ddp", "fsdp2")
    ]
    for name in EXPORTS:
        assert_same_artifacts(name, *(of[name] for of in found))


@pytest.mark.slow
def test_a_copy_on_each_machine(tmp_path: Path) -> None:
    """Two machines of two processes: those of a machine share the weights, and gradients go over the network."""
    name = "gemma3_text-full"
    one = started(1, cases([name], tmp_path, 8), tmp_path / "one")[name]
    folder = tmp_path / "four"
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(cases([name], tmp_path, 2)), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=2",
             "--master-addr=127.0.0.1", f"--master-port={port}", runs.__file__, str(folder / "cases.json")],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for node in range(2)
    ]  # fmt: skip
    assert [machine.wait(timeout=600) for machine in machines] == [0, 0]
    assert_equal(name, one, folder / name, norms=1)


@pytest.mark.slow
def test_mixed_precision_rounds_no_loss(tmp_path: Path) -> None:
    """Products are in bfloat16, and the loss is not: accelerate's own policy would round it to 8 bits."""
    words = ["full_sft", "train.learning_rate=1e-3", "train.bf16=true", "train.max_steps=2"]
    one = started(1, {"a": [*words, "train.per_device_train_batch_size=8"]}, tmp_path / "one")["a"]
    two = started(2, {"a": [*words, "parallel=fsdp2", "train.per_device_train_batch_size=4"]}, tmp_path / "two")["a"]
    losses = [line["loss"] for line in steps(two)]
    assert losses == pytest.approx([line["loss"] for line in steps(one)], rel=5e-3)
    assert any(torch.tensor(loss).bfloat16().item() != loss for loss in losses)
