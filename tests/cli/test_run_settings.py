"""A run folder brings its rows, evaluators and settings; what the user names stands above them. No model is loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemma_tune import UserError
from gemma_tune.cli.compose import compose_config
from gemma_tune.compare.named_models import check_compared
from gemma_tune.config import CompareConfig, Config, ModelConfig
from gemma_tune.models.source import find_source
from gemma_tune.run.existing import run_of
from gemma_tune.run.identity import as_one_run
from gemma_tune.run.manifest import file_digest
from gemma_tune.run.paths import ASSETS
from gemma_tune.steps.rows_used import rows_line

OWN = ["data.train_file=mine/train.jsonl", "data.validation_file=mine/val.jsonl", "data.test_files.own=mine/test.jsonl"]
SETTINGS = [
    "eval.max_new_tokens=17", "eval.max_samples=3", "train.max_length=99", "seed=7", "eval.answers.match=number",
    "model.dtype=float32", "train.eval_steps=5", "eval.during_training=[answers]",
]  # fmt: skip


def make_run(words: Sequence[str] = (), recipe: str = "lora_sft", folder: str = "runs/x", merged: bool = False) -> Path:
    """A folder as a finished run leaves it, with weights that nobody loads."""
    Path("mine").mkdir(exist_ok=True)
    row = {"messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]}
    for name in ("train", "val", "test", "other"):
        Path(f"mine/{name}.jsonl").write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    cfg = compose_config(recipe, [*(words or ["data=auto", *OWN, *SETTINGS]), "tracker=none"])
    place = Path(folder)
    (place / "adapter").mkdir(parents=True)
    (place / "config.yaml").write_text(yaml.safe_dump(as_one_run(cfg)), encoding="utf-8")
    inputs = {str(p.absolute()): file_digest(p) for p in Path("mine").iterdir()}
    (place / "manifest.json").write_text(json.dumps({"gemma_tune": "1", "inputs": inputs}), encoding="utf-8")
    (place / "result.json").write_text('{"status": "finished"}', encoding="utf-8")
    weights = [place / "adapter" / "adapter_model.safetensors"]
    adapter = {"base_model_name_or_path": str(ASSETS / "tiny"), "peft_type": "LORA"}
    (place / "adapter" / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    if merged:
        weights = [place / "export" / "merged" / "model.safetensors"]
        weights[0].parent.mkdir(parents=True)
        (weights[0].parent / "config.json").write_text('{"hidden_size": 96}', encoding="utf-8")
    weights[0].write_bytes(b"")
    return place


def composed(model: str | Path, *words: str, recipe: str = "evaluate") -> Config:
    return compose_config(recipe, [f"model.model_name_or_path={model}", *words])


def files(cfg: Config) -> dict[str, Any]:
    """The names of its files, without their folder."""
    tests = {name: Path(file).name for name, file in cfg.data.test_files.items() if file}
    return {"test": tests, "held_out": cfg.data.validation_file and Path(cfg.data.validation_file).name}


def test_a_run_brings_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its folder and by what lies in it, from any folder: rows, evaluators, seed, lengths, types."""
    run = make_run(merged=True).absolute()
    (run / "checkpoints" / "step-5").mkdir(parents=True)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    for place in (run, run / "adapter", run / "export" / "merged", run / "checkpoints" / "step-5"):
        cfg = composed(place)
        assert files(cfg) == {"test": {"own": "test.jsonl"}, "held_out": "val.jsonl"}, place
        assert (cfg.eval.max_new_tokens, cfg.eval.max_samples, cfg.eval.answers.match) == (17, 3, "number")
        assert (cfg.train.max_length, cfg.seed, cfg.model.dtype) == (99, 7, "float32")
        assert cfg.eval.during_training == ["held_out_loss"] and cfg.train.eval_steps is None
    assert str(Path("../runs/x")) in rows_line(composed("../runs/x"), {}, 4) or "/runs/x" in rows_line(cfg, {}, 4)


