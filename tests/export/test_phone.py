"""Folders in Gemma's phone format: written from our codes, loaded and computed by Transformers itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from grid_models import ROWS, TINY, changed, logits_of, source_of, with_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune.chat import Rendered
from gemma_tune.config import ExportConfig, ModelConfig, QuantConfig
from gemma_tune.errors import RunError
from gemma_tune.export import phone
from gemma_tune.export.int4_check import forward_line, stored_lines
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.plain_transformers import load_exported
from gemma_tune.export.tensors import trained_tensors
from gemma_tune.models.load_weights import load_base
from gemma_tune.quant.activations import quantize
from gemma_tune.quant.channels import channel_plan
from gemma_tune.quant.layers import GridLora
from gemma_tune.report.artifacts import artifact_size

MIXED = QuantConfig(
    grid="int4_channel", embedding="int4_channel", int2_modules=[r"layers\.[345]\.mlp"], int8_modules=["v_proj"]
)


def by_channel(quant: QuantConfig, adapter: bool) -> ModelOnGrid:
    """The embedded model in the format, as after training."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    if not adapter:
        changed(model, quant.embedding_grid is not None)
    plan = channel_plan(model, quant)
    if adapter:
        model = with_adapter(model, GridLora)
    quantize(model, plan, quant, [Rendered(row, row) for row in ROWS])
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return ModelOnGrid(model, plan, trained_tensors(model, plan), tokenizer, source_of(TINY))


def verdicts(trained: ModelOnGrid, folder: Path) -> list[str]:
    lines = stored_lines("phone", phone.read_phone(folder), trained.trained, trained.plan)
    return [line.problem or line.verdict for line in (*lines, phone.activations_line("phone", folder, trained.model))]


@pytest.mark.parametrize(
    ("quant", "adapter"),
    [
        (QuantConfig(grid="int4_channel"), False),
        (MIXED, True),
        pytest.param(MIXED, False, marks=pytest.mark.slow),
        pytest.param(QuantConfig(grid="int4_channel", embedding="int2_channel"), False, marks=pytest.mark.slow),
        pytest.param(QuantConfig(grid="int4_channel", int8_modules=["proj", "embed"]), False, marks=pytest.mark.slow),
    ],
)
def test_transformers_computes_the_training_forward(quant: QuantConfig, adapter: bool, tmp_path: Path) -> None:
    """No tensor is missing or too many, and no logit differs."""
    trained = by_channel(quant, adapter)
    assert forward_line(trained.model, trained.trained, trained.plan).verdict == "ok"
    phone.export(trained, tmp_path, ExportConfig())
    assert verdicts(trained, tmp_path) == ["ok"] * 3
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    size, tied = artifact_size(tmp_path), trained.plan.grids.get("model.embed_tokens.weight")
    assert size.weights == sum(trained.plan.sizes.values()) + (393216 if tied else 0)  # the head
    assert torch.equal(logits_of(loaded.eval()), logits_of(trained.model))
    bits = {name: module.num_bits for name, module in loaded.named_modules() if hasattr(module, "num_bits")}
    planned = {**trained.plan.grids, **({"lm_head.weight": tied} if tied else {})}
    assert bits == {name.removesuffix(".weight"): grid.bits for name, grid in planned.items()}


