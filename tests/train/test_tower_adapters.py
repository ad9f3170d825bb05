"""`model.train_towers=lora` against PEFT on the checkpoint's own class: its loss, its gradients, and its logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from media_models import folders_once
from media_plain import processor_of_folder
from media_rows import media_rows, trained
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from short_runs import metrics
from slow import slow_after
from test_media_training import _plain_row
from transformers import AutoModelForCausalLM

from gemma_tune.chat import render_chat
from gemma_tune.config import ModelConfig
from gemma_tune.engines.vllm_server import unservable
from gemma_tune.errors import UserError
from gemma_tune.export.gguf_lora import check_adapter
from gemma_tune.models.adapters.adapter_config import stored_config
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_model
from gemma_tune.models.source import Source, find_source
from gemma_tune.models.towers.media import media_inputs
from gemma_tune.models.towers.tower_names import trains_towers
from gemma_tune.models.towers.towers import open_towers, seeing

CLOSE = 1e-5  # of the largest logit
MERGED = 1e-4  # the same of merged weights, as in merging.py: random Gemma 4 models enlarge what is rounded
RANK, ALPHA = 4, 6
WORDS = [f"adapter.r={RANK}", f"adapter.lora_alpha={ALPHA}", "adapter.use_rslora=true", "export.dtype=float32"]
LANGUAGE = r".*language_model\.layers.*\.(q_proj|down_proj)"
# Every linear layer of towers and projectors whose output is used; in Gemma 4 within its clamps
TOWERS = {
    "gemma3": r".*vision_tower\.encoder\.layers\.\d+\..*(_proj|fc1|fc2)",
    "gemma4_e2b": r".*(vision|audio).*\.(linear|input_proj\w*|relative_k_proj|output_proj|embedding_projection)",
    "gemma4_31b": r".*vision.*\.(linear|input_proj|embedding_projection)",
}
BOUNDS = {"input_min": -0.9, "input_max": 0.9, "output_min": -0.7, "output_max": 0.7}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media_rows(tmp_path_factory.mktemp("rows"), turns=1)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return folders_once(tmp_path_factory, _clamp)


def _clamp(folder: Path) -> None:
    """Gives the clamps of Gemma 4's layers bounds that bite; published ones do, those of a new model are infinite."""
    file = folder / "model.safetensors"
    stored = load_file(file)
    for name in stored:
        if (end := name.rpartition(".")[2]) in BOUNDS:
            stored[name] = torch.full_like(stored[name], BOUNDS[end])
    save_file(stored, file, metadata={"format": "pt"})


