"""Every YAML of configs/ composes and passes the checks, and says what it is; none is listed here by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from slow import slow_every_other

from gemma_tune.__main__ import main
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config
from gemma_tune.config.parallel import UNSUPPORTED
from gemma_tune.errors import UserError
from gemma_tune.run.paths import CONFIGS, shipped_recipes
from gemma_tune.validation.schema import FIELDS, GROUPS, OPEN, flatten, wrong_value

FILES = sorted(CONFIGS.rglob("*.yaml"))
OPTIONS = [f for f in FILES if f.parent != CONFIGS]
# What an option asks of the user beside its name.
ROWS = "data.train_file=assets://sample/train.jsonl"
NEEDS = {
    "quant/phone": ["export=phone"],
    "export/phone": ["quant=phone"],
    "adapter/loftq": ["model.load_in_4bit=true"],
    "data/columns": [ROWS, "data.prompt_column=question", "data.completion_column=answer"],
    **{
        f"data/{name}": [ROWS]
        for name in ("auto", "messages", "alpaca", "sharegpt", "prompt_completion", "translation")
    },
    "data/text": [ROWS],
    "data/chat_log": [ROWS],
    "eval/kl": ["eval.kl.reference=assets://tiny"],
    "eval/tool_calls": [
        f"eval.tool_calls.{key}=assets://sample/test.jsonl" for key in ("questions_file", "answers_file")
    ],
    "quant/q3_0": ["export=merged"],
    "data/preference": ["data.train_file=assets://preferences/train.jsonl"],
    "data/unpaired_preference": ["data.train_file=assets://preferences/train.jsonl"],
    "data/reasoning_gym": ["train.max_steps=5", "reward=reasoning_gym"],
    "reward/reasoning_gym": ["data=reasoning_gym", "train.max_steps=5"],
    "reward/model": ["reward.model.model_name_or_path=google/gemma-3-1b-it"],
    "recipe/copy": ["copy.recipe=dpo"],
    "recipe/push": ["push.repo_id=me/name", "model.model_name_or_path=google/gemma-3-1b-it"],
    "recipe/compare": ["compare.models=[google/gemma-3-1b-it,google/gemma-3-270m-it]", "data=sample"],
}


def name_of(file: Path) -> str:
    """`group/option`."""
    return str(file.relative_to(CONFIGS).with_suffix(""))


def values_of(file: Path) -> dict[str, Any]:
    """The dotted keys that a file sets, with their values as Hydra reads them."""
    tree: Any = OmegaConf.to_container(OmegaConf.load(file))
    tree.pop("defaults", None)
    group = file.parent.name
    return dict(flatten(tree if group == "recipe" else {group: tree}))


def value_in(cfg: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = cfg
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


@pytest.mark.parametrize("file", slow_every_other(OPTIONS), ids=name_of)
def test_composes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option passes every check, and what its file says arrives; packages of trackers needn't be there."""
    monkeypatch.setattr("gemma_tune.validation.trackers.is_installed", lambda package: True)
    group, option = file.parent.name, file.stem
    needs = NEEDS.get(name_of(file), [])
    recipe = {"recipe": option, "chat": "chat"}.get(group, "lora_sft")
    if (group == "quant" and option != "none") or name_of(file) in (
        "export/gguf",
        "export/w4a16",
        "export/mlx",
        "export/phone",
        "export/int4",
    ):
        recipe = "qat"  # only a run on a grid has them
    if (group == "reward" and option != "none") or option in ("rewards", "reasoning_gym"):
        recipe = "grpo"
    if group == "data" and "preference" in option:
        recipe = "kto" if option.startswith("unpaired") else "dpo"
    if group == "parallel" and option in UNSUPPORTED:
        with pytest.raises(UserError, match=f"parallel={option}: .* not supported|no sliding windows"):
            compose_config(recipe, [f"parallel={option}"])
        return
    cfg = compose_config(recipe, needs if group == "recipe" else [f"{group}={option}", *needs])
    assert cfg.recipe == recipe
    said = {key: value for key, value in values_of(file).items() if value is not None}  # null is filled in
    assert {key: value_in(cfg, key) for key in said} == said


@pytest.mark.slow
def test_needs_are_needed() -> None:
    """An entry that nothing asks for any more would hide a change; each option alone is refused."""
    for name, words in NEEDS.items():
        group, option = name.split("/")
        kept = ["data.train_file="] if group == "data" else []
        with pytest.raises(UserError):
            compose_config(*((option,) if group == "recipe" else ("lora_sft", [f"{group}={option}", *kept])))
        assert words