@pytest.mark.parametrize(
    "name", ["gemma4_e2b", "gemma4_26b", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gemma2", "gemma4_12b"))]
)
def test_other_families(name: str, tmp_path: Path) -> None:
    """Bits as in Google's E2B; checkpoints with idle keys and values; experts, which stay in 16 bit."""
    folder = small_models.save(name, tmp_path / "published")
    source, tokenizer = source_of(folder), AutoTokenizer.from_pretrained(folder)
    base: Any = load_base(ModelConfig(model_name_or_path=str(folder), dtype="float32", device="cpu"), source, tokenizer)
    e2b = name == "gemma4_e2b"
    quant = QuantConfig(
        grid="int4_channel",
        embedding="int2_channel",
        per_layer_embedding="int4_channel" if e2b else "none",
        int2_modules=[r"layers\.[23]\.mlp"],
        int8_modules=["per_layer_(input_gate|projection)"] if e2b else [],
    )
    plan, rows = channel_plan(base, quant), [list(range(10, 40)), list(range(40, 70))]
    quantize(base.eval(), plan, quant, [Rendered(row, row) for row in rows])
    trained = ModelOnGrid(base, plan, trained_tensors(base, plan), tokenizer, source)
    out = tmp_path / "out"
    phone.export(trained, out, ExportConfig())
    assert verdicts(trained, out) == ["ok"] * 3
    loaded, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        ids = torch.tensor(rows)
        assert torch.equal(loaded.eval()(input_ids=ids).logits, base(input_ids=ids).logits)
    modules = {name: module for name, module in loaded.named_modules() if hasattr(module, "num_bits")}
    described = json.loads((out / "config.json").read_text("utf-8"))
    text = described.get("text_config", described)
    if name.startswith("gemma4"):  # the names of the published file, which Transformers doesn't write
        keys = base.model.layers[base.config.layer_types.index("full_attention")].self_attn.k_proj
        assert text["global_head_dim"] * text["num_global_key_value_heads"] == keys.out_features
    bits = {re.sub(r"^model\.(language_model\.)?", "", name): module.num_bits for name, module in modules.items()}
    assert bits["lm_head"] == bits["embed_tokens"] == bits["layers.3.mlp.up_proj"] == 2
    if e2b:
        assert bits["embed_tokens_per_layer"] == 4 and bits["layers.0.per_layer_projection"] == 8


def test_what_is_wrong_in_a_folder_is_found(tmp_path: Path) -> None:
    trained = by_channel(MIXED, adapter=True)
    phone.export(trained, tmp_path, ExportConfig())
    file, stem = tmp_path / "model.safetensors", "model.layers.4.mlp.up_proj"
    whole = load_file(file)

    def found(**parts: torch.Tensor | None) -> str:
        stored = {**whole, **{f"{stem}.{part}": tensor for part, tensor in parts.items() if tensor is not None}}
        for part in (part for part, tensor in parts.items() if tensor is None):
            del stored[f"{stem}.{part}"]
        save_file(stored, file)
        return " ".join(verdicts(trained, tmp_path))

    codes = whole[f"{stem}.weight"].clone()
    codes[3, 1] ^= 0b11000000  # the fourth of four codes
    assert f"{stem}.weight: 1 of 196,608 codes and 0 scales differ." in found(weight=codes)
    assert "0 of 196,608 codes and 768 scales differ." in found(weight_scale=whole[f"{stem}.weight_scale"] * 2)
    assert f"{stem}.weight_scale is not there" in found(weight_scale=None)
    assert f"{stem}.input_activation_scale: 0.25, and 0." in found(input_activation_scale=torch.tensor(0.25))
    assert f"{stem}.output_activation_scale: None, and 0." in found(output_activation_scale=None)


def test_towers_stay_dense(tmp_path: Path) -> None:
    """Of a checkpoint with images the language part is packed, under the checkpoint's names, and nothing else."""
    folder = small_models.save("gemma3", tmp_path / "published")
    source, tokenizer = source_of(folder), AutoTokenizer.from_pretrained(folder)
    base: Any = load_base(ModelConfig(model_name_or_path=str(folder), dtype="float32", device="cpu"), source, tokenizer)
    quant = QuantConfig(grid="int4_channel", embedding="int4_channel", int2_modules=[r"layers\.1\.mlp"])
    plan = channel_plan(base, quant)
    rows = [list(range(10, 40)), list(range(40, 70))]
    quantize(base.eval(), plan, quant, [Rendered(row, row) for row in rows])
    trained = ModelOnGrid(base, plan, trained_tensors(base, plan), tokenizer, source)
    out = tmp_path / "out"
    phone.export(trained, out, ExportConfig())
    assert verdicts(trained, out) == ["ok"] * 3
    before, after = (load_file(f / "model.safetensors") for f in (folder, out))
    towers = [n for n in before if "language_model" not in n]
    assert len(towers) > 10 and all(torch.equal(before[n], after[n]) for n in towers)
    loaded, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not any(hasattr(m, "num_bits") for m in loaded.model.vision_tower.modules())
    with torch.no_grad():
        ids = torch.tensor(rows)
        assert torch.equal(loaded.eval()(input_ids=ids).logits, base(input_ids=ids).logits)
    described = json.loads((out / "config.json").read_text("utf-8"))
    assert described["tie_word_embeddings"] is False and described["quantization_config"]["num_bits"] == 4


def test_a_folder_that_lacks_a_tensor_or_has_one_too_many_is_not_loaded(tmp_path: Path) -> None:
    trained = by_channel(MIXED, adapter=True)
    phone.export(trained, tmp_path, ExportConfig())
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    missing = "model.layers.4.mlp.up_proj.output_activation_scale"
    save_file({name: tensor for name, tensor in whole.items() if name != missing}, file, {"format": "pt"})
    with pytest.raises(RunError, match=f"1 missing keys, for example {missing}"):
        load_exported(tmp_path, torch.float32, {"": "cpu"})
    save_file({**whole, "model.more": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(RunError, match=r"1 unexpected keys, for example model\.more"):
        load_exported(tmp_path, torch.float32, {"": "cpu"})
