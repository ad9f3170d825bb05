"""Two processes that train on rows with images are one process with twice the rows, towers trained or frozen.

One row has no image: in one step one of the two processes computes nothing of the towers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from media_models import media_folder
from media_rows import media_rows
from runs import assert_equal, started
from safetensors.torch import load_file

CASES = {
    "frozen": ["full_sft", "train.learning_rate=1e-3"],
    "projector": ["lora_sft", "train.learning_rate=1e-2", "model.train_towers=projector"],
    "full": ["lora_sft", "train.learning_rate=1e-2", "model.train_towers=full"],
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Path]]:
    """The runs of one process and those of two."""
    folder = tmp_path_factory.mktemp("media")
    model, rows = media_folder("gemma3", folder / "model"), media_rows(folder, turns=2)
    words = [f"model.model_name_or_path={model}", "data=messages", f"data.train_file={rows}"]
    one, two = (
        {name: [*case, *words, f"train.per_device_train_batch_size={batch}"] for name, case in CASES.items()}
        for batch in (2, 1)
    )
    return started(1, one, folder / "one"), started(2, two, folder / "two")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name: str, both: Any) -> None:
    one, two = (runs[name] for runs in both)
    assert_equal(name, one, two)
    if name == "frozen":
        return
    ones, twos = (load_file(run / "checkpoints" / "step-5" / "towers.safetensors") for run in (one, two))
    assert ones.keys() == twos.keys()
    assert all((tensor - twos[key]).abs().max() <= 1e-5 for key, tensor in ones.items())
