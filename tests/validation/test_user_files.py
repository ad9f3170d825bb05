"""The user's own YAML: what Hydra would pass over in silence is an error with file and fix."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import MY_RUN, START, refused, write

FILES = {
    "unknown keys": (
        START + "train: {lerning_rate: 1e-4}\nmodel: {_target_: os.system}\nlora_rank: 3\nadapter: {r: 0}\n",
        ["4 problems", "`train.lerning_rate`", "`model._target_`", "Did you mean adapter.r?", "adapter.r must be at"],
    ),
    "train.extra": (START + "train: {extra: {adam_bta2: 0.9}}\n", ["Did you mean adam_beta2?"]),
    "_target_ deep inside": (START + "train: {extra: {optim_args: {_target_: os.system}}}\n", ["no _target_ here"]),
    "no @package": (MY_RUN.partition("\n")[2], ["the first line must be `# @package _global_`", MY_RUN.split("\n")[1]]),
    "typos in defaults": (
        "# @package _global_\ndefaults: [qlora_sftt, {override /adapter: dorra}, {override /adaptor: dora}, _self_]\n",
        ["Did you mean qlora_sft?", "Did you mean dora?", "Did you mean adapter?"],
    ),
    "defaults without the slash": (
        "# @package _global_\ndefaults: [qlora_sft, {adapter: dora}, _self_]\n",
        ["write {override /adapter: dora}"],
    ),
    "defaults are no list": ("# @package _global_\ndefaults: qlora_sft\n", ["defaults must be a list", "_self_]"]),
    "option as a value": (START + "adapter: dora\n", ["adapter is a group", "{override /adapter: OPTION}"]),
    "a list of options": (START.replace("_self_", "{override /adapter: [lora, dora]}"), ["no adapter `['lora'"]),
    "broken": (START + "train: {\n", ["not valid YAML"]),
    "a tab": (
        START + "train:\n\tmax_steps: 3\n",
        [".yaml:4: this is not valid YAML: there is a tab; indent with spaces"],
    ),
    "the same key twice": (START + "train: {max_steps: 3}\ntrain: {packing: true}\n", ["duplicate key train"]),
    "empty": ("", ["holds no keys", "# @package _global_"]),
}


@pytest.mark.parametrize("name", FILES)
def test_mistake_in_my_file(folder: Path, name: str) -> None:
    text, expected = FILES[name]
    write("mine/recipe/my_run.yaml", text)
    message = refused("--config-dir", "mine", "recipe=my_run")
    assert all(e in message for e in ["mine/recipe/my_run.yaml", *expected]), message


@pytest.mark.parametrize(
    "text, expected", [("method: sftt\n", "Did you mean sft?"), ("seed: 3\n", "method is not set")]
)
def test_method_of_my_recipe(folder: Path, text: str, expected: str) -> None:
    write("mine/recipe/my_run.yaml", "# @package _global_\n" + text)
    assert expected in refused("--config-dir", "mine", "recipe=my_run")


def test_mistake_in_a_file_that_my_file_chooses(folder: Path) -> None:
    write("mine/adapter/wide.yaml", "defaults: [lora, _self_]\nrnk: 64\n")
    write("mine/recipe/my_run.yaml", MY_RUN.replace("dora", "wide"))
    assert "mine/adapter/wide.yaml: there is no key `adapter.rnk`" in refused("--config-dir", "mine", "recipe=my_run")


def test_files_in_the_wrong_place(folder: Path) -> None:
    stray = write("mine/my_run.yaml", MY_RUN)
    assert "move it to mine/recipe/my_run.yaml" in refused("--config-dir", "mine", "recipe=my_run")
    stray.unlink()
    write("mine/recipe/my_run.yaml", MY_RUN)
    assert "--config-dir mine\n" in refused("--config-dir", "mine/recipe", "recipe=my_run")
    shipped = write("mine/recipe/lora_sft.yaml", MY_RUN)
    message = refused("--config-dir", "mine", "recipe=my_run")
    assert "mine/recipe/lora_sft.yaml" in message and "mine/recipe/my_lora_sft.yaml" in message
    shipped.unlink()
    write("mine/adapters/wide.yaml", "r: 64\n")
    assert "Did you mean adapter?" in refused("--config-dir", "mine", "recipe=my_run")
