"""Adapters made with plain PEFT: used with the logits that PEFT gives, or refused in one line; no traceback."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
import transformers
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from short_runs import short_run
from transformers import AutoConfig, AutoModelForCausalLM

import gemma_tune
from gemma_tune.config import AdapterConfig, ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.adapters.adapter import attach
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base, load_model
from gemma_tune.models.source import find_source
from gemma_tune.quant.load_float32 import find_full_weights, load_float32
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
ROWS = torch.randint(10, 250, (4, 32), generator=torch.Generator().manual_seed(0))
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
Change = Callable[[Path], None]


@dataclass(frozen=True)
class Made:
    """An adapter of others, and what must happen.

    Attributes:
        options: Of PEFT's LoraConfig, beside `LORA`.
        refused: What the refusal says; None: it is used.
        merges: Whether it is used where it is merged or trained, too.
        towers: Whether its base is a checkpoint with towers, in the original class.
        words: Of the configuration that continues it.
        change: What happens to the folder afterwards.
        zero: Whether what is outside the language part learned nothing.
    """

    options: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    merges: bool = True
    towers: bool = False
    words: tuple[str, ...] = ()
    change: Change | None = None
    zero: bool = True


def _renamed(folder: Path) -> None:
    """As Transformers before 4.52 named the layers."""
    file = folder / "adapter_model.safetensors"
    found = {
        k.replace("model.model.language_model.", "model.language_model.model."): v for k, v in load_file(file).items()
    }
    save_file(found, file, metadata={"format": "pt"})


def _of_other_towers(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    found = {k.replace("vision_tower.encoder.layers.0", "vision_tower.blocks.0"): v for k, v in load_file(file).items()}
    save_file(found, file, metadata={"format": "pt"})


def _says(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | fields), encoding="utf-8")

    return change


def _without_a_weight(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    del weights[next(k for k in weights if "lora_B" in k)]
    save_file(weights, file, metadata={"format": "pt"})


MADE = {
    "lora": Made(),
    "dora": Made({"use_dora": True}, words=("adapter.use_dora=true",)),
    "rslora": Made({"use_rslora": True}, words=("adapter.use_rslora=true",)),
    "patterns": Made({"rank_pattern": {"q_proj": 2, r"layers.1.mlp.down_proj": 3}, "alpha_pattern": {"down_proj": 5}}),
    "some layers": Made({"layers_to_transform": [1, 3]}),
    "not these": Made({"target_modules": "all-linear", "exclude_modules": ["o_proj", "layers.2.mlp.down_proj"]}),
    "a norm": Made({"modules_to_save": ["norm"]}),
    "biases of none": Made({"bias": "all"}),
    "tokens": Made({"trainable_token_indices": [5, 70]}),
    "tokens of both": Made({"trainable_token_indices": {"embed_tokens": [5, 70], "lm_head": [5, 70]}}),
    "tokens of the head": Made({"trainable_token_indices": {"lm_head": [5, 70]}}, "embedding and head are one matrix"),
    "embedding": Made({"target_modules": ["embed_tokens", "q_proj"]}, "it adapts model.embed_tokens", merges=False),
    "head": Made({"target_modules": ["lm_head", "q_proj"]}, "it adapts lm_head", merges=False),
    "saved embedding": Made({"modules_to_save": ["embed_tokens"]}, "a whole embed_tokens"),
    "saved pair": Made({"modules_to_save": ["embed_tokens", "lm_head"]}, "a whole "),
    "bias": Made({"lora_bias": True}, "lora_bias can't be used"),
    "towers' class": Made({"target_modules": ".*language_model.*(q|v|down)_proj"}, towers=True),
    "older names": Made({"target_modules": ".*language_model.*(q|v)_proj"}, towers=True, change=_renamed),
    "towers untrained": Made({"target_modules": ["q_proj", "v_proj"]}, towers=True),
    "towers trained": Made({"target_modules": ["q_proj", "v_proj"]}, towers=True, zero=False),
    "other towers": Made(
        {"target_modules": ["q_proj", "v_proj"]}, "has no place in the towers", towers=True, zero=False,
        change=_of_other_towers,
    ),
    "repeated layers": Made({}, "layer_replication can't be used", change=_says(layer_replication=[[0, 2], [1, 3]])),
    "a newer PEFT": Made({}, "use_wonder, which this version", change=_says(use_wonder=True)),
    "pissa": Made({}, "a pissa adapter fits only", change=_says(init_lora_weights="pissa")),
    "half a file": Made({}, r"lora_B.weight is missing", change=_without_a_weight),
    "not its own layers": Made({}, "its target_modules", change=_says(target_modules=["q_proj"])),
}  # fmt: skip
FAST = ("tokens",)


def make(made: Made, folder: Path) -> tuple[Path, Any]:
    """The adapter's folder, and PEFT's model of it."""
    base = TINY
    if made.towers:
        base = small_models.save("gemma3", folder / "base")
        model = getattr(transformers, AutoConfig.from_pretrained(base).architectures[0]).from_pretrained(
            base, dtype=torch.float32
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(2)
    peft = get_peft_model(model, LoraConfig(**LORA | made.options))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad and not (made.zero and "vision" in name):
                parameter.add_(0.05 * torch.randn_like(parameter))
    peft.save_pretrained(folder / "adapter")
    if made.change:
        made.change(folder / "adapter")
    return folder / "adapter", peft.eval()


def config_of(folder: Path) -> ModelConfig:
    return ModelConfig(str(folder), dtype="float32", device="cpu")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ROWS).logits
    return found


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MADE])
def test_an_adapter_of_peft(name: str, tmp_path: Path) -> None:
    """Loaded as chat and evaluate do, merged as export and qat do, continued as lora_sft does: PEFT's logits."""
    made = MADE[name]
    folder, peft = make(made, tmp_path)
    expected, config = logits(peft), config_of(folder)
    source = find_source(config)
    tokenizer = load_tokenizer(source)
    adapter = AdapterConfig("lora", 8, 16, use_dora="dora" in name, use_rslora="rslora" in name)
    ways = {
        "load": lambda: load_model(config, source, tokenizer),
        "merge": lambda: load_float32(config, find_full_weights(config), tokenizer, []),
        "continue": lambda: attach(load_base(config, source, tokenizer), adapter, source),
    }
    for way, load in ways.items():
        if made.refused and (way != "load" or made.merges):
            if way == "merge" and not made.merges:
                continue  # by the recipes, before the weights are loaded
            with pytest.raises(UserError, match=made.refused) as caught:
                load()
            assert "\n" not in str(caught.value), str(caught.value)
        else:
            assert (logits(load()) - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max().item()), way
    for recipe, merges in (("chat", False), ("evaluate", False), ("export", True), ("qat", True), ("lora_sft", True)):
        words = [f"model.model_name_or_path={folder}", "model.device=cpu", "dry_run=true"]
        words += ["chat.prompt=Hello"] if recipe == "chat" else [f"output_dir={tmp_path / recipe}"]
        words += ["data=sample"] if recipe == "evaluate" else []
        words += ["export.formats=[merged]"] if made.towers and merges else []  # its sizes are none of llama.cpp's
        words += ["adapter.r=8", "adapter.lora_alpha=16", *made.words] if recipe == "lora_sft" else []
        if made.refused and (merges or made.merges):
            with pytest.raises(UserError, match=made.refused):
                gemma_tune.run(recipe, words)
        else:
            assert gemma_tune.run(recipe, words).status == "dry_run", recipe


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, made in MADE.items() if not made.refused])
@pytest.mark.slow
def test_a_used_adapter_through_the_recipes(name: str, tmp_path: Path) -> None:
    """Answers, figures, files and another step of training, with the checks of each recipe."""
    made = MADE[name]
    folder, peft = make(made, tmp_path)
    model = [f"model.model_name_or_path={folder}", "model.device=cpu"]
    answers = gemma_tune.run("chat", [*model, "chat.prompt=Hello", "chat.max_new_tokens=4"]).metrics["answers"]
    assert len(answers) == 1
    words = [*model, "adapter.r=8", "adapter.lora_alpha=16", "export.dtype=float32", *made.words]
    trained = short_run("lora_sft", tmp_path / "sft", *words, "train.learning_rate=1e-12", steps=1)
    assert trained.metrics["export"]["merge_difference"] < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "sft" / "export" / "merged", dtype=torch.float32)
    assert (logits(merged) - logits(peft)).abs().max() < 1e-4
    measured = [*model, "model.dtype=float32", "data.max_eval_samples=4", "tracker=none", "data=sample"]
    evaluated = gemma_tune.run(
        "evaluate", [*measured, "eval.evaluators=[held_out_loss]", f"output_dir={tmp_path / 'evaluate'}"]
    )
    assert evaluated.metrics["after"]["held_out_loss"] == pytest.approx(
        trained.metrics["before"]["held_out_loss"], rel=1e-5
    )
    if not made.towers:  # its width is no multiple of a block
        exported = gemma_tune.run(
            "export",
            [*measured, "export.formats=[merged]", "export.quality_samples=2", f"output_dir={tmp_path / 'export'}"],
        )
        lines = exported.metrics["verify"]
        assert {line["verdict"] for line in lines} == {"ok"}
        short_run("qat", tmp_path / "qat", *model, "export.formats=[merged]", steps=1)