def test_every_file_is_an_option_of_a_group() -> None:
    """Groups are one level deep, and each has at least one option."""
    assert [name_of(f) for f in FILES if f.parent == CONFIGS] == ["config"]
    assert {f.parent.name for f in OPTIONS} == set(GROUPS)
    assert all(f.parent.parent == CONFIGS for f in OPTIONS)


def test_each_begins_with_a_comment() -> None:
    """The first line says what the option is; in a recipe, where Hydra wants its own line first, the second one."""
    for file in FILES:
        lines = file.read_text(encoding="utf-8").splitlines()
        if file.parent.name == "recipe":
            assert lines.pop(0) == "# @package _global_", file
            command = f"#   python -m gemma_tune recipe={file.stem}"
            assert any(line.startswith(command) for line in lines), f"{file}: the command"
        assert lines[0].startswith("# ") and len(lines[0].split()) > 2, f"{file}: {lines[0]}"


def test_each_field() -> None:
    """Each key has a help text, at most two dots, and a default within its own limits."""
    cfg = Config()
    for key, (field, _) in FIELDS.items():
        assert field.metadata["help"].endswith("."), f"{key}: one or two sentences"
        assert key.count(".") <= 2, key
        assert key in OPEN or wrong_value(key, value_in(cfg, key), "schema") is None, key


def test_schema_alone_is_no_run() -> None:
    """A recipe's name is needed, and an unknown one is answered as on the command line."""
    with pytest.raises(UserError, match="Did you mean qlora_sft"):
        compose_config("qlora_sftt")


def test_compose_takes_users_files(tmp_path: Path) -> None:
    file = tmp_path / "recipe" / "my_run.yaml"
    file.parent.mkdir()
    file.write_text("# @package _global_\ndefaults: [full_sft, _self_]\nseed: 7\n", encoding="utf-8")
    cfg = compose_config("my_run", ["train.extra.adam_beta2=0.95"], tmp_path)
    assert (cfg.recipe, cfg.seed, cfg.train.extra) == ("my_run", 7, {"adam_beta2": 0.95})
    assert cfg.train.learning_rate == compose_config("full_sft").train.learning_rate


def test_multirun(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each job has its own configuration and run folder; a dry run makes none of them."""
    few = ["data.max_train_samples=8", "data.max_eval_samples=4"]
    assert main(["-m", "recipe=lora_sft", "adapter=lora,dora", *few, "dry_run=true"]) == 0
    said = capsys.readouterr().out
    folders = [line.split()[2] for line in said.splitlines() if line.startswith("Run folder: ")]
    assert len(set(folders)) == 2 and all(f.startswith("runs/lora_sft-") for f in folders)
    assert "use_dora: false" in said and "use_dora: true" in said
    assert not any((folder / f).exists() for f in folders)


def test_the_generated_pages_are_current() -> None:
    """`make docs` writes them."""
    from gemma_tune.config import recipe_reference, reference

    docs = Path(__file__).parent.parent / "docs"
    assert (docs / "configuration.md").read_text(encoding="utf-8") == reference.markdown()
    assert (docs / "recipes.md").read_text(encoding="utf-8") == recipe_reference.markdown()


def test_the_page_of_recipes_has_each_with_a_command() -> None:
    from gemma_tune.config.recipe_reference import commands, comment, leaves

    for recipe in shipped_recipes():
        found = commands(comment(recipe))
        assert found and any(f"recipe={recipe}" in command for command in found), recipe
        assert leaves(recipe) != "what it prints", f"{recipe}: say in recipe_reference.py what is there at its end"


def test_the_page_of_keys_shows_what_a_run_gets() -> None:
    """Not the schema's default where the options of configs/config.yaml say otherwise; and what recipes set."""
    from gemma_tune.config.reference import markdown

    lines = {line.split("`")[1]: line for line in markdown().splitlines() if line.startswith("| `")}
    assert lines["tracker.report_to"].startswith("| `tracker.report_to` | `wandb` |")
    assert "`none` in" in lines["tracker.report_to"] and "export" in lines["tracker.report_to"]
    assert "`true` in qlora_sft." in lines["model.load_in_4bit"]
    for key in ("model.load_in_4bit", "adapter.peft_type", "eval.evaluators", "export.formats", "data.train_file"):
        cfg = compose_config("full_sft", [])
        group, name = key.split(".")
        value = getattr(getattr(cfg, group), name)
        if not isinstance(value, str) or "/" not in value:  # a path is made absolute for a run
            shown = value if isinstance(value, str) else json.dumps(value)
            assert f"| `{key}` | `{shown}` |" in lines[key]
