"""Folders that are no model's or adapter's: the message says which one is meant, or how to make one of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import gemma_tune
from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.adapters.adapter_config import stored_config
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
Change = Callable[[Path], object]


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_source(ModelConfig(str(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def snapshot(repository: Path, commit: str) -> Path:
    return Path(shutil.copytree(TINY, repository / "snapshots" / commit))


def test_a_cache_of_the_hub(tmp_path: Path) -> None:
    """The snapshot of main, not the last by name; from the cache's root and from each folder inside a model's."""
    repository = tmp_path / "home" / "hub" / "models--owner--name"
    first, last = snapshot(repository, "aaa"), snapshot(repository, "bbb")
    for main in (first, last):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(main.name, encoding="utf-8")
        for folder in (repository, repository / "snapshots", repository / "refs"):
            assert f"the Hub's cache of a model, which lies in a folder inside it: name {main}." in refused(folder)
        for folder in (tmp_path / "home" / "hub", tmp_path / "home"):
            assert f"the Hub's cache of a model: name the one that is meant, as {main}." in refused(folder)
    (repository / "refs" / "main").write_text("a commit that isn't here", encoding="utf-8")
    assert str(repository / "snapshots") in refused(repository)
    other = snapshot(tmp_path / "home" / "hub" / "models--owner--other", "ccc")
    said = refused(tmp_path / "home")
    assert "the Hub's cache of 2 models" in said and str(other) in said
    assert find_source(ModelConfig(str(first))).folder == first


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain`, and `named/mine` as PEFT stores an adapter of another name."""
    folder = tmp_path_factory.mktemp("adapters")
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(3)
    get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), config).save_pretrained(folder / "plain")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), config, adapter_name="mine")
    model.save_pretrained(folder / "named")
    return folder


def test_an_adapter_of_another_name(adapters: Path) -> None:
    named = adapters / "named"
    assert f"no config.json; one below it holds an adapter: name {named / 'mine'}." in refused(named)
    assert find_source(ModelConfig(str(named / "mine"))).adapter == named / "mine"


def test_a_pickled_adapter_is_never_opened(adapters: Path, tmp_path: Path) -> None:
    """The message's own line makes safetensors of it."""
    folder = Path(shutil.copytree(adapters / "plain", tmp_path / "adapter"))
    weights = load_file(folder / "adapter_model.safetensors")
    torch.save(weights, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    said = refused(folder)
    assert "isn't read" in said
    assert f"AutoPeftModelForCausalLM.from_pretrained('{folder}').save_pretrained('{folder}', safe_ser" in said
    AutoPeftModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)
    assert find_source(ModelConfig(str(folder))).adapter == folder
    assert load_file(folder / "adapter_model.safetensors").keys() == weights.keys()


def _config(**fields: object) -> Change:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | fields), encoding="utf-8")

    return change


BROKEN: dict[str, tuple[Change, str]] = {
    "no base": (_config(base_model_name_or_path=None), "doesn't say what the adapter was trained on (None); write its"),
    "an empty base": (_config(base_model_name_or_path=""), "doesn't say what the adapter was trained on ('')"),
    "a number as base": (_config(base_model_name_or_path=5), "doesn't say what the adapter was trained on (5)"),
    "a base elsewhere": (_config(base_model_name_or_path="no/such/base"), "base, no/such/base, is not there"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "but no adapter_model.safetensors; copy it"),
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "but no adapter_config.json; copy it"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "is no object of names and values"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json can't be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter(name: str, adapters: Path, tmp_path: Path) -> None:
    change, message = BROKEN[name]
    folder = Path(shutil.copytree(adapters / "plain", tmp_path / "adapter"))
    change(folder)
    assert message in refused(folder)


def test_the_base_of_an_adapter_is_looked_at(adapters: Path, tmp_path: Path) -> None:
    """A cache folder, or another adapter, as its base."""
    main, folder = snapshot(tmp_path / "models--a--b", "aaa"), tmp_path / "adapter"
    shutil.copytree(adapters / "plain", folder)
    for base, message in ((tmp_path / "models--a--b", f"name {main}."), (adapters / "plain", "holds an adapter, and")):
        _config(base_model_name_or_path=str(base))(folder)
        said = refused(folder)
        assert f"base_model_name_or_path in {folder / 'adapter_config.json'}={base}" in said and message in said


def test_a_cut_off_adapter(adapters: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapters / "plain", tmp_path / "adapter"))
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="it is cut off, or no safetensors file; fetch it again"):
        gemma_tune.run("chat", [f"model.model_name_or_path={folder}", "chat.prompt=Hello", "dry_run=true"])


def test_other_folders_and_files(tmp_path: Path) -> None:
    for name in ("checkpoint-1", "checkpoint-2"):
        shutil.copytree(TINY, tmp_path / "training" / name)
    assert f"one below it holds a model: name {tmp_path / 'training' / 'checkpoint-1'} or " in refused(
        tmp_path / "training"
    )
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "m.gguf").write_bytes(b"")
    assert f"a GGUF file: name {tmp_path / 'files' / 'm.gguf'}." in refused(tmp_path / "files")
    with pytest.raises(UserError, match=f"this is a file; name the folder that it is in, {TINY}"):
        gemma_tune.run("chat", [f"model.model_name_or_path={TINY / 'model.safetensors'}", "chat.prompt=Hello"])


def test_every_kind_of_adapter_is_told_what_is_true(tmp_path: Path) -> None:
    """By PEFT's own classes: what has no layers to merge is never told to merge."""
    for kind in PeftType:
        if kind == PeftType.LORA:
            continue
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind.value}), encoding="utf-8")
        with pytest.raises(UserError, match=f"a {kind.value} adapter, and only LoRA is supported") as caught:
            stored_config(tmp_path)
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[kind]
        merges = "merge it with PEFT (" in str(caught.value)
        assert merges != ("PEFT can't merge it, either" in str(caught.value))
        if not issubclass(tuner, BaseTuner) or kind.value in ("XLORA", "POLY", "SHADOW", "LILY", "BEFT"):
            assert not merges, kind
        else:
            assert merges, kind
    for kind in (None, "WONDER", ["LORA"]):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}), encoding="utf-8")
        with pytest.raises(UserError, match="peft_type in its adapter_config"):
            stored_config(tmp_path)