@pytest.mark.slow
def test_what_is_named_stands_above(folder: Path) -> None:
    run = make_run()
    other = "data.test_files.new=mine/other.jsonl"
    assert files(composed(run, other)) == {"test": {"new": "other.jsonl"}, "held_out": "val.jsonl"}
    assert files(composed(run, "data.test_files.own=null"))["test"] == {}
    assert files(composed(run, "data=auto", other)) == {"test": {"new": "other.jsonl"}, "held_out": None}
    assert set(composed(run, "data=sample").data.test_files) == {"test", "new_phrasings"}
    cfg = composed(run, "eval.max_new_tokens=64", "seed=42")  # the defaults, and named all the same
    assert (cfg.eval.max_new_tokens, cfg.seed, cfg.eval.max_samples) == (64, 42, 3)
    cfg = composed(run, "eval=default")
    assert (cfg.eval.max_new_tokens, cfg.eval.answers.match) == (64, "exact_match")
    assert composed(run, "eval.evaluators=[held_out_loss]").eval.answers.match == "exact_match"  # not used
    with pytest.raises(UserError, match=r"eval\.answers\.match has no effect"):
        composed(run, "eval.evaluators=[held_out_loss]", "eval.answers.match=number")


@pytest.mark.slow
def test_a_recipe_of_ones_own_names_keys(folder: Path) -> None:
    run = make_run()
    Path("own/recipe").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [evaluate, {override /eval: number}, _self_]\ntrain: {max_length: 1024}\n"
    Path("own/recipe/my_eval.yaml").write_text(text, encoding="utf-8")
    cfg = compose_config("my_eval", [f"model.model_name_or_path={run}"], "own")
    assert (cfg.train.max_length, cfg.eval.max_new_tokens) == (1024, 512)
    assert files(cfg)["test"] == {"own": "test.jsonl"}


@pytest.mark.parametrize("words", [[], ["data.test_files.own=null"], ["eval.evaluators=[preference]"]])
@pytest.mark.slow
def test_a_model_of_ones_own_is_not_measured_on_the_sample(folder: Path, words: list[str]) -> None:
    with pytest.raises(UserError, match="or choose data=sample"):
        compose_config("evaluate", ["model=gemma3_1b_it", *words])
    with pytest.raises(UserError, match="or choose data=sample"):
        compose_config("compare", ["compare.models=[google/gemma-3-1b-it,google/gemma-3-4b-it]", *words])


@pytest.mark.slow
def test_the_sample_where_it_is_meant(folder: Path) -> None:
    """Asked for, or with the model that ships with it; evaluators with rows of their own need none."""
    assert composed(ASSETS / "tiny").data.test_files and compose_config("evaluate").data.test_files
    assert compose_config("evaluate", ["model=gemma3_1b_it", "data=sample"]).data.test_files
    assert compose_config("evaluate", ["model=gemma3_1b_it", "eval=lm_eval"]).data.test_files == {}
    assert compose_config("export", ["model=gemma3_1b_it"]).data.test_files == {}
    mine = compose_config("evaluate", ["model=gemma3_1b_it", "data.test_files.a=assets://sample/test.jsonl"])
    assert mine.data.test_files == {"a": "assets://sample/test.jsonl"}


