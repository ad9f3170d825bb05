"""Values that are filled in where they are null: by what is trained, and by the width of the model that is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemma_tune.cli.compose import compose_config, load_stored
from gemma_tune.run.folder import RunFolder

GROUPED = "train.train_sampling_strategy=group_by_"
MINE = ["data=messages", "data.train_file=assets://sample/train.jsonl"]


def folder_of_width(folder: Path, width: int, nested: bool = False) -> Path:
    """What can be seen of a model without loading it."""
    text = {"model_type": "gemma3_text", "hidden_size": width}
    config = {"model_type": "gemma3", "text_config": text} if nested else text
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("recipe", "rate", "dtype", "grouped"),
    [
        ("full_sft", 2e-5, "float32", "length"),
        ("lora_sft", 2e-4, "bfloat16", "beginning"),
        ("qlora_sft", 2e-4, "bfloat16", "length"),
    ],
)
def test_published_checkpoints(recipe: str, rate: float, dtype: str, grouped: str) -> None:
    cfg = compose_config(recipe, ["model=gemma3_1b_it", *MINE])
    assert (cfg.train.learning_rate, cfg.model.dtype, cfg.eval.batch_size) == (rate, dtype, 8)
    assert (cfg.train.packing, cfg.train.per_device_train_batch_size) == (True, 2)
    apart = compose_config(recipe, ["model=gemma3_1b_it", *MINE, "train.packing=false"])
    assert (apart.train.packing, apart.train.per_device_train_batch_size) == (False, 8)
    assert not compose_config(recipe, ["model=gemma3_1b_it", *MINE, GROUPED + grouped]).train.packing


@pytest.mark.parametrize(("recipe", "rate"), [("full_sft", 2e-3), ("lora_sft", 8e-3), ("qlora_sft", 8e-3)])
def test_the_embedded_model(recipe: str, rate: float) -> None:
    cfg = compose_config(recipe)
    assert (cfg.train.learning_rate, cfg.eval.batch_size) == (rate, 64)
    assert (cfg.train.packing, cfg.train.per_device_train_batch_size) == (False, 4)


def test_batches_on_the_grid() -> None:
    assert compose_config("qat").train.per_device_train_batch_size == 8
    wide = ["model=gemma3_1b_it", *MINE]
    assert compose_config("qat", wide).train.per_device_train_batch_size == 2
    cases: list[tuple[list[str], tuple[int, int]]] = [
        ([], (4, 8)),
        (wide, (2, 2)),
        (["train.per_device_train_batch_size=1"], (1, 1)),
        (["quant.stage2.per_device_train_batch_size=3"], (4, 3)),
    ]
    for words, sizes in cases:
        cfg = compose_config("tune_to_int4", words)
        assert (cfg.train.per_device_train_batch_size, cfg.quant.stage2.per_device_train_batch_size) == sizes


@pytest.mark.parametrize(("width", "rate"), [(256, 8e-3), (511, 8e-3), (512, 2e-4), (2560, 2e-4)])
@pytest.mark.parametrize("nested", [False, True])
def test_the_folder_counts_and_not_the_option(tmp_path: Path, width: int, rate: float, nested: bool) -> None:
    """model=tiny is the default option; a folder named beside it must not get the embedded model's values."""
    folder = folder_of_width(tmp_path / "model", width, nested)
    cfg = compose_config("qlora_sft", [f"model.model_name_or_path={folder}", *MINE])
    assert cfg.train.learning_rate == rate


def test_an_adapter_counts_as_its_base(tmp_path: Path) -> None:
    base = folder_of_width(tmp_path / "base", 256)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    text = json.dumps({"base_model_name_or_path": str(base)})
    (adapter / "adapter_config.json").write_text(text, encoding="utf-8")
    (adapter / "adapter_model.safetensors").touch()
    assert compose_config("lora_sft", [f"model.model_name_or_path={adapter}"]).train.learning_rate == 8e-3


def test_what_is_set_stays() -> None:
    words = ["train.learning_rate=1e-5", "model.dtype=float32", "eval.batch_size=3"]
    cfg = compose_config("qlora_sft", words)
    assert (cfg.train.learning_rate, cfg.model.dtype, cfg.eval.batch_size) == (1e-5, "float32", 3)


def test_a_broken_config_is_no_crash(tmp_path: Path) -> None:
    """It is said where the model is loaded."""
    folder = folder_of_width(tmp_path / "model", 256)
    (folder / "config.json").write_text("[", encoding="utf-8")
    assert compose_config("lora_sft", [f"model.model_name_or_path={folder}", *MINE]).train.learning_rate == 2e-4


def test_compared_models_count_and_not_the_default_one(tmp_path: Path) -> None:
    """Narrow ones are asked all rows, in large batches, only where all are narrow."""
    one, two = (folder_of_width(tmp_path / name, 256) for name in ("one", "two"))
    wide = folder_of_width(tmp_path / "wide", 1152)
    asked = {}
    for other in (two, wide):
        cfg = compose_config("compare", [f"compare.models=[{one},{other}]", "data=sample"])
        asked[other.name] = (cfg.eval.batch_size, cfg.eval.max_samples)
    assert asked == {"two": (64, None), "wide": (8, 200)}


def test_a_run_that_was_measured_counts_as_its_model(tmp_path: Path) -> None:
    """Its folder may hold no model, and the rows are to be the same."""
    one = folder_of_width(tmp_path / "one", 256)
    for width, expected in ((256, (64, None)), (1152, (8, 200))):
        model, run = folder_of_width(tmp_path / f"of {width}", width), tmp_path / f"run {width}"
        (run / "eval").mkdir(parents=True)
        (run / "config.yaml").write_text(json.dumps({"model": {"model_name_or_path": str(model)}}), encoding="utf-8")
        for name, text in (("manifest.json", "{}"), ("result.json", '{"status": "finished"}')):
            (run / name).write_text(text, encoding="utf-8")
        (run / "eval" / "after.json").write_text("{}", encoding="utf-8")
        cfg = compose_config("compare", [f'compare.models=["{run}",{one}]', "data=sample"])
        assert (cfg.eval.batch_size, cfg.eval.max_samples) == expected


@pytest.mark.parametrize("recipe", ["evaluate", "full_sft", "qlora_sft"])
def test_what_is_filled_in_can_be_repeated(recipe: str, folder: Path) -> None:
    """The stored configuration passes the checks: nothing was set that has no effect."""
    cfg = compose_config(recipe, ["output_dir=run"])
    with RunFolder.open(cfg).recording():
        pass
    again = load_stored(folder / "run", ["output_dir=run"])
    assert (again.model, again.eval, again.train) == (cfg.model, cfg.eval, cfg.train)
