"""Dense exports of a model on a grid: the decoded weights, in files that anyone loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_models
import torch
from grid_models import TINY, changed, logits_of, on_grid, source_of, with_adapter
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from gemma_tune.config import ExportConfig, ModelConfig
from gemma_tune.errors import RunError
from gemma_tune.export import merged_from_grid
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.tensors import decoded_tensors, decoded_weight, trained_tensors
from gemma_tune.models.load_weights import load_base
from gemma_tune.quant.grid import GRIDS, Encoded
from gemma_tune.quant.layers import grid_layers, put_on_grid
from gemma_tune.quant.plan import plan_of

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("grid", "embedding", "adapter"),
    [("q4_0", "q4_0", False), ("q4_0", "q8_0", False), ("q4_0", None, False), ("q3_0", "q8_0", False),
     ("q4_0", None, True), ("q4_0", "q8_0", True)],
)  # fmt: skip
def test_bfloat16_files_hold_the_training_forward(
    grid: str, embedding: str | None, adapter: bool, tmp_path: Path
) -> None:
    """Stored in bfloat16 but for the norms, and in float32 the same logits as the model that was trained."""
    trained = on_grid(grid, embedding, adapter)
    merged_from_grid.export(trained, tmp_path, ExportConfig())
    stored = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for n, t in stored.items() if "norm" not in n} == {torch.bfloat16}
    for name, layer in grid_layers(trained.model).items():
        assert torch.equal(stored[name].float(), layer.forward_weight(torch.empty(0)))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits_of(loaded), logits_of(trained.model))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == trained.tokenizer.chat_template


def test_weights_that_bfloat16_can_not_hold_are_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = on_grid("q4_0_fp16", "q4_0_fp16")
    merged_from_grid.export(trained, tmp_path, ExportConfig())
    assert "written in float32: bfloat16 can't hold the weights of q4_0_fp16" in capsys.readouterr().err
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    assert torch.equal(logits_of(loaded), logits_of(trained.model))
    halves = decoded_weight(UP, trained.trained, trained.plan)
    assert not torch.equal(halves.bfloat16().float(), halves)


def test_quantized_after_training_is_the_grid_of_the_merged_weights() -> None:
    """A plain model, and one with PEFT's own adapter, give the codes of their float32 weights."""
    plain = changed(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32))
    plan = plan_of(plain, "q4_0", "q8_0")
    adapted = with_adapter(plain, None)
    found = dict(trained_tensors(adapted, plan))  # before the adapter is merged into the weights, in place
    put_on_grid(merged := adapted.merge_and_unload(), plan)
    expected = trained_tensors(merged, plan)
    assert found.keys() == expected.keys() == plan.sizes.keys()
    differ = 0
    for name, tensor in expected.items():
        if isinstance(tensor, Encoded):
            differ += int((found[name].codes != tensor.codes).sum())
        else:
            assert torch.equal(found[name], tensor), name
    assert differ < 100  # PEFT's product and sum may differ in the last bit, of 2.5 million


def test_adapter_merged_in_bfloat16_is_another_model() -> None:
    """Why the exporters don't take merged weights: the same tensors, rounded before they are quantized."""
    trained = on_grid("q4_0", None, adapter=True)
    name = "model.layers.0.self_attn.q_proj.weight"
    rounded_first = GRIDS["q4_0"].encode(grid_layers(trained.model)[name].float_weight().bfloat16())
    assert (rounded_first.codes != trained.trained[name].codes).float().mean() > 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_no_grid_holds_are_named(value: float) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    plan = plan_of(model, "q4_0", None)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 70] = value
    with pytest.raises(RunError, match=rf"^{UP}: (it holds NaN or infinity|its largest weight is 1e\+06)"):
        trained_tensors(model, plan)


def test_plan_of_another_model_is_refused() -> None:
    trained = on_grid()
    sizes = {**trained.plan.sizes, "model.layers.6.mlp.up_proj.weight": 5}
    with pytest.raises(RunError, match=r"^model.layers.6.mlp.up_proj.weight: the plan is another model's"):
        trained_tensors(trained.model, type(trained.plan)(trained.plan.grids, trained.plan.kept, sizes))
    with pytest.raises(RunError, match=rf"^{UP}: the plan is another model's"):
        trained_tensors(
            trained.model, type(trained.plan)(trained.plan.grids, trained.plan.kept, {**trained.plan.sizes, UP: 5})
        )
    grids = {**trained.plan.grids, UP: GRIDS["q3_0"]}
    with pytest.raises(RunError, match=rf"^{UP}: it was trained on the grid q4_0, and the plan says q3_0"):
        trained_tensors(trained.model, type(trained.plan)(grids, trained.plan.kept, trained.plan.sizes))


def test_towers_are_kept_to_the_bit(tmp_path: Path) -> None:
    """The language part of a checkpoint with images: its names, and all else that the checkpoint holds."""
    folder = small_models.save("gemma3", tmp_path / "published")
    source, tokenizer = source_of(folder), AutoTokenizer.from_pretrained(folder)
    language = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    base = load_base(ModelConfig(model_name_or_path=str(folder), dtype="float32", device="cpu"), source, tokenizer)
    plan = plan_of(base, "q4_0", "q8_0")
    put_on_grid(base, plan)
    trained = trained_tensors(base, plan)
    merged_from_grid.export(ModelOnGrid(base, plan, trained, tokenizer, source), tmp_path / "out", ExportConfig())
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    towers = [n for n in before if "language_model" not in n]
    assert towers and all(torch.equal(before[n], after[n]) for n in towers)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32)
    found = dict(loaded.model.language_model.named_parameters())
    for name, tensor in decoded_tensors(trained, plan).items():
        assert torch.equal(found[name.removeprefix("model.")], tensor), name
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, base(input_ids=ids).logits)
        assert not torch.equal(loaded(input_ids=ids).logits, language(input_ids=ids).logits)
