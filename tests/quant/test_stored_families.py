"""QAT checkpoints of every family: the codes of the rule are found, trained on, and written into each file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from int4_models import FAMILY_MODELS, build
from qat_checkpoint import by_googles_rule, products

from gemma_tune.config import AdapterConfig, ExportConfig, ModelConfig, QuantConfig
from gemma_tune.errors import UserError
from gemma_tune.export import gguf, merged_from_grid, w4a16
from gemma_tune.export.int4_check import OK, forward_line, stored_lines
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.read_back import read_folder
from gemma_tune.export.read_gguf import read_gguf
from gemma_tune.export.tensors import trained_tensors
from gemma_tune.models.check_source import check_source
from gemma_tune.models.load import load_config
from gemma_tune.models.source import Source
from gemma_tune.models.unwrap import stored_tensors
from gemma_tune.quant.layers import put_on_grid
from gemma_tune.quant.load_float32 import load_float32
from gemma_tune.quant.plan import plan_of
from gemma_tune.quant.stored import plan_for

STORED = QuantConfig(grid="q4_0_checkpoint", embedding="q4_0_checkpoint", cross_entropy=1.0)
FAST = ("gemma4_e2b", "gemma4_26b")  # per-layer embeddings and layers without keys; experts


def save(name: str, folder: Path) -> tuple[Source, Any, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """A checkpoint in bfloat16, on Google's grid wherever a grid can be, without the keys of sharing layers."""
    model, tokenizer = build(name)
    per_layer = model.config.get_text_config().to_dict().get("hidden_size_per_layer_input", 0) % 32 == 0
    made = {}
    with torch.no_grad():
        for own in plan_of(model, "q4_0", "q4_0", "q4_0" if per_layer else None).grids:
            made[own] = by_googles_rule(model.get_parameter(own))
            model.get_parameter(own).copy_(products(*made[own]))
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Source(str(folder), None, None, str(folder)), tokenizer, made


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in FAMILY_MODELS])
def test_codes_of_every_family(name: str, tmp_path: Path) -> None:
    source, tokenizer, made = save(name, tmp_path / "in")
    model = load_float32(ModelConfig(source.base, dtype="float32", device="cpu"), source, tokenizer, [])
    plan = plan_for(model, STORED, source)
    put_on_grid(model, plan)
    trained = trained_tensors(model, plan)
    assert plan.grids.keys() == made.keys() and {*made} < {own for own, _ in stored_tensors(model)}
    for own, (codes, scales) in made.items():
        assert torch.equal(trained[own].codes.float(), codes.flatten(-2)), own
        assert torch.equal(trained[own].scales.abs(), scales.squeeze(-1)), own
    assert forward_line(model, trained, plan).verdict == OK
    config, generation = model.config.get_text_config(), model.generation_config
    file = gguf.export(trained, config, tokenizer, generation, plan, tmp_path / "x.gguf", name="x")
    lines = stored_lines("gguf", read_gguf(file, config), trained, plan)
    for what, export in (("w4a16", w4a16.export), ("merged", merged_from_grid.export)):
        export(ModelOnGrid(model, plan, trained, tokenizer, source), tmp_path / what, ExportConfig())
        lines += stored_lines(what, read_folder(tmp_path / what), trained, plan)
    assert [line.verdict for line in lines] == [OK] * len(lines), lines
    again = load_float32(ModelConfig(source.base, dtype="float32", device="cpu"), source, tokenizer, [])
    from_gguf = plan_for(again, STORED, source, read_gguf(file, config))
    put_on_grid(again, from_gguf)
    for own, tensor in trained_tensors(again, from_gguf).items():
        if own in made:
            assert all(map(torch.equal, tensor, trained[own])), own


def test_packed_in_forms_that_are_not_read(tmp_path: Path) -> None:
    """Experts one by one, as vLLM reads them, and the formats of phones and MLX; refused before anything is loaded."""
    source, tokenizer, _ = save("gemma4_26b", tmp_path / "in")
    options = ModelConfig(source.base, dtype="float32", device="cpu")
    model = load_float32(options, source, tokenizer, [])
    plan = plan_for(model, STORED, source)
    put_on_grid(model, plan)
    w4a16.export(
        ModelOnGrid(model, plan, trained_tensors(model, plan), tokenizer, source), tmp_path / "w4a16", ExportConfig()
    )
    packed = Source(str(tmp_path / "w4a16"), None, None, str(tmp_path / "w4a16"))
    with pytest.raises(UserError, match="each of its experts is packed alone"):
        check_source(options, AdapterConfig(), packed, load_config(packed), trains=True, merges=True, packed=True)
    file = tmp_path / "in" / "config.json"
    config = json.loads(file.read_text("utf-8"))
    for other in ({"quantization_config": {"quant_method": "gemma"}}, {"quantization": {"bits": 4, "group_size": 32}}):
        file.write_text(json.dumps(config | other), "utf-8")
        with pytest.raises(
            UserError, match=r"stored quantized \((gemma|MLX)\), and quant.grid=q4_0_checkpoint trains on"
        ):
            check_source(options, AdapterConfig(), source, load_config(source), trains=True, merges=True, packed=True)
