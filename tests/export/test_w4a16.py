"""compressed-tensors folders: written from our codes, read by compressed-tensors and Transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import compressed_tensors
import pytest
import small_models
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
from grid_models import TINY, logits_of, on_grid, source_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

from gemma_tune.config import ExportConfig, ModelConfig
from gemma_tune.export import w4a16
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.tensors import decoded_weight, trained_tensors
from gemma_tune.models.load_weights import load_base
from gemma_tune.quant.grid import Encoded
from gemma_tune.quant.layers import put_on_grid
from gemma_tune.quant.plan import plan_of

# What vLLM's and llm-compressor's documentation gives for W4A16, with blocks of 32.
SCHEME: dict[str, Any] = {
    "targets": ["Linear"],
    "weights": {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 32,
        "dynamic": False,
    },
}


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize(
    ("grid", "embedding", "adapter"),
    [
        pytest.param("q4_0", None, False, marks=pytest.mark.slow),
        pytest.param("q4_0", "q4_0", False, marks=pytest.mark.slow),
        ("q4_0", "q8_0", True),
        ("q3_0", "q3_0", False),
    ],
)
def test_plain_transformers_computes_the_training_forward(
    grid: str, embedding: str | None, adapter: bool, tmp_path: Path
) -> None:
    trained = on_grid(grid, embedding, adapter)
    w4a16.export(trained, tmp_path, ExportConfig())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert (logits_of(loaded) - logits_of(trained.model)).abs().max() <= 1e-5
    dense = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    for model in (loaded, dense):  # decompressed by the first forward, and while loading
        found = dict(model.named_parameters())
        for name in trained.trained:
            assert torch.equal(found[name], decoded_weight(name, trained.trained, trained.plan)), name
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_files_are_as_compressed_tensors_writes_them(tmp_path: Path) -> None:
    """Its own compressor, given the weights and scales, writes the same tensors; its own writer the same config."""
    trained = on_grid("q4_0", "q4_0")
    w4a16.export(trained, tmp_path, ExportConfig())
    stored = load_file(tmp_path / "model.safetensors")
    scheme = QuantizationScheme.model_validate(SCHEME)
    for name, encoded in trained.trained.items():
        if not isinstance(encoded, Encoded) or "embed" in name:
            continue
        weight = decoded_weight(name, trained.trained, trained.plan)
        parts = {"weight": weight, "weight_scale": encoded.scales.bfloat16()}
        for end, tensor in PackedQuantizationCompressor.compress(parts, scheme).items():
            found = stored.pop(f"{name.removesuffix('.weight')}.{end}")
            assert found.dtype == tensor.dtype and torch.equal(found, tensor), (name, end)
    assert all(n.endswith(("norm.weight", "embed_tokens.weight")) for n in stored)

    model = AutoModelForCausalLM.from_pretrained(TINY)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    apply_quantization_config(model, config)
    theirs = ModelCompressor.from_pretrained_model(model)
    theirs.compress_model(model)
    (tmp_path / "theirs").mkdir()
    theirs.update_config(str(tmp_path / "theirs"))
    assert config_of(tmp_path)["quantization_config"] == config_of(tmp_path / "theirs")["quantization_config"]


def test_config_is_what_vllm_documents(tmp_path: Path) -> None:
    trained = on_grid()
    w4a16.export(trained, tmp_path, ExportConfig())
    found = config_of(tmp_path)["quantization_config"]
    assert found["quant_method"] == "compressed-tensors" and found["format"] == "pack-quantized"
    assert found["quantization_status"] == "compressed" and found["ignore"] == ["lm_head"]
    assert found["version"] == compressed_tensors.__version__
    (group,) = found["config_groups"].values()
    assert {key: group[key] for key in SCHEME} == SCHEME
    assert group["input_activations"] is None and group["format"] == "pack-quantized"


def test_scales_of_11_bits_are_computed_in_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are exact in float16 files; the folder asks for float32, and says what bfloat16 would do."""
    trained = on_grid("q4_0_fp16", "q4_0_fp16")
    w4a16.export(trained, tmp_path, ExportConfig())
    assert "vLLM computes in bfloat16, which moves these weights by up to 0.8 %" in capsys.readouterr().err
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    assert (logits_of(loaded) - logits_of(trained.model)).abs().max() <= 1e-5
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    logits_of(half)
    name = "model.layers.1.mlp.up_proj.weight"
    exact = decoded_weight(name, trained.trained, trained.plan)
    moved = (half.get_parameter(name).float() - exact).abs() / exact.abs().clamp(min=1e-9)
    assert 0.004 < moved.max() < 0.008  # the scale is rounded, and its product again


def test_blocks_of_zeros_and_negative_scales(tmp_path: Path) -> None:
    trained = on_grid()
    layer = trained.model.model.layers[1].mlp.up_proj
    with torch.no_grad():
        layer.weight[:, :64] = 0
        layer.weight[:, 64:96] = layer.weight[:, 64:96].abs()  # positive extremes: negative scales
    trained = replace(trained, trained=trained_tensors(trained.model, trained.plan))
    w4a16.export(trained, tmp_path, ExportConfig())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert (logits_of(loaded) - logits_of(trained.model)).abs().max() <= 1e-5
    weight = loaded.model.layers[1].mlp.up_proj.weight
    assert not weight[:, :64].any() and (weight[:, 64:96] >= 0).all() and weight[:, 64:96].any()
    scales = load_file(tmp_path / "model.safetensors")["model.layers.1.mlp.up_proj.weight_scale"]
    assert (scales[:, :2] == 0).all() and (scales[:, 2] < 0).all()


def test_towers_stay_dense(tmp_path: Path) -> None:
    """Of a checkpoint with images the language part is packed, under the checkpoint's names, and nothing else."""
    folder = small_models.save("gemma3", tmp_path / "published")
    source, tokenizer = source_of(folder), AutoTokenizer.from_pretrained(folder)
    base = load_base(ModelConfig(model_name_or_path=str(folder), dtype="float32", device="cpu"), source, tokenizer)
    plan = plan_of(base, "q4_0", "q8_0")
    put_on_grid(base, plan)
    out = tmp_path / "out"
    w4a16.export(ModelOnGrid(base, plan, trained_tensors(base, plan), tokenizer, source), out, ExportConfig())
    before, after = (load_file(f / "model.safetensors") for f in (folder, out))
    packed = {n.removesuffix("_packed") for n in after if n.endswith("_packed")}
    assert len(packed) == 28 and all("language_model" in n for n in packed)
    towers = [n for n in before if "language_model" not in n]
    assert len(towers) > 10 and all(torch.equal(before[n], after[n]) for n in towers)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        found = loaded(input_ids=ids).logits
        assert (found - base(input_ids=ids).logits).abs().max() <= 1e-5
    assert not any(hasattr(m, "quantization_scheme") for m in loaded.model.vision_tower.modules())