@pytest.mark.slow
def test_rows_of_a_generator_are_the_runs_own_where_it_is_the_runs(folder: Path) -> None:
    run = make_run()
    tree = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    tree["data"] |= {"test_files": {}, "generator": "chain_sum"}
    (run / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    cfg = Config()
    cfg.model.model_name_or_path, cfg.data.generator = str(run), "chain_sum"
    assert rows_line(cfg, {"chain_sum": [1]}, 0) == "data: test rows of runs/x: chain_sum (chain_sum, 1 row)"
    for key, value in (("generator", "basic_arithmetic"), ("generator_options", {"max_terms": 9})):
        other = replace(cfg, data=replace(cfg.data, **{key: value}))
        assert rows_line(other, {"chain_sum": [1]}, 0).startswith("data: test rows: chain_sum ("), key


@pytest.mark.parametrize("word", ["data.train_file=other.csv", "data.train_file=mine/other.jsonl",
                                  "data.train_files.a=other.csv", "data.dataset_name=me/rows"])  # fmt: skip
@pytest.mark.slow
def test_a_training_set_is_not_measured(folder: Path, word: str) -> None:
    """Who names one means to have it measured; beside test rows it is what any recipe makes of it."""
    run, key = make_run(), word.partition("=")[0].replace("files.a", "files")
    with pytest.raises(UserError, match=rf"{key} has no effect with recipe=evaluate.*data\.test_files\.NAME=FILE"):
        composed(run, word)
    if "other.csv" in word:
        with pytest.raises(UserError, match=r"other\.csv: there is no such file"):
            composed(run, word, "data.test_files.mine=mine/other.jsonl")
    if word.endswith("jsonl"):
        assert "other.jsonl" in composed(run, word, "data.test_files.mine=mine/test.jsonl").data.train_file
        drawn = composed(run, word, "data.validation_file=null", "data.validation_split_percentage=50")
        assert "other.jsonl" in drawn.data.train_file


@pytest.mark.slow
def test_rows_that_are_gone_or_changed(folder: Path) -> None:
    run = make_run()
    said = rows_line(composed(run), {"own": [1, 2, 3, 4]}, 4)
    assert said.startswith("data: test rows of runs/x: own (") and "the first 3 of 4 rows" in said
    assert "validation rows of runs/x: " in said and "changed" not in said
    Path("mine/test.jsonl").write_text(Path("mine/test.jsonl").read_text("utf-8") + "\n", encoding="utf-8")
    assert said.replace("test.jsonl,", "test.jsonl, changed since that run,") == rows_line(
        composed(run), {"own": [1, 2, 3, 4]}, 4
    )
    other = rows_line(composed(run, "data.test_files.new=mine/other.jsonl"), {"new": [1]}, 0)
    assert other == f"data: test rows: new ({folder}/mine/other.jsonl, 1 row)"
    os.remove("mine/train.jsonl")  # not needed to measure
    assert files(composed(run))["test"] == {"own": "test.jsonl"}
    os.remove("mine/test.jsonl")
    with pytest.raises(UserError, match=r"data\.test_files\.own=.*test\.jsonl: the rows of runs/x are no longer there"):
        composed(run)
    assert files(composed(run, "data.test_files.own=mine/other.jsonl"))["test"] == {"own": "other.jsonl"}
    assert files(composed(run, "data.test_files.own=null"))["held_out"] == "val.jsonl"


@pytest.mark.slow
def test_a_run_of_an_earlier_version(folder: Path) -> None:
    """Keys that are new have their defaults, keys that are gone are left out."""
    run = make_run()
    tree = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    del tree["data"]["answers"], tree["eval"]["num_samples"]
    tree["data"]["gone_long_ago"] = 3
    tree["eval"]["while_training"] = tree["eval"].pop("during_training")
    (run / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    cfg = composed(run)
    assert (cfg.data.answers, cfg.eval.num_samples, cfg.eval.max_new_tokens) == ("all", 4, 17)
    tree["eval"]["max_new_tokens"] = "many"
    (run / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.yaml of the run behind the model: eval\.max_new_tokens"):
        composed(run)


@pytest.mark.slow
def test_rewards_of_a_run(folder: Path) -> None:
    """With its rewards, and answers as long as its completions."""
    words = ["reward=math_format", "data=auto", *OWN[::2], "train.max_completion_length=23", "eval=rewards"]
    cfg = composed(make_run(words, "grpo"))
    assert cfg.eval.evaluators == ["rewards"] and set(cfg.reward.weighted()) == {"math", "format"}
    assert cfg.answer_tokens == 23 and composed("runs/x", "reward.math.weight=3").reward.math.weight == 3


@pytest.mark.slow
def test_training_for_int4_goes_on_with_the_rows(folder: Path) -> None:
    """The rows that the model was tuned on; those of another kind are refused, and never replaced by the sample."""
    cfg = composed(make_run(), recipe="qat")
    assert Path(cfg.data.train_file).name == "train.jsonl" and files(cfg)["test"] == {"own": "test.jsonl"}
    assert cfg.train.max_length == 99 and cfg.model.dtype == "float32"
    pairs = ["data=sample_preferences", "data.test_files.test=null"]
    run = make_run(pairs, "dpo", "runs/pairs")
    with pytest.raises(UserError, match="this run read pairs of a better and a worse answer, and recipe=qat reads"):
        composed(run, recipe="qat")
    assert composed(run, "data=auto", *OWN, recipe="qat").data.train_file


@pytest.mark.slow
def test_a_quantized_run_in_memory_as_it_was(folder: Path) -> None:
    """A QLoRA adapter is measured on the 4-bit base that it was trained on; its merged weights are not in 4 bit."""
    run = make_run(["data=auto", *OWN], "qlora_sft")
    assert composed(run).model.load_in_4bit and composed(run / "adapter").model.load_in_4bit
    assert not composed(run, "model.load_in_4bit=false").model.load_in_4bit
    assert not composed(run, recipe="export").model.load_in_4bit
    merged = make_run(["data=auto", *OWN], "qlora_sft", "runs/merged", merged=True) / "export" / "merged"
    assert not composed(merged).model.load_in_4bit


@pytest.mark.slow
def test_a_stage_and_a_gguf_of_a_run(folder: Path) -> None:
    """Of recipe=tune_to_int4 the stage whose weights are meant; a GGUF without a tokenizer has the model's."""
    make_run()
    whole = Path("runs/whole")
    stage = make_run(folder="runs/whole/int4")
    (stage / "quant_plan.json").write_text("{}", encoding="utf-8")
    assert run_of(str(whole)) == run_of(str(stage / "adapter")) == stage.absolute()
    file = stage / "export" / "gguf" / "a.gguf"
    file.parent.mkdir(parents=True)
    file.touch()
    assert run_of(str(file)) == stage.absolute() and run_of("runs/nothing") is None and run_of("assets://tiny") is None
    pytest.importorskip("xllamacpp")
    cfg = composed(file)
    assert files(cfg)["test"] == {"own": "test.jsonl"} and cfg.model.dtype is None
    assert cfg.model.tokenizer_name_or_path == str(ASSETS / "tiny")


@pytest.mark.slow
def test_an_interrupted_run_names_its_last_checkpoint(folder: Path) -> None:
    run = make_run()
    shutil.rmtree(run / "adapter")
    for step in (5, 10):
        (run / "checkpoints" / f"step-{step}").mkdir(parents=True)
    with pytest.raises(UserError, match=r"its last checkpoint is a model, too: runs/x/checkpoints/step-10\."):
        find_source(ModelConfig(str(run)))


@pytest.mark.slow
def test_how_many_of_the_validation_rows(folder: Path) -> None:
    """The line says where rows are left out, and names none that nothing is measured on."""
    run = make_run()
    row = Path("mine/val.jsonl").read_text("utf-8").splitlines()[0]
    Path("mine/val.jsonl").write_text(f"{row}\n" * 6, encoding="utf-8")
    few = composed(run, "data.max_eval_samples=2")
    assert rows_line(few, {}, 2).endswith("val.jsonl, changed since that run, the first 2 of 6 rows")
    assert rows_line(composed(run, "data.max_eval_samples=6"), {}, 6).endswith(", 6 rows")
    nothing = composed(run, "eval=none", "eval.num_samples=0", recipe="export")
    assert rows_line(nothing, {}, 2) == "data: none: nothing is measured (no evaluators)"
    answers = composed(run, "eval.evaluators=[answers]")
    assert "validation rows" not in rows_line(answers, {"own": [1]}, 4)


@pytest.mark.slow
def test_the_base_of_an_adapter_is_gone(folder: Path) -> None:
    """Answered with what of the run can still be measured, and that is measured; training goes on from it by name."""
    run = make_run(merged=True).absolute()
    config = run / "adapter" / "adapter_config.json"
    stored = json.loads(config.read_text("utf-8")) if config.is_file() else {"peft_type": "LORA"}
    config.parent.mkdir(exist_ok=True)
    config.write_text(json.dumps(stored | {"base_model_name_or_path": str(folder / "gone")}), encoding="utf-8")
    cfg = composed(run)
    (run / "export" / "merged" / "tokenizer.json").touch()
    source = find_source(cfg.model)
    assert (source.folder, source.adapter) == (run / "export" / "merged", None)
    assert source.remark and f"{folder / 'gone'}, is not on this machine" in source.remark
    with pytest.raises(UserError, match=r"gone, is not there; .* need no base: name .*merged") as refused:
        find_source(cfg.model, continues=True)
    assert str(run / "export" / "merged") in str(refused.value)
    of_hub = stored | {"base_model_name_or_path": "google/gemma-3-270m-it"}
    config.write_text(json.dumps(of_hub), encoding="utf-8")
    assert "google/gemma-3-270m-it, is not on this machine" in str(find_source(cfg.model).remark)


@pytest.mark.slow
def test_compared_models_that_are_gone_are_all_named_without_torch(tmp_path: Path) -> None:
    cfg = CompareConfig(models=[str(tmp_path / "a"), str(tmp_path / "b")])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError) as refused:
        check_compared(cfg)
    assert [p.split(": ")[:2] for p in refused.value.problems] == [
        ["compare.models", str(tmp_path / name)] for name in ("a", "b")
    ]
