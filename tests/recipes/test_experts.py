"""Experts of Gemma 4 26B-A4B: adapters on them, trained, saved, merged, and inside the quantizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from short_runs import short_run
from small_models import save
from transformers import AutoModelForImageTextToText

import gemma_tune
from gemma_tune import UserError
from gemma_tune.cli.compose import compose_config
from gemma_tune.cli.stages import of_quantization

EXPERTS = "adapter.target_parameters=[experts.gate_up_proj,experts.down_proj]"
SMALL = ["data.max_train_samples=16", "data.max_eval_samples=4", "train.max_length=512", "eval.max_samples=2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("gemma4_26b", tmp_path_factory.mktemp("model") / "gemma4_26b")


@pytest.mark.slow
def test_adapters_on_experts_are_trained_saved_and_merged(model: Path, tmp_path: Path) -> None:
    """Merged weights are held to the adapter's own logits, and training goes on from the saved one."""
    words = [*SMALL, f"model.model_name_or_path={model}", "adapter.r=4", EXPERTS, "train.learning_rate=1e-2"]
    words += ["model.dtype=float32", "export.dtype=float32", "export.formats=[merged,adapter_vllm]"]
    result = short_run("lora_sft", tmp_path / "run", *words, steps=3)
    stored = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    of_experts = {n: t for n, t in stored.items() if ".experts." in n}
    assert len(of_experts) == 4 * 4 and all(t.any() for t in of_experts.values())  # A and B of two tensors of 4 blocks
    assert result.metrics["export"]["export_kl"] < 1e-6
    published = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(published, tmp_path / "run" / "adapter")  # as anyone would
    found = {n.replace(".default.", "."): p for n, p in loaded.named_parameters() if "lora_" in n}
    assert found.keys() == stored.keys() and all(torch.equal(found[n], stored[n]) for n in stored)
    (line,) = result.metrics["verify"]
    matrices = 4 * 4 * 3 + sum(".experts." not in n and "lora_A" in n for n in stored)
    assert (line["verdict"], line["found"]) == ("ok", f"{matrices} of {matrices} matrices"), line
    each = tmp_path / "run" / "export" / "adapter_vllm"
    assert f"--lora-modules tuned={each}" in (tmp_path / "run" / "report.md").read_text("utf-8").replace("\\", "")
    assert "library_name: vllm" in (each / "README.md").read_text("utf-8")
    words_of_export = ["export=adapter_vllm", f"model.model_name_or_path={tmp_path / 'run'}", "tracker=none"]
    exported = gemma_tune.run("export", [*words_of_export, *SMALL, f"output_dir={tmp_path / 'exported'}"])
    weights = [folder / "adapter_model.safetensors" for folder in (each, tmp_path / "exported/export/adapter_vllm")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert [line["verdict"] for line in exported.metrics["verify"]] == ["ok"]
    assert any("PEFT has no place for adapters of single experts" in n for n in exported.metrics["exported"]["notes"])
    base, merged = (load_file(f / "model.safetensors") for f in (model, tmp_path / "run" / "export" / "merged"))
    changed = {n for n in base if not torch.equal(base[n].float(), merged[n].float())}
    assert sum("experts" in n for n in changed) == 8
    again = [*SMALL, f"model.model_name_or_path={tmp_path / 'run'}", "adapter.r=4", EXPERTS, "export=none"]
    short_run("lora_sft", tmp_path / "again", *again, steps=1)


@pytest.mark.slow
def test_qat_of_experts_with_an_adapter_inside(model: Path, tmp_path: Path) -> None:
    words = [*SMALL, f"model.model_name_or_path={model}", "adapter=lora", "adapter.r=4", EXPERTS, "quant=q4_0"]
    words += ["export.formats=[gguf,w4a16,w4a16_transformers,merged]", "export.quality_samples=0"]
    result = short_run("qat", tmp_path / "run", *words, steps=2)
    verdicts = {line["name"]: line["verdict"] for line in result.metrics["verify"]}
    assert "fail" not in verdicts.values(), verdicts
    assert verdicts["w4a16 in Transformers"] == "unverified"
    assert verdicts["w4a16_transformers in Transformers, float32"] == "ok"
    assert verdicts["w4a16: codes and scales"] == verdicts["gguf: codes and scales"] == "ok"


def test_names_that_are_no_experts(model: Path, tmp_path: Path) -> None:
    words = ["adapter=lora", f"model.model_name_or_path={model}", f"output_dir={tmp_path / 'x'}"]
    with pytest.raises(UserError, match=r"target_parameters: q_proj.weight is no tensor of fused experts; they are "):
        short_run("lora_sft", tmp_path / "x", *words, "adapter.target_parameters=[q_proj.weight]", steps=1)
    with pytest.raises(UserError, match=r"target_parameters: gate_up_proj is no tensor of fused experts; they are "):
        short_run("lora_sft", tmp_path / "x", *words, "adapter.target_parameters=[gate_up_proj]", steps=1)
    with pytest.raises(UserError, match=r"layers_to_transform with adapter.target_parameters: PEFT adapts the experts"):
        compose_config("lora_sft", [EXPERTS, "adapter.layers_to_transform=[0]"])
    with pytest.raises(UserError, match=r"adapter.lora_dropout=0.1 with adapter.target_parameters"):
        compose_config("lora_sft", [EXPERTS, "adapter.lora_dropout=0.1"])


def test_the_second_training_of_tune_to_int4_has_the_experts_too() -> None:
    cfg = compose_config("tune_to_int4", [EXPERTS])
    assert of_quantization(cfg, Path("x")).adapter.target_parameters == cfg.adapter.target_parameters != []
