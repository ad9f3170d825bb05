"""A checkpoint on a 4-bit grid is trained on with its own codes and scales, and written with them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import qat_checkpoint
import small_models
import torch
from grid_models import ROWS, changed, source_of, with_adapter
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gemma_tune.config import ExportConfig, ModelConfig, QuantConfig
from gemma_tune.errors import UserError
from gemma_tune.export import merged_from_grid, w4a16
from gemma_tune.export.gguf_files import write_gguf
from gemma_tune.export.int4_check import stored_lines
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.read_back import read_folder
from gemma_tune.export.tensors import trained_tensors
from gemma_tune.models.family import language_name
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.quant.grid import GRIDS, Encoded
from gemma_tune.quant.lattice import find_lattice
from gemma_tune.quant.layers import GridLora, off_grid, put_on_grid
from gemma_tune.quant.load_float32 import load_float32
from gemma_tune.quant.stored import plan_for
from gemma_tune.run.paths import ASSETS
from gemma_tune.steps.grid_plan import grid_plan

STORED = QuantConfig(grid="q4_0_checkpoint", embedding="q4_0_checkpoint", cross_entropy=1.0)
TUNED = "model.layers.2.mlp.up_proj.weight"


def load(folder: Path) -> Any:
    options = ModelConfig(str(folder), dtype="float32", device="cpu")
    return load_base(options, source_of(folder), AutoTokenizer.from_pretrained(folder))


def log_probs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return functional.log_softmax(model(input_ids=torch.tensor(ROWS)).logits.double(), -1)


def kl(model: Any, of: torch.Tensor) -> float:
    found = log_probs(model)
    return (of.exp() * (of - found)).sum(-1).mean().item()


def hold_to_codes(made: dict[str, tuple[Any, Any]], trained: Any, but: tuple[str, ...] = ()) -> None:
    """Every tensor on the grid has the codes and scales of the rule, those named aside."""
    assert {name for name in trained if isinstance(trained[name], Encoded)} == {*made}
    for name in made.keys() - {*but}:
        codes, scales = made[name]
        assert torch.equal(trained[name].codes.float(), codes.flatten(-2)), name
        assert torch.equal(trained[name].scales.abs(), scales.squeeze(-1)), name


def test_nothing_is_lost_before_training_and_untouched_blocks_stay(tmp_path: Path) -> None:
    """Against the codes that the rule gave: full weights and an adapter inside; with derived scales, they are lost."""
    made = qat_checkpoint.save(tmp_path)
    model = load(tmp_path)
    as_stored = log_probs(model)
    plan = plan_for(model, STORED, source_of(tmp_path))
    assert plan.grids.keys() == made.keys() and not plan.frozen
    put_on_grid(model, plan)
    with off_grid(model):
        unquantized = log_probs(model)
    assert torch.equal(log_probs(model), unquantized)
    assert kl(model, as_stored) < 1e-4  # the files' numbers are products that were rounded to bfloat16
    hold_to_codes(made, trained_tensors(model, plan))
    with torch.no_grad():
        model.get_parameter(TUNED)[:5] *= 1.3
    trained = trained_tensors(model, plan)
    hold_to_codes(made, trained, (TUNED,))
    codes, scales = made[TUNED]
    assert torch.equal(trained[TUNED].codes[5:].float(), codes.flatten(-2)[5:])
    assert not torch.equal(trained[TUNED].codes[:5].float(), codes.flatten(-2)[:5])
    assert torch.equal(trained[TUNED].scales, scales.squeeze(-1))

    model = load(tmp_path)
    derived = plan_for(model, QuantConfig(grid="q4_0", embedding="q4_0"), source_of(tmp_path))
    put_on_grid(model, derived)
    assert kl(model, as_stored) > 1e-2
    (remark,) = derived.remarks
    assert re.search(r"which moves them by [3-7]\.\d% of their norm; quant=q4_0_checkpoint keeps its", remark), remark


def test_an_adapter_is_inside(tmp_path: Path) -> None:
    made = qat_checkpoint.save(tmp_path, embedding=False)
    model = load(tmp_path)
    plan = plan_for(model, STORED, source_of(tmp_path))
    assert plan.kept["model.embed_tokens.weight"] == "16 bit"
    adapted = with_adapter(model, GridLora)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.mul_(20)  # a code changes where a weight moves by half a scale
    put_on_grid(adapted, plan)
    trained = trained_tensors(adapted, plan)
    touched = tuple(name for name in made if "self_attn" in name)
    hold_to_codes(made, trained, touched)
    for name in touched:
        codes, scales = made[name]
        assert not torch.equal(trained[name].codes.float(), codes.flatten(-2))
        assert torch.equal(trained[name].scales, scales.squeeze(-1))


def test_weights_that_are_on_no_grid() -> None:
    model, tiny = load(ASSETS / "tiny"), source_of(ASSETS / "tiny")
    with pytest.raises(UserError, match=r"42 of 43 tensors are not, for example model.layers.0.* blocks\); use quant"):
        plan_for(model, STORED, tiny)
    assert plan_for(model, QuantConfig(grid="q4_0"), tiny).remarks == ()


def test_packed_codes_are_trained_on_and_written_again(tmp_path: Path) -> None:
    """A folder of compressed-tensors: its scales are read, not found; both kinds of folders are written from it."""
    made = qat_checkpoint.save_packed(tmp_path / "in")
    source, options = source_of(tmp_path / "in"), ModelConfig(str(tmp_path / "in"), dtype="float32", device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "in")
    model = load_float32(options, source, tokenizer, [], packed=True)
    plan = plan_for(model, STORED, source)
    put_on_grid(model, plan)
    trained = trained_tensors(model, plan)
    hold_to_codes(made, trained)
    for name, export in (("merged", merged_from_grid.export), ("w4a16", w4a16.export)):
        export(ModelOnGrid(model, plan, trained, tokenizer, source), tmp_path / name, ExportConfig())
        assert {line.verdict for line in stored_lines(name, read_folder(tmp_path / name), trained, plan)} == {"ok"}
        config = json.loads((tmp_path / name / "config.json").read_text("utf-8"))
        assert ("quantization_config" in config) == (name == "w4a16")
    for name, (_, scales) in made.items():
        found = find_lattice(load_file(tmp_path / "merged" / "model.safetensors")[name])
        assert torch.equal(found.scales.float(), scales.squeeze(-1)), name


@pytest.mark.parametrize(("other", "words"), [("group", "one for each 32 weights"), ("zero", "codes from -8 to 7")])
def test_packed_in_another_way(other: str, words: str, tmp_path: Path) -> None:
    made = qat_checkpoint.save_packed(tmp_path)
    model = load_float32(
        ModelConfig(str(tmp_path), dtype="float32", device="cpu"),
        source_of(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
        [],
        packed=True,
    )
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = f"{min(made)}_scale"
    tensors[name] = tensors[name][:, ::2].contiguous() if other == "group" else tensors[name] * 1.1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=words):
        plan_for(model, STORED, source_of(tmp_path))


def test_a_table_that_the_model_lacks_is_a_remark() -> None:
    plan = grid_plan(load(ASSETS / "tiny"), QuantConfig("q4_0", per_layer_embedding="q8_0"), source_of(ASSETS / "tiny"))
    assert plan.lines()[-1] == "quant.per_layer_embedding=q8_0 has no effect: this model has no such table"
    assert not grid_plan(load(ASSETS / "tiny"), QuantConfig("q4_0"), source_of(ASSETS / "tiny")).remarks


def test_a_gguf_file_is_trained_on(tmp_path: Path) -> None:
    """Its codes, scales and norms take the place of those of the model, of which it is a version."""
    made = qat_checkpoint.save(tmp_path / "in")
    model, tokenizer = load(tmp_path / "in"), AutoTokenizer.from_pretrained(tmp_path / "in")
    plan = plan_for(model, STORED, source_of(tmp_path / "in"))
    put_on_grid(model, plan)
    wanted = log_probs(model)
    file = write_gguf("gguf", "x", tmp_path / "gguf", model, tokenizer, trained_tensors(model, plan), plan)

    other = changed(load(ASSETS / "tiny"))
    options = replace(STORED, checkpoint_file=str(file))
    plan = grid_plan(other, options, source_of(ASSETS / "tiny"))
    put_on_grid(other, plan)
    hold_to_codes(made, trained_tensors(other, plan))
    assert kl(other, wanted) < 1e-9  # GGUF holds norms with 1 added, in float32

    larger = load(ASSETS / "tiny")
    larger.resize_token_embeddings(1600)  # with rows that no token has, which converters leave out
    unused = larger.get_input_embeddings().weight[1536:].detach().clone()
    plan = grid_plan(larger, options, source_of(ASSETS / "tiny"))
    put_on_grid(larger, plan)
    (name,) = (name for name in made if "embed" in name)
    encoded = trained_tensors(larger, plan)[name]
    assert torch.equal(encoded.codes[:1536].float(), made[name][0].flatten(-2))
    assert torch.equal(plan.grids[name].decode(encoded)[1536:], GRIDS["q4_0"].rounded(unused))

    for shape, said in ({"intermediate_size": 512}, r"mlp\.\w+.weight is \("), ({"num_hidden_layers": 8}, "it lacks 2"):
        config = AutoConfig.from_pretrained(ASSETS / "tiny", layer_types=["full_attention"] * 8, **shape)
        with pytest.raises(UserError, match=said):
            grid_plan(AutoModelForCausalLM.from_config(config), options, source_of(ASSETS / "tiny"))
    file.write_bytes(file.read_bytes()[:-4096])
    with pytest.raises(UserError, match=r"quant.checkpoint_file: .*ends before"):
        grid_plan(other, options, source_of(ASSETS / "tiny"))


@pytest.mark.parametrize("packed", [False, True])
def test_a_checkpoint_with_towers(packed: bool, tmp_path: Path) -> None:
    """Names as published, and towers that stay as they are in every folder."""
    base = small_models.save("gemma3", tmp_path / "base")
    folder = tmp_path / "in"
    made = qat_checkpoint.save_packed(folder, base) if packed else qat_checkpoint.save(folder, base)
    source, options = source_of(folder), ModelConfig(str(folder), dtype="float32", device="cpu")
    tokenizer = load_tokenizer(source)
    model = load_float32(options, source, tokenizer, [], packed=packed)
    plan = plan_for(model, STORED, source)
    put_on_grid(model, plan)
    trained = trained_tensors(model, plan)
    hold_to_codes({language_name(name): found for name, found in made.items()}, trained)
    stored = load_file(folder / "model.safetensors")
    towers = {name for name in stored if "tower" in name or "projector" in name}
    assert towers
    for name, export in (("merged", merged_from_grid.export), ("w4a16", w4a16.export)):
        export(ModelOnGrid(model, plan, trained, tokenizer, source), tmp_path / name, ExportConfig())
        assert {line.verdict for line in stored_lines(name, read_folder(tmp_path / name), trained, plan)} == {"ok"}
        written = load_file(tmp_path / name / "model.safetensors")
        assert all(torch.equal(written[own], stored[own]) for own in towers)
        config = json.loads((tmp_path / name / "config.json").read_text("utf-8"))
        assert ("quantization_config" in config) == (name == "w4a16")
        assert "quantization_config" not in config["text_config"]
