"""Earlier names: answered with the new one where they are typed, translated where a run has stored them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemma_tune.cli.compose import compose_config, load_stored
from gemma_tune.config.renamed import KEYS, OPTIONS, as_before, translated
from gemma_tune.errors import UserError
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.identity import as_one_run, folder_of
from gemma_tune.validation.schema import FIELDS, GROUPS

# Folders as the last version with the earlier names chose them (commit f999466): recipe, words, 8 hex digits.
BEFORE = [
    ("qlora_sft", [], "e857cfb5"),
    ("full_sft", ["train.eval_steps=2"], "d7ab263a"),
    ("grpo", [], "5914f96b"),
    ("dapo", [], "4747c052"),
    ("rloo", [], "18222f65"),
    ("tune_to_int4", ["quant.stage2.max_steps=3"], "e55e8c53"),
    ("dpo", [], "9cdf8e68"),
    ("qat", [], "b23e97d6"),
    ("evaluate", [], "989507e5"),
]


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and one process alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)


def stored_before(tree: dict[str, Any], folder: Path, status: str = "finished") -> None:
    """A run of the earlier version."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(as_before(tree)), encoding="utf-8")
    (folder / "manifest.json").write_text('{"gemma_tune": "0.1.0", "inputs": {}}', encoding="utf-8")
    result = {"recipe": tree["recipe"], "status": status}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("eval.while_training=[answers]", "`eval.while_training`: it is `eval.during_training` now"),
        ("eval.max_samples_while_training=3", "it is `eval.max_samples_during_training` now"),
        ("quant.train.max_steps=3", "it is `quant.stage2.max_steps` now"),
        ("model.shared_layers_at_labels=false", "it is `model.layers_at_labels` now"),
        ("train.algorithm=rloo", "recipe=rloo"),
        ("data=preferences", "It is data=sample_preferences now"),
        ("method=rl", "it is grpo, dapo, dr_grpo, gspo or rloo now"),
    ],
)
def test_typed(word: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_config("dpo" if word.startswith("data") else "lora_sft", [word])
    assert len(caught.value.problems) == 1 and says in str(caught.value)


def test_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe" / "mine.yaml"
    file.parent.mkdir()
    text = "# @package _global_\ndefaults: [dpo, {override /data: preferences}, _self_]\neval: {while_training: []}\n"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        compose_config("mine", [], tmp_path)
    assert [p.startswith(str(file)) for p in caught.value.problems] == [True, True]
    assert "data=sample_preferences" in str(caught.value) and "`eval.during_training`" in str(caught.value)


def test_new_names_are_there() -> None:
    from gemma_tune.run.paths import CONFIGS

    for old, new in KEYS.items():
        assert any(key == new or key.startswith(f"{new}.") for key in FIELDS) and old not in (*FIELDS, *GROUPS)
    for (group, old), new in OPTIONS.items():
        assert (CONFIGS / group / f"{new}.yaml").is_file() and not (CONFIGS / group / f"{old}.yaml").exists()


@pytest.mark.parametrize(("recipe", "words", "digest"), BEFORE)
def test_a_finished_run_is_recognised(recipe: str, words: list[str], digest: str) -> None:
    """In the folder that the earlier version gave it, and in one that the user named; and it is repeated from there."""
    cfg = compose_config(recipe, words)
    folder = Path(f"runs/{recipe}-{digest}")
    assert folder_of(cfg) != folder
    stored_before(as_one_run(cfg), folder)
    assert folder_of(cfg) == folder and RunFolder.open(cfg).finished
    stored_before(as_one_run(cfg), Path("named"))
    assert RunFolder.open(replace(cfg, output_dir="named")).finished
    assert load_stored(folder / "config.yaml", []) == cfg


def test_another_configuration_has_another_folder() -> None:
    stored_before(as_one_run(compose_config("rloo")), Path("runs/rloo-18222f65"))
    assert folder_of(compose_config("rloo", ["seed=1"])).name != "rloo-18222f65"


def test_a_recipe_of_the_users_on_a_variant(tmp_path: Path) -> None:
    """`method: rl` and `algorithm: grpo` can mean each of GRPO's variants: here that of the same recipe."""
    (tmp_path / "recipe").mkdir()
    text = "# @package _global_\ndefaults: [dapo, _self_]\nseed: 7\n"
    (tmp_path / "recipe" / "mine.yaml").write_text(text, encoding="utf-8")
    cfg = compose_config("mine", ["output_dir=named"], tmp_path)
    stored_before(as_one_run(cfg), Path("named"))
    assert cfg.method == "dapo" and RunFolder.open(cfg).finished
    assert load_stored(Path("named"), []).method == "grpo"  # all else of DAPO is in the stored values


def test_an_unfinished_run_is_resumed() -> None:
    cfg = compose_config("rloo", ["output_dir=named", "train.eval_steps=2", "eval.during_training=[rewards]"])
    stored_before(as_one_run(cfg), Path("named"), status="interrupted")
    resumed = replace(cfg, train=replace(cfg.train, save_steps=2))
    folder = RunFolder.open(resumed)
    assert not folder.finished and folder.path == Path("named")
    with pytest.raises(UserError, match=r"another seed"):
        RunFolder.open(replace(resumed, seed=1))


def test_todays_configuration_stays() -> None:
    tree = as_one_run(compose_config("tune_to_int4"))
    assert translated(tree) == tree and translated(as_before(tree)) == tree
    tree["model"]["shared_layers_at_labels"] = not tree["model"].pop("layers_at_labels")
    assert translated(tree)["model"]["layers_at_labels"] is False