@pytest.mark.slow
def test_an_adapter_of_another_model(tmp_path: Path) -> None:
    """One line: the folder, the names, and the layers there are."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model.model.layers.append(copy.deepcopy(model.model.layers[-1]))
    get_peft_model(model, LoraConfig(**LORA)).save_pretrained(tmp_path / "deeper")
    ia3 = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), ia3).save_pretrained(tmp_path / "ia3")
    wide = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY, intermediate_size=96))
    wide.name_or_path = str(TINY)
    get_peft_model(wide, LoraConfig(**LORA)).save_pretrained(tmp_path / "wide")
    _says(base_model_name_or_path=str(TINY))(tmp_path / "wide")
    for name, message in (
        ("deeper", r"deeper: an adapter of another model: .*layers\.6\..*its layers are model\.layers\.0\.self_attn"),
        ("wide", r"wide: an adapter of another model: .*down_proj\.lora_A\.weight is \(8, 96\)"),
        ("ia3", "a IA3 adapter, and only LoRA"),
    ):
        for recipe in ("chat", "export"):
            words = [f"model.model_name_or_path={tmp_path / name}"]
            words += ["chat.prompt=Hello"] if recipe == "chat" else [f"output_dir={tmp_path / 'run'}"]
            with pytest.raises(UserError, match=message) as caught:
                gemma_tune.run(recipe, words)
            assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_resized_embedding(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model.resize_token_embeddings(1540, mean_resizing=False)
    peft = get_peft_model(model, LoraConfig(**LORA))
    peft.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    with pytest.raises(UserError, match=r"of 1540 rows .*the base has 1536 rows") as caught:
        gemma_tune.run("chat", [f"model.model_name_or_path={tmp_path / 'adapter'}", "chat.prompt=Hello"])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_layers_that_are_not_there_are_refused_in_the_dry_run(tmp_path: Path) -> None:
    """Each under its own key, in one line."""
    one_block = "adapter.layers_to_transform=[1]"
    for words, message in (
        (["adapter.target_modules=[q_proj,qq_proj]"], r"adapter\.target_modules: no layer is named qq_proj\. Linear"),
        (["adapter.target_modules='.*nothing'"], r"adapter\.target_modules: Target modules .*not found"),
        (["adapter.target_modules='.*(q_proj'"], r"adapter\.target_modules=.*no regular expression"),
        (["adapter.target_modules=[q_proj,q_proj]"], r"adapter\.target_modules names q_proj twice"),
        (["adapter.target_modules=[mlp]"], r"adapter\.target_modules: mlp is of Gemma3MLP, no linear layer\. Linear"),
        (["adapter.target_modules='.*mlp'"], r"adapter\.target_modules: Target module Gemma3MLP\. Linear layers"),
        (
            [one_block, "adapter.target_modules='.*q_proj'"],
            r"adapter\.layers_to_transform can't be combined .*write the blocks into it, as '\.\*\\\.layers\\\.\(1\)",
        ),
        (
            [one_block, "adapter.target_modules=[model.layers.0.mlp.up_proj]"],
            r"adapter\.layers_to_transform: no adapted layer is in block 1\.",
        ),
        (["adapter.layers_to_transform=[99]"], r"adapter\.layers_to_transform: there is no block 99; .*blocks 0 to 5"),
        (["adapter.layers_to_transform=[-1]"], r"adapter\.layers_to_transform must be at least 0, not -1"),
        (["adapter.layers_to_transform=[]"], r"adapter\.layers_to_transform=\[\] names no block; leave it out"),
        (["adapter.layers_to_transform=[1,1]"], r"adapter\.layers_to_transform names 1 twice"),
        (["adapter.rank_pattern={q_proj: 0}"], r"adapter\.rank_pattern\.q_proj must be at least 1, not 0"),
        (["adapter.alpha_pattern={q_proj: -3}"], r"adapter\.alpha_pattern\.q_proj must be at least 1, not -3"),
        (["adapter.rank_pattern={'(q': 2}"], r"adapter\.rank_pattern: \(q is no regular expression"),
        (["adapter.alpha_pattern={'*q': 2}"], r"adapter\.alpha_pattern: \*q is no regular expression"),
        (["adapter.trainable_token_indices=[5,7,5]"], r"adapter\.trainable_token_indices names 5 twice"),
        (["adapter.modules_to_save=[norm,norm]"], r"adapter\.modules_to_save names norm twice"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            gemma_tune.run("lora_sft", ["model=tiny", *words, "dry_run=true", f"output_dir={tmp_path / 'run'}"])
        assert len(caught.value.problems) == 1 and "\n" not in str(caught.value), words


@pytest.mark.slow
def test_layers_and_ranks_of_ones_own(tmp_path: Path) -> None:
    """Trained, merged and checked; what names no layer is refused before the weights are loaded."""
    words = [
        "adapter.layers_to_transform=[1,3]",
        "adapter.rank_pattern={q_proj: 2}",
        "adapter.alpha_pattern={q_proj: 3}",
    ]
    result = short_run("lora_sft", tmp_path / "run", *words, "export.dtype=float32", steps=1)
    assert result.metrics["weights"]["adapted_layers"] == 14 and result.metrics["export"]["merge_difference"] < 1e-4
    shapes = {k: v.shape for k, v in load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors").items()}
    assert {s[0] for k, s in shapes.items() if "q_proj.lora_A" in k} == {2}
    assert {s[0] for k, s in shapes.items() if "v_proj.lora_A" in k} == {16}
    for word, message in (
        ("adapter.layers_to_transform=[1,60]", r"there is no block 60; this model has the blocks 0 to 5"),
        ("adapter.rank_pattern={qq_proj: 2}", r"adapter\.rank_pattern\.qq_proj: no adapted layer"),
        ("adapter.modules_to_save=[lm_head]", r"a whole copy of the embedding, .*recipe=full_sft\)\.$"),
        ("train.lr_scheduler_type=cosine_with_min_lr", r"set train\.extra\.lr_scheduler_kwargs=\{min_lr_rate: …\}"),
        ("train.lr_scheduler_type=warmup_stable_decay", r"set train\.extra\.lr_scheduler_kwargs=\{num_decay_steps"),
        ("train.extra.lr_scheduler_kwargs={min_lr: 1}", "has no min_lr"),
    ):
        with pytest.raises(UserError, match=message):
            gemma_tune.run("lora_sft", ["model=tiny", word, "dry_run=true", f"output_dir={tmp_path / 'no'}"])


@pytest.mark.slow
def test_a_cache_folder_of_the_hub_names_its_snapshot(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    shutil.copytree(TINY, snapshot)
    with pytest.raises(UserError, match=rf"name {snapshot}\."):
        find_source(ModelConfig(str(tmp_path / "models--owner--name")))
    assert find_source(ModelConfig(str(snapshot))).folder == snapshot
