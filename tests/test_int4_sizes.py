"""docs/int4.md holds what benchmarks/int4_sizes.py calculates, and that is what files and caches take."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from int4_models import build
from safetensors import safe_open
from transformers import DynamicCache

from gemma_tune.config import ExportConfig, QuantConfig
from gemma_tune.export import gguf, merged_from_grid, mlx_folder, phone, w4a16
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.tensors import trained_tensors
from gemma_tune.models.source import Source
from gemma_tune.quant.channels import channel_plan
from gemma_tune.quant.layers import put_on_grid

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "int4.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("int4_sizes", ROOT / "benchmarks" / "int4_sizes.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_of_each_table_is_as_calculated(program: ModuleType) -> None:
    found = program.tables(program.options().parse_args(["--models", "google/gemma-3-1b-it"]))
    assert found.keys() == {"files", "experts", "memory", "assumed", "fits"} and found["assumed"] in PAGE
    for name in ("files", "memory", "fits"):
        *_, row = found[name].splitlines()
        assert row.replace("gemma-3-1b-it", "gemma-3-1b") in PAGE, name


@pytest.mark.slow
def test_the_page_is_as_calculated(program: ModuleType) -> None:
    found = program.tables(program.options().parse_args([]))
    assert set(re.findall(r"<!-- int4_sizes: (.*?) -->", PAGE)) == found.keys()
    assert program.placed_in(PAGE, found) == PAGE


def bytes_in(folder: Path) -> int:
    """Of all tensors, without the headers of the files."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            total += sum(stored.get_tensor(name).nbytes for name in stored.keys())  # noqa: SIM118 (not a mapping)
    return total


@pytest.mark.parametrize(
    "name",
    ["gemma4_e2b", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3n", "gemma4_26b", "gemma1"))],
)
def test_files_take_the_calculated_bytes(program: ModuleType, name: str, tmp_path: Path) -> None:
    """Real files of a small model of each kind: per-layer embeddings, AltUp, experts."""
    model, tokenizer = build(name)
    sized = program.Sized(name, model.config)
    model.save_pretrained(tmp_path / "base")
    source, options = Source(str(tmp_path / "base"), None, None, str(tmp_path / "base")), ExportConfig()
    for embedding, expected in sized.gguf_bytes.items():
        on_grid, _ = build(name)
        plan = sized.plan(embedding)
        put_on_grid(on_grid, plan)
        trained = trained_tensors(on_grid, plan)
        file = tmp_path / f"{embedding}.gguf"
        gguf.export(trained, model.config, tokenizer, model.generation_config, plan, file, name="x")
        assert sum(int(tensor.n_bytes) for tensor in GGUFReader(file).tensors) == expected
        kinds: dict[str, Any] = {"mlx": mlx_folder.export}
        if embedding is None:
            kinds |= {"w4a16": w4a16.export, "w4a16_transformers": w4a16.export_dense_experts}
            kinds |= {"merged": merged_from_grid.export}
        for kind, export in kinds.items():
            folder = tmp_path / f"{kind}-{embedding}"
            folder.mkdir()
            export(ModelOnGrid(on_grid, plan, trained, tokenizer, source), folder, options)
            assert bytes_in(folder) == sized.folder_bytes(kind, embedding), (kind, embedding)
    channel = QuantConfig(grid="int4_channel", embedding="int4_channel", per_layer_embedding="int4_channel")
    plan, folder = channel_plan(model, channel), tmp_path / "phone"
    put_on_grid(model, plan)
    folder.mkdir()
    phone.export(ModelOnGrid(model, plan, trained_tensors(model, plan), tokenizer, source), folder, options)
    assert bytes_in(folder) == sized.folder_bytes("phone") == plan.bytes


@pytest.mark.parametrize("name", ["gemma2", "gemma3n", "gemma4_e2b", "gemma4_31b"])
def test_the_cache_is_that_of_transformers(program: ModuleType, name: str) -> None:
    """Whose sliding layers hold the window without the token that is computed, and in float32."""
    model, _ = build(name)
    tokens, config = 50, model.config
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(torch.arange(20, 20 + tokens)[None], past_key_values=cache, use_cache=True)
    held = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    found = sum(layer.keys.numel() + layer.values.numel() for layer in held)
    window = config.sliding_window
    assert window < tokens
    sliding = [layer for layer in held if layer.keys.shape[-2] < tokens]
    assert sliding and all(layer.keys.shape[-2] == window - 1 for layer in sliding)
    found += sum((layer.keys[..., 0, :].numel() + layer.values[..., 0, :].numel()) for layer in sliding)
    assert program.Sized(name, config).cache_bytes(tokens) == 2 * found


def test_what_is_idle_by_hand(program: ModuleType) -> None:
    """E2B of Gemma 4: 16 sliding and 4 other of its 20 sharing layers, with heads of 256 and 512."""
    (model,) = program.models(["google/gemma-4-E2B-it"])
    assert program.stored_idle(model.config) == 16 * (2 * 1536 * 256 + 256) + 4 * (2 * 1536 * 512 + 512)
    assert model.beside == 475_728_160 + program.stored_idle(model.config)


def test_a_cache_by_hand(program: ModuleType) -> None:
    """27B of Gemma 3: 10 of 62 layers hold everything, 52 hold 1,024 tokens; keys and values of 16 heads of 128."""
    (model,) = program.models(["google/gemma-3-27b-it"])
    assert model.cache_bytes(32_768) == 2 * 2 * 16 * 128 * (10 * 32_768 + 52 * 1024)
    assert model.context(300_000) == 131_072
    assert model.memory("q4_0", 4096) == (model.gguf_bytes["q4_0"] + model.cache_bytes(4096)) / 2**30
