"""A run whose weights two processes share goes on with two, with one and with four, from the parts of a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from every_recipe import write_rows
from runs import started, steps, weights
from small_models import save

from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError
from gemma_tune.run.checkpoints import SHARDS, STATE, seal
from gemma_tune.run.resume import find_checkpoint

WORDS = [
    "parallel=fsdp2", "train.max_steps=4", "train.save_steps=2", "train.optim=adamw_torch", "train.learning_rate=1e-2",
]  # fmt: skip


def _run(processes: int, folder: Path, base: Path) -> dict[str, Path]:
    rows = [f"model.model_name_or_path={base / 'model'}", *write_rows("answers", base)]
    batch = f"train.per_device_train_batch_size={8 // processes}"
    cases = {recipe: [recipe, *WORDS, *rows, batch] for recipe in ("full_sft", "lora_sft")}
    return started(processes, cases, folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model; the runs of two processes that nothing interrupts are in `whole`."""
    folder = tmp_path_factory.mktemp("sharded")
    save("gemma3_text", folder / "model")
    _run(2, folder / "whole", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 1, 4])
def test_goes_on_with_any_number(processes: int, base: Path) -> None:
    """As many: the same weights to the bit. Others: losses to 1e-6."""
    folder = base / f"resumed_{processes}"
    shutil.copytree(base / "whole", folder)
    for run in (folder / "full_sft", folder / "lora_sft"):
        shutil.rmtree(run / "checkpoints" / "step-4")  # as a kill after step 2 leaves it
        result = json.loads((run / "result.json").read_text("utf-8"))
        (run / "result.json").write_text(json.dumps({**result, "status": "running"}), encoding="utf-8")
    for recipe, run in _run(processes, folder, base).items():
        one = base / "whole" / recipe
        losses = [[line["loss"] for line in steps(of)] for of in (one, run)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)
        ones, others = (weights(of / "checkpoints" / "step-4") for of in (one, run))
        most = 0.0 if processes == 2 else 1e-6
        assert ones.keys() - others.keys() <= {"lm_head.weight"}  # tied; one process doesn't store it
        assert max((ones[name] - tensor).abs().max().item() for name, tensor in others.items()) <= most


@pytest.mark.parametrize("sharded", [True, False])
def test_the_other_kind_is_refused(sharded: bool, tmp_path: Path) -> None:
    """Whole weights are not gone on with as parts of them, nor the other way round; a single process takes both."""
    checkpoint = tmp_path / "step-3"
    (checkpoint / (SHARDS if sharded else "other")).mkdir(parents=True)
    (checkpoint / "optimizer.pt").touch()
    (checkpoint / STATE).write_text(json.dumps({"global_step": 3, "max_steps": 9}), encoding="utf-8")
    seal(checkpoint)
    kinds = {"fsdp2", "ddp"}
    right = "fsdp2" if sharded else "ddp"
    (wrong,) = kinds - {right}
    two = ["model=tiny", "launch.num_processes=2"]
    found = find_checkpoint(compose_config("lora_sft", [*two, f"parallel={right}"]), tmp_path)
    assert found and found.path == checkpoint
    assert find_checkpoint(compose_config("lora_sft", ["model=tiny", f"parallel={wrong}"]), tmp_path) == found
    with pytest.raises(UserError, match=f"parallel={wrong}: .*step-3.*set parallel={right}"):
        find_checkpoint(compose_config("lora_sft", [*two, f"parallel={wrong}"]), tmp_path)
