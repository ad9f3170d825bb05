"""Checkpoints whose files are cut off or lack weights are refused in the dry run, from the headers alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import small_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import gemma_tune
from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.language_part import check_files
from gemma_tune.models.load import load_config
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
Tensors = dict[str, torch.Tensor]
Change = Callable[[Path], object]


def tensors(edit: Callable[[Tensors], object]) -> Change:
    """Changes the tensors of a folder's model.safetensors."""

    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        found = load_file(file)
        edit(found)
        save_file(found, file, metadata={"format": "pt"})

    return change


def cut(size: int) -> Change:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return change


def without_layer(found: Tensors) -> None:
    for name in [n for n in found if ".layers.2." in n]:
        del found[name]


def without_shard(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="4MB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    (folder / "model.safetensors").unlink(missing_ok=True)


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 7\n", encoding="utf-8")


CUT = r"model\.safetensors: this file of [\d,]+ bytes is cut off, or no safetensors file"
BROKEN: dict[str, tuple[Change, str]] = {
    "the last bytes": (cut(-1), CUT),
    "half of it": (cut(5_000_000), CUT),
    "within the header": (cut(100), CUT),
    "empty": (cut(0), CUT),
    "a pointer of Git LFS": (pointer, CUT + r".*git lfs pull"),
    "a layer": (tensors(without_layer), r"13 weights are missing in the files \(for example model\.layers\.2\."),
    "a norm": (tensors(lambda t: t.pop("model.norm.weight")), r"1 weights are missing .*model\.norm\.weight"),
    "a shard": (without_shard, r"it can't be loaded \(.*model-00002-of-\d+\.safetensors"),
    "another shape": (
        tensors(lambda t: t.update({"model.norm.weight": torch.ones(3)})),
        r"1 weights have another shape than config\.json says \(for example model\.norm\.weight\)",
    ),
    "one too many": (
        tensors(lambda t: t.update({"model.layers.9.mlp.up_proj.weight": torch.ones(3, 3)})),
        r"1 weights in the files have no place in the model \(for example model\.layers\.9",
    ),
}
FAST = ("the last bytes", "a layer", "another shape")
RECIPES = {
    "lora_sft": [], "qat": [], "evaluate": ["data=sample"], "export": [], "chat": ["chat.prompt=Hello"],
}  # fmt: skip


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in BROKEN])
def test_the_dry_run_finds(name: str, tmp_path: Path) -> None:
    """In every recipe that loads a model, in one line, without a number being read."""
    change, message = BROKEN[name]
    folder = Path(shutil.copytree(TINY, tmp_path / "m"))
    change(folder)
    for recipe, words in RECIPES.items() if name in ("a layer", "half of it") else [("lora_sft", [])]:
        place = [] if recipe == "chat" else [f"output_dir={tmp_path / 'run'}"]
        with pytest.raises(UserError, match=message) as caught:
            gemma_tune.run(recipe, [f"model.model_name_or_path={folder}", "dry_run=true", *words, *place])
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def check(folder: Path) -> None:
    config = ModelConfig(str(folder), dtype="bfloat16", device="cpu")
    source = find_source(config)
    check_files(config, source, load_config(source))


@pytest.mark.parametrize("name", small_models.MODELS)
def test_every_family_is_complete_as_published(name: str, tmp_path: Path) -> None:
    """With towers, shared keys and values, and fused experts; and without one tensor of the language part, not."""
    folder = small_models.save(name, tmp_path / "m")
    check(folder)
    assert sum(1 for _ in folder.glob("*.safetensors")) == 1
    file = next(folder.glob("*.safetensors"))
    found = load_file(file)
    lost = next(n for n in found if n.endswith("layers.1.mlp.down_proj.weight") and "tower" not in n)
    del found[lost]
    save_file(found, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing in the files .*layers\.1\.mlp\.down_proj"):
        check(folder)


def test_what_is_complete_in_other_ways(tmp_path: Path) -> None:
    """In shards, with the head beside its embedding, and with a classifier's head."""
    model = AutoModelForCausalLM.from_pretrained(TINY)
    kinds: dict[str, Change] = {
        "head": tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})),
        "classifier": tensors(lambda t: t.update({"score.weight": torch.ones(1, 96)})),
        "shards": lambda folder: model.save_pretrained(folder, max_shard_size="4MB"),
    }
    for name, change in kinds.items():
        folder = Path(shutil.copytree(TINY, tmp_path / name))
        if name == "shards":
            (folder / "model.safetensors").unlink()
        change(folder)
        check(folder)
