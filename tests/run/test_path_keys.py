"""Every key that names a file or a folder: absolute in what is stored, and never deleted by the run that reads it.

The cases come from the schema, so a new key has them by itself.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from slow import slow_after

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config
from gemma_tune.config.option import PathKind
from gemma_tune.config.path_keys import NOT_READ, make_absolute, named_paths, read_paths
from gemma_tune.errors import UserError
from gemma_tune.run.folder import RunFolder
from gemma_tune.validation.crossfield import cross_problems
from gemma_tune.validation.paths import missing_paths
from gemma_tune.validation.schema import FIELDS
from gemma_tune.validation.templates import template_problems

MARKED = {key: f.metadata["path"] for key, (f, _) in FIELDS.items() if f.metadata["path"]}
READ = {key: kind for key, kind in MARKED.items() if kind not in NOT_READ}
# Texts whose name or help speaks of files or folders, and that name none.
NAME_NO_PATH = {
    "data.weights",
    "data.field",
    "data.time_column",
    "data.generator",
    "export.formats",
    "export.max_shard_size",
    "chat.prompt",
    "compare.names",
    "model.base_url",
    "serve.api_key",
    "serve.name",
    "copy.name",
    "push.artifacts",
    "tracker.name",
}


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and one process alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)


def with_path(key: str, name: str, cfg: Config | None = None) -> Config:
    """A configuration in which a key, or a value of its list or mapping, is this name."""
    cfg = cfg or Config()
    name = f"{name}:function" if MARKED[key] == "function" else name
    *groups, last = key.split(".")
    part: Any = cfg
    for group in groups:
        part = getattr(part, group)
    old = getattr(part, last)
    setattr(part, last, {"mine": name} if isinstance(old, dict) else [name] if isinstance(old, list) else name)
    return cfg


@functools.cache
def composed() -> Config:
    """The configuration of `recipe=lora_sft`, to be copied."""
    return compose_config("lora_sft")


def run_in(folder: str) -> Config:
    """The configuration of a finished run in a folder, to be replaced."""
    cfg = dataclasses.replace(copy.deepcopy(composed()), output_dir=str(Path(folder).absolute()))
    with RunFolder.open(cfg).recording():
        pass
    cfg.overwrite = True
    return cfg


def test_kinds_are_known() -> None:
    assert set(MARKED.values()) == set(typing.get_args(PathKind))


@pytest.mark.parametrize("key", FIELDS)
def test_no_key_is_forgotten(key: str) -> None:
    """Whatever takes a text and speaks of files or folders is marked with `path=`, or listed above."""
    f, kind = FIELDS[key]
    takes_text = "str" in str(kind) or "Any" in str(kind)
    speaks_of_it = re.search("file|folder|glob|path", f"{key} {f.metadata['help']}", re.IGNORECASE)
    if takes_text and speaks_of_it and not f.metadata["choices"]:
        assert (key in MARKED) != (key in NAME_NO_PATH), f"{key}: mark it with path=, or list it in NAME_NO_PATH"


@pytest.mark.parametrize("key", slow_after(10, READ))
def test_overwriting_what_the_run_reads_is_refused(key: str) -> None:
    cfg = run_in("out")
    Path("out/mine").touch()
    with pytest.raises(UserError, match="overwrite=true would delete out/mine, which this run needs"):
        RunFolder.open(with_path(key, "out/mine", cfg))
    Path("out/mine").unlink()
    RunFolder.open(with_path(key, "elsewhere", cfg))


@pytest.mark.parametrize("key", [key for key, kind in READ.items() if kind == "rows"])
@pytest.mark.parametrize("name", ["o*/mine.jsonl", "."])
def test_overwriting_files_of_a_glob_or_a_folder_above_is_refused(key: str, name: str) -> None:
    cfg = run_in("out")
    Path("out/mine.jsonl").touch()
    with pytest.raises(UserError, match="overwrite=true would delete"):
        RunFolder.open(with_path(key, name, cfg))


@pytest.mark.parametrize("key", [key for key, kind in READ.items() if kind == "model"])
def test_overwriting_the_base_of_an_adapter_is_refused(key: str) -> None:
    """A run on a run: the adapter lies elsewhere, and the weights that it belongs to in the folder."""
    cfg = run_in("out")
    base = Path("out/export/merged")
    base.mkdir(parents=True)
    Path("tuned/adapter").mkdir(parents=True)
    stored = {"base_model_name_or_path": str(base.absolute())}
    Path("tuned/adapter/adapter_config.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(UserError, match="overwrite=true would delete tuned, which this run needs"):
        RunFolder.open(with_path(key, "tuned", cfg))


def test_a_link_in_the_folder_is_not_deleted() -> None:
    cfg = run_in("out")
    Path("rows.jsonl").touch()
    Path("out/link.jsonl").symlink_to(Path("rows.jsonl").absolute())
    with pytest.raises(UserError, match=r"would delete out/link\.jsonl"):
        RunFolder.open(with_path("data.train_file", "out/link.jsonl", cfg))


@pytest.mark.parametrize("key", MARKED)
def test_absolute(key: str, tmp_path: Path) -> None:
    """What is read is found from every folder; names of the Hub and short names stay, and so does what is written."""
    Path("mine").mkdir()
    cfg = with_path(key, "mine")
    before = {path.key: path.name for path in named_paths(cfg)}
    make_absolute(cfg)
    after = {path.key: path.name for path in named_paths(cfg)}
    name = next(k for k, v in before.items() if v == "mine")
    assert name.startswith(key)
    assert after[name] == (str(tmp_path / "mine") if MARKED[key] not in NOT_READ else "mine")
    if MARKED[key] in ("model", "dataset"):
        hub = with_path(key, "google/gemma-3-1b-it")
        make_absolute(hub)
        assert "google/gemma-3-1b-it" in [path.name for path in named_paths(hub)]


def test_short_names_and_nulls_name_nothing() -> None:
    cfg = Config()
    cfg.data.test_files = {"left_out": None}
    make_absolute(cfg)
    assert {path.key for path in named_paths(cfg)} == {
        "preview.output_file", "copy.to", "train.resume_from_checkpoint",
    }  # fmt: skip
    assert cfg.train.resume_from_checkpoint == "auto"
    assert cfg.data.test_files == {} and cfg.eval.evaluators == ["held_out_loss", "answers"]


@pytest.mark.parametrize("key", [key for key, kind in READ.items() if kind not in ("dataset", "cache")])
def test_what_is_missing_is_named(key: str) -> None:
    """Each key says for itself that its file isn't there, where it has an effect."""
    cfg = with_path(key, "./nix")
    if key == "recipe_file":
        cfg.method = "sft"
        assert any(problem.startswith("recipe=./nix: there is no such file.") for problem in cross_problems(cfg))
        return
    if key == "model.chat_template":
        assert f"{key}=./nix: there is no such file" in " ".join(template_problems("./nix"))
        return
    cfg.eval.evaluators += [name for name in ("tool_calls", "kl", "lm_eval", "long_context") if name in key]
    cfg.train.eval_steps = 1
    cfg.method = "grpo" if key.startswith("reward.") else "sft"
    cfg.reward.model.weight = cfg.reward.json_schema.weight = 1.0
    problems = list(missing_paths(cfg, key.split(".")[0]))
    assert len(problems) == 1 and problems[0].startswith(key) and "./nix: there is no such" in problems[0]


@pytest.mark.parametrize(
    "key", ["eval.tool_calls.questions_file", "eval.kl.reference", "reward.model.model_name_or_path"]
)
def test_what_has_no_effect_is_not_read(key: str) -> None:
    """An evaluator's and a reward's files count only where it is used."""
    cfg = with_path(key, "mine")
    assert key not in [path.key for path in read_paths(cfg, key.split(".")[0])]