def own_class(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def of_peft(family: str, base: Path, folder: Path) -> Any:
    """An adapter on language model and towers as plain PEFT makes it, saved, with B other than zero."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, use_rslora=True, target_modules=f"{LANGUAGE}|{TOWERS[family]}", task_type="CAUSAL_LM",
        modules_to_save=["multi_modal_projector"] if family == "gemma3" else None,
    )  # fmt: skip
    model = get_peft_model(own_class(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05)
    model.save_pretrained(folder)
    return model


def loss_of(model: Any, base: Path, rows: Path) -> torch.Tensor:
    processor, _ = processor_of_folder(base)
    total, count = torch.zeros(()), 0
    for line in rows.read_text("utf-8").splitlines():
        inputs, labels = _plain_row(processor, json.loads(line)["messages"])
        logits = model(**inputs).logits
        total = total + torch.nn.functional.cross_entropy(logits[0, :-1], labels[1:], reduction="sum")
        count += int((labels[1:] != -100).sum())
    return total / count


def logits_of(model: Any, base: Path, rows: Path) -> torch.Tensor:
    processor, _ = processor_of_folder(base)
    inputs, _ = _plain_row(processor, json.loads(rows.read_text("utf-8").splitlines()[1])["messages"])
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**inputs).logits
    return found


def ours(adapter: Path, rows: Path) -> torch.Tensor:
    """The logits of the same row by the language part with its towers, loaded as every recipe does; in float64."""
    config = ModelConfig(str(adapter), dtype="float32", device="cpu")
    source = find_source(config)
    tokenizer = load_tokenizer(source)
    row = render_chat(tokenizer, json.loads(rows.read_text("utf-8").splitlines()[1])["messages"])
    model = load_model(config, source, tokenizer).double()
    open_towers(model).whole.double()
    with torch.no_grad(), seeing(model, media_inputs(tokenizer, [row])):
        found: torch.Tensor = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits
    return found


def assert_close(found: torch.Tensor, wanted: torch.Tensor, most: float = CLOSE) -> None:
    assert (found - wanted).abs().max() <= most * wanted.abs().max()


def hold_merged(folder: Path, peft: Any, base: Path, rows: Path) -> None:
    """A merged folder in the own class: PEFT's logits, and of the towers W + s·B·A; in float64."""
    assert_close(logits_of(own_class(folder).double(), base, rows), logits_of(peft.double(), base, rows), MERGED)
    stored = load_file(folder / "model.safetensors")
    layers = {n: m for n, m in peft.get_base_model().named_modules() if hasattr(m, "lora_A") and "language" not in n}
    for name, layer in layers.items():
        a, b = (part["default"].weight.detach().double() for part in (layer.lora_A, layer.lora_B))
        merged = layer.base_layer.weight.double() + layer.scaling["default"] * b @ a
        found = next(weight for own, weight in stored.items() if f"model.{own}".endswith(f"{name}.weight"))
        assert (found - merged).abs().max() <= 1e-6 * merged.abs().max(), name


@pytest.mark.parametrize("family", slow_after(1, TOWERS))
def test_a_step_is_that_of_peft_on_the_own_class(
    family: str, rows: Path, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """An adapter of plain PEFT is trained further: its loss and its gradients; then PEFT loads what was trained."""
    base = folder_of(family)
    model = of_peft(family, base, tmp_path / "peft")
    run = trained(
        "lora_sft", tmp_path / "peft", rows, tmp_path / "run", "model.train_towers=lora", "train.max_grad_norm=1e9",
        "train.warmup_steps=0", "export=none", *WORDS,
    )  # fmt: skip
    line = next(line for line in metrics(run) if "loss" in line)
    loss = loss_of(model, base, rows)
    loss.backward()
    norms = {n: p.grad.norm() for n, p in model.named_parameters() if p.grad is not None}
    towers = torch.stack([norm for name, norm in norms.items() if "language_model" not in name]).norm()
    norm = torch.stack([*norms.values()]).norm()
    assert towers > 0.01 * norm  # else the equality below would say nothing of them
    assert (line["loss"], line["grad_norm"]) == pytest.approx((loss.item(), norm.item()), rel=1e-5)

    stored, begun = (load_file(folder / "adapter_model.safetensors") for folder in (run / "adapter", tmp_path / "peft"))
    assert stored.keys() == begun.keys()
    moved = {name for name in stored if not torch.equal(stored[name], begun[name])}
    lost = [n for n in stored if n not in moved and ("vision" in n or "multi_modal" in n)]
    assert not lost
    assert not (run / "adapter" / "towers.safetensors").exists()
    again = PeftModel.from_pretrained(own_class(base), run / "adapter")
    wanted = logits_of(again.double(), base, rows)
    assert (wanted - logits_of(own_class(base), base, rows)).abs().max() > 0.01 * wanted.abs().max()
    assert_close(ours(run / "adapter", rows)[:, : wanted.shape[1]], wanted)  # but for the line break behind the answer
    with pytest.raises(UserError, match="towers for images and sound are trained with the adapter"):
        check_adapter(run / "adapter", stored_config(run / "adapter"))
    assert trains_towers(run / "adapter") and "towers" in str(unservable(Source(str(base), None, run / "adapter", "")))


@pytest.mark.slow
@pytest.mark.parametrize("family", TOWERS)
def test_new_adapters_are_loaded_by_peft(
    family: str, rows: Path, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Patterns and PiSSA are the language model's own; a frozen tower keeps its adapters to the bit."""
    base = folder_of(family)
    words = ["adapter.init_lora_weights=pissa", "adapter.rank_pattern={q_proj: 2}", "adapter.alpha_pattern={v_proj: 5}"]
    lora = ["model.train_towers=lora", "train.per_device_train_batch_size=2", *WORDS[:2]]
    run = trained("lora_sft", base, rows, tmp_path / "run", *lora, *words, "export.dtype=float32", steps=3)
    peft = PeftModel.from_pretrained(own_class(base), run / "adapter")
    layers = {n: m for n, m in peft.named_modules() if hasattr(m, "lora_A") and "language_model" not in n}
    assert {m.r["default"] for m in layers.values()} == {RANK}
    assert {m.scaling["default"] for m in layers.values()} == {ALPHA / RANK}
    hold_merged(run / "export" / "merged", peft, base, rows)
    stored = load_file(run / "adapter" / "adapter_model.safetensors")
    trained_layers = {n for n, w in stored.items() if "lora_B" in n and "language_model" not in n and w.any()}
    assert len(trained_layers) == sum("audio" not in name for name in layers)
    again = ["adapter.r=8", "adapter.lora_alpha=12", "model.train_towers=none", "export.dtype=float32"]
    frozen = trained("lora_sft", run, rows, tmp_path / "frozen", *again)
    kept = load_file(frozen / "adapter" / "adapter_model.safetensors")
    assert kept.keys() == stored.keys()
    assert all(torch.equal(kept[name], stored[name]) for name in stored if "language_model" not in name)
    peft = PeftModel.from_pretrained(own_class(base), frozen / "adapter")
    hold_merged(frozen / "export" / "merged", peft, base, rows)
    with pytest.raises(UserError, match=r"has adapters on .* set model.train_towers=lora, or merge it"):
        trained("lora_sft", run, rows, tmp_path / "full", *again, "model.train_towers=full")
